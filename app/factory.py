"""Pipelines as a FastAPI app to serve or mount (`create_app`), or as a router (`create_router`)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import penstock
from penstock.backends.memory import limited
from penstock.pipelines.cache.responses import ResponseCache, SecondLevel
from penstock.pipelines.repository import Repository

from .grpc.start import grpc_server
from .history.ring import History
from .http.assets import Pages, is_public
from .http.auth import Authenticate
from .http.errors import install_handlers
from .http.hosts import CORS_METHODS, EXPOSED_HEADERS, AllowedHosts
from .http.paths import is_protocol, whole
from .http.predict import HotRoutes, Predict, predict_route
from .http.predict_call import Fetch
from .http.restriction import Restricted, Restriction, restriction_of
from .metrics import Metrics
from .openapi.document import OpenAPI
from .openapi.page import docs_assets
from .page.files import page_assets
from .routes import routes, socket_routes, typed_routes
from .settings import REDIS_SCHEMES, Settings, split, unknown_variables
from .status.answer import Status
from .trace.tracing import Tracing
from .v2.call import error_answer
from .v2.router import protocol_router
from .v2.routes import ProtocolApp, protocol_app

if TYPE_CHECKING:  # few servers shadow another
    from .shadow.shadow import Shadow

logger = logging.getLogger("penstock")


def create_app(
    source: Any = None,
    *,
    settings: Settings | None = None,
    labels: str | os.PathLike[str] | None = None,
    title: str = "Penstock",
    middleware: Sequence[Middleware] = (),
) -> FastAPI:
    """Make a FastAPI app that serves pipelines.

    `source`: a TOML file, a directory of TOML files, an `.onnx` classifier (with `labels`), a dict,
    an expression, a `PipelineConfig`, a list of these, a `Repository`, or None. `settings`: read
    from the environment if not given. `middleware` sees every request, also those to predict,
    before the API key is checked; so does middleware that `app.add_middleware` adds.

    Pipelines are read and checked here; `ConfigError` has every problem. Of a directory, what can't
    be read or loaded is logged and left out, unless `settings.strict`. The app's lifespan loads
    them, and drains them at its end. A `Repository` that is loading or ready already belongs to the
    caller: the lifespan leaves it alone. The repository is `app.state.penstock`. The lifespan also
    serves by gRPC, if `settings.grpc_port` is set; `app.state.grpc.port` is the real port.

    Starlette does not run the lifespan of a mounted app. The lifespan of its host must:

    ```python
    models = create_app("digits.toml")
    host = FastAPI(lifespan=lambda host: lifespan(models))
    host.mount("/models", models)
    ```
    """
    return make_app(source, settings=settings, labels=labels, title=title, middleware=middleware)


def make_app(
    source: Any = None,
    *,
    settings: Settings | None = None,
    labels: str | os.PathLike[str] | None = None,
    title: str = "Penstock",
    middleware: Sequence[Middleware] = (),
    shadow: Callable[[Repository, Settings], Shadow] | None = None,
) -> FastAPI:
    """Do what `create_app` does.

    `shadow`: makes the shadow of a running Triton, which answers the paths below /v2 until the
    switch. It is `app.state.shadow`.
    """
    settings = _settings_of_environment() if settings is None else settings
    repository = _repository(source, labels, settings)
    history = _history(settings, repository)
    tracing = _tracing(settings, repository)
    protocol = protocol_app(repository, settings, history, tracing)
    predict = Predict(repository, settings, _fetch(settings), history, tracing)
    metrics = Metrics(repository, settings.ready_when, tracing)
    protected = settings.api_key is not None
    restriction = restriction_of(settings.restricted_api)
    shadowed = None if shadow is None else shadow(repository, settings)
    page = Pages(page_assets(protected) if settings.page else {})
    docs = Pages(docs_assets(protected, settings.page, restriction))
    checks: list[Middleware] = []
    if hosts := split(settings.allowed_hosts):
        checks.append(Middleware(AllowedHosts, hosts=hosts, protocol_error=error_answer))
    if origins := split(settings.cors_origins):
        # Before the API key: a browser asks for leave (OPTIONS) without it.
        checks.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=CORS_METHODS,
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    if protected:
        checks.append(
            Middleware(
                Authenticate,
                settings=settings,
                protocol_error=error_answer,
                is_public=lambda scope: is_public(scope, app.router, page, docs),
            )
        )
    app: _App = _App(
        title=title,
        version=penstock.__version__,
        lifespan=_lifespan(repository, settings, protocol, metrics, tracing, shadow=shadowed),
        middleware=[
            *middleware,
            *checks,
            Middleware(
                HotRoutes,
                predict=predict,
                protocol=protocol if shadowed is None else shadowed.front(protocol),
            ),
        ],
        docs_url=None,
        redoc_url=None,
        # Asking for a telemetry provider costs each request 3 µs (os.environ). Our traces come
        # with the protocol's trace extension.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.penstock = repository
    app.state.metrics = metrics
    app.state.history = history
    app.state.tracing = tracing
    app.state.protocol = protocol
    app.state.shadow = shadowed
    install_handlers(app)
    _guard_document(app, restriction)
    docs.lead(app.router, "/docs", "/docs/", "/docs/assets/{file:path}")
    status = Status(repository, settings, history)
    app.include_router(
        routes(repository, settings, predict, metrics=metrics, status=status, history=history)
    )
    if shadowed is not None:
        from .shadow.routes import shadow_routes

        app.include_router(shadow_routes(shadowed, settings))
    page.follow(app.router)
    app.openapi = OpenAPI(app, repository, settings)  # type: ignore[method-assign]
    return app


class _App(FastAPI):
    """FastAPI with a short cut for the hot routes, which answer every error themselves.

    If only FastAPI's own middleware (catchers of errors) is in front of `HotRoutes`, requests go to
    it at once. That spares them five coroutines and two wrapped `send`s, 3 µs. The short cut looks
    at the stack that was really built: any other wrapper, added by `add_middleware` or otherwise,
    closes it.
    """

    _hot: HotRoutes | None = None
    _behind_key: HotRoutes | None = None  # the same, with or without the check of the API key
    _stack: ASGIApp | None = None  # the one that `_hot` was found in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stack is not self.middleware_stack:
            self._find_hot()
        if self._hot is not None:
            route = predict_route(scope)
            if route is not None:
                await self._hot.predict(scope, receive, send, *route)
                return
            if is_protocol(scope):
                await self._hot.protocol(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def hot_routes(self) -> HotRoutes | None:
        """Return the hot routes if nothing else of the app sees their requests, except the check of
        the API key, which is then left to the caller.

        Called when it serves, as `__call__` is: no middleware can be added any more.
        """
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        if self._stack is not self.middleware_stack:
            self._find_hot()
        return self._behind_key

    def hot_routes_behind_checks(self) -> HotRoutes | None:
        """Return the hot routes, whatever stands before them: a front process has made the checks
        of the app's middleware, and nobody has added any.
        """
        self.hot_routes()  # builds the stack
        stack: Any = self.middleware_stack
        while stack is not None and type(stack) is not HotRoutes:
            stack = getattr(stack, "app", None)
        return stack

    def _find_hot(self) -> None:
        stack: Any = self.middleware_stack
        self._stack = stack
        added: set[Any] = {middleware.cls for middleware in self.user_middleware}
        while type(stack) not in added and type(stack).__module__.partition(".")[0] in (
            "fastapi",
            "starlette",
        ):
            stack = getattr(stack, "app", None)
        self._hot = stack if type(stack) is HotRoutes and not self.root_path else None
        if type(stack) is Authenticate:
            stack = stack.app
        self._behind_key = stack if type(stack) is HotRoutes and not self.root_path else None


def create_router(
    source: Any = None,
    *,
    settings: Settings | None = None,
    labels: str | os.PathLike[str] | None = None,
    **router: Any,
) -> APIRouter:
    """Make the same as an `APIRouter`, for a host's `include_router`:

    ```python
    host.include_router(create_router("digits.toml", prefix="/models", dependencies=[...]))
    ```

    Its routes are ordinary ones, so the dependencies of host and router hold, at the price of
    FastAPI's routing for each request. Its lifespan runs with the host's. `router`: more arguments
    of `APIRouter`.
    """
    settings = _settings_of_environment() if settings is None else settings
    repository = _repository(source, labels, settings)
    history = _history(settings, repository)
    tracing = _tracing(settings, repository)
    protocol = protocol_app(repository, settings, history, tracing)
    metrics = Metrics(repository, settings.ready_when, tracing)
    life = _lifespan(repository, settings, protocol, metrics, tracing)
    api_router = APIRouter(lifespan=life, **router)
    predict = Predict(repository, settings, _fetch(settings), history, tracing)
    api_router.include_router(socket_routes(predict.rules))
    api_router.include_router(typed_routes(repository, settings, predict))
    api_router.include_router(
        routes(
            repository,
            settings,
            predict,
            metrics=metrics,
            status=Status(repository, settings, history),
            history=history,
        )
    )
    api_router.include_router(protocol_router(protocol, settings))
    return api_router


def lifespan(app: FastAPI) -> AbstractAsyncContextManager[Any]:
    """Start the pipelines of an app made by `create_app`, and drain them at the end.

    For hosts that mount the app.
    """
    return app.router.lifespan_context(app)


def _guard_document(app: FastAPI, restriction: Restriction) -> None:
    """Let the route of the document, the only one that `app` has by now, check its group."""
    (route,) = app.router.routes
    assert isinstance(route, Route)
    route.path_regex = whole(route.path_regex)
    route.app = Restricted(route.app, "metadata", restriction)


def _settings_of_environment() -> Settings:
    """Read the settings from the environment, and warn of variables that are none."""
    for warning in unknown_variables(os.environ):
        logger.warning("%s", warning)
    return Settings()


def _repository(
    source: Any, labels: str | os.PathLike[str] | None, settings: Settings
) -> Repository:
    """Return the repository of an app, with the cache that the settings describe.

    One that is loading or ready has its own.
    """
    repository = (
        source
        if isinstance(source, Repository)
        else Repository.read(source, labels=labels, strict=settings.strict)
    )
    if repository.state not in ("loading", "ready"):
        repository.responses = ResponseCache(settings.cache_size, _second_level(settings))
    return repository


def _second_level(settings: Settings) -> Callable[[], SecondLevel] | None:
    """Return what connects the caches to Redis, when a pipeline needs it; None if none is set."""
    if settings.cache_redis is None:
        return None
    url = settings.cache_redis.get_secret_value()

    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
    known = parts._replace(scheme=REDIS_SCHEMES[parts.scheme]).geturl()

    def connect() -> SecondLevel:
        from penstock.pipelines.cache.second_level import RedisLevel

        return RedisLevel(known, place)

    return connect


def _history(settings: Settings, repository: Repository) -> History | None:
    """Make the history of an app, whose pipelines then note what explains a request."""
    if not settings.request_history:
        return None
    repository.note_batches()
    return History(settings.request_history)


def _tracing(settings: Settings, repository: Repository) -> Tracing | None:
    """Make the tracing of an app, whose pipelines then note what spans say."""
    if settings.trace_mode == "off":
        return None
    from .trace.start import tracing_of

    repository.note_batches()
    return tracing_of(settings)


def _fetch(settings: Settings) -> Fetch | None:
    """Make the fetcher of images by URL. httpx is imported only if the operator allows that."""
    if not settings.allow_url:
        return None
    from .http.fetch import Fetcher

    ports = [int(port) for port in settings.url_ports.split(",")]
    return Fetcher(max_bytes=settings.max_body, timeout=settings.url_timeout, ports=ports)


def _lifespan(
    repository: Repository,
    settings: Settings,
    protocol: ProtocolApp,
    metrics: Metrics,
    tracing: Tracing | None,
    *,
    shadow: Shadow | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(_close_tracing, tracing)
            grpc = grpc_server(
                protocol,
                repository,
                settings,
                metrics.registry,
                settings.max_connections,
                front=None if shadow is None else shadow.grpc_front(),
            )
            if grpc is not None:
                await grpc.start()
                stack.push_async_callback(grpc.stop, settings.drain_timeout)
            if isinstance(app, _App):
                app.state.grpc = grpc
            # A repository that is loading or ready belongs to the caller, which closes it too.
            # Nothing runs between this look and the first step of `start`, which sets the state: of
            # two lifespans over one repository exactly one starts it.
            if repository.state not in ("loading", "ready"):
                await repository.start()
                stack.push_async_callback(_close, repository, settings.drain_timeout)
            stack.enter_context(limited(settings.max_memory))
            if shadow is not None:
                shadow.start()
                stack.push_async_callback(shadow.end)
            yield

    return run


async def _close_tracing(tracing: Tracing) -> None:
    await asyncio.shield(asyncio.to_thread(tracing.close))


async def _close(repository: Repository, seconds: float) -> None:
    await asyncio.shield(repository.close(seconds))
