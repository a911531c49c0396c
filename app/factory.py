"""`create_app`: pipelines as a FastAPI app, to be served, mounted or taken as a router (`create_router`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

import penstock
from penstock.pipelines.repository import Repository

from .http.auth import Authenticate
from .http.errors import install_handlers
from .http.paths import is_protocol
from .http.predict import Fetch, HotRoutes, Predict, predict_route
from .http.restriction import Restrict, restriction_of
from .metrics import Metrics
from .openapi.document import OpenAPI
from .openapi.page import add_docs_page, installed_assets
from .routes import routes, typed_routes
from .settings import Settings
from .v2.call import error_answer
from .v2.router import protocol_router
from .v2.routes import protocol_app


def create_app(
    source: Any = None,
    *,
    settings: Settings | None = None,
    labels: str | os.PathLike[str] | None = None,
    title: str = "Penstock",
    middleware: Sequence[Middleware] = (),
) -> FastAPI:
    """A FastAPI app that serves pipelines. `source`: a TOML file, a directory of such, an `.onnx` classifier (with `labels`), a dict, an
    expression, a `PipelineConfig`, a list of these, a `Repository`, or None.

    Pipelines are read and checked here (`ConfigError` with every problem found), loaded by the app's lifespan, and drained when that
    ends. `settings` are those of the environment unless given. `middleware` sees every request, predict too, before the API key is checked;
    `app.add_middleware` does as well. The repository is `app.state.penstock`.

    Mounted in another app, whose server never runs the lifespan of mounts, it is started by the host's:

    ```python
    models = create_app("digits.toml")
    host = FastAPI(lifespan=lambda host: lifespan(models))
    host.mount("/models", models)
    ```
    """
    settings = Settings() if settings is None else settings
    repository = _repository(source, labels)
    predict = Predict(repository, settings, _fetch(settings))
    metrics = Metrics(repository)
    checks = []
    if settings.api_key is not None:
        checks.append(Middleware(Authenticate, settings=settings, protocol_error=error_answer))
    if restriction := restriction_of(settings.restricted_api):
        checks.append(Middleware(Restrict, restriction=restriction))
    assets = installed_assets()
    app = _App(
        title=title,
        version=penstock.__version__,
        lifespan=_lifespan(repository, settings),
        middleware=[
            *middleware,
            *checks,
            Middleware(HotRoutes, predict=predict, protocol=protocol_app(repository, settings)),
        ],
        docs_url="/docs" if assets is None else None,
        redoc_url=None,
        # Asking for a telemetry provider costs each request 3 µs (os.environ); traces of ours come with the protocol's trace extension.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.penstock = repository
    app.state.metrics = metrics
    install_handlers(app)
    app.include_router(routes(repository, settings, predict, metrics))
    if assets is not None:
        add_docs_page(app, assets)
    app.openapi = OpenAPI(app, repository, settings)  # type: ignore[method-assign]
    return app


class _App(FastAPI):
    """FastAPI with a short cut for the hot routes, which answer every error themselves.

    Where nothing stands in front of `HotRoutes` but what FastAPI itself puts there (catchers of errors), they go to it at once. That
    spares them five coroutines and two wrapped `send`s, 3 µs. It looks at the stack that was really built: whatever else wraps it, by
    `add_middleware` or otherwise, closes the short cut.
    """

    _hot: HotRoutes | None = None
    _stack: ASGIApp | None = None  # the one that was looked at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stack is not self.middleware_stack:
            stack: Any = self.middleware_stack
            self._stack = stack
            added: set[Any] = {middleware.cls for middleware in self.user_middleware}
            while type(stack) not in added and type(stack).__module__.partition(".")[0] in (
                "fastapi",
                "starlette",
            ):
                stack = getattr(stack, "app", None)
            self._hot = stack if type(stack) is HotRoutes and not self.root_path else None
        if self._hot is not None:
            found = predict_route(scope)
            if found is not None:
                await self._hot.predict(scope, receive, send, *found)
                return
            if is_protocol(scope):
                await self._hot.protocol(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_router(
    source: Any = None,
    *,
    settings: Settings | None = None,
    labels: str | os.PathLike[str] | None = None,
    **router: Any,
) -> APIRouter:
    """The same as an `APIRouter`, for `host.include_router(create_router("digits.toml", prefix="/models", dependencies=[...]))`.

    Its routes are ordinary ones, so that the host's and the router's dependencies hold, at the price of FastAPI's routing for each
    request. Its lifespan runs with the host's by itself. `router`: further arguments of `APIRouter`.
    """
    settings = Settings() if settings is None else settings
    repository = _repository(source, labels)
    found = APIRouter(lifespan=_lifespan(repository, settings), **router)
    predict = Predict(repository, settings, _fetch(settings))
    found.include_router(typed_routes(repository, settings, predict))
    found.include_router(routes(repository, settings, predict, Metrics(repository)))
    found.include_router(protocol_router(protocol_app(repository, settings), settings))
    return found


def lifespan(app: FastAPI) -> AbstractAsyncContextManager[Any]:
    """Starts the pipelines of an app made by `create_app`, and drains them at the end: for hosts that mount it."""
    return app.router.lifespan_context(app)


def _repository(source: Any, labels: str | os.PathLike[str] | None) -> Repository:
    return source if isinstance(source, Repository) else Repository.read(source, labels=labels)


def _fetch(settings: Settings) -> Fetch | None:
    """What fetches images by URL; httpx is imported only where that is allowed."""
    if not settings.allow_url:
        return None
    from .http.fetch import Fetcher

    ports = [int(port) for port in settings.url_ports.split(",")]
    return Fetcher(max_bytes=settings.max_body, timeout=settings.url_timeout, ports=ports)


def _lifespan(
    repository: Repository, settings: Settings
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        if repository.state not in ("loading", "ready"):  # else whoever made the repository runs it
            await repository.start()
            try:
                yield
            finally:
                await asyncio.shield(repository.close(settings.drain_timeout))
        else:
            yield

    return run
