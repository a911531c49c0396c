"""The protocol for hosts that take a router instead of an app: one route for all of /v2, behind whatever dependencies hold there."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..http.auth import OPEN_PATHS, check_key
from ..http.errors import Unauthorized
from ..settings import Settings
from .call import error_answer
from .routes import V2, respond


class _Below(Convertor[str]):
    """All of a path, line breaks too, which Starlette's `path` leaves to the host's 404."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("penstock_below", _Below())


class _Passed(Response):
    """A response that the protocol's app writes itself."""

    def __init__(self, protocol: V2, path: str, settings: Settings) -> None:
        super().__init__()
        self._protocol = protocol
        self._path = path
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._path not in OPEN_PATHS:
                check_key(scope, self._settings)
        except Unauthorized as error:
            await respond(scope, send, error_answer(error), close=True)
        else:
            await self._protocol(scope, receive, send, self._path)


def protocol_router(protocol: V2, settings: Settings) -> APIRouter:
    """Its errors are the protocol's, not the host's."""
    router = APIRouter(include_in_schema=False)

    async def answer(request: Request) -> Response:
        below = request.path_params.get("path")
        return _Passed(protocol, "/v2" if below is None else f"/v2/{below}", settings)

    for number, path in enumerate(("/v2", "/v2/{path:penstock_below}")):
        # Any method: the protocol answers 405 in its own form. FastAPI makes an operation's id of a method, so it gets one.
        router.add_api_route(path, answer, methods=[], operation_id=f"v2_router_{number}")
    return router
