"""The ordinary routes: health, metrics, pipelines, and predict for routers.

The routes of pipelines list, load and unload them. In an app, the plain ASGI `HotRoutes` in front
of the router takes predict requests; only those with a wrong method (405) come here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from fastapi import APIRouter, Depends, Request, WebSocket
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from penstock.backends.errors import BackendError, PenstockError
from penstock.pipelines.repository import VERSION_SEPARATOR, Repository

from .history.answers import explain_request, list_requests
from .history.ring import History
from .http.auth import check_admin, check_key
from .http.errors import LoadFailed, problem_response
from .http.helper_thread import on_helper_thread
from .http.paths import WholePathRoute
from .http.predict_call import PredictRules
from .http.request_id import request_id_of
from .http.restriction import restriction_of
from .http.stream_socket import StreamSockets
from .metrics import Metrics
from .openapi.document import operations_of
from .settings import Settings
from .status.answer import Status


class Predictor(Protocol):
    """Answers predict requests, as `Predict` does (http/predict.py)."""

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> None: ...


class ProblemRoute(WholePathRoute):
    """A route that turns Penstock's errors into problems, whatever handlers its host has.

    This includes errors that its dependencies raise.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_problem(request: Request) -> Response:
            try:
                return await handle(request)
            except PenstockError as error:
                return problem_response(error, request_id_of(request.scope))

        return handle_or_problem


class TypedRoute(ProblemRoute):
    """A route that leaves other methods than its own to the ordinary route of its path.

    That one knows them all: PUT too, and Allow for a 405.
    """

    def matches(self, scope: Scope) -> tuple[Match, Any]:
        match, child_scope = super().matches(scope)
        return (match, child_scope) if match is Match.FULL else (Match.NONE, {})


class _Prediction(Response):
    """A response that `Predict` writes itself."""

    def __init__(self, predict: Predictor, name: str, many: bool) -> None:
        super().__init__()
        self._arguments = name, many
        self._predict = predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._predict(scope, receive, send, *self._arguments)


def routes(
    repository: Repository,
    settings: Settings,
    predict: Predictor,
    *,
    metrics: Metrics,
    status: Status,
    history: History | None,
) -> APIRouter:
    """Make all ordinary routes, on a router without a lifespan."""

    async def key(request: Request) -> None:
        check_key(request.scope, settings)

    async def admin(request: Request) -> None:
        check_admin(request.scope, settings)

    restriction = restriction_of(settings.restricted_api)

    def remembered() -> History | None:
        return None if history is None else history.copy()

    def group(name: str) -> Any:
        async def allowed(request: Request) -> None:
            restriction.check(name, request.scope)

        return Depends(allowed)

    # openapi/ writes the document.
    open_router = APIRouter(
        route_class=ProblemRoute, dependencies=[group("health")], include_in_schema=False
    )
    router = APIRouter(
        route_class=ProblemRoute, dependencies=[Depends(key)], include_in_schema=False
    )

    # HEAD, because some load balancers send it.
    @open_router.api_route("/health/live", methods=["GET", "HEAD"])
    async def live() -> Response:
        return JSONResponse({"live": True})

    @open_router.api_route("/health/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:
        reason = repository.why_not_ready(settings.ready_when)
        if reason:
            return JSONResponse({"ready": False, "reason": reason}, 503)
        # Not a reason to send requests elsewhere: the server takes all that it can answer.
        pressed = {
            name: pipeline.refused
            for name, pipeline in sorted(repository.pipelines.items())
            if pipeline.pressure
        }
        return JSONResponse({"ready": True, "pressure": pressed} if pressed else {"ready": True})

    # With a slash too: Starlette would redirect, and not every scraper follows a redirect.
    @router.get("/metrics/", dependencies=[group("statistics")])
    @router.get("/metrics", dependencies=[group("statistics")])
    async def scrape(request: Request) -> Response:
        content, media_type = await metrics.scrape(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    @router.api_route("/status/", methods=["GET", "HEAD"], dependencies=[group("statistics")])
    @router.api_route("/status", methods=["GET", "HEAD"], dependencies=[group("statistics")])
    async def show_status(request: Request) -> Response:
        return await status.answer(request.scope)

    @router.get("/requests/", dependencies=[group("trace")])
    @router.get("/requests", dependencies=[group("trace")])
    async def requests(request: Request) -> Response:
        query = request.query_params
        asked = query.get("pipeline"), query.get("kind"), query.get("limit")
        return JSONResponse(await on_helper_thread(list_requests, remembered(), *asked))

    # A path: an id may have slashes.
    @router.get("/requests/{request_id:path}", dependencies=[group("trace")])
    async def explain(request_id: str) -> Response:
        return JSONResponse(await on_helper_thread(explain_request, remembered(), request_id))

    @router.get("/pipelines/", dependencies=[group("model-repository")])
    @router.get("/pipelines", dependencies=[group("model-repository")])
    async def pipelines() -> Response:
        return JSONResponse(
            {"pipelines": [_describe(repository, name) for name in repository.version_states()]}
        )

    @router.post("/pipelines/{name}/load", dependencies=[group("model-repository"), Depends(admin)])
    async def load(name: str) -> Response:
        try:
            await repository.reload(name)
        except BackendError as error:
            raise LoadFailed(str(error)) from error
        return JSONResponse(_describe(repository, name))

    @router.post(
        "/pipelines/{name}/unload", dependencies=[group("model-repository"), Depends(admin)]
    )
    async def unload(name: str) -> Response:
        await repository.unload(name, settings.drain_timeout)
        return JSONResponse({"name": name, "state": "unloaded"})

    # `Predict` checks its group itself.
    @router.api_route("/predict/{name}", methods=["POST", "PUT"])
    async def predict_one(name: str) -> Response:
        return _Prediction(predict, name, False)

    @router.api_route("/predict/{name}/batch", methods=["POST", "PUT"])
    async def predict_many(name: str) -> Response:
        return _Prediction(predict, name, True)

    @router.api_route("/predict/{name}/versions/{version}", methods=["POST", "PUT"])
    async def predict_one_by_version(name: str, version: str) -> Response:
        return _Prediction(predict, f"{name}{VERSION_SEPARATOR}{version}", False)

    @router.api_route("/predict/{name}/versions/{version}/batch", methods=["POST", "PUT"])
    async def predict_many_by_version(name: str, version: str) -> Response:
        return _Prediction(predict, f"{name}{VERSION_SEPARATOR}{version}", True)

    whole = APIRouter()
    whole.include_router(open_router)
    whole.include_router(router)
    return whole


def socket_routes(rules: PredictRules) -> APIRouter:
    """Make the routes of streamed inputs by WebSocket. `StreamSockets` checks the key."""
    sockets = StreamSockets(rules)
    router = APIRouter()

    @router.websocket("/predict/{name}/stream")
    async def stream(socket: WebSocket, name: str) -> None:
        await sockets(socket.scope, socket.receive, socket.send, name)

    @router.websocket("/predict/{name}/versions/{version}/stream")
    async def stream_by_version(socket: WebSocket, name: str, version: str) -> None:
        name = f"{name}{VERSION_SEPARATOR}{version}"
        await sockets(socket.scope, socket.receive, socket.send, name)

    return router


def typed_routes(repository: Repository, settings: Settings, predict: Predictor) -> APIRouter:
    """Make routes for the pipelines known now, with typed operations for the host's document.

    `routes` answers the same requests; these come first.
    """

    async def key(request: Request) -> None:
        check_key(request.scope, settings)

    router = APIRouter(route_class=TypedRoute, dependencies=[Depends(key)])
    for config in repository.configs.values():
        for path, operations in operations_of(
            config, settings.api_key is not None, settings.allow_url
        ).items():
            endpoint = _endpoint(predict, config.name, path.endswith("/batch"))
            for method, operation in operations.items():
                described: Any = {
                    name: operation.pop(name)
                    for name in ("tags", "summary", "description")
                    if name in operation
                }
                described |= {
                    "operation_id": operation.pop("operationId"),
                    "openapi_extra": operation,
                }
                router.add_api_route(
                    path, endpoint, methods=[method.upper()], response_class=Response, **described
                )
    return router


def _endpoint(
    predict: Predictor, name: str, many: bool
) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def answer() -> Response:
        return _Prediction(predict, name, many)

    return answer


def _describe(repository: Repository, name: str) -> dict[str, Any]:
    """Describe a pipeline: its newest version that serves, and all of them if there are several."""
    states = repository.version_states().get(name, {})
    pipeline = repository.pipelines.get(name)
    newest = pipeline.config.version if pipeline is not None else next(reversed(states), "")
    described = {"name": name, **_describe_version(repository, name, newest, states.get(newest))}
    if len(states) > 1:
        described["versions"] = [
            _describe_version(repository, name, version, state) for version, state in states.items()
        ]
    return described


def _describe_version(
    repository: Repository, name: str, version: str, state: str | None
) -> dict[str, Any]:
    kind, _, reason = (state or "unloaded").partition(": ")
    config = repository.config_of(name, version)
    described: dict[str, Any] = {"state": kind}
    if config is not None:
        described |= {"version": version, "description": config.description}
    elif version:
        described["version"] = version
    # Why a load failed goes to the log, and to the client that asked for the load: it names files
    # and code. The reason of `not ready` names only nodes.
    return {**described, "reason": reason} if reason and kind == "not ready" else described
