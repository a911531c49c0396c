"""One call of the protocol and its answer, on whatever route; and how errors are told: `{"error": …}`, whatever went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from starlette.types import Receive, Scope

from penstock.backends.errors import InvalidRequest, PenstockError, TooLarge

from ..http.body import PARSE_OFF_LOOP_BYTES, ClientLeft
from ..http.errors import STATUSES, code_of, detail_of
from ..settings import Settings
from .json_text import kind_of, parse_json

JSON = (b"content-type", b"application/json")

PREFIXES = {
    "queue_full": "Exceeds maximum queue size",
    "overloaded": "Exceeds maximum queue size",
    "deadline_exceeded": "Request timeout expired",
}
"""What clients of Triton look for in messages of these codes."""


class ProtocolError(PenstockError):
    """An error with a status that clients of the protocol expect, and no other of ours has."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Answer(NamedTuple):
    """Status, headers and body, without Content-Length."""

    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


class Call:
    """A request to one of the protocol's routes. `names`: what its path says (`model`, `version`, `region`); "" where it says nothing."""

    __slots__ = ("late", "names", "read", "receive", "scope", "settings")

    def __init__(
        self, scope: Scope, receive: Receive, names: Mapping[str, str], settings: Settings
    ) -> None:
        self.scope = scope
        self.names = names
        self.settings = settings
        self.read = False  # whether the body has been
        self.late = False  # the body took too long, and the rest of it is not waited for
        self.receive = receive

    async def body(self) -> bytes:
        """The whole body. Raises `TooLarge`, `InvalidRequest` for too many chunks and for a late one, `ClientLeft`."""
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                pieces = await read_pieces(self.scope, self.receive, self.settings)
        except TimeoutError:
            raise self.too_late() from None
        self.read = True
        return b"".join(pieces)

    def too_late(self) -> InvalidRequest:
        """The error of a body that took more than `body_timeout`."""
        self.late = True
        return InvalidRequest(
            f"the body did not arrive within {self.settings.body_timeout:g} s (body_timeout)"
        )

    async def json(self) -> dict[str, Any]:
        """The object that the body is; an empty one for no body. Raises `InvalidRequest` for what is none."""
        body = await self.body()
        if not body:
            return {}
        depth = self.settings.max_json_depth
        document = (
            parse_json(body, depth)
            if len(body) < PARSE_OFF_LOOP_BYTES
            else await asyncio.to_thread(parse_json, body, depth)
        )
        if not isinstance(document, dict):
            raise InvalidRequest(f"the body is a JSON {kind_of(document)}, expected an object")
        return document


async def read_pieces(scope: Scope, receive: Receive, settings: Settings) -> list[bytes]:
    """All of a body as it came, within `max_body` bytes and `max_chunks` chunks; no piece is empty.

    Raises `TooLarge`, `InvalidRequest`, `ClientLeft`.
    """
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > settings.max_body:
            raise TooLarge(f"the body has more than {settings.max_body} bytes (max_body)")
        if piece:
            pieces.append(piece)
        # The server joins chunks that come together. Ours counts them (app/server/uvicorn_protocol.py); others' messages stand for them.
        if max(len(pieces), scope.get("penstock.chunks", 0)) > settings.max_chunks:
            raise InvalidRequest(
                f"the body has more than {settings.max_chunks} chunks (max_chunks)"
            )
        if not message.get("more_body"):
            return pieces


def json_answer(document: Any, status: int = 200) -> Answer:
    return Answer(status, (JSON,), orjson.dumps(document))


def error_answer(error: BaseException) -> Answer:
    """The answer to a call that ended with `error`."""
    if isinstance(error, ProtocolError):
        return error_with(error.status, str(error), error.headers)
    status = STATUSES[code_of(error)]
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if status.retry_after:
        headers = ((b"retry-after", b"%d" % status.retry_after),)
    if status.protocol == 401:
        headers = ((b"www-authenticate", b'Bearer realm="penstock"'),)
    detail = detail_of(error)
    prefix = PREFIXES.get(code_of(error))
    return error_with(status.protocol, detail if prefix is None else f"{prefix}: {detail}", headers)


LONGEST = 4096
"""Characters of an error's message: it may quote what the client sent."""


def error_with(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    if len(message) > LONGEST:
        message = message[: LONGEST - 1] + "…"
    text = message.encode("utf-8", "backslashreplace").decode()  # lone surrogates have no UTF-8
    return Answer(status, (JSON, *headers), orjson.dumps({"error": text}))


Handler = Callable[[Call], Awaitable[Any]]
"""Gives an `Answer`, or what its JSON says; None: an empty body. Every exception becomes `{"error": …}`."""


class Route(NamedTuple):
    """`pattern`: {model} and the like stand for one segment, a part in [brackets] may be missing. `group`: the API that it belongs to,
    by Triton's names: health, metadata, inference, shared-memory, model-config, model-repository, statistics, trace, logging.
    """

    method: str
    pattern: str
    group: str
    handler: Handler
