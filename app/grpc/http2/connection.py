"""HTTP/2 on one connection."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
from grpc import aio

from . import wire
from .call import Call
from .floods import Floods
from .frames import MAX_FRAME_BYTES, FrameReader
from .headers import HeaderReader
from .limits import (
    CALL_WINDOW,
    CONNECTION_WINDOW,
    HEAD_FACTOR,
    MAX_UNREAD_BYTES,
    MOST_QUEUED_BYTES,
    Owner,
    peer_of,
)
from .sender import Sender
from .wire import Http2Error, frame

logger = logging.getLogger("penstock.connection")


class Connection(asyncio.Protocol):
    """Makes calls of frames, and runs their handlers."""

    def __init__(self, server: Owner) -> None:
        self.server = server
        self.calls: dict[int, Call] = {}
        self.peer = ""
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._sender: Any = None
        self._frames = FrameReader(self, HEAD_FACTOR * server.limits.max_head)
        self._headers = HeaderReader(HEAD_FACTOR * server.limits.max_head)
        self._closing = False
        self._last = 0
        self._opened: list[tuple[Call, Any]] = []  # whose handlers have not begun
        self._data: Call | None = None
        self._received = 0  # of which the client has not heard
        self._floods = Floods(server.limits)
        self.idle_frame = self._floods.idle_frame
        self._since = self._heard = time.monotonic()  # the last end of a call, and any bytes
        self._ping_sent: float | None = None

    # from the transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._sender = Sender(transport, self._close)
        self.peer = peer_of(transport.get_extra_info("peername"))
        if not self.server.add(self):
            self._closing = True
            transport.abort()
            return

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.server.remove(self)
        for call in list(self.calls.values()):
            self._drop(call)

    def pause_writing(self) -> None:
        self._sender.pause()

    def resume_writing(self) -> None:
        self._sender.resume()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._heard = time.monotonic()
        try:
            self._frames.feed(data)
        except Http2Error as failure:
            self._fail(failure.code, failure.reason)
        except Exception:
            logger.exception("gRPC: a connection failed")
            self._fail(wire.INTERNAL_ERROR, "internal error")
        opened, self._opened = self._opened, []
        for call, handler in opened:
            if call.identity in self.calls:
                call.task = self._loop.create_task(self._serve(call, handler))
                call.task.add_done_callback(self.server.end)
            else:
                self.server.end(None)
        if self._sender.paused and self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._closing = True
            self._transport.abort()

    # from the frames

    def begins(self) -> None:
        """Say what may be sent. Not before it is known that the client speaks HTTP/2."""
        settings = (
            (wire.MAX_CONCURRENT_STREAMS, self.server.limits.max_streams),
            (wire.INITIAL_WINDOW_SIZE, CALL_WINDOW),
            (wire.MAX_FRAME_SIZE, MAX_FRAME_BYTES),
            (wire.MAX_HEADER_LIST_SIZE, self.server.limits.max_head),
        )
        update = wire.window_update(0, CONNECTION_WINDOW - wire.DEFAULT_WINDOW)
        self._transport.write(wire.settings(settings) + update)

    def data_begins(self, stream: int, size: int, padding: int) -> None:
        if not stream or stream > self._last:
            raise Http2Error(wire.PROTOCOL_ERROR, "DATA of a stream that is not open")
        call = self.calls.get(stream)
        self._data = None if call is None or call.ended else call
        if padding:
            self._account(padding)
        if size == padding:
            self.idle_frame()

    def data(self, view: memoryview) -> None:
        size = len(view)
        self._account(size)
        call = self._data
        if call is not None:
            call.feed(view)
            self.acknowledge(call)

    def data_ends(self, *, is_last: bool) -> None:
        call, self._data = self._data, None
        if is_last and call is not None:
            call.end_of_messages()

    def _account(self, size: int) -> None:
        call = self._data
        if call is not None:
            call.unacknowledged += size
            if call.unacknowledged > CALL_WINDOW:
                raise Http2Error(wire.FLOW_CONTROL_ERROR, "more DATA than the window")
        self._received += size
        if self._received >= CONNECTION_WINDOW // 2:
            self._transport.write(wire.window_update(0, self._received))
            self._received = 0

    def acknowledge(self, call: Call) -> None:
        """Let a call's client send more, unless its messages wait for the handler."""
        if (
            call.unacknowledged >= CALL_WINDOW // 2
            and call.queued < MOST_QUEUED_BYTES
            and not call.ended
            and call.identity in self.calls
        ):
            self._transport.write(wire.window_update(call.identity, call.unacknowledged))
            call.unacknowledged = 0

    def header_block(self, stream: int, block: bytes, *, is_last: bool) -> None:
        head = self._headers.read(block)
        if stream <= self._last:  # the client's trailers, or a stream that is closed
            self.idle_frame()
            known = self.calls.get(stream)
            if known is not None and is_last:
                known.end_of_messages()
            return
        self._last = stream
        server = self.server
        if server.draining or len(self.calls) >= server.limits.max_streams:
            self.idle_frame()
            self._transport.write(wire.reset(stream, wire.REFUSED_STREAM))
            return
        if head.refusal:
            self.idle_frame()
            self._transport.write(wire.plain_answer(stream, head.refusal))
            return
        call = Call(
            self,
            stream,
            head,
            window=self._sender.initial_window,
            most=server.limits.max_message,
        )
        call.ended = is_last
        self.calls[stream] = call
        handler = server.handler_of(head.method, head.metadata)
        if head.problem:
            self.refuse(call, grpc.StatusCode.INTERNAL, head.problem)
        elif head.size > server.limits.max_head:
            text = f"the metadata has {head.size} bytes, which is more than max_head"
            self.refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        elif handler is None:
            self.refuse(call, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif not server.begin():
            self.refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at a time")
        else:
            self._opened.append((call, handler))
            if head.timeout is not None:
                late = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
                call.timer = self._loop.call_later(head.timeout, self.refuse, call, *late)

    def settings(self, pairs: list[tuple[int, int]]) -> None:
        for number, value in pairs:
            if number == wire.INITIAL_WINDOW_SIZE:
                self._sender.set_initial_window(value, list(self.calls.values()))
            elif number == wire.MAX_FRAME_SIZE:
                self._sender.set_max_frame(value)
        self._transport.write(frame(wire.SETTINGS, wire.ACK, 0, b""))
        self._sender.flush()

    def ping(self, content: bytes) -> None:
        self._floods.ping(self._heard)
        self._transport.write(frame(wire.PING, wire.ACK, 0, content))

    def pong(self) -> None:
        self.idle_frame()
        self._ping_sent = None

    def window_update(self, stream: int, size: int) -> None:
        if not size or stream > self._last:
            raise Http2Error(wire.PROTOCOL_ERROR, "malformed WINDOW_UPDATE")
        self._floods.window_update(size)
        if not stream:
            self._sender.grow(size)
        elif (call := self.calls.get(stream)) is not None:
            self._sender.grow_call(call, size)

    def reset(self, stream: int) -> None:
        if not stream or stream > self._last:
            raise Http2Error(wire.PROTOCOL_ERROR, "RST_STREAM of a stream that is not open")
        self.idle_frame()
        call = self.calls.get(stream)
        if call is not None:
            self._drop(call)

    # calls

    async def _serve(self, call: Call, handler: Any) -> None:
        try:
            if handler.response_streaming:
                await self._stream(call, handler.stream_stream(call.messages(), call), handler)
            else:
                self._send(call, await handler.stream_unary(call.messages(), call), ends=True)
        except aio.AbortError:
            self._end(call)
        except asyncio.CancelledError:  # its client has left, its time is over, or the server ends
            call.code, call.detail = grpc.StatusCode.UNAVAILABLE.value[0], "the server ends"
            self._end(call)
        except Exception:
            logger.exception("gRPC: a handler failed")
            call.code, call.detail = grpc.StatusCode.UNKNOWN.value[0], "the handler failed"
            self._end(call)

    async def _stream(self, call: Call, answers: Any, handler: Any) -> None:
        serialise = handler.response_serializer
        try:
            async for answer in answers:
                self._send(call, answer if serialise is None else serialise(answer))
                await call.drained()
        finally:
            await answers.aclose()
        self._end(call)

    def _send(self, call: Call, message: Any, *, ends: bool = False) -> None:
        if call.identity in self.calls:
            self._floods.message_sent()
            self._sender.message(call, message, ends=ends)
            if call.unsent:
                call.count()

    def _end(self, call: Call) -> None:
        if call.identity in self.calls:
            self._sender.end(call)

    def refuse(self, call: Call, code: Any, detail: str) -> None:
        """End a call by a status, and its handler if there is one."""
        call.code, call.detail, call.trailing = code.value[0], detail, ()
        self._sender.forget(call)
        self._end(call)
        if call.task is not None:
            call.task.cancel()

    def _drop(self, call: Call) -> None:
        """End a call that its client has left."""
        self._close(call)
        if call.task is not None:
            call.task.cancel()

    def _close(self, call: Call) -> None:
        """Forget a call. Nothing more is sent of it."""
        self.calls.pop(call.identity, None)
        if self._data is call:
            self._data = None
        self._sender.forget(call)
        call.close()
        self._since = time.monotonic()
        if self.server.draining and not self.calls:
            self._transport.close()

    # the end

    def _fail(self, code: int, reason: str) -> None:
        """Tell the client why, and close the connection."""
        self._closing = True
        if self._frames.began:
            logger.info("gRPC: ended the connection of %s: %s", self.peer, reason)
            self.go_away(code, reason)
        else:
            self._transport.write(wire.NO_HTTP_2)
        self._transport.close()

    def go_away(self, code: int, reason: str) -> None:
        """Tell the client to open no more calls here."""
        self._transport.write(wire.go_away(self._last, code, reason))

    def drain(self) -> None:
        """End the connection when its calls have ended."""
        if self._frames.began:
            self.go_away(wire.NO_ERROR, "the server ends")
        if not self.calls:
            self._transport.close()

    def end(self) -> None:
        """End all calls, and the connection."""
        for call in list(self.calls.values()):
            if call.task is not None:
                call.task.cancel()
        self._loop.call_soon(self._transport.close)

    def look(self, now: float) -> None:
        """Do what is due: pings, and the end of a connection that is idle or dead."""
        limits = self.server.limits
        self._floods.look()
        for call in self._sender.late(now - limits.send_timeout):
            self._transport.write(wire.reset(call.identity, wire.CANCEL))
            self._drop(call)
        if self._closing or self._is_dead(now):
            self._transport.abort()
        elif not self.calls:
            if now - self._since > limits.idle_timeout:
                self._fail(wire.NO_ERROR, "idle_timeout")
        elif now - self._heard > limits.ping_seconds and self._ping_sent is None:
            self._ping_sent = now
            self._transport.write(frame(wire.PING, 0, 0, bytes(wire.PING_BYTES)))

    def _is_dead(self, now: float) -> bool:
        limits = self.server.limits
        if not self._frames.began and now - self._since > limits.head_timeout:
            return True
        if self._ping_sent is not None and now - self._ping_sent > limits.ping_timeout:
            return True
        stalled: float | None = self._sender.stalled
        return stalled is not None and now - stalled > limits.send_timeout
