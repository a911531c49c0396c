"""Paths of requests: decide which handler owns one."""

from __future__ import annotations

import re
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

PROTOCOL_PREFIX = "/v2"
"""The Open Inference Protocol (v2/) is below it; its clients expect errors in their own form."""


def path_of(scope: Scope) -> str:
    """Return the path inside this app, as Starlette's routes see it.

    For a mounted app, Starlette leaves the prefix of the mount in `path` and repeats it in
    `root_path`.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        rest = path[len(root) :]
        if not rest or rest[0] == "/":
            return rest
    return path


def whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return a pattern of Starlette's that matches whole paths only.

    Theirs end with `$`, which also matches before a line break: `/docs` would match `/docs%0a`.
    """
    return re.compile(pattern.pattern.removesuffix("$") + r"\Z", pattern.flags)


def sort_allow(error: HTTPException) -> None:
    """Sort the methods in the header Allow of a 405. A router writes them in the order of a set,
    which differs from one start of the server to the next.
    """
    if error.headers and "Allow" in error.headers:
        methods = ", ".join(sorted(error.headers["Allow"].split(", ")))
        error.headers = {**error.headers, "Allow": methods}


class WholePathRoute(APIRoute):
    """A route that `%0a` at the end of a path does not lead to, with a sorted Allow in its 405.

    FastAPI compiles the pattern again for each router that includes the route, so it is not
    replaced here (see `whole`).
    """

    def matches(self, scope: Scope) -> tuple[Match, Any]:
        if path_of(scope).endswith("\n"):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().handle(scope, receive, send)
        except HTTPException as error:
            sort_allow(error)
            raise


def is_protocol(scope: Scope) -> bool:
    """Return whether the Open Inference Protocol answers a request."""
    if scope["type"] != "http":
        return False
    path: str = path_of(scope) if scope.get("root_path") else scope["path"]
    return path.startswith(PROTOCOL_PREFIX) and path[len(PROTOCOL_PREFIX) :][:1] in {"", "/"}
