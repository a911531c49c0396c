"""`ModelLink`: the model process's end of the link to one front process."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from penstock.backends.errors import MemoryFull, PenstockError
from penstock.pipelines.runs.passed import unpack

from ...server.head import HeadParser, RequestHead
from ..arena import Arena, Mapping
from ..messages import (
    ANSWER,
    ASK,
    BODY,
    CANCEL,
    FAIL,
    FREE,
    GO,
    HELLO,
    LAST,
    PASSED,
    QUERY,
    REPLY,
    REQUEST,
    RESEND,
    TABLE,
    TUNNEL,
    Body,
    Client,
    Log,
)
from ..packets import Packets
from .calls import Crossed, CrossedPredict
from .incoming import Incoming
from .outgoing import Outgoing, Piece
from .shared import Shared
from .tunnels import TunnelConnection

logger = logging.getLogger("penstock.processes")

MOST_QUERIES = 8
"""A front that has left so many queries unanswered hangs: it is sent no more."""

OF_REQUESTS = frozenset({REQUEST, ASK, BODY, PASSED, FAIL})


class ModelLink:
    """The link to front `number`. It owns `end`, its socket.

    `on_linked` is called once the front's HELLO has come, `on_ended` at the end.
    """

    __slots__ = (
        "_heads",
        "_incoming",
        "_loop",
        "_on_ended",
        "_on_linked",
        "_outgoing",
        "_packets",
        "_parser",
        "_queries",
        "_served",
        "_shared",
        "_unanswered",
        "calls",
        "logs",
        "number",
    )

    def __init__(
        self,
        shared: Shared,
        number: int,
        end: socket.socket,
        on_linked: Callable[[ModelLink], None],
        on_ended: Callable[[ModelLink], None],
    ) -> None:
        self.number = number
        self.calls: dict[int, Crossed] = {}
        self.logs = shared.logs
        self._shared = shared
        self._on_linked = on_linked
        self._on_ended = on_ended
        self._heads = shared.connections.heads
        self._parser = HeadParser()
        self._loop = asyncio.get_running_loop()
        self._packets = Packets(end, self._on_message, self._on_gone)
        self._outgoing = Outgoing(self._packets, Arena(shared.arena_bytes), self._refuse)
        self._incoming = Incoming(self._packets)
        self._queries: dict[int, asyncio.Future[bytes | None]] = {}
        self._unanswered = 0  # queries, also those that nothing waits for any more
        self._served: WeakValueDictionary[int, TunnelConnection] = WeakValueDictionary()
        self._packets.start()

    def __repr__(self) -> str:
        return f"<ModelLink to front {self.number}, {len(self.calls)} requests, {self._outgoing!r}>"

    @property
    def is_open(self) -> bool:
        """True once the front's HELLO has come, until it goes."""
        return self._incoming.mapping is not None

    # To the front. `calls`, `logs` and the methods without a docstring are those of `Link`.

    def answer(self, call: Crossed, status: int, head: bytes, body: bytes, log: Log) -> None:
        call.memory.close()
        self._packets.send((ANSWER, call.number, status, head, body, call.keep_alive, log))

    def answer_in_pieces(
        self, call: Crossed, status: int, head: bytes, body: Sequence[Piece], log: Log
    ) -> None:
        before = ANSWER, call.number, status, head
        self._outgoing.send(before, body, (call.keep_alive, log), call)

    def send_table(self, table: bytes, loaded: bool) -> None:
        self._outgoing.send((TABLE,), (table,), (loaded,))

    def send(self, message: tuple[Any, ...]) -> None:
        self._packets.send(message)

    def query(self, payload: bytes) -> asyncio.Future[bytes | None]:
        """Ask the front process about itself. None: it has gone, or answers nothing."""
        answered: asyncio.Future[bytes | None] = self._loop.create_future()
        if self._unanswered >= MOST_QUERIES:
            answered.set_result(None)
            return answered
        self._unanswered += 1
        number = next(self._shared.queries)
        self._queries[number] = answered
        answered.add_done_callback(lambda _: self._queries.pop(number, None))
        self._outgoing.send((QUERY, number), (payload,))
        return answered

    def close(self) -> None:
        """Send what is on its way, and end the link."""
        self._packets.flush()
        self._packets.close()
        self._end()

    # From the front.

    def _on_message(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        try:
            if kind == REQUEST:
                _, number, text, body, client, first_byte, keep_alive = message
                call = self._begin(number, text, client, keep_alive, first_byte)
                if call is None:
                    self._incoming.drop(body)
                    self._packets.send((RESEND, number))
                elif type(body) is bytes and not first_byte:  # the usual case
                    call.start(body)
                else:
                    call.start()
                    call.take_body(self._incoming.read(body))
            elif kind == FREE:
                self._outgoing.free(message[1])
            elif kind == CANCEL:
                if (left := self.calls.get(message[1])) is not None:
                    left.abandon()
            else:
                self._on_rare_message(kind, message, descriptors)
        except Exception:
            logger.exception("a message of front %d could not be handled", self.number)
            if kind in OF_REQUESTS:
                self._send_again(message[1])

    def _on_rare_message(
        self, kind: int, message: tuple[Any, ...], descriptors: Sequence[int]
    ) -> None:
        if kind == ASK:
            self._ask(*message[1:])
        elif kind == BODY:
            _, number, body = message
            if (begun := self.calls.get(number)) is not None:
                begun.take_body(self._incoming.read(body))
            else:
                self._incoming.drop(body)
        elif kind == PASSED:
            self._pass(message)
        elif kind == FAIL:
            self._fail(*message[1:])
        elif kind == TUNNEL:
            served = self._shared.tunnels.add(self._packets.send, message, descriptors)
            if served is not None:
                self._served[message[1]] = served
        elif kind == LAST:
            if (of_tunnel := self._served.get(message[1])) is not None:
                of_tunnel.close_next()
        elif kind == REPLY:
            self._reply(*message[1:])
        elif kind == HELLO:
            self._incoming.mapping = Mapping(descriptors[0])
            self._packets.send((HELLO,), [self._outgoing.arena.descriptor])
            self._on_linked(self)
        else:
            logger.error("front %d has sent a message of an unknown kind: %r", self.number, kind)

    def _send_again(self, number: int) -> None:
        """Let the front send a request in another form."""
        if (call := self.calls.get(number)) is not None:
            call.withdraw()
        self._packets.send((RESEND, number))

    def _begin(
        self, number: int, text: bytes, client: Client, keep_alive: bool, first_byte: float
    ) -> Crossed | None:
        """Make the call of a request. None if it has to take a tunnel."""
        head = self._heads.get(text) or self._parse(text)
        shared = self._shared
        routes = shared.routes
        if head is None or routes is None:
            return None
        call = routes.call_of(head, text, None if client is None else client[0])
        if call is None:
            return None
        assert isinstance(call, Crossed)
        call.cross(self, number, shared.default_head(), keep_alive, first_byte)
        self.calls[number] = call
        return call

    def _parse(self, text: bytes) -> RequestHead | None:
        """Parse a head. None if it is malformed: the connection of a tunnel says so."""
        parser = self._parser
        try:
            head = parser.parse(text, self._shared.connections.settings.max_fields)
        except PenstockError:
            parser.drop()
            return None
        if parser.awaits_body or not head.keep_alive:
            parser.drop()
        self._heads.add(text, head)
        return head

    def _ask(
        self, number: int, text: bytes, client: Client, first_byte: float, keep_alive: bool
    ) -> None:
        call = self._begin(number, text, client, keep_alive, first_byte)
        if call is None:
            self._packets.send((RESEND, number))
            return
        call.start()
        if call.wire is not None:  # it was not refused
            self._packets.send((GO, number))

    def _pass(self, message: tuple[Any, ...]) -> None:
        _, number, text, payload, arrays, client, first_byte, keep_alive = message
        incoming = self._incoming
        buffers = [incoming.in_place(array) for array in arrays]  # free once nothing uses them
        passed = unpack(incoming.copied(payload), buffers)
        begun = self.calls.get(number)  # after ASK
        call = begun or self._begin(number, text, client, keep_alive, first_byte)
        pipeline = call.current() if isinstance(call, CrossedPredict) else None
        if pipeline is None or pipeline.token != passed.token:
            self._send_again(number)
            return
        assert isinstance(call, CrossedPredict)
        if begun is None:
            call.start()
        call.take_passed(passed, pipeline)

    def _fail(
        self, number: int, text: bytes, client: Client, first_byte: float, error: bytes
    ) -> None:
        call = self.calls.get(number)
        if call is None:
            call = self._begin(number, text, client, False, first_byte)
            if call is None:
                self._packets.send((RESEND, number))
                return
            call.start()
        if call.wire is not None:  # it was not refused before
            call.fail_body(pickle.loads(error))

    def _reply(self, number: int, payload: Body) -> None:
        self._unanswered -= 1
        content = self._incoming.copied(payload)
        answered = self._queries.pop(number, None)
        if answered is not None and not answered.done():
            answered.set_result(content)

    def _refuse(self, call: Crossed | None) -> None:
        if call is not None:
            call.refuse(MemoryFull("the answer finds no room in memory (max_memory)"))
        else:
            logger.error("a message to front %d finds no room in memory", self.number)

    def _on_gone(self) -> None:
        self._packets.close()
        self._end()

    def _end(self) -> None:
        """End the requests of the front, and let go of the memory between both processes."""
        for call in tuple(self.calls.values()):
            call.abandon()
        for answered in tuple(self._queries.values()):
            if not answered.done():
                answered.set_result(None)
        self._outgoing.close()
        self._incoming.close()
        self._on_ended(self)
