"""gRPC while Triton answers: calls forwarded as they come, and held for the comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from penstock.backends.errors import PenstockError
from penstock.backends.memory import Reservation, budget

from ..grpc.calls import check_call, scope_of
from ..grpc.http2.server import Details
from ..grpc.messages import messages
from ..grpc.proxies import TrustedProxies
from ..grpc.server import Handler
from ..grpc.service import SERVICE, abort
from ..grpc.unary import RPCS, STATISTICS
from ..grpc.uploads import Uploads
from ..http.request_id import request_id_of
from .facts import NO_FACTS
from .rpc_forwarding import RpcForwarding, RpcRequest, RpcRules, passed_on
from .rpc_replay import RawRpc, RpcWay, TakenContext
from .rpc_stream import Stream

logger = logging.getLogger("penstock.shadow")

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
INFER = f"/{SERVICE}/ModelInfer"
STREAM = f"/{SERVICE}/ModelStreamInfer"

_NAMED = {
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
}
"""The calls of one model, and the field that names it."""

_REPEATED = frozenset(
    {
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    }
)
"""Calls that change a server. They are repeated here once Triton has followed them."""


class GrpcFront:
    """Stands before all services of the server: `Front` of app/grpc/server.py."""

    def __init__(self, rules: RpcRules, handlers: Sequence[Handler], uploads: Uploads) -> None:
        self._rules = rules
        self._handlers = handlers
        self._uploads = uploads
        self._proxies = TrustedProxies(rules.settings.trusted_proxies)
        self._forwarding = RpcForwarding(rules)
        details = Details(INFER, ())
        known = (handler.service(details) for handler in handlers)
        self._forwarding.infer = next(one for one in known if one is not None).stream_unary
        self._streams: set[Stream] = set()

    def service(self, details: Any) -> Any:
        """Return the handler of a method; None if this server has none."""
        known = (handler.service(details) for handler in self._handlers)
        own = next((handler for handler in known if handler is not None), None)
        method: str = details.method
        if own is None:
            return None
        if method == INFER:
            return grpc.stream_unary_rpc_method_handler(partial(self._infer, own.stream_unary))
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, own.stream_stream))
        if method == HEALTH_CHECK or method.startswith(f"/{SERVICE}/"):
            return grpc.stream_unary_rpc_method_handler(
                partial(self._answer, method, own.stream_unary)
            )
        return own

    def end_streams(self) -> None:
        for stream in tuple(self._streams):
            stream.end()

    async def close(self) -> None:
        """End the connections to Triton."""
        await self._forwarding.close()

    # the calls

    async def _answer(self, method: str, own: Any, requests: object, context: Any) -> bytes:
        """Answer a call that runs no model."""
        rules, scope = self._rules, scope_of(context, self._proxies)
        name = method.rpartition("/")[2]
        memory = Reservation(budget)
        try:
            if method == HEALTH_CHECK:
                rules.protocol.guard("health", scope)
            else:
                rpc = RPCS.get(name, STATISTICS[False])
                group = rules.protocol.route(rpc.method, rpc.pattern).group
                settings, guard = rules.settings, rules.protocol.guard
                check_call(scope, group, settings, guard, is_open=rpc.is_open)
            message = bytes(await self._uploads.receive(context, memory))
            if self._is_here(name, message):
                memory.close()  # the answer counts it
                return await self._own(own, TakenContext(context, message))
            rules.switch.begins_at_triton(None, NO_FACTS)
            try:
                content = await self._forwarding.forward(method, message, context)
            finally:
                rules.switch.ended_at_triton(None, NO_FACTS)
        except PenstockError as error:
            return await abort(context, error, request_id_of(scope))
        except aio.AioRpcError as error:
            return await refuse(context, error)
        finally:
            memory.close()
        if name in _REPEATED:
            await self._repeat(name, own, TakenContext(context, message, replays=True))
        return content

    def _is_here(self, name: str, message: bytes) -> bool:
        switch = self._rules.switch
        field = _NAMED.get(name)
        if switch.is_done or not field:
            return switch.is_done
        try:
            request = getattr(messages, f"{name}Request").FromString(message)
        except DecodeError:
            return False
        model = switch.models.get(getattr(request, field))
        return model is not None and model.is_here

    async def _repeat(self, name: str, own: Any, context: TakenContext) -> None:
        try:
            await self._own(own, context)
        except aio.AbortError:
            text = f"{name} was not repeated here: {context.detail}"
            logger.warning("%s", text)
            self._rules.not_repeated(text)

    async def _infer(self, own: Any, requests: object, context: Any) -> bytes:
        rules, scope = self._rules, scope_of(context, self._proxies)
        memory = Reservation(budget)
        try:
            check_call(scope, "inference", rules.settings, rules.protocol.guard)
            message = bytes(await self._uploads.receive(context, memory))
            call = self._forwarding.read(message)
            if rules.switch.goes_to_triton(call.model, call.facts):
                return await self._forward_infer(own, call, message, context, scope)
        except PenstockError as error:
            return await abort(context, error, request_id_of(scope))
        except aio.AioRpcError as error:
            return await refuse(context, error)
        finally:
            memory.close()
        if call.facts.sequence is not None:
            await rules.comparisons.settled(call.model.name, call.facts.sequence)
        return await self._own(own, TakenContext(context, message))

    async def _forward_infer(
        self, own: Any, call: RpcRequest, message: bytes, context: Any, scope: Any
    ) -> bytes:
        """Return Triton's answer, and have it compared. Raises what `forward` raises."""
        switch, model, facts = self._rules.switch, call.model, call.facts
        model.requests += 1
        way = RpcWay(own, TakenContext(context, message, replays=True), is_stream=False)
        held = self._forwarding.hold(call, way, len(message))
        if held is not None:
            held.request_id = call.identity or request_id_of(scope)
        switch.begins_at_triton(model, facts)
        began = time.perf_counter()
        try:
            content = await self._forwarding.forward(INFER, message, context)
        except aio.AioRpcError as error:
            if held is not None:
                raw = RawRpc(error.code().name, [], error.details() or "")
                held.answered(raw, time.perf_counter() - began)
            raise
        except BaseException as error:
            if held is not None:
                is_refused = isinstance(error, PenstockError)
                held.skip("failed_at_triton" if is_refused else "client_left")
            raise
        finally:
            switch.ended_at_triton(model, facts)
        seconds = time.perf_counter() - began
        if held is not None and held.hold(len(content)):
            held.answered(RawRpc("OK", [content]), seconds)
        return content

    async def _own(self, own: Any, context: TakenContext) -> bytes:
        answer: bytes = await own(None, context)
        return answer

    async def _stream(self, own: Any, requests: object, context: Any) -> AsyncIterator[bytes]:
        rules, scope = self._rules, scope_of(context, self._proxies)
        try:
            check_call(scope, "inference", rules.settings, rules.protocol.guard)
        except PenstockError as error:
            await abort(context, error, request_id_of(scope))
        stream = Stream(self._forwarding, self._uploads, own, context)
        self._streams.add(stream)
        try:
            async for answer in stream.answers():
                yield answer
        finally:
            self._streams.discard(stream)


async def refuse(context: Any, error: aio.AioRpcError) -> NoReturn:
    """End a call as Triton ended it."""
    trailing = passed_on(error.trailing_metadata())
    await context.abort(error.code(), error.details() or "", trailing)
    raise AssertionError  # `abort` raises
