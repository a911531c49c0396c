"""Sends the answers of a connection's calls, within the windows of its client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from . import wire
from .call import MOST_UNSENT_BYTES, Call
from .wire import FLOW_CONTROL_ERROR, MOST_WINDOW, PROTOCOL_ERROR, Http2Error

MAX_DATA_BYTES = 1 << 18
"""The most bytes of a call that are sent before other calls have their turn."""


class Sender:
    """Sends messages and the ends of calls. `closed` is called when a call's end has been sent.

    `stalled`: since when the client has read nothing of what was written; None if it reads.
    """

    def __init__(self, transport: Any, closed: Callable[[Call], None]) -> None:
        self.stalled: float | None = None
        self.initial_window = wire.DEFAULT_WINDOW
        self._transport = transport
        self._closed = closed
        self._window = wire.DEFAULT_WINDOW
        self._max_frame = wire.LEAST_FRAME_BYTES
        self._waiting: dict[Call, None] = {}
        self._ready: dict[Call, None] = {}  # those of them whose own window is open
        self.paused = False

    def message(self, call: Call, content: Any, *, ends: bool) -> None:
        """Send a message, and with `ends` the end of the call after it."""
        size = len(content) + len(wire.PREFIX)
        headers = b"" if call.has_headers else wire.answer_head(call.identity)
        call.has_headers = True
        prefix = b"\0" + len(content).to_bytes(4, "big")
        if (
            size <= self._max_frame
            and size <= call.window
            and size <= self._window
            and not call.unsent
            and not self.paused
        ):
            call.window -= size
            self._window -= size
            data = wire.head(size, wire.DATA, 0, call.identity)
            last = self._last(call) if ends else b""
            self._transport.write(b"".join((headers, data, prefix, content, last)))
            if ends:
                self._closed(call)
            return
        if headers:
            self._transport.write(headers)
        call.out.append(memoryview(prefix))
        if len(content):
            call.out.append(memoryview(content))
        if not call.unsent:
            call.stalled = time.monotonic()
        call.unsent += size
        call.ends = ends
        self._waiting[call] = None
        if call.window > 0:
            self._ready[call] = None
        self.flush()

    def end(self, call: Call) -> None:
        """Send the end of a call, after what it sends yet."""
        if call.unsent:
            call.ends = True
            return
        self._transport.write(self._last(call))
        self._closed(call)

    def forget(self, call: Call) -> None:
        self._waiting.pop(call, None)
        self._ready.pop(call, None)
        call.out.clear()
        call.unsent = 0
        call.wake_writer()

    def pause(self) -> None:
        self.paused = True
        self.stalled = self.stalled or time.monotonic()

    def resume(self) -> None:
        self.paused = False
        self.stalled = None
        self.flush()

    # what the client says

    def set_initial_window(self, size: int, calls: list[Call]) -> None:
        if size > MOST_WINDOW:
            raise Http2Error(FLOW_CONTROL_ERROR, "too large a window")
        for call in calls:
            self._widen(call, size - self.initial_window)
        self.initial_window = size

    def set_max_frame(self, size: int) -> None:
        if not wire.LEAST_FRAME_BYTES <= size <= wire.MOST_FRAME_BYTES:
            raise Http2Error(PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of its range")
        self._max_frame = min(size, MAX_DATA_BYTES)

    def grow(self, size: int) -> None:
        """Add to the connection's window."""
        self._window += size
        if self._window > MOST_WINDOW:
            raise Http2Error(FLOW_CONTROL_ERROR, "too large a window")
        if self._ready:
            self.flush()

    def grow_call(self, call: Call, size: int) -> None:
        """Add to the window of a call."""
        self._widen(call, size)
        if call in self._ready and self._window > 0:
            self.flush()

    def _widen(self, call: Call, size: int) -> None:
        call.window += size
        if call.window > MOST_WINDOW:
            raise Http2Error(FLOW_CONTROL_ERROR, "too large a window")
        if call.window <= 0:
            self._ready.pop(call, None)
        elif call in self._waiting:
            self._ready[call] = None

    def flush(self) -> None:
        """Send what waits, a piece of each call in turn, as far as the windows allow."""
        while self._turn():
            pass

    def late(self, before: float) -> list[Call]:
        """Return the calls of which the client has taken nothing since a time, though it could."""
        return [call for call in self._waiting if call.stalled < before]

    def _turn(self) -> bool:
        """Send a piece of each call that may send. Return whether there may be more."""
        for call in list(self._ready):
            if self.paused or self._window <= 0:
                return False
            if call in self._ready:
                self._piece(call, min(call.unsent, call.window, self._window, self._max_frame))
        return bool(self._ready)

    def _piece(self, call: Call, size: int) -> None:
        pieces: list[Any] = [wire.head(size, wire.DATA, 0, call.identity)]
        call.window -= size
        self._window -= size
        call.unsent -= size
        while size:
            piece = call.out[0]
            if len(piece) <= size:
                call.out.popleft()
            else:
                call.out[0] = piece[size:]
                piece = piece[:size]
            size -= len(piece)
            pieces.append(piece)
        call.stalled = time.monotonic()
        del self._ready[call]
        if call.window > 0 and call.unsent:
            self._ready[call] = None  # behind the others
        if not call.unsent:
            del self._waiting[call]
            if call.ends:
                pieces.append(self._last(call))
        self._transport.writelines(pieces)
        if not call.unsent and call.ends:
            self._closed(call)
        elif call.unsent <= MOST_UNSENT_BYTES:
            call.wake_writer()

    def _last(self, call: Call) -> bytes:
        last = wire.end(
            call.identity, call.code, call.detail, call.trailing, is_first=not call.has_headers
        )
        if not call.ended:  # the client need send no more
            last += wire.reset(call.identity, wire.NO_ERROR)
        return last
