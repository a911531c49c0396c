"""Bounds for frames that cost the server work and bring no call further."""

from __future__ import annotations

from .limits import Limits
from .wire import ENHANCE_YOUR_CALM, Http2Error

MAX_IDLE_FRAMES = 2000
"""The most frames that bring no call further between two looks at the clock."""

SMALL_UPDATE_BYTES = 1 << 10
SMALL_UPDATES_PER_MESSAGE = 4
"""Updates of a window by less have a bound of their own, but for so many of each message that was
sent: gRPC's own clients send such.
"""


class Floods:
    """Counts such frames of one connection. Raises `Http2Error` when they are too many."""

    __slots__ = ("_idle", "_limits", "_pinged_at", "_small_updates", "_strikes")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle = self._small_updates = self._strikes = 0
        self._pinged_at = 0.0

    def idle_frame(self) -> None:
        self._idle += 1
        if self._idle > MAX_IDLE_FRAMES:
            raise Http2Error(ENHANCE_YOUR_CALM, "too many frames without a call")

    def window_update(self, size: int) -> None:
        if size < SMALL_UPDATE_BYTES:
            self._small_updates += 1
            if self._small_updates > MAX_IDLE_FRAMES:
                raise Http2Error(ENHANCE_YOUR_CALM, "too many small updates of windows")

    def ping(self, now: float) -> None:
        if now - self._pinged_at < self._limits.min_ping_seconds:
            self._strikes += 1
            if self._strikes > self._limits.max_ping_strikes:
                raise Http2Error(ENHANCE_YOUR_CALM, "too_many_pings")
        self._pinged_at = now

    def message_sent(self) -> None:
        """Forgive pings, by which clients measure the connection while it is used."""
        self._strikes = 0
        self._small_updates -= SMALL_UPDATES_PER_MESSAGE

    def look(self) -> None:
        self._idle = self._small_updates = 0
