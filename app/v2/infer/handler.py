"""The infer route: read a request, submit it as one item, wait, write the answer.

Slow uploads and clients that leave are noticed as they are for predict requests
(`app/http/exchange.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from penstock.pipelines.runs.run import Submission

from ...history.record import Door
from ...history.ring import History
from ...http.access import follow
from ...http.auth import client_of
from ...http.body import ClientLeft
from ...http.compression import COMPRESS_OFF_LOOP_BYTES, deflate, inflate
from ...http.exchange import Exchange, Watch, leave
from ...http.helper_thread import on_helper_thread
from ...settings import Settings
from ...trace.tracing import Tracing
from ..call import ProtocolAnswer, ProtocolCall, Route, read_body, split
from ..models.model import Models
from ..shared_memory import SharedMemory
from .infer_call import InferCall, InferHead, InferRules
from .response import takes_long

C = TypeVar("C", bound=InferCall)
A = TypeVar("A")


class Infer:
    """The handler of infer requests."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        regions: SharedMemory,
        history: History | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.rules = InferRules(models, settings, regions, history, tracing)
        pattern = "/v2/models/{model}[/versions/{version}]/infer"
        self.route = Route("POST", pattern, "inference", self.infer)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    async def infer(self, call: ProtocolCall) -> ProtocolAnswer:
        """Answer one request."""
        return await self.serve(call, InferCall, "v2", self._answer)

    async def serve(
        self,
        call: ProtocolCall,
        kind: type[C],
        door: Door,
        answer: Callable[[C, Submission], Awaitable[A]],
    ) -> A:
        """Read one request, submit it, and let `answer` wait for what comes of it.

        Every failure is raised, for the route to answer.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # an app is served by one loop at a time
            self._loop = loop
            self._watch = Watch(self.rules.settings.body_timeout)
        exchange = Exchange(
            call.receive, cast("asyncio.Task[None]", asyncio.current_task(loop)), loop.time()
        )
        self._watch.begin(exchange, loop)
        scope = call.scope
        infer = kind(
            self.rules,
            InferHead(call.names, scope["headers"]),
            call.memory,
            client=client_of(scope),
            request_id=scope.get("penstock.request_id"),
        )
        scope["penstock.request_id"] = infer.request_id
        follow(scope, infer, exchange)
        if self.rules.notes:
            # When the answer is known, which is not here.
            call.ended = lambda status, failure: infer.remember(
                door, status, failure, cast("Sequence[Submission]", exchange.runs)
            )
        try:
            infer.begin()
            await self._read(call, infer, exchange)
            submission = infer.submit()
            exchange.runs = (submission,)
            if exchange.helper is not None:
                exchange.listen()
            return await answer(infer, submission)
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                raise call.too_late() from None
            if exchange.task.cancelling():
                raise  # the server, or a host app, cancels the request itself
            raise ClientLeft from None  # the watch has dropped the item
        finally:
            self._watch.end(exchange)
            leave(exchange.runs, call.memory)
            infer.request.release()
            scope["penstock.request_id"] = infer.request_id  # the protocol's own, if it has one

    async def _answer(self, infer: InferCall, submission: Submission) -> ProtocolAnswer:
        """Wait for the final item, and write the answer."""
        item = await submission.future
        if "error" in item:
            raise item["error"]
        answered = time.monotonic()
        try:
            chosen = infer.choose(item)
            written = infer.write_arrays(chosen)
            if written is None:
                written = (
                    await on_helper_thread(infer.write, chosen)
                    if takes_long(chosen)
                    else infer.write(chosen)
                )
        except Exception:
            infer.take_back(submission)
            raise
        infer.count(answered, submission)
        fields = written.headers()
        body = written.joined()
        if (encoding := infer.encoding(written)) is not None:
            smaller = (
                deflate(body, encoding)
                if len(body) < COMPRESS_OFF_LOOP_BYTES
                else await on_helper_thread(deflate, body, encoding)
            )
            if len(smaller) < len(body):
                fields.append((b"content-encoding", encoding))
                body = smaller
        return ProtocolAnswer(200, fields, body)

    async def _read(self, call: ProtocolCall, infer: InferCall, exchange: Exchange) -> None:
        """Read the body and the request in it."""
        window, size = infer.window, infer.size
        text, blobs = await read_body(call, infer.head.length, None if window else size)
        exchange.unread = False
        if window:
            text = await inflate(text, window, self.rules.settings.max_inflated, call.memory)
            text, blobs = split(text, size, call.memory)
        if not infer.take(text, blobs):
            await on_helper_thread(infer.read, text, blobs)
