"""`Incoming`: the bodies that a front has put into its arena."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from contextlib import suppress

import numpy as np

from ..arena import Mapping
from ..messages import FREE, Body
from ..packets import Packets

FREED_AT_ONCE = 1024
"""So many offsets go into one message."""


class Incoming:
    """Reads extents of a front's arena, and tells the front when it can use them again.

    `mapping` is None until the front's HELLO has come.
    """

    def __init__(self, packets: Packets) -> None:
        self.mapping: Mapping | None = None
        self._packets = packets
        self._loop = asyncio.get_running_loop()
        self._freed: deque[int] = deque()  # extents that the front has not been told of
        self._sends = False  # `_send` will be called

    def read(self, body: Body) -> bytes | Extent:
        """Return a body that came inside its message, or its extent."""
        return body if isinstance(body, bytes) else Extent(self, *body)

    def copied(self, body: Body) -> bytes:
        return body if isinstance(body, bytes) else Extent(self, *body).copied()

    def in_place(self, body: Body) -> bytearray | memoryview:
        """Return a body as memory that may be written to."""
        return bytearray(body) if isinstance(body, bytes) else Extent(self, *body).in_place()

    def drop(self, body: Body) -> None:
        if not isinstance(body, bytes):
            self.let_go(body[0])

    def let_go(self, offset: int) -> None:
        """Tell the front, soon, that an extent is free."""
        self._freed.append(offset)
        if not self._sends:
            self._sends = True
            self._loop.call_soon(self._send)

    def let_go_later(self, offset: int) -> None:
        """Do the same from any thread."""
        self._freed.append(offset)
        if not self._sends:  # else `_send` takes this one along: it drops the note first
            self._sends = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send)

    def close(self) -> None:
        mapping, self.mapping = self.mapping, None
        if mapping is not None:
            mapping.close()

    def _send(self) -> None:
        self._sends = False
        freed = self._freed
        while freed:
            offsets = [freed.popleft() for _ in range(min(len(freed), FREED_AT_ONCE))]
            self._packets.send((FREE, offsets))


class Extent:
    """A body in the front's arena. Every way of reading it lets go of it in the end."""

    __slots__ = ("_incoming", "offset", "view")

    def __init__(self, incoming: Incoming, offset: int, size: int) -> None:
        assert incoming.mapping is not None
        self._incoming = incoming
        self.offset = offset
        self.view = incoming.mapping.view(offset, size)

    def copied(self) -> bytes:
        content = bytes(self.view)
        self.let_go()
        return content

    def in_place(self) -> memoryview:
        """Return the content, whose extent is free once nothing refers to it any more."""
        owner = np.frombuffer(self.view, np.uint8)
        weakref.finalize(owner, self._incoming.let_go_later, self.offset).atexit = False
        return owner.data

    def let_go(self) -> None:
        self.view.release()
        self._incoming.let_go(self.offset)
