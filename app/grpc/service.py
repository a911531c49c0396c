"""The RPCs of `GRPCInferenceService`.

Handlers get and return serialised messages: protobuf would copy every tensor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NoReturn

import grpc

from penstock.backends.errors import forget_frames
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.runs.run import Submission

from ..history.record import CLIENT_LEFT_STATUS
from ..http.access import Access
from ..http.errors import log_failure, retry_headers, status_of
from ..http.exchange import leave
from ..http.request_id import request_id_of
from ..settings import Settings
from ..v2.call import ProtocolError, error_answer, failure_of
from ..v2.routes import ProtocolApp
from . import unary
from .calls import check_call, detail_of, scope_of, status_code_of
from .counts import CANCELLED, OK, CallCounts
from .infer import RpcInfer
from .proxies import TrustedProxies
from .stream import StreamInfer
from .uploads import Uploads

SERVICE = "inference.GRPCInferenceService"

PUSHBACK = "grpc-retry-pushback-ms"
"""https://github.com/grpc/proposal/blob/master/A6-client-retries.md"""


class InferenceService:
    """Answers the calls of `GRPCInferenceService` by what serves the protocol over HTTP."""

    def __init__(self, protocol: ProtocolApp, settings: Settings, uploads: Uploads) -> None:
        self.counts = CallCounts()
        self._protocol = protocol
        self._settings = settings
        self._uploads = uploads
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._streams: set[StreamInfer] = set()

    def end_streams(self) -> None:
        """End the streams that are open. Their clients may keep them open for ever."""
        for stream in self._streams:
            stream.end()

    def handler(self) -> Any:
        """Return the handler of the service, for `Http2Server`."""
        # Calls with one message are streams here, too: the key is checked before it has arrived.
        methods = {
            name: grpc.stream_unary_rpc_method_handler(partial(self._answer, name))
            for name in unary.NAMES
        }
        methods["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream_infer)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _answer(self, name: str, requests: object, context: Any) -> bytes:
        scope = scope_of(context, self._proxies)
        access = self._access(name, scope)
        memory = Reservation(budget)
        receive = partial(self._uploads.receive, context, memory)
        status, code, size = CLIENT_LEFT_STATUS, CANCELLED, 0
        self.counts.begin()
        try:
            answer = await unary.answer(
                name,
                receive,
                memory,
                scope=scope,
                protocol=self._protocol,
                settings=self._settings,
            )
            status, code, size = 200, OK, len(answer)
            return answer
        except Exception as error:
            failure = error
            status, code = error_answer(error).status, status_code_of(error)
        finally:
            memory.close()
            self.counts.end(name, code)
            if access is not None:
                access.log(status, size, request_id_of(scope))
        return await abort(context, failure, request_id_of(scope))

    async def _infer(self, requests: object, context: Any) -> bytes:
        scope = scope_of(context, self._proxies)
        access = self._access("ModelInfer", scope)
        memory = Reservation(budget)
        infer: RpcInfer | None = None
        runs: tuple[Submission, ...] = ()
        status, code, reported, size = CLIENT_LEFT_STATUS, CANCELLED, None, 0  # until known better
        self.counts.begin()
        try:
            check_call(scope, "inference", self._settings, self._protocol.guard)
            message = await self._uploads.receive(context, memory)
            infer = RpcInfer(self._protocol.infer.rules, message, memory, scope)
            del message  # of which only the tensors are kept
            infer.begin()
            await infer.read_all(context.time_remaining())
            submission = infer.submit()
            runs = (submission,)
            content = await infer.answer(await submission.future, submission)
            context.set_trailing_metadata((("x-request-id", infer.request_id),))
            status, code, size = 200, OK, len(content)
            return content
        except Exception as error:
            failure = error
            code = status_code_of(error)
            status, reported = error_answer(error).status, failure_of(error)
        finally:
            self.counts.end("ModelInfer", code)
            if infer is not None:
                infer.remember("grpc", status, reported, runs)
                scope["penstock.request_id"] = infer.request_id  # the protocol's own, if it has one
                if access is not None:
                    access.follow(infer, lambda: runs)
            leave(runs, memory)
            if infer is not None:
                infer.request.release()
            if access is not None:
                access.log(status, size, request_id_of(scope))
        pipeline = None if infer is None else infer.pipeline_name()
        return await abort(context, failure, request_id_of(scope), pipeline)

    async def _stream_infer(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        scope = scope_of(context, self._proxies)
        access = self._access("ModelStreamInfer", scope)
        status, code, size = CLIENT_LEFT_STATUS, CANCELLED, 0
        self.counts.begin()
        try:
            check_call(scope, "inference", self._settings, self._protocol.guard)
            stream = StreamInfer(self._protocol.infer.rules, self._uploads, scope, context)
            self._streams.add(stream)
            try:
                async for response in stream.responses(requests):
                    size += len(response)
                    yield response
            finally:
                self._streams.discard(stream)
            status, code = 200, OK
            return
        except Exception as error:
            failure = error
            status, code = error_answer(error).status, status_code_of(error)
        finally:
            self.counts.end("ModelStreamInfer", code)
            if access is not None:
                access.log(status, size, request_id_of(scope))
        await abort(context, failure, request_id_of(scope))

    def _access(self, name: str, scope: dict[str, Any]) -> Access | None:
        """Return the line of a call in the access log; None if that is off."""
        if not self._settings.access_log:
            return None
        return Access(scope["client"], "POST", f"/{SERVICE}/{name}".encode(), b"", "2")


async def abort(
    context: Any, error: BaseException, request_id: str, pipeline: str | None = None
) -> NoReturn:
    """End a call by an error."""
    log_failure(error, request_id, pipeline)
    code, detail = status_code_of(error), detail_of(error)
    trailing = [("x-request-id", request_id)]
    if not isinstance(error, ProtocolError):
        # As Retry-After: a client that retries by itself, as KServe's does, waits so long.
        for _, seconds in retry_headers(error, status_of(error)):
            trailing.append((PUSHBACK, str(1000 * int(seconds))))
    forget_frames(error)
    await context.abort(code, detail, tuple(trailing))
    raise AssertionError  # `context.abort` raises
