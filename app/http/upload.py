"""Predict requests whose body is a streamed input: it is read while the pipeline works on it.

The request is admitted and submitted before its body is read. `Upload` reads one message of the
server ahead of the logic, and notices that the client leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
from codecs import getincrementaldecoder, lookup
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from penstock.backends.errors import InvalidRequest, TooLarge, UnsupportedMedia
from penstock.pipelines.config.definition import Port
from penstock.pipelines.runs.graph_run import GraphRun
from penstock.pipelines.runs.run import Run, Submission

from ..history.record import Failure
from ..settings import Settings
from .body import announced_bytes, must_close
from .errors import Problem, failure_of
from .events import PredictEvents
from .exchange import Exchange, UploadTimer
from .input_stream import InputStream
from .predict_call import PredictCall, client_left, server_timing, success


class UploadNotes:
    """What the app and the server's connection tell each other about the body of a request.

    The connection puts it into the scope as `penstock.upload`. `streamed`: the app reads the body
    while it works on it, and has a time-out of its own for that. `on_left` is called when the
    client leaves, also while the app reads nothing.
    """

    __slots__ = ("on_left", "streamed")

    def __init__(self) -> None:
        self.streamed = False
        self.on_left: Callable[[], None] | None = None


class InputReading:
    """Reads what a client sends into `stream`, in a task, while `run` works on it.

    A subclass says by `_read` what is read. If the client leaves, it leaves the run; if the rest
    can't be read, the run fails.
    """

    __slots__ = ("_notes", "_receive", "_run", "_task", "stream")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._notes: UploadNotes | None = scope.get("penstock.upload")
        self._run: Run | GraphRun
        self._task: asyncio.Task[None] | None = None
        self.stream = InputStream(asyncio.get_running_loop())

    def start(self, run: Submission) -> None:
        """Begin to read. Call `stop` at the end of the request."""
        assert isinstance(run, Run | GraphRun)  # no pipeline with a stream has loop = true
        self._run = run
        if self._notes is not None:
            self._notes.on_left = run.leave
        self._task = asyncio.create_task(self._read(), context=contextvars.Context())

    def stop(self) -> None:
        if self._notes is not None:
            self._notes.on_left = None
        if self._task is not None:
            self._task.cancel()
            self._task = None  # else a cycle, through the exception of the task
        self.stream.stop()

    async def _read(self) -> None:
        raise NotImplementedError


class Upload(InputReading):
    """Reads the body of a request into `stream` while `run` works on it.

    `unread` is false once the whole body is here. If the body can't be read on, the run fails; if
    the client leaves, the run is left.
    """

    __slots__ = (
        "_charset",
        "_decode",
        "_limit",
        "_name",
        "_silence",
        "unread",
    )

    def __init__(
        self, scope: Scope, receive: Receive, port: Port, settings: Settings, charset: str
    ) -> None:
        super().__init__(scope, receive)
        self._name = port.name
        self._charset = lookup(charset).name.replace("utf-", "UTF-")
        self._limit = settings.max_stream
        self._silence = settings.body_timeout
        self._decode = getincrementaldecoder(charset)().decode if port.kind == "text" else None
        self.unread = True

    def start(self, run: Submission) -> None:
        if self._notes is not None:
            self._notes.streamed = True
        super().start(run)

    async def _read(self) -> None:
        try:
            await self._read_body()
            while (await self._receive())["type"] != "http.disconnect":
                pass  # trailing messages of a complete body
            self._run.leave()
        except Exception as error:
            self._run.fail(error)

    async def _read_body(self) -> None:
        loop = asyncio.get_running_loop()
        size, more = 0, True
        while more:
            timer = UploadTimer(loop, loop.time() + self._silence, self._fall_silent)
            try:
                message = await self._receive()
            finally:
                timer.cancel()
            if message["type"] != "http.request":
                self._run.leave()
                return
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            self.unread = more
            size += len(piece)
            if self._limit is not None and size > self._limit:
                raise TooLarge(f"the stream has more than {self._limit} bytes (max_stream)")
            chunk = piece if self._decode is None else self._text(piece, final=not more)
            del message
            if chunk:
                await self.stream.put(chunk, len(piece))
        self.stream.end()

    def _text(self, piece: bytes, final: bool) -> str:
        assert self._decode is not None
        try:
            return self._decode(piece, final)
        except UnicodeError:  # UTF-16 without its mark is none of its subclasses
            raise InvalidRequest(f"input {self._name!r} is not valid {self._charset}") from None

    def _fall_silent(self) -> None:
        self._run.fail(
            InvalidRequest(
                f"nothing of the body arrived for {self._silence:g} s, and it has not ended "
                "(body_timeout)"
            )
        )


def check_head(call: PredictCall) -> None:
    """Check the head of a request whose body is to be read as a stream, which `begin` accepts.

    Raises `InvalidRequest`, `UnsupportedMedia`, `TooLarge`.
    """
    head, limit = call.head, call.rules.settings.max_stream
    if head.many:
        raise InvalidRequest(
            "the pipeline reads a stream: send each in a request of its own, without /batch"
        )
    if call.window:
        raise UnsupportedMedia("a streamed body can't be compressed: send it without an encoding")
    form = call.media.form
    if form in ("multipart", "json"):
        raise UnsupportedMedia(f"a stream is the whole body: send it as it is, not as {form}")
    if limit is not None and head.length is not None and announced_bytes(head.length) > limit:
        raise TooLarge(f"the stream has more than {limit} bytes (max_stream)")


async def answer_streamed(
    call: PredictCall, port: Port, exchange: Exchange, scope: Scope, send: Send
) -> tuple[int, Failure | None, Problem | None]:
    """Answer a request after its `begin`, while its body is read as the input `port`.

    The caller leaves the runs of `exchange`. Returns the status, what the request failed with, and
    the answer; None for that if it has been sent, as events.
    """
    failure: Failure | None = None
    upload = Upload(scope, exchange.receive, port, call.rules.settings, call.media.charset)
    try:
        check_head(call)
        run = call.pipeline.submit_nowait(
            {"data": upload.stream},
            call.timeout,
            call.wanted,
            client=call.client,
            trace=call.trace,
            request_id=call.request_id,
            context=call.context,
            sequence=call.step(),
        )
        exchange.runs = (run,)
        upload.start(run)
        if call.head.asks_for_events:
            events = PredictEvents(run, call.pipeline, call.request_id, call.trace, call.memory)
            await events.answer(send, [(b"x-request-id", call.request_id.encode("ascii"))])
            return events.status, events.failure, None
        item = await run.future
        written = call.write(item, run)
        if written is None:
            written = await call.write_large(item, run)
        answer = success(written, server_timing(run))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the server, or a host, cancels the request itself
        answer = client_left()
    except Exception as error:
        failure = failure_of(error)
        answer = call.failure(error)
    finally:
        upload.stop()
    if upload.unread and must_close(scope):
        answer[1].append((b"connection", b"close"))
    return answer[0], failure, answer
