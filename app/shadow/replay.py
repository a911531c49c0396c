"""Run a request that came over HTTP on this server, as if its client had sent it here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation

from ..http.compression import inflate
from ..http.helper_thread import on_helper_thread
from ..settings import Settings
from .answers import Answer, RawAnswer, read_generate, read_infer
from .comparisons import COMPARE_OFF_LOOP_BYTES, Held, TooMuchError

_DROPPED = frozenset({b"accept-encoding", b"expect", b"transfer-encoding", b"content-length"})
"""Headers of the client that go with its connection, or make us compress an answer in vain."""


class HttpWay:
    """Runs a request that came by HTTP on this server."""

    __slots__ = ("_app", "_body", "_max_inflated", "_read", "_scope")

    def __init__(
        self, app: ASGIApp, scope: Scope, verb: str, settings: Settings, body: list[bytes]
    ) -> None:
        """`body`: its pieces, all of them once it runs."""
        self._app = app
        self._scope = scope
        self._read: Callable[[RawAnswer, Reservation], Answer] = (
            read_infer if verb == "infer" else read_generate
        )
        self._max_inflated = settings.max_inflated
        self._body = body

    async def run(self, held: Held) -> RawAnswer:
        return await replay(self._app, self._scope, b"".join(self._body), held.hold)

    async def read(self, raw: RawAnswer, held: Held) -> Answer:
        if window := raw.window:
            before = held.memory.size
            body = await inflate(raw.body, window, self._max_inflated, held.memory)
            if len(body) > before:
                held.memory.resize(before + len(body), "an answer to compare")
            else:
                held.memory.resize(before, "an answer to compare")
            raw = raw._replace(body=body)
        if len(raw.body) < COMPARE_OFF_LOOP_BYTES:
            return self._read(raw, held.memory)
        return await on_helper_thread(self._read, raw, held.memory)


async def replay(
    app: ASGIApp, scope: Scope, body: bytes, hold: Callable[[int], bool] = lambda size: True
) -> RawAnswer:
    """Run a request on `app`, and return its answer.

    `hold` is asked for room for each piece of the answer. Raises `TooMuchError` if there is none.
    """
    headers = [field for field in scope["headers"] if field[0] not in _DROPPED]
    headers.append((b"content-length", b"%d" % len(body)))
    own = {**scope, "headers": headers}
    own.pop("penstock.chunks", None)
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    status, fields = 0, dict[bytes, bytes]()
    pieces: list[bytes] = []

    async def receive() -> Message:
        message = next(messages, None)
        if message is None:
            await asyncio.get_running_loop().create_future()  # the client never leaves
            raise InvalidRequest("unreachable")
        return message

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            fields.update(message["headers"])
        elif piece := message.get("body", b""):
            if not hold(len(piece)):
                raise TooMuchError
            pieces.append(piece)

    await app(own, receive, send)
    return RawAnswer(status, fields, b"".join(pieces))


def raw_answer(status: int, fields: Any, pieces: list[bytes]) -> RawAnswer:
    """Return an answer of Triton."""
    return RawAnswer(status, {name.lower(): value for name, value in fields}, b"".join(pieces))
