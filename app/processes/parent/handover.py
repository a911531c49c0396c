"""Accept connections, and hand them to front processes."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Sequence

from ...server.listeners import take_waiting
from ..control import Control
from .child import Child

logger = logging.getLogger("penstock.serve")

MAX_PENDING = 256
"""So many connections a front may leave untaken. More wait in the kernel (`backlog`)."""

ACCEPTS_PER_TURN = 64
"""So many connections are accepted before other callbacks of the loop have a turn."""

RETRY_SECONDS = 0.1
"""The pause after there was no file descriptor for a connection."""

NO_RESOURCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Handover:
    """Hands each connection to the front with the fewest, or lets fronts accept for themselves.

    `own`: the listeners of front 1, of front 2, …, where the kernel chooses among them. While a
    front can't accept, its connections are accepted here and handed to the others. Without `own`
    all are. No connection is lost when a front dies: those that it has not taken yet are kept
    here, and go to another one.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], own: Sequence[Sequence[socket.socket]] = ()
    ) -> None:
        self.fronts: Sequence[Child] = ()
        """The fronts that get connections from now on. Call `update` after a change."""
        self._loop = asyncio.get_running_loop()
        self._listeners = [*listeners, *(each for listeners in own for each in listeners)]
        self._own = own
        self._accepting: set[socket.socket] = set()
        self._takers: list[Child] = []
        self._homeless: deque[socket.socket] = deque()  # connections of fronts that have died
        self._turn = 0
        self._turns: dict[int, int] = {}  # the last turn of each front, by its process
        self._paused = False
        self._full = False  # no front takes a connection now
        for listener in self._listeners:
            listener.setblocking(False)

    def __repr__(self) -> str:
        return f"<Handover to {len(self._takers)} fronts, {len(self._homeless)} homeless>"

    def front_ended(self, front: Child) -> None:
        """Take back the connections that a dead front has not taken."""
        self._homeless += front.pending
        front.pending.clear()
        self._turns.pop(front.pid, None)

    def update(self) -> None:
        """Look at the fronts again: who takes connections now?"""
        ready = [front for front in self.fronts if front.ready]
        linked = [front for front in ready if front.linked]
        self._takers = [front for front in linked if front.prepared] or linked or ready
        for front in self._takers:
            front.on_room = self._room
            if self._own and not front.listens:
                front.listens = True
                numbers = [each.fileno() for each in self._own[front.role.number - 1]]
                front.send(Control.LISTEN, descriptors=numbers)
        self._go_on()

    def close(self) -> None:
        """Stop listening, and hand over the connections that wait in the kernel."""
        self._paused = True
        self._accept_at(())
        for listener in self._listeners:
            self._homeless += take_waiting(listener)
            listener.close()
        self._place_homeless(bounded=False)
        for connection in self._homeless:
            connection.close()

    def _room(self) -> None:
        if self._full:
            self._go_on()

    def _go_on(self) -> None:
        """Hand over what waits, and accept more if there is room for it."""
        self._place_homeless()
        self._full = self._next() is None
        if self._paused or self._full:
            self._accept_at(())
            return
        listening = {front.role.number for front in self.fronts if front.listens}
        away = {
            each
            for number, listeners in enumerate(self._own, 1)
            if number in listening
            for each in listeners
        }
        self._accept_at([each for each in self._listeners if each not in away])

    def _place_homeless(self, bounded: bool = True) -> None:
        while self._homeless and (front := self._next(bounded)) is not None:
            if not self._hand(front, self._homeless.popleft()):
                return

    def _accept_at(self, listeners: Sequence[socket.socket]) -> None:
        wanted = set(listeners)
        for listener in self._accepting - wanted:
            self._loop.remove_reader(listener)
        for listener in wanted - self._accepting:
            self._loop.add_reader(listener, self._accept, listener)
        self._accepting = wanted

    def _next(self, bounded: bool = True) -> Child | None:
        """Return the front with the fewest connections; of several, the one whose turn is the
        longest ago. None: no front takes one now.
        """
        best: Child | None = None
        for front in self._takers:
            if bounded and len(front.pending) >= MAX_PENDING:
                continue
            if best is None or self._rank(front) < self._rank(best):
                best = front
        return best

    def _rank(self, front: Child) -> tuple[int, int]:
        return front.open, self._turns.get(front.pid, 0)

    def _hand(self, front: Child, connection: socket.socket) -> bool:
        """Hand a connection over. Return whether there was a descriptor for it."""
        try:
            front.hand(connection)
        except OSError as error:
            self._homeless.appendleft(connection)
            self._pause(error)
            return False
        self._turn += 1
        self._turns[front.pid] = self._turn
        return True

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            front = self._next()
            if front is None:
                self._full = True
                self._accept_at(())
                return
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in NO_RESOURCE:
                    self._pause(error)
                    return
                continue  # the client has left
            if not self._hand(front, connection):
                return

    def _pause(self, error: OSError) -> None:
        logger.warning("no connection can be accepted now: %s", error.strerror)
        self._paused = True
        self._accept_at(())
        self._loop.call_later(RETRY_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._listeners[0].fileno() >= 0:  # not closed meanwhile
            self._paused = False
            self._go_on()
