"""`CrossingCall`: a request that the model process answers, over the link."""

from __future__ import annotations

import asyncio
import pickle
from time import monotonic
from typing import Any

from penstock.backends.errors import NotReady
from penstock.backends.memory import Reservation

from ...history.record import CLIENT_LEFT_STATUS
from ...http.access import Access
from ...http.request_id import is_fit
from ...server.asgi import JOIN_BELOW_BYTES
from ...server.calls import Caller
from ...server.head import RequestHead
from ..messages import ASK, ASK_BYTES, BODY, CANCEL, FAIL, REQUEST, Log
from .answers import not_ready
from .link import COPIED_BYTES, FrontLink, LargeBody, Links


class CrossingCall:
    """One request. Its connection sees it as it sees a `Direct`.

    `wire` is None once the answer is written or the client has left. The body is kept until then:
    the model process may ask for the request in another form.
    """

    __slots__ = (
        "_access",
        "_alignment",
        "_asked",
        "_body",
        "_client",
        "_default_head",
        "_first_byte",
        "_head",
        "_link",
        "_links",
        "_memory",
        "_number",
        "_pieces",
        "_text",
        "_waits",
        "_writing",
        "forwarded",
        "keep_alive",
        "wire",
    )

    body = b""
    """The connection holds nothing for the request: the body is counted here."""
    failed = None
    http_1_0 = False
    streamed = False

    def __init__(
        self,
        links: Links,
        head: RequestHead,
        text: bytes,
        memory: Reservation | None,
        alignment: int = 0,
    ) -> None:
        """`text`: the bytes of the head. `memory`: that of the body, if it is counted. `alignment`:
        where the tensors begin in it.
        """
        self._links = links
        self._memory = memory
        self._alignment = alignment
        self._head = head
        self._text = text
        self.forwarded: tuple[str, int] | None = None
        """The client for which a proxy has sent it."""

    def __repr__(self) -> str:
        return f"<CrossingCall {self._number} {self._head.path.decode()}>"

    # From the connection.

    def attach(
        self, wire: Caller, default_head: bytes, keep_alive: bool, access: Access | None
    ) -> None:
        self.wire: Caller | None = wire
        self.keep_alive = keep_alive
        self._default_head = default_head
        self._access = access
        self._client = self.forwarded or wire.client
        self._body = b""
        self._pieces: list[bytes] | None = None
        self._first_byte = 0.0
        self._link: FrontLink | None = None
        self._number = 0
        self._asked = self._waits = False  # whether it may come; for the answer to that
        self._writing: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """True while an answer leaves in pieces."""
        return self._writing is not None

    @property
    def body_timeout(self) -> float:
        return self._links.body_timeout

    def start(self, body: bytes | None = None) -> None:
        """Begin the request. None: the body will come by `feed`."""
        link = self._link = self._links.for_request()
        if link is None:
            self._answer_not_ready()
            return
        self._number = link.add(self)
        if body is not None:
            self._cross(body)
        else:
            self._first_byte = monotonic()
            self._pieces = []
            if self._head.length > ASK_BYTES:
                self._ask(link)

    def feed(self, piece: bytes) -> None:
        """Add a piece of the body, whose memory is reserved."""
        if self._pieces is not None:
            self._pieces.append(piece)

    def feed_end(self) -> None:
        """Send the body, which is complete."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:  # answered
            return
        self._cross(b"".join(pieces))

    def fail_body(self, error: Exception) -> None:
        """Have it answered by `error`: the rest of the body will not be read."""
        self._pieces = None
        self.keep_alive = False
        link = self._link
        if link is None or self.wire is None:
            return
        if isinstance(error, NotReady):  # a drain: the model process may have ended its part
            link.forget(self._number)
            if self._asked:
                link.send(CANCEL, self._number)
            self._answer_not_ready()
            return
        failure = pickle.dumps(error)
        link.send(FAIL, self._number, self._text, self._client, self._first_byte, failure)

    def abandon(self, status: int = CLIENT_LEFT_STATUS) -> None:
        """End the request of a client that has left, or was refused with another status."""
        self.wire = None
        if self._access is not None:
            given = dict(self._head.fields).get(b"x-request-id", b"").decode("latin-1")
            self._log(status, 0, (given, None, None, None) if is_fit(given) else None)
        if (link := self._link) is not None:
            link.forget(self._number)
            link.send(CANCEL, self._number)
        self._let_go()

    # On its way.

    def _ask(self, link: FrontLink) -> None:
        """Ask whether the request may come."""
        self._asked = self._waits = True
        link.send(ASK, self._number, self._text, self._client, self._first_byte, True)

    def _cross(self, body: bytes) -> None:
        """Send the request, whose body is here."""
        self._body = body
        if not self._waits:
            self._send_body()

    def _send_body(self) -> None:
        link = self._link
        assert link is not None
        body = link.body(self._body, align=self._alignment)
        if body is None:
            self._tunnel(self._body)
        elif self._asked:
            link.send(BODY, self._number, body)
        else:
            number, first_byte = self._number, self._first_byte
            link.send(REQUEST, number, self._text, body, self._client, first_byte, self.keep_alive)

    def _tunnel(self, body: bytes) -> None:
        """Send the request through a tunnel. `body` is what has come of its body."""
        wire, self.wire = self.wire, None
        link = self._link
        if wire is None or link is None:
            return
        link.forget(self._number)
        link.send(CANCEL, self._number)
        self._access = None  # the model process logs it
        text = self._text
        self._let_go()
        wire.reroute(text + body)

    def _let_go(self) -> None:
        self._link = None
        self._pieces = None
        self._body = b""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    # From the link.

    def go(self) -> None:
        self._waits = False
        if self._pieces is None:
            self._send_body()

    def resend(self) -> None:
        self._tunnel(self._body if self._pieces is None else b"".join(self._pieces))

    def answer(
        self, status: int, head: bytes, body: bytes | LargeBody, keep_alive: bool, log: Log
    ) -> None:
        wire, self.wire = self.wire, None
        self._let_go()
        if wire is None:
            if isinstance(body, LargeBody):
                body.let_go()
            return
        if self._waits and self._head.length > ASK_BYTES:  # whatever of the body has come by now
            keep_alive = False
        keep_alive = keep_alive and self.keep_alive and wire.may_stay_open()
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        if self._access is not None:
            self._log(status, len(body), log)
        if isinstance(body, LargeBody):
            self.wire = wire  # until the answer is written: its client may leave
            loop = asyncio.get_running_loop()
            self._writing = loop.create_task(self._write(wire, head + end, body, keep_alive))
            return
        if len(body) < JOIN_BELOW_BYTES:
            wire.write(head + end + body)
        else:
            wire.write_pieces(head + end, body)
        wire.answered(keep_alive)

    async def _write(self, wire: Caller, head: bytes, body: LargeBody, keep_alive: bool) -> None:
        """Write an answer whose body is large, as fast as its client reads."""
        try:
            wire.write(head)
            for start in range(0, len(body), COPIED_BYTES):
                await wire.writable()
                if self.wire is None:  # its client has left
                    return
                wire.write(bytes(body.view[start : start + COPIED_BYTES]))
            self.wire = None
            wire.answered(keep_alive)
        finally:
            self._writing = None  # the task holds the call
            body.let_go()

    def lost(self) -> None:
        self._answer_not_ready()

    def _answer_not_ready(self) -> None:
        refusal = not_ready(self._head, self._default_head, self._links.reason)
        log = (refusal.request_id or "", None, None, None)
        self.answer(refusal.status, refusal.head, refusal.body, True, log)

    def _log(self, status: int, size: int, log: Log) -> None:
        access, self._access = self._access, None
        if access is None:
            return
        request_id = None
        if log is not None:
            request_id, pipeline, queued, ran = log
            logged = Logged(pipeline, (queued, ran))
            access.follow(logged, tuple if queued is None else lambda: (logged,))
        access.log(status, size, request_id, self.forwarded)


class Logged:
    """The pipeline and times of a request, for its line in the access log."""

    __slots__ = ("_pipeline", "_spent")

    def __init__(self, pipeline: str | None, spent: Any) -> None:
        self._pipeline = pipeline
        self._spent = spent

    def pipeline_name(self) -> str | None:
        return self._pipeline

    def spent(self) -> Any:
        """Return the seconds it was queued, and ran."""
        return self._spent
