"""`StreamSockets`: WebSockets at `/predict/{pipeline}/stream`.

Each message of the client is a chunk of the streamed input, each part of the answer a message. A
socket is one request: it is admitted, bounded and cancelled as one.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from penstock.backends.errors import NotFound, TooLarge, UnsupportedMedia, forget_frames
from penstock.backends.item import Item
from penstock.pipelines.config.definition import Port
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.stream import Parts

from ..history.record import CLIENT_LEFT_STATUS, Failure
from ..settings import Settings
from .auth import check_key, client_of
from .errors import failure_of, log_failure
from .exchange import UploadTimer, leave
from .handshake import FellSilent, accept_message, check_origin, close_message
from .paths import path_of
from .predict_call import PredictCall, PredictHead, PredictRules
from .render import write_item
from .request_id import request_id_of
from .upload import InputReading

SWITCHED_STATUS = 101
"""The status of every socket that was accepted, as the access log has it."""

END = {"end": True}
MAX_END_CHARACTERS = 64

_PATH = re.compile(r"/predict/([^/]+(?:/versions/[^/]+)?)/stream")


def stream_name(scope: Scope) -> str | None:
    """Return the pipeline, with its version, that a WebSocket asks for; None for other paths."""
    match = _PATH.fullmatch(path_of(scope))
    return None if match is None else match[1]


class StreamSockets:
    """Answers the WebSockets of streamed inputs."""

    def __init__(self, rules: PredictRules) -> None:
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        await receive()  # websocket.connect
        # A refusal is a close too: browsers tell a page no status of a handshake.
        await send(accept_message(scope))
        close = await self._serve(scope, receive, send, name)
        if close is not None:
            await send(close)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, name: str) -> Message | None:
        """Serve an open socket. Returns the message that closes it; None if the client has left."""
        settings = self._rules.settings
        request_id = request_id_of(scope)
        messages: Messages | None = None
        runs: tuple[Submission, ...] = ()
        call: PredictCall | None = None
        status = CLIENT_LEFT_STATUS
        failure: Failure | None = None
        try:
            check_origin(scope, settings)
            check_key(scope, settings)
            call = PredictCall(
                self._rules,
                PredictHead(name, False, scope["headers"], scope.get("query_string", b"")),
                asyncio.get_running_loop().time(),
                client=client_of(scope),
                request_id=request_id,
            )
            if (access := scope.get("penstock.access")) is not None:
                access.follow(call, lambda: runs)
            call.begin()
            port = call.pipeline.stream_input
            if port is None:
                raise NotFound(
                    f"pipeline {name!r} reads no stream: POST to /predict/{name} instead"
                )
            messages = Messages(scope, receive, port, settings)
            run = call.pipeline.submit_nowait(
                {"data": messages.stream},
                call.timeout,
                call.wanted,
                client=call.client,
                request_id=request_id,
                context=call.context,
                sequence=call.step(),
            )
            runs = (run,)
            messages.start(run)
            await _send_parts(run, call, send)
            status = SWITCHED_STATUS
        except OSError:
            return None  # the client has left: servers of ASGI 2.4 report it like this
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the server, or a host, cancels the request itself
            return None  # the client has left
        except Exception as error:
            status, failure = SWITCHED_STATUS, failure_of(error)
            log_failure(error, request_id, name)
            close = close_message(error)
            forget_frames(error)
            return close
        finally:
            if messages is not None:
                messages.stop()
            if call is not None:
                leave(runs, call.memory)
                call.remember("socket", status, failure, runs)
        return {"type": "websocket.close", "code": 1000}


async def _send_parts(run: Submission, call: PredictCall, send: Send) -> None:
    """Send each part of the answer as it comes. Raises the error that ends it."""
    async for part in Parts(run):
        await send(await _message(part, run, call))
        call.memory.resize(0, "an answer")


async def _message(part: Item, run: Submission, call: PredictCall) -> Message:
    """Make the message of a part: JSON, or the bytes of a part that is nothing else."""
    result: Any = part.get("result")
    if isinstance(result, (bytes, bytearray, memoryview)) and call.pipeline.answer_keys == (
        "result",
    ):
        call.memory.resize(len(result), "an answer")
        return {"type": "websocket.send", "bytes": bytes(result)}
    text = await write_item(part, run, call.pipeline, call.memory)
    return {"type": "websocket.send", "text": text.decode()}


class Messages(InputReading):
    """Reads the messages of a client into `stream` while `run` works on them.

    If one can't be taken, the run fails; if the client leaves, the run is left.
    """

    def __init__(self, scope: Scope, receive: Receive, port: Port, settings: Settings) -> None:
        super().__init__(scope, receive)
        self._port = port
        self._settings = settings
        self._size = 0

    async def _read(self) -> None:
        try:
            while (message := await self._next()) is not None:
                if message["type"] == "websocket.disconnect":
                    self._run.leave()
                    return
                chunk, size = self._chunk(message)
                del message
                await self.stream.put(chunk, size)
            self.stream.end()
            while (await self._receive())["type"] != "websocket.disconnect":
                pass  # the input has ended, what comes still is of no use
            self._run.leave()
        except Exception as error:
            self._run.fail(error)

    async def _next(self) -> Message | None:
        """Return the next message; None for one that ends the input."""
        loop = asyncio.get_running_loop()
        timeout = self._settings.body_timeout
        timer = UploadTimer(loop, loop.time() + timeout, self._fall_silent)
        try:
            message = await self._receive()
        finally:
            timer.cancel()
        return None if _is_end(message) else message

    def _chunk(self, message: Message) -> tuple[bytes | str, int]:
        """Return the chunk that a message is, and its bytes.

        Raises `UnsupportedMedia` for the wrong kind of message, `TooLarge`.
        """
        kind = "text" if self._port.kind == "text" else "bytes"
        chunk: bytes | str | None = message.get(kind)
        if chunk is None:
            expected, found = ("text", "binary") if kind == "text" else ("binary", "text")
            raise UnsupportedMedia(
                f"input {self._port.name!r} is of kind {self._port.kind}: expected {expected} "
                f"messages, found a {found} one"
            )
        size = len(chunk) if isinstance(chunk, bytes) else len(chunk.encode())
        if size > self._settings.max_message:
            raise TooLarge(
                f"the message has more than {self._settings.max_message} bytes (max_message)"
            )
        self._size += size
        limit = self._settings.max_stream
        if limit is not None and self._size > limit:
            raise TooLarge(f"the stream has more than {limit} bytes (max_stream)")
        return chunk, size

    def _fall_silent(self) -> None:
        self._run.fail(
            FellSilent(
                f"no message came for {self._settings.body_timeout:g} s, and the input has not "
                "ended (body_timeout)"
            )
        )


def _is_end(message: Message) -> bool:
    """Return whether a message ends the input: it is empty, or the JSON `{"end": true}`."""
    if message["type"] != "websocket.receive":
        return False
    text: str | None = message.get("text")
    if text is None:
        return not message.get("bytes")
    if not text:
        return True
    if text[0] != "{" or len(text) > MAX_END_CHARACTERS:
        return False
    try:
        return bool(orjson.loads(text) == END)
    except orjson.JSONDecodeError:
        return False
