"""Infer requests that the connection answers itself."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from penstock.backends.errors import forget_frames
from penstock.backends.item import Item
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.runs.run import EmptyRun, Submission, as_future

from ..history.record import Door, Failure
from ..history.ring import Quick
from ..http.body import reserve_body
from ..http.compression import COMPRESS_OFF_LOOP_BYTES, deflate
from ..http.errors import Problem, log_failure
from ..http.helper_thread import on_helper_thread
from ..v2.call import BodyParts, error_answer, failure_of, split
from ..v2.encoding import lasting
from ..v2.infer.infer_call import InferCall, InferHead
from ..v2.infer.response import Chosen, Written, takes_long
from ..v2.routes import ProtocolApp
from .asgi import JOIN_BELOW_BYTES
from .direct import SLOTS, Direct, lines_of


class DirectInfer(InferCall, Direct):
    """An infer request."""

    __slots__ = (*SLOTS, "_protocol")

    door: Door = "v2"

    def __init__(self, protocol: ProtocolApp, head: InferHead, client: str | None) -> None:
        super().__init__(protocol.infer.rules, head, Reservation(budget), client=client)
        self._protocol = protocol

    def _begin(self) -> None:
        self._protocol.guard("inference", {"headers": self.head.fields})
        self.begin()
        length = cast("bytes", self.head.length)  # a request without a body goes to the app
        reserve_body(length, self.rules.max_body, self.memory)

    def _wait(self) -> BodyParts:
        return BodyParts(self.size, self.memory.size)

    def _submit_pieces(self, pieces: BodyParts) -> Submission | None:
        if pieces.joins_at_once:
            return self._submit_parts(*pieces.join(self.memory))
        self._work = asyncio.get_running_loop().create_task(self._join_later(pieces))
        return None

    def _submit(self, body: bytes) -> Submission | None:
        return self._submit_parts(*split(body, self.size, self.memory))

    def _submit_parts(self, text: bytes, blobs: memoryview) -> Submission | None:
        if self.take(text, blobs):
            return self.submit(as_future(self))
        self._work = asyncio.get_running_loop().create_task(self._read_later(text, blobs))
        return None

    def _finish(self, item: Item, run: Submission) -> None:
        if "error" in item:
            raise item["error"]
        answered = time.monotonic()
        try:
            chosen = self.choose(item)
            written = self.write_arrays(chosen)
            if written is None:
                if takes_long(chosen):
                    loop = asyncio.get_running_loop()
                    self._work = loop.create_task(self._write_later(chosen, answered, run))
                    return
                written = self.write(chosen)
        except Exception:
            self.take_back(run)
            raise
        self.count(answered, run)
        encoding = self.encoding(written)
        if encoding is None:
            self._send_written(written)
        elif written.size < COMPRESS_OFF_LOOP_BYTES:
            self._send_smaller(written, encoding, deflate(written.joined(), encoding))
        else:
            loop = asyncio.get_running_loop()
            self._work = loop.create_task(self._compress_later(written, encoding))

    # What takes long is done on a helper thread, for which a task waits. The task holds the call.

    async def _join_later(self, pieces: BodyParts) -> None:
        try:
            text, blobs = await on_helper_thread(pieces.join, self.memory)
            if not self.take(text, blobs):
                await on_helper_thread(self.read, text, blobs)
            self._go_on()
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    async def _read_later(self, text: bytes, blobs: memoryview) -> None:
        try:
            await on_helper_thread(self.read, text, blobs)
            self._go_on()
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    def _go_on(self) -> None:
        """Submit the request, unless its client left while it was read."""
        if self.wire is not None:
            self._run = self.submit(as_future(self))

    async def _write_later(self, chosen: Chosen, answered: float, run: Submission) -> None:
        try:
            try:
                written = await on_helper_thread(self.write, chosen)
            except Exception:
                self.take_back(run)
                raise
            self.count(answered, run)
            if (encoding := self.encoding(written)) is None:
                self._send_written(written)
            else:
                await self._compress_later(written, encoding)
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    async def _compress_later(self, written: Written, encoding: bytes) -> None:
        try:
            body = await on_helper_thread(lambda: deflate(written.joined(), encoding))
            self._send_smaller(written, encoding, body)
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    def _end_work(self) -> None:
        self._work = None
        if self.wire is None and self._run is None:  # answered, or the client has left
            self.request.release()

    def _send_smaller(self, written: Written, encoding: bytes, body: bytes) -> None:
        """Write the answer as `body`, which is compressed, if that is smaller."""
        if len(body) >= written.size:
            self._send_written(written)
            return
        headers = [*written.headers(), (b"content-encoding", encoding)]
        headers.append((b"content-length", b"%d" % len(body)))
        self._send_lines(200, lines_of(headers), body)

    def _send_written(self, written: Written) -> None:
        if written.size < JOIN_BELOW_BYTES:
            self._send_lines(200, written.lines(), written.joined())
        else:
            blobs = [lasting(blob) for blob in written.blobs]
            self._send_lines(200, written.lines(), written.text, blobs)

    def _remember(self, status: int, failure: Failure | None, run: Submission | None) -> None:
        if self.context is not None:
            self.end_trace("v2", status, failure, () if run is None else (run,))
        if (
            status == 200
            and type(run) is EmptyRun
            and run.stages is None
            and self.request.step is None  # it may have waited for its turn
        ):
            batch, remember = run.batch, self.rules.remember
            if batch is not None and batch.parts is None and remember is not None:
                # As `remember` of this class, without its calls: this is the hot path.
                now = time.monotonic()
                began = self._began
                pace = self.model.pipeline.pace
                quick: Quick = (
                    self.request_id,
                    pace,
                    "v2",
                    began,
                    run.enqueued,
                    now,
                    batch,
                    run.rows,
                )
                remember(quick)
                if now - began > pace.slow and self.rules.history is not None:
                    self.rules.history.add_slow(quick)
                return
        super()._remember(status, failure, run)

    def failure_of(self, error: BaseException) -> Failure:
        return failure_of(error)

    def failure(self, error: BaseException) -> Problem:
        log_failure(error, self.request_id, self.head.names["model"])
        answer = error_answer(error)
        forget_frames(error)
        length = (b"content-length", b"%d" % len(answer.body))
        return answer.status, [*answer.headers, length], answer.body

    def _release(self, runs_on: bool = False) -> None:
        if self._work is None:  # a helper thread may be using the shared memory
            self.request.release()
