"""Cuts the bytes of a client into frames."""

from __future__ import annotations

from typing import Any, Protocol

from . import wire
from .wire import (
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    SETTING_BYTES,
    Http2Error,
)

MAX_FRAME_BYTES = 1 << 20
"""The largest frame that is taken. Only DATA may have more than 16 KiB: it is never collected."""


class Sink(Protocol):
    """Hears of frames. May raise `Http2Error`."""

    def begins(self) -> None: ...
    def data_begins(self, stream: int, size: int, padding: int) -> None: ...
    def data(self, view: memoryview) -> None: ...
    def data_ends(self, *, is_last: bool) -> None: ...
    def header_block(self, stream: int, block: bytes, *, is_last: bool) -> None: ...
    def settings(self, pairs: list[tuple[int, int]]) -> None: ...
    def ping(self, content: bytes) -> None: ...
    def pong(self) -> None: ...
    def window_update(self, stream: int, size: int) -> None: ...
    def reset(self, stream: int) -> None: ...
    def idle_frame(self) -> None: ...


class FrameReader:
    """Cuts bytes, however they come, into frames for a sink.

    `began`: whether the preface of HTTP/2 has come.
    """

    def __init__(self, sink: Sink, max_head: int) -> None:
        """`max_head`: the most bytes of a header block."""
        self.began = False
        self._sink = sink
        self._max_head = max_head
        self._buffer = bytearray()
        # A DATA frame that is arriving.
        self._data_left = self._padding_left = 0
        self._is_last = False
        # A header block that is arriving.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_is_last = False

    def feed(self, data: bytes) -> None:
        """Read bytes. Raises `Http2Error`."""
        buffer: Any = data
        if self._buffer:
            self._buffer += data
            buffer, self._buffer = self._buffer, bytearray()
        position, end = 0, len(buffer)
        if not self.began:
            position = len(wire.PREFACE)
            if not wire.PREFACE.startswith(bytes(buffer[:position])):
                raise Http2Error(PROTOCOL_ERROR, "expected the preface of HTTP/2")
            if end < position:
                self._buffer += buffer
                return
            self.began = True
            self._sink.begins()
        view = memoryview(buffer)
        while position < end:
            if self._data_left or self._padding_left:
                position = self._arriving(view, position, end)
                continue
            start = position + wire.HEAD_BYTES
            if start > end:
                break
            size = buffer[position] << 16 | buffer[position + 1] << 8 | buffer[position + 2]
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : start], "big") & 0x7FFFFFFF
            if size > (MAX_FRAME_BYTES if kind == wire.DATA else wire.LEAST_FRAME_BYTES):
                raise Http2Error(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if self._block is not None and kind != wire.CONTINUATION:
                raise Http2Error(PROTOCOL_ERROR, "expected CONTINUATION")
            if kind == wire.DATA:
                padding = 0
                if flags & wire.PADDED:
                    if size and start == end:
                        break  # the next byte says how much
                    padding = 1 + (buffer[start] if size else 0)
                    start += 1
                    if padding > size:
                        raise Http2Error(PROTOCOL_ERROR, "more padding than frame")
                position = start
                self._begin_data(stream, size, padding, is_last=bool(flags & wire.END_STREAM))
            elif start + size > end:
                break
            else:
                position = start + size
                self._frame(kind, flags, stream, view[start:position])
        if position < end:
            self._buffer += view[position:]

    def _begin_data(self, stream: int, size: int, padding: int, *, is_last: bool) -> None:
        """`padding`: with the byte that says how much it is, which has been read."""
        self._data_left = size - padding
        self._padding_left = max(0, padding - 1)
        self._is_last = is_last
        self._sink.data_begins(stream, size, padding)
        if not self._data_left:
            self._sink.data_ends(is_last=is_last)

    def _arriving(self, view: memoryview, position: int, end: int) -> int:
        """Take what has come of a DATA frame, and return where that ends."""
        if self._data_left:
            step = min(self._data_left, end - position)
            self._data_left -= step
            self._sink.data(view[position : position + step])
            if not self._data_left:
                self._sink.data_ends(is_last=self._is_last)
        else:
            step = min(self._padding_left, end - position)
            self._padding_left -= step
        return position + step

    def _frame(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        sink = self._sink
        if kind == wire.HEADERS:
            self._headers(flags, stream, payload)
        elif kind == wire.CONTINUATION:
            self._continuation(flags, stream, payload)
        elif kind == wire.WINDOW_UPDATE:
            _check_size(payload, wire.UPDATE_BYTES)
            sink.window_update(stream, int.from_bytes(payload, "big") & 0x7FFFFFFF)
        elif kind == wire.RST_STREAM:
            _check_size(payload, wire.UPDATE_BYTES)
            sink.reset(stream)
        elif kind == wire.SETTINGS:
            self._settings(flags, stream, payload)
        elif kind == wire.PING:
            _check_size(payload, wire.PING_BYTES)
            if stream:
                raise Http2Error(PROTOCOL_ERROR, "PING of a stream")
            if flags & wire.ACK:
                sink.pong()
            else:
                sink.ping(bytes(payload))
        elif kind == wire.PUSH_PROMISE:
            raise Http2Error(PROTOCOL_ERROR, "a client can't push")
        else:  # PRIORITY, GOAWAY, and kinds that are not known
            if kind == wire.PRIORITY:
                _check_size(payload, wire.PRIORITY_BYTES)
            elif kind == wire.GOAWAY and len(payload) < wire.LEAST_GOAWAY_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, "malformed GOAWAY")
            sink.idle_frame()

    def _headers(self, flags: int, stream: int, payload: memoryview) -> None:
        if not stream % 2:
            raise Http2Error(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & wire.PADDED:
            if not len(payload) or payload[0] >= len(payload):
                raise Http2Error(PROTOCOL_ERROR, "more padding than frame")
            payload = payload[1 : len(payload) - payload[0]]
        if flags & wire.WITH_PRIORITY:
            if len(payload) < wire.PRIORITY_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, "HEADERS without their priority")
            payload = payload[wire.PRIORITY_BYTES :]
        is_last = bool(flags & wire.END_STREAM)
        if flags & wire.END_HEADERS:
            self._sink.header_block(stream, bytes(payload), is_last=is_last)
        else:
            self._block = bytearray(payload)
            self._block_stream, self._block_is_last = stream, is_last

    def _continuation(self, flags: int, stream: int, payload: memoryview) -> None:
        if self._block is None or stream != self._block_stream:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION of no header block")
        self._sink.idle_frame()
        self._block += payload
        if len(self._block) > self._max_head:
            raise Http2Error(wire.ENHANCE_YOUR_CALM, "headers far exceed max_head")
        if flags & wire.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._sink.header_block(stream, block, is_last=self._block_is_last)

    def _settings(self, flags: int, stream: int, payload: memoryview) -> None:
        if stream:
            raise Http2Error(PROTOCOL_ERROR, "SETTINGS of a stream")
        if len(payload) % SETTING_BYTES or (flags & wire.ACK and len(payload)):
            raise Http2Error(FRAME_SIZE_ERROR, "malformed SETTINGS")
        self._sink.idle_frame()
        if not flags & wire.ACK:
            self._sink.settings(
                [
                    (
                        int.from_bytes(payload[start : start + 2], "big"),
                        int.from_bytes(payload[start + 2 : start + SETTING_BYTES], "big"),
                    )
                    for start in range(0, len(payload), SETTING_BYTES)
                ]
            )


def _check_size(payload: memoryview, size: int) -> None:
    if len(payload) != size:
        raise Http2Error(FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes, expected {size}")
