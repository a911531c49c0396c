"""ModelStreamInfer while Triton answers: one stream of a client, and up to two behind it.

A stream may outlive the switch. So each request goes where it belongs when it comes. Before one is
answered here, the stream to Triton is ended and its last answers are passed on: the order of the
answers stays, and nothing of a client is left at Triton. Only sequences that began there keep it
open, until they end.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError
from grpc import aio

from penstock.backends.errors import InvalidRequest, NotReady, PenstockError
from penstock.backends.memory import Reservation, budget

from ..grpc.calls import detail_of, status_code_of
from ..grpc.http2.call import EOF
from ..grpc.messages import messages
from ..grpc.service import SERVICE
from ..grpc.uploads import Uploads
from .comparisons import Held
from .facts import NO_FACTS
from .model import ShadowedModel
from .rpc_forwarding import RpcForwarding, RpcRequest, passed_on
from .rpc_replay import RawRpc, RpcWay, TakenContext

MAX_PENDING = 1024
"""The most requests of a stream whose answers are waited for, to compare them."""


class Stream:
    """One ModelStreamInfer call. `own`: the handler of this server."""

    def __init__(self, forwarding: RpcForwarding, uploads: Uploads, own: Any, context: Any) -> None:
        self._forwarding = forwarding
        self._rules = forwarding.rules
        self._uploads = uploads
        self._own = own
        self._context = context
        self._answers: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self._turn = asyncio.Lock()  # of what changes the streams behind this one
        self._tasks: set[asyncio.Task[None]] = set()
        self._theirs: Any = None
        self._theirs_answers: asyncio.Task[None] | None = None
        self._ours: asyncio.Queue[bytes | None] | None = None
        self._ours_answers: asyncio.Task[None] | None = None
        self._pending = Pending()
        self._begun: set[tuple[ShadowedModel, int | str]] = set()  # sequences, at Triton

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield the serialised answers. Raises what ends the stream."""
        switch = self._rules.switch
        switch.on_switch.add(self._leave_triton_soon)
        self._spawn(self._work())
        try:
            while (answer := await self._answers.get()) is not None:
                if isinstance(answer, aio.AioRpcError):
                    trailing = passed_on(answer.trailing_metadata())
                    await self._context.abort(answer.code(), answer.details() or "", trailing)
                elif isinstance(answer, PenstockError):
                    await self._context.abort(status_code_of(answer), detail_of(answer))
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    yield answer
        finally:
            switch.on_switch.discard(self._leave_triton_soon)
            await self._drop()

    def end(self) -> None:
        """End the stream, after the answers that are ready."""
        self._spawn(self._answers.put(NotReady("the server is draining")))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drop(self) -> None:
        """Let go of all that is behind the stream: it has ended, or its client has left."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if self._theirs is not None:
            self._theirs.cancel()
            self._theirs = None
            self._rules.switch.ended_at_triton(None, NO_FACTS)
        if tasks:
            await asyncio.wait(tasks)
        self._pending.skip("client_left")

    async def _work(self) -> None:
        """Send each of the client's messages where it belongs, and end both streams at the end."""
        try:
            while (message := await self._context.read()) is not EOF:
                memory = Reservation(budget)
                try:
                    plain = bytes(await self._uploads.plain(message, memory))
                    async with self._turn:
                        await self._send(plain)
                finally:
                    memory.close()
                del message, plain  # the next one may not come for long
            async with self._turn:
                await self._leave_triton(at_end=True)
                if self._ours is not None and self._ours_answers is not None:
                    await self._ours.put(None)
                    await asyncio.wait([self._ours_answers])
        except Exception as error:
            await self._answers.put(error)
        else:
            await self._answers.put(None)

    async def _send(self, message: bytes) -> None:
        rules = self._rules
        try:
            request = self._forwarding.read(message)
        except InvalidRequest:  # Triton says what is wrong with it
            await self._send_to_triton(message)
            return
        model, facts = request.model, request.facts
        if rules.switch.goes_to_triton(model, facts):
            model.requests += 1
            rules.switch.note_step(model, facts)
            self._pending.add(request, self._hold(request, message), self._streams(request))
            await self._send_to_triton(message)
            if facts.sequence is not None:
                self._begun.add((model, facts.sequence))
                if len(self._begun) > MAX_PENDING:
                    self._has_sequences()  # it forgets those that have ended
                if facts.end:
                    self._begun.discard((model, facts.sequence))
                    model.sequences.pop(facts.sequence, None)
                    if model.is_here:
                        await self._leave_triton()
            return
        await self._leave_triton()
        if facts.sequence is not None:
            await rules.comparisons.settled(model.name, facts.sequence)
        if self._ours is None:
            self._ours = asyncio.Queue(1)
            self._ours_answers = self._spawn(self._read_ours(self._ours))
        await self._ours.put(message)

    def _streams(self, request: RpcRequest) -> bool:
        pipeline = self._rules.switch.pipeline(request.model.name)
        return pipeline is not None and pipeline.streams

    def _hold(self, request: RpcRequest, message: bytes) -> Held | None:
        """Hold a request. A step of a sequence runs by ModelInfer: here sequences end with the
        stream that they began in.
        """
        is_step = request.facts.sequence is not None
        context = TakenContext(self._context, message, replays=True)
        way = RpcWay(self._infer_or_stream(is_step), context, is_stream=not is_step)
        held = self._forwarding.hold(request, way, len(message))
        if held is not None:
            held.request_id = request.identity
        return held

    def _infer_or_stream(self, is_step: bool) -> Any:
        return self._forwarding.infer if is_step else self._own

    # behind the stream

    async def _send_to_triton(self, message: bytes) -> None:
        if self._theirs is None:
            multi = self._forwarding.channel().stream_stream(f"/{SERVICE}/ModelStreamInfer")
            metadata = self._forwarding.metadata(self._context)
            self._theirs = multi(metadata=metadata, timeout=self._context.time_remaining())
            self._rules.switch.begins_at_triton(None, NO_FACTS)
            self._theirs_answers = self._spawn(self._read_theirs(self._theirs))
        try:
            await self._theirs.write(message)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            if self._theirs_answers is not None:  # it says why the stream has ended
                await asyncio.wait([self._theirs_answers])

    async def _read_theirs(self, call: Any) -> None:
        try:
            async for content in call:
                self._pending.answer(content)
                await self._answers.put(content)
            trailing = passed_on(await call.trailing_metadata())
            if trailing:
                self._context.set_trailing_metadata(trailing)
        except aio.AioRpcError as error:
            await self._answers.put(error)

    def _leave_triton_soon(self) -> None:
        if self._theirs is not None:
            self._spawn(self._leave_triton_in_turn())

    async def _leave_triton_in_turn(self) -> None:
        async with self._turn:
            await self._leave_triton()

    def _has_sequences(self) -> bool:
        """Return whether sequences of this stream live at Triton. Some servers, such as this one,
        end them with their stream.
        """
        self._begun = {one for one in self._begun if one[1] in one[0].sequences}
        return bool(self._begun)

    async def _leave_triton(self, *, at_end: bool = False) -> None:
        """End the stream to Triton, after its last answers, unless a sequence needs it.

        `at_end`: in any case.
        """
        call, reading = self._theirs, self._theirs_answers
        if call is None or reading is None or (self._has_sequences() and not at_end):
            return
        with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # it has ended
            await call.done_writing()
        await asyncio.wait([reading])
        self._theirs = self._theirs_answers = None
        self._rules.switch.ended_at_triton(None, NO_FACTS)
        self._pending.finish()

    async def _read_ours(self, queue: asyncio.Queue[bytes | None]) -> None:
        async def requests() -> AsyncIterator[bytes]:
            while (message := await queue.get()) is not None:
                yield message

        answers = self._own(requests(), self._context)
        try:
            async for content in answers:
                await self._answers.put(content)
        except (Exception, aio.AbortError) as error:
            await self._answers.put(error)
        finally:
            await answers.aclose()


class _Waiting:
    """A request of a stream whose answers have not all come."""

    __slots__ = ("began", "contents", "held", "identity", "model", "streams")

    def __init__(self, request: RpcRequest, held: Held | None, streams: bool) -> None:
        self.model = request.model.name
        self.identity = request.identity
        self.held = held
        self.streams = streams
        self.began = time.perf_counter()
        self.contents: list[bytes] = []

    def end(self) -> None:
        if self.held is not None:
            raw = RawRpc("OK", self.contents, is_stream=True)
            self.held.answered(raw, time.perf_counter() - self.began)


class Pending:
    """The requests of a stream that Triton has not answered, in their order.

    Answers find their request by its id, or else by the order: Triton keeps it, except among the
    parts of decoupled models.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()

    def add(self, request: RpcRequest, held: Held | None, streams: bool) -> None:
        if len(self._waiting) >= MAX_PENDING:
            self.skip("unmatched")
        self._waiting.append(_Waiting(request, held, streams))

    def answer(self, content: bytes) -> None:
        """Take an answer of Triton."""
        if all(one.held is None or one.held.ended for one in self._waiting):
            self._waiting.clear()  # no one compares them
            return
        try:
            response = messages.ModelStreamInferResponse.FromString(content)
        except DecodeError:
            return
        answer = response.infer_response
        found = self._find(answer.id, answer.model_name)
        if found is None:
            return
        if found.held is not None and found.held.hold(len(content)):
            found.contents.append(content)
        is_final = answer.parameters["triton_final_response"].bool_param
        if response.error_message or is_final or not found.streams:
            self._waiting.remove(found)
            found.end()

    def _find(self, identity: str, model: str) -> _Waiting | None:
        found = [
            one
            for one in self._waiting
            if one.identity == identity and (not model or one.model == model)
        ]
        if len(found) > 1 and found[0].streams:  # whose part it is can't be known
            for one in found:
                if one.held is not None:
                    one.held.skip("unmatched")
        return found[0] if found else None

    def finish(self) -> None:
        """Note that Triton's stream has ended: what has come is all."""
        while self._waiting:
            self._waiting.popleft().end()

    def skip(self, reason: Any) -> None:
        """Give up all that wait."""
        while self._waiting:
            held = self._waiting.popleft().held
            if held is not None:
                held.skip(reason)
