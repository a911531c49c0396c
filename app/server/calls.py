"""The requests of a connection that no app answers: the connection itself does (`Direct`), or
another process (processes/front/).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..http.access import Access
from .asgi import Wire
from .head import RequestHead


class Caller(Wire, Protocol):
    """The part of a connection that such a request needs."""

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port."""

    def reroute(self, request: bytes) -> None:
        """Send the request in hand, which has come whole, through a tunnel."""


class Call(Protocol):
    """One request, as the connection sees it."""

    keep_alive: bool

    @property
    def body(self) -> bytes: ...
    @property
    def body_timeout(self) -> float: ...
    @property
    def failed(self) -> Exception | None: ...
    @property
    def http_1_0(self) -> bool: ...
    @property
    def started(self) -> bool: ...
    @property
    def streamed(self) -> bool: ...

    def attach(
        self, wire: Caller, default_head: bytes, keep_alive: bool, access: Access | None
    ) -> None: ...

    def start(self, body: bytes | None = None) -> None:
        """Begin it. None: the body will come by `feed`."""

    def feed(self, piece: bytes) -> None: ...

    def feed_end(self) -> None: ...

    def fail_body(self, error: Exception) -> None: ...

    def abandon(self, status: int = ...) -> None: ...


class Routes(Protocol):
    """Decides which requests no app sees."""

    def call_of(self, head: RequestHead, text: bytes, client: str | None) -> Call | None:
        """Make the call of a request. None if it has to go another way.

        `text`: the bytes of the head. `client`: the address that it comes from.
        """


class Lender(Protocol):
    """A connection that lets another protocol have its transport."""

    @property
    def client(self) -> tuple[str, int] | None: ...
    @property
    def half_closed(self) -> bool:
        """True once the client has sent all that it will send."""
        ...

    def lend(self, protocol: asyncio.Protocol) -> asyncio.Transport: ...

    def take_back(self, half_closed: bool) -> None: ...

    def refuse(self, status: int, head: bytes, body: bytes, request_id: str | None) -> None:
        """Send an answer, whose head lacks its last line, and close."""


class Tunnels(Protocol):
    """Takes the requests for which there is no call, to another process."""

    def take(self, lender: Lender, head: RequestHead, data: bytes) -> None:
        """Take a connection, of which `data` has been received from `head` on."""
