"""The protocol for hosts that include a router instead of mounting an app.

One route takes all of /v2, so that the dependencies of the host's router hold for it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..http.auth import OPEN_PATHS, check_key
from ..http.errors import Unauthorized
from ..http.paths import WholePathRoute
from ..settings import Settings
from .call import error_answer
from .routes import ProtocolApp, respond


class _Rest(Convertor[str]):
    """The rest of a path, line breaks included.

    Starlette's `path` does not match line breaks, so the host would answer its own 404.
    """

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("penstock_rest", _Rest())


class _ProtocolResponse(Response):
    """A response that the protocol's app writes itself."""

    def __init__(self, app: ProtocolApp, path: str, settings: Settings) -> None:
        super().__init__()
        self._app = app
        self._path = path
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._path not in OPEN_PATHS:
                check_key(scope, self._settings)
        except Unauthorized as error:
            await respond(scope, send, error_answer(error), close=True)
        else:
            await self._app(scope, receive, send, self._path)


def protocol_router(app: ProtocolApp, settings: Settings) -> APIRouter:
    """Return a router for /v2. Its errors have the protocol's form, not the host's."""
    router = APIRouter(include_in_schema=False)

    async def answer(request: Request) -> Response:
        rest = request.path_params.get("path")
        return _ProtocolResponse(app, "/v2" if rest is None else f"/v2/{rest}", settings)

    # The second takes line breaks too. With one, /v2 is a path that no one serves.
    route_classes = {"/v2": WholePathRoute, "/v2/{path:penstock_rest}": APIRoute}
    for number, (path, route_class) in enumerate(route_classes.items()):
        # No methods are listed, so the route takes any: the protocol answers 405 in its own form.
        # FastAPI would derive an operation's id from a method, so the route gets an id.
        router.add_api_route(
            path,
            answer,
            methods=[],
            operation_id=f"v2_router_{number}",
            route_class_override=route_class,
        )
    return router
