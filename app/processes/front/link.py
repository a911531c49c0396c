"""`FrontLink`: a front's end of its link to the model process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from penstock.backends.errors import NotReady
from penstock.backends.memory import budget

from ..arena import MOST_BYTES, Arena, Mapping
from ..messages import (
    ANSWER,
    FREE,
    GO,
    HELLO,
    IDLE,
    PRESSURE,
    QUERY,
    REPLY,
    RESEND,
    TABLE,
    TUNNEL,
    Body,
    Client,
    Log,
)
from ..packets import INLINE_BYTES, Packets
from .answers import NO_MODELS, STUCK

logger = logging.getLogger("penstock.processes")

COPIED_BYTES = 1 << 18
"""The largest body of an answer that is copied at once. A larger one is copied as its client reads,
so that a front holds a piece of it at a time.
"""


class Crossing(Protocol):
    """A request on its way, as the link sees it. It has ended after `answer` and `lost`."""

    def answer(
        self, status: int, head: bytes, body: bytes | LargeBody, keep_alive: bool, log: Log
    ) -> None: ...

    def go(self) -> None:
        """Send the body that was asked for."""

    def resend(self) -> None:
        """Send the request in another form."""

    def lost(self) -> None:
        """End: the model process has gone."""


class LargeBody:
    """The body of an answer, in the model process's arena. It counts in that one's memory until
    `let_go`.
    """

    __slots__ = ("_link", "_offset", "view")

    def __init__(self, link: FrontLink, offset: int, view: memoryview) -> None:
        self.view = view
        self._link = link
        self._offset = offset

    def __len__(self) -> int:
        return len(self.view)

    def let_go(self) -> None:
        self.view.release()
        self._link.let_go(self._offset)


class Carrier(Protocol):
    """A tunnel, as the link sees it."""

    def idle(self, received: int, sent: int) -> None:
        """Note that the model process waits for a request, after so many bytes."""


class FrontLink:
    """The link to one model process. It can be used once `linked` is true.

    `on_linked` is called then, and `on_gone` when the model process has gone. `on_query` answers
    questions about this process. `on_table` and `on_pressure` get what the model process says of
    front nodes.
    """

    def __init__(
        self, end: socket.socket, on_linked: Callable[[], None], on_gone: Callable[[], None]
    ) -> None:
        self.linked = False
        self.on_query: Callable[[bytes], bytes] = _no_report
        self.on_table: Callable[[bytes, bool], None] = _ignore
        self.on_pressure: Callable[[str, bool], None] = _ignore
        self._on_linked = on_linked
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._arena = Arena(min(budget.limit, MOST_BYTES))
        self._mapping: Mapping | None = None
        self._calls: dict[int, Crossing] = {}
        self._tunnels: dict[int, Carrier] = {}
        self._number = 0  # of the newest request or tunnel
        self._freed: list[int] = []  # extents of the model process's arena, to be let go
        self._packets = Packets(end, self._take, self._end)
        self._packets.send((HELLO,), [self._arena.descriptor])
        self._packets.start()

    def __repr__(self) -> str:
        state = "linked" if self.linked else "not linked"
        return f"<FrontLink {state}, {len(self._calls)} requests, {len(self._tunnels)} tunnels>"

    @property
    def is_stuck(self) -> bool:
        """True while the model process reads nothing: it hangs."""
        return self._packets.is_stuck

    def close(self) -> None:
        """Let go of it. The model process drops what it has not answered."""
        self.linked = False
        self._packets.close()
        self._arena.close()
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    # Requests.

    def add(self, call: Crossing) -> int:
        """Return a number for a request, which gets its answer."""
        self._number += 1
        self._calls[self._number] = call
        return self._number

    def forget(self, number: int) -> None:
        """Take no answer for a request any more."""
        self._calls.pop(number, None)

    def send(self, *message: Any) -> None:
        self._packets.send(message)

    def body(self, *pieces: bytes | memoryview, align: int = 0) -> Body | None:
        """Return a body as messages carry it: large ones are put into the arena. None: it is full.

        The byte at `align` gets an address that suits every datatype.
        """
        if sum(map(len, pieces)) <= INLINE_BYTES:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)  # type: ignore[return-value]
        return self._arena.put(*pieces, align=align)

    def extent(self, content: bytes | memoryview) -> Body | None:
        """Put content into the arena. None: it is full."""
        return self._arena.put(content)

    def free(self, bodies: Sequence[Body]) -> None:
        """Let go of bodies that have not been sent."""
        for body in bodies:
            if isinstance(body, tuple):
                self._arena.free(body[0])

    # Tunnels.

    def open_tunnel(self, tunnel: Carrier, client: Client, tls: bool, last: bool) -> Opened:
        """Let the model process serve a connection, whose bytes go through the socket.

        `last`: it closes after its first answer. Raises OSError if there is no file descriptor.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._number += 1
            try:
                self._packets.send((TUNNEL, self._number, client, tls, last), [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        self._tunnels[self._number] = tunnel
        return self._number, ours

    def close_tunnel(self, number: int) -> None:
        self._tunnels.pop(number, None)

    # Messages.

    def _take(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        if kind == ANSWER:
            _, number, status, head, body, keep_alive, log = message
            call = self._calls.pop(number, None)
            if call is None:  # its client has left
                if type(body) is tuple:
                    self.let_go(body[0])
                return
            if type(body) is tuple:
                body = self._large(body) if body[1] > COPIED_BYTES else self._copied(body)
            call.answer(status, head, body, keep_alive, log)
        elif kind == FREE:
            for offset in message[1]:
                self._arena.free(offset)
        elif kind == IDLE:
            _, number, received, sent = message
            if (tunnel := self._tunnels.get(number)) is not None:
                tunnel.idle(received, sent)
        elif kind == GO:
            if (call := self._calls.get(message[1])) is not None:
                call.go()
        elif kind == RESEND:
            if (call := self._calls.get(message[1])) is not None:
                call.resend()
        elif kind == QUERY:
            self._packets.send((REPLY, message[1], self._reply(message[2])))
        elif kind == TABLE:
            self.on_table(self._copied(message[1]), message[2])
        elif kind == PRESSURE:
            self.on_pressure(message[1], message[2])
        elif kind == HELLO:
            self._mapping = Mapping(descriptors[0])
            self.linked = True
            self._on_linked()

    def _reply(self, query: Body) -> Body:
        """Return the answer to a query; an empty one if it can't be answered."""
        try:
            body = self.body(self.on_query(self._copied(query)))
        except Exception:
            logger.exception("a question of the model process could not be answered")
            return b""
        return b"" if body is None else body

    def _copied(self, body: Body) -> bytes:
        """Return a body of the model process, and let its extent go."""
        if isinstance(body, bytes):
            return body
        assert self._mapping is not None
        content = bytes(self._mapping.view(*body))
        self.let_go(body[0])
        return content

    def _large(self, body: tuple[int, int]) -> LargeBody:
        assert self._mapping is not None
        return LargeBody(self, body[0], self._mapping.view(*body))

    def let_go(self, offset: int) -> None:
        """Let an extent of the model process go, soon."""
        if not self._freed:
            self._loop.call_soon(self._send_freed)
        self._freed.append(offset)

    def _send_freed(self) -> None:
        self._packets.send((FREE, self._freed))
        self._freed = []

    def _end(self) -> None:
        """End what was on its way: the model process has gone."""
        self.close()
        calls, self._calls = self._calls, {}
        self._on_gone()
        for call in calls.values():
            call.lost()


Opened = tuple[int, socket.socket]
"""A tunnel's number and this process's end of it."""


class Links:
    """The links of a front. `current` is that to the model process which serves; None while there
    is none, and `refusal` says why. `body_timeout`: the longest that a body may take to come,
    seconds.
    """

    def __init__(self, body_timeout: float) -> None:
        self.body_timeout = body_timeout
        self.refusal = NO_MODELS
        self.current: FrontLink | None = None

    def for_request(self) -> FrontLink | None:
        """Return the link that a new request takes; None: it is refused."""
        link = self.current
        return None if link is None or link.is_stuck else link

    @property
    def reason(self) -> NotReady:
        """Why requests are refused."""
        return STUCK if self.current is not None and self.current.is_stuck else self.refusal


def _no_report(query: bytes) -> bytes:
    return b""


def _ignore(*values: object) -> None:
    pass
