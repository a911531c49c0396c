"""A call of the protocol, on whatever route, and its answer.

Every error is answered as `{"error": …}`, the one form that clients of the protocol read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson
from starlette.types import Receive, Scope, Send

from penstock.backends.errors import InvalidRequest, PenstockError, TooLarge
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation, budget

from ..history.record import Failure
from ..http.body import (
    JOIN_OFF_LOOP_BYTES,
    ClientLeft,
    Pieces,
    reserve_body,
)
from ..http.errors import (
    CODE_BY_STATUS,
    LOGGED_STATUSES,
    code_of,
    detail_of,
    retry_headers,
    status_of,
)
from ..http.exchange import UploadTimer
from ..http.helper_thread import PARSE_OFF_LOOP_BYTES, on_helper_thread
from ..http.json_text import JsonLimits, kind_of, parse_json
from ..settings import Settings

JSON_HEADER = (b"content-type", b"application/json")

MESSAGE_PREFIXES = {
    "queue_full": "Exceeds maximum queue size",
    "overloaded": "Exceeds maximum queue size",
    "deadline_exceeded": "Request timeout expired",
}
"""The texts that Triton's clients look for in error messages, by our codes."""

ERROR_MESSAGE_CHARACTERS = 4096
"""The longest error message that is sent: a message may quote what the client sent."""

NAME_CHARACTERS_IN_ERRORS = 200
"""The longest part of an unknown model's or region's name that an error repeats."""


class ProtocolError(PenstockError):
    """An error with a status of its own, for statuses of the protocol that no code of ours has."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.protocol_status = status
        self.headers = headers
        self.logged = status not in LOGGED_STATUSES  # `code`, which decides otherwise, is internal


class ProtocolAnswer(NamedTuple):
    """The status, headers and body of an answer. The headers have no Content-Length."""

    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


class Sent(NamedTuple):
    """An answer that its handler has sent already: its status, and what the call failed with."""

    status: int
    failure: Failure | None = None


class ProtocolCall:
    """A request to one of the protocol's routes.

    `names` holds the parts of the path that the route names (`model`, `version`, `region`); "" for
    a part that the path leaves out. `body_was_read` is true once the whole body has been received.
    `body_was_late` is true after the body took longer than `body_timeout`: the rest of it is not
    waited for, and the connection has to close. `memory` is what the call holds, its body for one.
    `ended`: called at the end with the answer's status and what the call failed with. `send` is for
    handlers that return `Sent`.
    """

    __slots__ = (
        "body_was_late",
        "body_was_read",
        "ended",
        "memory",
        "names",
        "receive",
        "scope",
        "send",
        "settings",
    )

    def __init__(
        self, scope: Scope, receive: Receive, names: Mapping[str, str], settings: Settings
    ) -> None:
        self.scope = scope
        self.names = names
        self.settings = settings
        self.body_was_read = False
        self.body_was_late = False
        self.ended: Callable[[int, Failure | None], None] | None = None
        self.receive = receive
        self.memory = Reservation(budget)
        self.send: Send

    @property
    def json_limits(self) -> JsonLimits:
        return JsonLimits(self.settings.max_json_depth, self.settings.max_json_values)

    async def body(self) -> bytes:
        """Read the whole body.

        Raises `TooLarge`, `InvalidRequest` for too many chunks and for a body that is late, and
        `ClientLeft`.
        """
        loop = asyncio.get_running_loop()
        when = loop.time() + self.settings.body_timeout
        try:
            async with asyncio.timeout(None) as bound:
                timer = UploadTimer(loop, when, partial(bound.reschedule, when))
                try:
                    length = dict(self.scope["headers"]).get(b"content-length")
                    body, _ = await read_body(self, length)
                finally:
                    timer.cancel()
        except TimeoutError:
            raise self.too_late() from None
        return body

    def too_late(self) -> InvalidRequest:
        """Note that the body took longer than `body_timeout`, and return the error for that."""
        self.body_was_late = True
        return InvalidRequest(
            f"the body did not arrive within {self.settings.body_timeout:g} s (body_timeout)"
        )

    async def json(self) -> dict[str, Any]:
        """Read the body as a JSON object; an empty body stands for an empty object.

        Raises `InvalidRequest` if the body is not a JSON object, and what `body` raises.
        """
        body = await self.body()
        if not body:
            return {}
        limits = self.json_limits
        document = (
            parse_json(body, limits, self.memory)
            if len(body) < PARSE_OFF_LOOP_BYTES
            else await on_helper_thread(parse_json, body, limits, self.memory)
        )
        if not isinstance(document, dict):
            raise InvalidRequest(f"the body is a JSON {kind_of(document)}, expected an object")
        return document


UNCOUNTED_COPY_BYTES = 1 << 12
"""A copy of so few bytes that lives for a moment is not counted in `max_memory`."""

_NOTHING = memoryview(b"")


async def read_body(
    call: ProtocolCall, length: bytes | None, head: int | None = None
) -> tuple[bytes, memoryview]:
    """Read a body of at most `max_body` bytes and `max_chunks` chunks.

    `length` is the Content-Length. Returns the first `head` bytes (None: all), and the rest in
    memory that may be written to and is aligned for every datatype. `call.memory` then has both.
    Raises `TooLarge`, `MemoryFull`, `InvalidRequest` for too many chunks, and `ClientLeft`.
    """
    memory, settings, receive = call.memory, call.settings, call.receive
    if length is not None:
        reserve_body(length, settings.max_body, memory)
    message = await receive()
    piece: bytes = message.get("body", b"")
    if not message.get("more_body") and len(piece) <= memory.size:  # the usual case
        if message["type"] != "http.request":
            raise ClientLeft
        call.body_was_read = True
        return split(piece, head, memory)
    parts = BodyParts(head, None if length is None else memory.size)  # that of the length
    messages = 0
    while True:
        if message["type"] != "http.request":
            raise ClientLeft
        size = parts.size + len(piece)
        if size > settings.max_body:
            raise TooLarge(f"the body has more than {settings.max_body} bytes (max_body)")
        memory.cover(size, "a body")
        parts.append(piece)
        messages += bool(piece)
        # A server joins chunks that arrive together. Ours counts them
        # (app/server/connection.py); on another server the messages stand for the chunks.
        if max(messages, call.scope.get("penstock.chunks", 0)) > settings.max_chunks:
            raise InvalidRequest(
                f"the body has more than {settings.max_chunks} chunks (max_chunks)"
            )
        if not message.get("more_body"):
            call.body_was_read = True
            if parts.joins_at_once:
                return parts.join(memory)
            return await on_helper_thread(parts.join, memory)
        message = await receive()
        piece = message.get("body", b"")


class BodyParts:
    """A body that comes in pieces: its first `head` bytes (None: all), and the rest.

    `length` is the Content-Length, None if it is unknown. With one, the rest is put where it stays.
    """

    __slots__ = ("_blobs", "_head", "_known", "_position", "_text")

    def __init__(self, head: int | None, length: int | None) -> None:
        self._head = head
        self._text = Pieces()
        size = 0 if length is None or head is None else max(length - head, 0)
        self._known = np.empty(size, np.uint8).data if size else None
        self._position = 0
        self._blobs = Pieces()  # if the length is unknown

    @property
    def size(self) -> int:
        return self._text.size + self._position

    @property
    def joins_at_once(self) -> bool:
        """False if `join` copies so much that a helper thread has to do it."""
        return self._text.size + self._blobs.size <= JOIN_OFF_LOOP_BYTES

    def append(self, piece: bytes) -> None:
        """Add a piece. Raises `InvalidRequest` if the body gets longer than `length`."""
        head = self._head
        if head is None:
            self._text.write(piece)
            return
        if (left := head - self._text.size) > 0:
            self._text.write(piece[:left])
            piece = piece[left:]
        end = self._position + len(piece)
        if self._known is None:
            self._blobs.write(piece)
        elif end <= len(self._known):
            self._known[self._position : end] = piece
        else:  # some servers do not compare the two
            raise InvalidRequest("the body is longer than its Content-Length")
        self._position = end

    def join(self, memory: Reservation) -> tuple[bytes, memoryview]:
        """Return the two parts. `memory` has the body, and then both parts."""
        _check_head(self._head, self.size)
        text = self._text.join(memory)
        if self._known is not None:
            return text, self._known[: self._position]
        return text, split(self._blobs.join(memory), 0, memory)[1]


def split(body: bytes, head: int | None, memory: Reservation) -> tuple[bytes, memoryview]:
    """Split a body as `read_body` does. `memory` has the body, and then both parts."""
    if head is None:
        return body, _NOTHING
    size = len(body)
    _check_head(head, size)
    if size <= UNCOUNTED_COPY_BYTES:
        return body[:head], memoryview(bytearray(body[head:]))
    before = memory.size
    memory.resize(before + size, "a body")
    parts = body[:head], memoryview(bytearray(memoryview(body)[head:]))
    memory.resize(before, "a body")
    return parts


def _check_head(head: int | None, size: int) -> None:
    if head is not None and head > size:
        raise InvalidRequest(f"inference header size should be in range (0, {size}), got: {head}")


def failure_of(error: BaseException) -> Failure:
    """Return the code of an error and what its client may know, for the history."""
    if isinstance(error, ProtocolError):
        code = "invalid_request" if error.protocol_status < 500 else "internal"
        return Failure(CODE_BY_STATUS.get(error.protocol_status, code), str(error))
    return Failure(code_of(error), detail_of(error))


def json_answer(document: Any, status: int = 200) -> ProtocolAnswer:
    """Return an answer with `document` as JSON."""
    return ProtocolAnswer(status, (JSON_HEADER,), orjson.dumps(document))


def error_answer(error: BaseException) -> ProtocolAnswer:
    """Return the answer to a call that ended with `error`."""
    if isinstance(error, ProtocolError):
        return error_with(error.protocol_status, str(error), error.headers)
    status = status_of(error)
    headers = tuple(retry_headers(error, status))
    if status.protocol == 401:
        headers = ((b"www-authenticate", b'Bearer realm="penstock"'),)
    return error_with(status.protocol, message_of(error), headers)


def error_with(
    status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> ProtocolAnswer:
    """Return an error answer with this status and message, shortened if it is very long."""
    text = shortened(message, ERROR_MESSAGE_CHARACTERS)
    return ProtocolAnswer(status, (JSON_HEADER, *headers), orjson.dumps({"error": text}))


def message_of(error: BaseException) -> str:
    """Return what a client is told about an error, in the words that Triton's clients look for."""
    if isinstance(error, ProtocolError):
        return str(error)
    detail = detail_of(error)
    prefix = MESSAGE_PREFIXES.get(code_of(error))
    return detail if prefix is None else f"{prefix}: {detail}"


def shortened(message: str, characters: int) -> str:
    """Cut a message that is very long, and make it encodable: UTF-8 has no lone surrogates."""
    if len(message) > characters:
        message = message[: characters - 1] + "…"
    return message.encode("utf-8", "backslashreplace").decode()


Handler = Callable[[ProtocolCall], Awaitable[Any]]
"""Answers the calls of a route.

It returns a `ProtocolAnswer`, a value to be sent as JSON, None for an empty body, or `Sent`. Every
exception becomes `{"error": …}`.
"""


class Route(NamedTuple):
    """A method and a pattern of paths, and the handler of the calls that match them.

    In `pattern`, `{model}` and the like stand for one segment, and a part in `[brackets]` may be
    missing. `group` is the API that the route belongs to, by Triton's names: health, metadata,
    inference, shared-memory, model-config, model-repository, statistics, trace, logging.
    """

    method: str
    pattern: str
    group: str
    handler: Handler
