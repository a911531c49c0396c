"""What a request's path says about whose it is."""

from __future__ import annotations

from starlette.types import Scope

PROTOCOL_PREFIX = "/v2"
"""Below it is the Open Inference Protocol (v2/), whose clients expect errors in its own form."""


def path_of(scope: Scope) -> str:
    """The path inside this app: where it is mounted, Starlette leaves the mount's prefix in `path` and repeats it in `root_path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def is_protocol(scope: Scope) -> bool:
    """Whether a request is the Open Inference Protocol's to answer."""
    if scope["type"] != "http":
        return False
    path: str = path_of(scope) if scope.get("root_path") else scope["path"]
    return path.startswith(PROTOCOL_PREFIX) and path[len(PROTOCOL_PREFIX) :][:1] in {"", "/"}
