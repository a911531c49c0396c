"""The routes below /v2: a table of method, pattern and handler, and the ASGI app that uses it.

Every error on a path below /v2 is answered as `{"error": …}`, because clients of the protocol read
nothing else. FastAPI's router would answer 404, 405 and 422 in its own form, so it never sees these
requests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from penstock.backends.errors import forget_frames
from penstock.pipelines.repository import Repository

from ..history.record import Failure
from ..history.ring import History
from ..http.body import ClientLeft, must_close
from ..http.errors import log_failure
from ..http.paths import path_of
from ..http.request_id import request_id_of
from ..http.restriction import restriction_of
from ..settings import Settings
from ..trace.trace_settings import TraceSettings, Values
from ..trace.tracing import Tracing
from .call import (
    ProtocolAnswer,
    ProtocolCall,
    Route,
    Sent,
    error_answer,
    error_with,
    failure_of,
    json_answer,
)
from .cuda_memory import cuda_memory_routes
from .generate.handler import Generate
from .health import health_routes
from .infer.handler import Infer
from .log_settings import log_settings_routes
from .models.description import description_routes
from .models.model import Models
from .models.repository import RepositoryRoutes
from .models.statistics import statistics_routes
from .shared_memory import SharedMemory, shared_memory_routes
from .trace_setting import trace_routes

logger = logging.getLogger("penstock.http")

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The extensions that `GET /v2` lists, by Triton's names."""

REMEMBERED_PATHS = 1024
"""The most paths whose routes are remembered. When there are more, all are forgotten."""

REMEMBERED_PATH_CHARACTERS = 256
"""The longest path that is remembered."""

Guard = Callable[[str, Scope], None]
"""Checks a request for a route of a group, and raises the error if the client may not use it."""


class ProtocolApp:
    """The protocol as an ASGI app."""

    def __init__(
        self,
        infer: Infer,
        routes: Iterable[Route],
        settings: Settings,
        guard: Guard = lambda group, scope: None,
    ) -> None:
        self.infer = infer
        self.guard = guard
        self._settings = settings
        # Clients ask for few paths, again and again.
        self._remembered: dict[tuple[str, str], tuple[Route, dict[str, str]]] = {}
        self._table: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        self._by_pattern = by_pattern = dict[str, dict[str, Route]]()
        for route in (infer.route, *routes):
            methods = by_pattern.get(route.pattern)
            if methods is None:
                methods = by_pattern[route.pattern] = {}
                self._table.append((_compiled(route.pattern), methods))
            methods[route.method] = route

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, path: str | None = None
    ) -> None:
        """Answer a request. `path` is the path below a router's prefix; None: the request's own."""
        call: ProtocolCall | None = None
        failure: Failure | None = None
        try:
            route, names = self._find(scope["method"], path_of(scope) if path is None else path)
            self.guard(route.group, scope)
            call = ProtocolCall(scope, receive, names, self._settings)
            call.send = send
            result = await route.handler(call)
            if isinstance(result, Sent):
                if call.ended is not None:
                    call.ended(*result)
                return
            if isinstance(result, ProtocolAnswer):
                answer = result
            else:
                answer = ProtocolAnswer() if result is None else json_answer(result)
            call.memory.close()
        except ClientLeft:
            answer = ProtocolAnswer(499)
        except _NoRoute as error:
            answer = error_with(error.status, error.message, error.headers)
        except Exception as error:
            log_failure(
                error, request_id_of(scope), None if call is None else call.names.get("model")
            )
            failure = failure_of(error)
            answer = error_answer(error)
            if call is not None:
                call.memory.close()
            forget_frames(error)
        if call is not None and call.ended is not None:
            call.ended(answer.status, failure)
            call.ended = None  # it holds the request
        unread = call is None or not call.body_was_read
        late = call is not None and call.body_was_late
        await respond(scope, send, answer, close=unread and (must_close(scope) or late))

    def check(self, scope: Scope) -> None:
        """Raise what the guard raises for a request; nothing if no route has its path."""
        with suppress(_NoRoute):
            route, _ = self._find(scope["method"], path_of(scope))
            self.guard(route.group, scope)

    def route(self, method: str, pattern: str) -> Route:
        """Return the route of a method and a pattern, for calls that do not come by HTTP."""
        return self._by_pattern[pattern][method]

    def names_of_infer(self, path: str) -> dict[str, str] | None:
        """Return the names in the path of an infer request; None for any other path."""
        try:
            route, names = self._find("POST", path)
        except _NoRoute:
            return None
        return names if route is self.infer.route else None

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        match = self._remembered.get((method, path))
        if match is None:
            match = self._look_up(method, path)
            if len(path) <= REMEMBERED_PATH_CHARACTERS:
                if len(self._remembered) >= REMEMBERED_PATHS:
                    self._remembered.clear()
                self._remembered[method, path] = match
        return match

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
    """Raised for a path or a method that no route has."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.status = status
        self.message = message
        self.headers = headers


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern such as `/v2/models/{model}[/versions/{version}]/config`."""
    text = re.escape(pattern).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", text))


async def respond(scope: Scope, send: Send, answer: ProtocolAnswer, close: bool = False) -> None:
    """Send an answer.

    `close`: tell the client that the connection ends, because the body was not read to its end.
    """
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


def protocol_app(
    repository: Repository,
    settings: Settings,
    history: History | None = None,
    tracing: Tracing | None = None,
) -> ProtocolApp:
    """Return the protocol's app for the pipelines of a repository.

    `history` and `tracing`: None if no requests are remembered, or traced.
    """
    models = Models(repository)
    memory = SharedMemory(settings.map_shared_memory, settings.max_shared_memory_regions)
    infer = Infer(models, settings, memory, history, tracing)
    trace = TraceSettings(Values(), "triton", "") if tracing is None else tracing.settings
    # The table is searched in this order, after infer, which is by far the most frequent: the
    # statistics' /v2/models/stats has to come before the description's /v2/models/{model}.
    routes: Sequence[Route] = (
        *Generate(infer).routes,
        *health_routes(repository, EXTENSIONS, settings.ready_when),
        *statistics_routes(repository, models),
        *RepositoryRoutes(repository, settings).routes,
        *description_routes(models),
        *shared_memory_routes(memory),
        *cuda_memory_routes(memory),
        *trace_routes(trace, models),
        *log_settings_routes(),
    )
    restriction = restriction_of(settings.restricted_api)
    guard = [restriction.check] if restriction else []
    return ProtocolApp(infer, routes, settings, *guard)
