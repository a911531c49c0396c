"""Paths of requests: decide which handler owns one."""

from __future__ import annotations

from starlette.types import Scope

PROTOCOL_PREFIX = "/v2"
"""The Open Inference Protocol (v2/) is below it; its clients expect errors in their own form."""


def path_of(scope: Scope) -> str:
    """Return the path inside this app.

    For a mounted app, Starlette leaves the prefix of the mount in `path` and repeats it in
    `root_path`.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def is_protocol(scope: Scope) -> bool:
    """Return whether the Open Inference Protocol answers a request."""
    if scope["type"] != "http":
        return False
    path: str = path_of(scope) if scope.get("root_path") else scope["path"]
    return path.startswith(PROTOCOL_PREFIX) and path[len(PROTOCOL_PREFIX) :][:1] in {"", "/"}
