"""The standard health service, `grpc.health.v1.Health`, for load balancers and `grpc_health_probe`.

It needs no API key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as messages

from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation, budget

from ..http.request_id import request_id_of
from ..v2.routes import Guard
from .calls import scope_of
from .proxies import NO_PROXIES
from .service import SERVICE, abort
from .uploads import Uploads

SERVICES = ("", SERVICE)
"""The names that a check may ask for: "" is the whole server."""

WATCH_SECONDS = 1.0
"""How often a watched status is looked at."""

Status = messages.HealthCheckResponse.ServingStatus


class HealthService:
    """Answers the health of the server. `is_ready` says whether it takes requests.

    `guard` knows who may ask, if the operator has restricted that.
    """

    def __init__(self, is_ready: Callable[[], bool], guard: Guard, uploads: Uploads) -> None:
        self._is_ready = is_ready
        self._guard = guard
        self._uploads = uploads
        self._ended = asyncio.Event()

    def end_watches(self) -> None:
        """Tell those who watch that the server takes no more requests, and end their calls."""
        self._ended.set()

    def handler(self) -> Any:
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)

    async def _check(self, requests: object, context: Any) -> bytes:
        service = await self._service(context)
        if service not in SERVICES:
            names = " and ".join(repr(name) for name in SERVICES)
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service: the services are {names}"
            )
        return _response(self._status())

    async def _watch(self, requests: object, context: Any) -> AsyncIterator[bytes]:
        service = await self._service(context)
        sent = None
        while not self._ended.is_set():
            status = self._status() if service in SERVICES else Status.SERVICE_UNKNOWN
            if status != sent:
                yield _response(status)
                sent = status
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), WATCH_SECONDS)
        if sent == Status.SERVING:
            yield _response(Status.NOT_SERVING)

    def _status(self) -> int:
        status: int = Status.SERVING if self._is_ready() else Status.NOT_SERVING
        return status

    async def _service(self, context: Any) -> str:
        """Return the name that a call asks for. Ends a call that may not ask, or asks badly."""
        scope = scope_of(context, NO_PROXIES)
        memory = Reservation(budget)
        try:
            self._guard("health", scope)
            content = await self._uploads.receive(context, memory)
            service: str = messages.HealthCheckRequest.FromString(content).service
            return service
        except DecodeError:
            failure: Exception = InvalidRequest(
                "the request is not a HealthCheckRequest: its protobuf is malformed"
            )
        except Exception as error:
            failure = error
        finally:
            memory.close()
        return await abort(context, failure, request_id_of(scope))


def _response(status: int) -> bytes:
    content: bytes = messages.HealthCheckResponse(status=status).SerializeToString()
    return content
