"""The routes below /v2: one table of method, pattern and handler, and the ASGI app that goes by it.

Whatever happens on a path below /v2, the answer to an error is `{"error": …}`: clients of the protocol read nothing else. So FastAPI's
router, which has its own ideas of 404, 405 and 422, never sees these requests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence

from starlette.types import Receive, Scope, Send

from penstock.backends.errors import PenstockError
from penstock.pipelines.repository import Repository

from ..http.body import ClientLeft, must_close
from ..http.paths import path_of
from ..http.request_id import request_id_of
from ..http.restriction import restriction_of
from ..settings import Settings
from .call import Answer, Call, Route, error_answer, error_with, json_answer
from .health import health_routes
from .infer.handler import Infer
from .models.description import description_routes
from .models.model import Models
from .models.repository import RepositoryRoutes
from .models.statistics import statistics_routes
from .shared_memory import SharedMemory, shared_memory_routes

logger = logging.getLogger("penstock.http")

EXTENSIONS = (
    "classification", "model_repository", "model_repository(unload_dependents)", "schedule_policy", "model_configuration",
    "system_shared_memory", "binary_tensor_data", "parameters", "statistics",
)  # fmt: skip
"""What `GET /v2` says that this server has, by the names of Triton's."""

MOST, LONGEST = 1024, 256
"""Paths whose routes are remembered (then it begins anew), and characters of one."""

Guard = Callable[[str, Scope], None]
"""Raises what a request for a route of that group is answered, where it may not have it."""


class V2:
    """The protocol as an ASGI app."""

    def __init__(
        self, routes: Iterable[Route], settings: Settings, guard: Guard = lambda group, scope: None
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._known: dict[
            tuple[str, str], tuple[Route, dict[str, str]]
        ] = {}  # paths that were asked for: few, again and again
        self._table: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_pattern: dict[str, dict[str, Route]] = {}
        for route in routes:
            methods = by_pattern.get(route.pattern)
            if methods is None:
                methods = by_pattern[route.pattern] = {}
                self._table.append((_compiled(route.pattern), methods))
            methods[route.method] = route

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, path: str | None = None
    ) -> None:
        """`path`: what is below the router's prefix; None: the request's own."""
        call: Call | None = None
        try:
            route, names = self._find(scope["method"], path_of(scope) if path is None else path)
            self._guard(route.group, scope)
            call = Call(scope, receive, names, self._settings)
            found = await route.handler(call)
            answer = (
                found
                if isinstance(found, Answer)
                else Answer()
                if found is None
                else json_answer(found)
            )
        except ClientLeft:
            answer = Answer(499)
        except _NoRoute as error:
            answer = error_with(error.status, error.message, error.headers)
        except Exception as error:
            if not isinstance(error, PenstockError):
                logger.exception(
                    "request %s failed",
                    request_id_of(scope),
                    extra={"request_id": request_id_of(scope)},
                )
            answer = error_answer(error)
        unread = call is None or not call.read
        await respond(
            scope,
            send,
            answer,
            close=unread and (must_close(scope) or (call is not None and call.late)),
        )

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        found = self._known.get((method, path))
        if found is None:
            found = self._look_up(method, path)
            if len(path) <= LONGEST:
                if len(self._known) >= MOST:
                    self._known.clear()
                self._known[method, path] = found
        return found

    def _look_up(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        for pattern, methods in self._table:
            match = pattern.fullmatch(path)
            if match is not None:
                route = methods.get("GET" if method == "HEAD" else method)
                if route is None:
                    allowed = [*methods, "HEAD"] if "GET" in methods else methods
                    raise _NoRoute(
                        405, "Method Not Allowed", ((b"allow", ", ".join(allowed).encode()),)
                    )
                return route, {name: value or "" for name, value in match.groupdict().items()}
        raise _NoRoute(404, "Not Found")


class _NoRoute(Exception):  # noqa: N818  it is answered, and never leaves this module
    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.status = status
        self.message = message
        self.headers = headers


def _compiled(pattern: str) -> re.Pattern[str]:
    """`/v2/models/{model}[/versions/{version}]/config`, as a regular expression."""
    text = re.escape(pattern).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", text))


async def respond(scope: Scope, send: Send, answer: Answer, close: bool = False) -> None:
    """Send an answer. `close`: the body was not read, and the connection must not outlive that."""
    headers = [
        *answer.headers,
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request_id_of(scope).encode("latin-1")),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send(
        {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body}
    )


def protocol(repository: Repository, settings: Settings) -> V2:
    """All of it, over the pipelines of a repository."""
    models = Models(repository)
    memory = SharedMemory(settings.map_shared_memory)
    routes: Sequence[Route] = (
        *Infer(models, settings, memory).routes,  # first: the table is gone through in order
        *health_routes(repository, EXTENSIONS),
        *statistics_routes(repository, models),
        *RepositoryRoutes(repository, settings).routes,
        *description_routes(models),
        *shared_memory_routes(memory, settings),
    )
    restriction = restriction_of(settings.restricted_api)
    return V2(routes, settings, restriction.check) if restriction else V2(routes, settings)
