"""ModelStreamInfer: a stream of infer requests, and a stream of their answers.

An error is an answer too, so that the requests beside it go on. Only with the metadata
`triton_grpc_error: true` does the first error end the stream, as its status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakSet

from penstock.backends.errors import NotReady, forget_frames
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.stream import Parts, StreamRun
from penstock.pipelines.sequences.step import Departing

from ..history.record import CLIENT_LEFT_STATUS
from ..http.errors import log_failure
from ..http.exchange import leave
from ..http.request_id import request_id_of
from ..v2.call import error_answer, failure_of
from ..v2.infer.infer_call import InferRules
from .calls import detail_of
from .infer import RpcInfer
from .messages import messages
from .uploads import Uploads
from .wire import varint

MAX_REQUESTS_IN_STREAM = 128
"""The most requests of a stream that are in flight. The next one is read when one has ended."""

END_STREAM_HEADER = (b"triton_grpc_error", b"true")

_INFER_RESPONSE_TAG = b"\x12"  # field 2 of ModelStreamInferResponse, bytes


class StreamInfer:
    """One ModelStreamInfer call.

    As in Triton, the answers of models that are not decoupled come in the order of their requests.
    The parts of a decoupled model's answer come as soon as they are ready. Steps of sequences are
    submitted in the order in which they come. Sequences that began in the stream end with it.
    """

    def __init__(
        self, rules: InferRules, uploads: Uploads, scope: dict[str, Any], context: Any
    ) -> None:
        self._rules = rules
        self._uploads = uploads
        self._scope = scope
        self._context = context
        self._ends_at_error = END_STREAM_HEADER in scope["headers"]
        self._answers: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)
        self._in_flight = asyncio.Semaphore(MAX_REQUESTS_IN_STREAM)
        self._end: asyncio.Task[None] | None = None
        self._steps = asyncio.Lock()  # it is fair
        self._sequences: WeakSet[Departing] = WeakSet()

    async def responses(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the serialised answers. Raises the first error if that ends the stream."""
        work = asyncio.create_task(self._work(requests))
        try:
            while (answer := await self._answers.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            tasks = [work] if self._end is None else [work, self._end]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for sequence in tuple(self._sequences):
                sequence.depart()

    def end(self) -> None:
        """End the stream, after the answers that are ready."""
        error = NotReady("the server is draining")
        self._end = asyncio.get_running_loop().create_task(self._answers.put(error))

    async def _work(self, requests: AsyncIterator[bytes]) -> None:
        """Serve all requests, side by side, and then put None into the answers."""
        turn = asyncio.Event()
        turn.set()
        try:
            async with asyncio.TaskGroup() as group:
                async for message in requests:
                    await self._in_flight.acquire()
                    turn = await self._begin(message, group, turn)
                    del message  # the next one may not come for long
        except* Exception as errors:
            await self._answers.put(_first(errors))
        else:
            await self._answers.put(None)

    async def _begin(
        self, message: bytes, group: asyncio.TaskGroup, turn: asyncio.Event
    ) -> asyncio.Event:
        """Begin to serve a request, whose answer comes after `turn`. Return the turn after it."""
        infer, refusal = await self._begun(message)
        if infer is not None and refusal is None and infer.model.streams:
            group.create_task(self._serve(infer, None, None, None))
            return turn
        after = asyncio.Event()
        group.create_task(self._serve(infer, refusal, turn, after))
        return after

    async def _begun(self, message: bytes) -> tuple[RpcInfer | None, Exception | None]:
        """Return a request, whose model is known then, and the error that it ends with already.

        There is no request if the message can't be read.
        """
        infer: RpcInfer | None = None
        memory = Reservation(budget)
        try:
            message = await self._uploads.plain(message, memory)
            infer = RpcInfer(self._rules, message, memory, self._scope, in_stream=True)
            infer.begin()
        except Exception as error:
            if infer is None:
                memory.close()
            return infer, error
        return infer, None

    async def _serve(
        self,
        infer: RpcInfer | None,
        refusal: Exception | None,
        before: asyncio.Event | None,
        after: asyncio.Event | None,
    ) -> None:
        """Answer one request: once `before` is set, if it has to wait for others' answers."""
        try:
            if infer is not None:
                await self._infer(infer, refusal, before)
            elif refusal is not None:
                await self._fail(refusal, None, before)
        finally:
            self._in_flight.release()
            if after is not None:
                after.set()

    async def _infer(
        self, infer: RpcInfer, refusal: Exception | None, before: asyncio.Event | None
    ) -> None:
        runs: tuple[Submission, ...] = ()
        status, reported = CLIENT_LEFT_STATUS, None
        try:
            if refusal is not None:
                raise refusal
            if infer.model.pipeline.takes_sequences:
                # A large message is read on a helper thread, and the next one must not overtake it.
                async with self._steps:
                    submission = await self._submitted(infer)
            else:
                submission = await self._submitted(infer)
            runs = (submission,)
            whole = not isinstance(submission, StreamRun)
            async for part in Parts(submission):
                content = await infer.answer(part, submission, triton_final_response=whole)
                if before is not None:
                    await before.wait()
                await self._put(content)
            if not whole and infer.wants_final:
                await self._put(infer.final_answer())
            status = 200
        except Exception as error:
            status, reported = error_answer(error).status, failure_of(error)
            await self._fail(error, infer, before)
        finally:
            infer.remember("grpc", status, reported, runs)
            leave(runs, infer.memory)
            infer.request.release()

    async def _submitted(self, infer: RpcInfer) -> Submission:
        """Read a request and submit it."""
        await infer.read_all(self._context.time_remaining())
        submission = infer.submit()
        step = infer.request.step
        if step is not None and step.start and step.sequence is not None:
            self._sequences.add(step.sequence)
        return submission

    async def _fail(
        self, error: Exception, infer: RpcInfer | None, before: asyncio.Event | None
    ) -> None:
        """Answer by an error, or raise it if that ends the stream."""
        if self._ends_at_error:
            raise error
        if infer is None:
            log_failure(error, request_id_of(self._scope))
        else:
            log_failure(error, infer.request_id, infer.pipeline_name())
        if before is not None:
            await before.wait()
        await self._answers.put(_error(error, infer))
        forget_frames(error)

    async def _put(self, content: bytes) -> None:
        """Put a ModelInferResponse into the answers."""
        await self._answers.put(_INFER_RESPONSE_TAG + varint(len(content)) + content)


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group, which may hold groups."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _error(error: Exception, infer: RpcInfer | None) -> bytes:
    """Return an answer that says what a request ended with, and which request."""
    response = messages.ModelStreamInferResponse(error_message=detail_of(error))
    if infer is not None and infer.identity:
        response.infer_response.id = infer.identity
    content: bytes = response.SerializeToString()
    return content
