"""The standard reflection service, which tells `grpcurl` and the like what there is to call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as messages

from ..http.request_id import request_id_of
from ..settings import Settings
from ..v2.routes import Guard
from .calls import check_call, scope_of
from .service import SERVICE, abort

SERVICES = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)


class ReflectionService:
    """Answers reflection for those who may ask for metadata."""

    def __init__(self, guard: Guard, settings: Settings) -> None:
        self._guard = guard
        self._settings = settings
        # Its types say coroutine, and it is an asynchronous generator.
        self._servicer: Any = reflection.aio.ReflectionServicer(SERVICES)

    def handler(self) -> Any:
        method = grpc.stream_stream_rpc_method_handler(
            self._answer,
            messages.ServerReflectionRequest.FromString,
            messages.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(
            reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
        )

    async def _answer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        scope = scope_of(context)
        try:
            check_call(scope, "metadata", self._settings, self._guard)
        except Exception as error:
            failure = error
        else:
            async for response in self._servicer.ServerReflectionInfo(requests, context):
                yield response
            return
        await abort(context, failure, request_id_of(scope))
