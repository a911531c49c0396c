"""The standard reflection service, which tells `grpcurl` and the like what there is to call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as messages

from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation, budget

from ..http.request_id import request_id_of
from ..settings import Settings
from ..v2.routes import Guard
from .calls import check_call, scope_of
from .proxies import NO_PROXIES
from .service import SERVICE, abort
from .uploads import Uploads

SERVICES = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)


class ReflectionService:
    """Answers reflection for those who may ask for metadata."""

    def __init__(self, guard: Guard, settings: Settings, uploads: Uploads) -> None:
        self._guard = guard
        self._uploads = uploads
        self._settings = settings
        # Its types say coroutine, and it is an asynchronous generator.
        self._servicer: Any = reflection.aio.ReflectionServicer(SERVICES)

    def handler(self) -> Any:
        method = grpc.stream_stream_rpc_method_handler(
            self._answer, None, messages.ServerReflectionResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(
            reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
        )

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        scope = scope_of(context, NO_PROXIES)
        try:
            check_call(scope, "metadata", self._settings, self._guard)
            answers = self._servicer.ServerReflectionInfo(self._parsed(requests), context)
            async for response in answers:
                yield response
            return
        except aio.AbortError:
            raise
        except Exception as error:
            failure = error
        await abort(context, failure, request_id_of(scope))

    async def _parsed(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        memory = Reservation(budget)
        try:
            async for content in requests:
                plain = await self._uploads.plain(content, memory)
                yield messages.ServerReflectionRequest.FromString(plain)
        except DecodeError:
            raise InvalidRequest(
                "the request is not a ServerReflectionRequest: its protobuf is malformed"
            ) from None
        finally:
            memory.close()
