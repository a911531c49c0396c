"""`Outgoing`: what the model process sends to a front, through its arena if it is large."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..arena import Arena
from ..packets import INLINE_BYTES, Packets
from .calls import Crossed

Piece = bytes | memoryview


class _Waiting(NamedTuple):
    """A message that waits for room in the arena."""

    before: tuple[Any, ...]
    pieces: Sequence[Piece]
    after: tuple[Any, ...]
    owner: Crossed | None


class Outgoing:
    """Sends messages with a body of any size.

    While the arena has no room, they wait until the front frees what it has copied. Those of
    requests keep the memory that their request has reserved, so the budget bounds their sum.
    """

    def __init__(
        self, packets: Packets, arena: Arena, on_refused: Callable[[Crossed | None], None]
    ) -> None:
        """`on_refused` is called with the owner of a message that finds no room although nothing
        else is in the arena: the memory budget is full.
        """
        self.arena = arena
        self._packets = packets
        self._on_refused = on_refused
        self._waiting: deque[_Waiting] = deque()

    def __repr__(self) -> str:
        return f"<Outgoing {self.arena!r}, {len(self._waiting)} waiting>"

    def send(
        self,
        before: tuple[Any, ...],
        pieces: Sequence[Piece],
        after: tuple[Any, ...] = (),
        owner: Crossed | None = None,
    ) -> None:
        """Send `before`, a body of `pieces` and `after` as one message, for the request `owner`."""
        if sum(map(len, pieces)) <= INLINE_BYTES:
            self._packets.send((*before, b"".join(pieces), *after))
        else:
            self._waiting.append(_Waiting(before, pieces, after, owner))
            self._send_waiting()

    def free(self, offsets: Sequence[int]) -> None:
        """Take extents back that the front has copied."""
        for offset in offsets:
            self.arena.free(offset)
        if self._waiting:
            self._send_waiting()

    def close(self) -> None:
        self._waiting.clear()
        self.arena.close()

    def _send_waiting(self) -> None:
        waiting = self._waiting
        while waiting:
            before, pieces, after, owner = waiting[0]
            extent = self.arena.put(*pieces)
            if extent is None and self.arena.in_use:
                return
            waiting.popleft()
            if extent is not None:
                self._packets.send((*before, extent, *after))
            if owner is not None:
                owner.memory.close()
            if extent is None:
                self._on_refused(owner)
