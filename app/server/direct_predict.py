"""Predict requests that the connection answers itself."""

from __future__ import annotations

import asyncio
from time import monotonic

from penstock.backends.item import Item
from penstock.pipelines.runs.run import ENDED, Submission

from ..history.record import MAX_VISITS, Door, Failure
from ..history.ring import Quick
from ..http.errors import failure_of
from ..http.helper_thread import on_helper_thread
from ..http.predict_call import PredictCall, server_timing, timing_of_batch
from ..http.render import write_small
from .asgi import STATUS_LINES
from .direct import SLOTS, Direct

_heads: dict[bytes, bytes] = {}
"""The beginning of an answer with JSON, up to its length, by the newest default head."""


def _head_of_json(default_head: bytes) -> bytes:
    _heads.clear()
    head = _heads[default_head] = b"%b%bcontent-type: application/json\r\ncontent-length: " % (
        STATUS_LINES[200],
        default_head,
    )
    return head


class DirectPredict(PredictCall, Direct):
    """A predict request with one item."""

    __slots__ = SLOTS

    door: Door = "predict"

    _begin = PredictCall.begin  # pyright: ignore[reportAssignmentType]  it is a base of this class

    def _wait(self) -> list[bytes]:
        self.first_byte = asyncio.get_running_loop().time()
        return []

    def _submit_pieces(self, pieces: list[bytes]) -> Submission | None:
        self.ready(asyncio.get_running_loop().time())
        return self._submit(b"".join(pieces))

    def _submit(self, body: bytes) -> Submission | None:
        item = self.reader.as_it_is(body, self.media)
        if item is not None and self.pipeline.state == "ready":  # the usual case
            return self.submit(item, self)  # type: ignore[arg-type]  # as below
        if self.takes_long(body):
            loop = asyncio.get_running_loop()
            if not self.first_byte:  # it came whole
                self.first_byte = loop.time()
            self._work = loop.create_task(self._read_later(body))
            return None
        return self._submit_item(self.read(body))

    def _submit_item(self, item: Item) -> Submission:
        self.link_in(item)  # URLs are off here
        return self.submit(item, self)  # type: ignore[arg-type]  # `as_future` without its call

    async def _read_later(self, body: bytes) -> None:
        """Read the body on a helper thread. The task holds the call."""
        try:
            item = await on_helper_thread(self.read, body)
            if self.wire is not None:  # its client has not left
                self.ready(asyncio.get_running_loop().time())
                self._run = self._submit_item(item)
        except Exception as error:
            self._fail(error)
        finally:
            self._work = None

    def _finish(self, item: Item, run: Submission) -> None:
        if "error" in item:
            raise item["error"]
        body = write_small(item, run, self.pipeline, self.memory, self.trace)
        if body is None:
            loop = asyncio.get_running_loop()
            self._work = loop.create_task(self._write_on_helper_thread(item, run))
        else:
            self._succeed(body, run)

    async def _write_on_helper_thread(self, item: Item, run: Submission) -> None:
        try:
            body = await self.write_large(item, run)
        except Exception as error:
            self._fail(error)
        else:
            if self.wire is not None:  # its client has not left
                self._succeed(body, run)
        finally:
            self._work = None  # the task holds the call

    def _succeed(self, body: bytes, run: Submission) -> None:
        if self.context is not None:
            self.end_trace("predict", 200, None, (run,))
        start = _heads.get(self._default_head) or _head_of_json(self._default_head)
        if (
            run is self
            and self.stages is None
            and (batch := self.batch) is not None
            and batch.parts is None
        ):
            # One node, the usual case: all in one `%`, which costs half of three.
            request_id, enqueued = self.request_id, self.enqueued
            rules = self.rules
            if (remember := rules.remember) is not None:  # as `self.remember`, without its calls
                now = monotonic()
                pace = self.pipeline.pace
                first_byte = self.first_byte
                quick: Quick = (
                    request_id,
                    pace,
                    "predict",
                    first_byte,
                    enqueued,
                    now,
                    batch,
                    self.rows,
                )
                remember(quick)
                if now - (first_byte or enqueued) > pace.slow and rules.history is not None:
                    rules.history.add_slow(quick)
            before, after = batch.memo or timing_of_batch(batch)
            head = b"%b%d\r\nserver-timing: %b%.3f%b\r\nx-request-id: %b\r\n" % (
                start,
                len(body),
                before,
                (batch.started - enqueued) * 1000,
                after,
                request_id.encode(),
            )
        else:
            history = self.rules.history
            stages = self.stages if run is self else None
            if history is not None and stages is not None and len(stages) < MAX_VISITS:
                batch = self.batch
                assert batch is not None
                history.add_trail(
                    self.request_id,
                    self.pipeline.pace,
                    "predict",
                    self.first_byte,
                    (*stages, (batch, self.enqueued)),
                    self.rows,
                )
            elif history is not None:
                self._remember(200, None, run)
            head = b"%b%d\r\nserver-timing: %b\r\nx-request-id: %b\r\n" % (
                start,
                len(body),
                server_timing(run),
                self.request_id.encode(),
            )
        self._send_head(200, head, body)

    def failure_of(self, error: BaseException) -> Failure:
        return failure_of(error)

    def _release(self, runs_on: bool = False) -> None:
        if not runs_on:
            self.future = ENDED
