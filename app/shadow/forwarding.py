"""One request on its way to Triton, and Triton's answer on its way back."""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import NamedTuple

from starlette.types import Message, Receive, Scope, Send

from penstock.backends.errors import PenstockError
from penstock.backends.memory import Reservation, budget

from ..http.body import ClientLeft, announced_bytes, read_rest
from ..http.compression import inflate, window_of
from ..http.json_text import JsonLimits
from ..http.request_id import request_id_of
from ..settings import Settings
from ..v2.routes import ProtocolApp
from .comparisons import Comparisons, Held
from .facts import NO_FACTS, Facts, facts_of_json
from .model import ShadowedModel
from .replay import HttpWay, raw_answer
from .switch import Switch
from .upstream import Fields, Upstream, UpstreamConnection, UpstreamError

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers of one connection, which are not passed on (RFC 9110, 7.6.1)."""

_OWN = _HOP_BY_HOP | {b"host", b"expect", b"content-length"}
"""Headers that are not copied to a forwarded request: it has its own."""

LEAVING_AFTER_SECONDS = 0.02
"""After so long without an answer, it is noticed if the client leaves. A task for each request
would cost more than it saves.
"""

KEPT_BYTES = 1 << 20
"""So much is kept of a request that may be a step of a sequence, whether it is held or not, and of
one that changes the server.
"""


class NotForwardedError(Exception):
    """Raised for a request that Triton does not answer, with the status that tells the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ForwardingRules(NamedTuple):
    """The parts that all forwarded requests share. `upstream`: None if Triton's HTTP port is not
    known.
    """

    protocol: ProtocolApp
    upstream: Upstream | None
    switch: Switch
    comparisons: Comparisons
    settings: Settings


class Forwarding:
    """One request. `status`: that of the answer, 0 without one.

    `model` is None for a request that runs no model; else `verb` says how.
    """

    def __init__(
        self,
        rules: ForwardingRules,
        upstream: Upstream,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        model: ShadowedModel | None,
        verb: str,
    ) -> None:
        self.status = 0
        self._rules = rules
        self._upstream = upstream
        self._scope = scope
        self._receive = receive
        self._send = send
        self._model = model
        self._verb = verb
        self._headers = dict(scope["headers"])
        self._kept: list[bytes] | None = []
        self._memory = Reservation(budget)  # of what is kept
        self._whole_memory = Reservation(budget)  # of a body that was read before it is forwarded
        self._facts = NO_FACTS
        self._held: Held | None = None
        self._body: list[bytes] = []  # while it is held
        self._connection: UpstreamConnection | None = None
        self._left = False  # the client
        self._unread = False  # Triton has answered before the end of the body
        self._leaving: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def small_body(self) -> bytes | None:
        """Return the body of the request, None if it is larger than `KEPT_BYTES`."""
        whole = self._kept is not None and self._memory.size <= KEPT_BYTES
        return b"".join(self._kept or ()) if whole else None

    async def run(self) -> None:
        """Forward the request, or answer it here if it turns out that it may be.

        Raises `NotForwardedError`, before anything is sent.
        """
        message = await self._receive()
        if message["type"] != "http.request":
            return
        try:
            if self._model is None:
                self._keep(message)
                await self._forward(message)
            else:
                await self._run_model(self._model, message)
        finally:
            self._memory.close()
            self._whole_memory.close()
            if self._held is not None and self._held.theirs is None:
                self._held.skip("client_left" if self._left else "failed_at_triton")

    async def _run_model(self, model: ShadowedModel, message: Message) -> None:
        if model.is_here and message.get("more_body"):  # where it goes, its body says
            message = await self._whole(message)
            if message["type"] != "http.request":
                return
        self._hold(model)
        self._keep(message)
        if not message.get("more_body"):
            await self._know(model)
            if not self._rules.switch.goes_to_triton(model, self._facts):
                if self._held is not None:
                    self._held.end()
                if self._facts.sequence is not None:
                    await self._rules.comparisons.settled(model.name, self._facts.sequence)
                self._whole_memory.close()  # the answer counts it
                receive = _given(message, self._receive)
                await self._rules.protocol(self._scope, receive, self._send)
                return
        model.requests += 1
        await self._forward(message)

    async def _whole(self, first: Message) -> Message:
        """Read the rest of the body. Returns one message with all of it."""
        try:
            limit = self._rules.settings.max_body
            body = await read_rest(first, self._receive, limit, self._whole_memory)
        except ClientLeft:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    # what is known of it

    def _hold(self, model: ShadowedModel) -> None:
        """Hold the request, to compare its answers, if there is room."""
        rules = self._rules
        pipeline = rules.switch.pipeline(model.name)
        if pipeline is None or not pipeline.takes_sequences:
            self._kept = None
        if pipeline is None:
            served = rules.switch.is_served(model.name)
            model.skip("not_ready_here" if served else "not_served_here")
            return
        way = HttpWay(rules.protocol, self._scope, self._verb, rules.settings, self._body)
        self._held = rules.comparisons.begin(model, way)
        if self._held is not None:
            self._held.request_id = request_id_of(self._scope)
            length = self._headers.get(b"content-length")
            if length is not None and announced_bytes(length) > rules.settings.max_body:
                self._held.skip("too_large")

    def _keep(self, message: Message) -> None:
        """Keep a piece of the body, for the comparison and for the facts in it."""
        piece = message.get("body", b"")
        if self._held is not None and piece:
            if not self._held.ended and self._too_long_here(piece):
                self._held.skip("too_large")
            if self._held.hold(len(piece)):
                self._body.append(piece)
            else:
                self._body.clear()
        if self._kept is not None and self._memory.size <= KEPT_BYTES:
            try:
                self._memory.resize(self._memory.size + len(piece), "a forwarded request")
            except PenstockError:
                self._kept = None
            else:
                self._kept.append(piece)

    def _too_long_here(self, piece: bytes) -> bool:
        assert self._held is not None
        return self._held.bytes + len(piece) > self._rules.settings.max_body

    async def _know(self, model: ShadowedModel) -> None:
        """Find out of which sequence the request is a step, now that its body is here."""
        rules, held = self._rules, self._held
        facts = NO_FACTS if self._verb != "infer" else await self._facts_of_body()
        pipeline = rules.switch.pipeline(model.name)
        if pipeline is None or not pipeline.takes_sequences:
            facts = facts._replace(sequence=None)
        self._facts = facts
        if not rules.switch.goes_to_triton(model, facts):
            return
        if held is not None and not held.ended:
            held.facts = facts
            if facts.shared:
                held.skip("shared_memory")
            elif facts.sequence is not None:
                held.take_turn()
        elif facts.sequence is not None:
            rules.comparisons.cut(model, facts)

    async def _facts_of_body(self) -> Facts:
        settings = self._rules.settings
        is_held = self._held is not None and not self._held.ended
        # If only the beginning is kept: the JSON is there, if tensors come after it.
        body = b"".join(self._body if is_held else self._kept or ())
        memory = Reservation(budget)
        try:
            if window := window_of(self._headers.get(b"content-encoding")):
                body = await inflate(body, window, settings.max_inflated, memory)
            length = self._headers.get(b"inference-header-content-length")
            text = body if length is None else body[: int(length)]
            limits = JsonLimits(settings.max_json_depth, settings.max_json_values)
            return await facts_of_json(text, limits)
        except (PenstockError, KeyError, ValueError):  # Triton refuses it
            return NO_FACTS
        finally:
            memory.close()

    # to Triton and back

    async def _forward(self, message: Message) -> None:
        switch = self._rules.switch
        switch.begins_at_triton(self._model, self._facts)
        began = time.perf_counter()
        try:
            connection = await self._exchange(message)
            await self._pass_back(connection, began)
            self._upstream.give_back(connection)
        except UpstreamError as error:
            self._close()
            if self._left:
                return
            place = self._upstream.place
            if self.status:
                return  # a part of the answer has been sent: the connection breaks off
            if error.late:
                raise NotForwardedError(504, f"Triton at {place} is too slow: {error}") from None
            raise NotForwardedError(502, f"Triton at {place} can't be reached: {error}") from None
        except BaseException:
            self._close()
            raise
        finally:
            self._stop_listening()
            switch.ended_at_triton(self._model, self._facts)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _exchange(self, message: Message) -> UpstreamConnection:
        """Send the request, and wait for the head of the answer.

        A connection that has been idle may be closed as the request comes. Then it is sent again,
        by a fresh one, if all of it is here.
        """
        seconds = self._upstream.timeout
        whole = not message.get("more_body")
        body = message.get("body", b"")
        head, chunked = self._head(body, whole)
        connection = self._connection = await self._upstream.connection()
        while True:
            is_head = self._scope["method"] == "HEAD"
            connection.begin(head, _chunk(body) if chunked and body else body, is_head=is_head)
            if not whole:
                await self._upload(connection, chunked)
            self._listen_later()
            try:
                await connection.head(seconds)
            except UpstreamError as error:
                if not (error.unsent and connection.used and whole) or self._left:
                    raise
                connection = self._connection = await self._upstream.connection(fresh=True)
            else:
                return connection

    def _head(self, body: bytes, whole: bool) -> tuple[bytes, bool]:
        """Write the head of the request. Returns it, and whether the body is sent in chunks."""
        scope, place = self._scope, self._upstream.place
        fields = passed_on(scope["headers"], _OWN)
        if self._rules.settings.api_key is not None:  # it is this server's, not Triton's
            fields = [field for field in fields if field[0] != b"authorization"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        root = scope.get("root_path", "").encode()
        if root and raw.startswith(root):
            raw = raw[len(root) :]
        query = scope.get("query_string", b"")
        target = place.path.encode() + raw + (b"?" + query if query else b"")
        lines = [
            b"%b %b HTTP/1.1\r\nHost: %b\r\n"
            % (scope["method"].encode(), target, place.authority.encode())
        ]
        lines += [b"%b: %b\r\n" % field for field in fields]
        length = self._headers.get(b"content-length")
        chunked = False
        if length is None and b"transfer-encoding" in self._headers:
            length = b"%d" % len(body) if whole else None
            chunked = not whole
        if length is not None:
            lines.append(b"Content-Length: %b\r\n" % length)
        elif chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        return b"%b\r\n" % b"".join(lines), chunked

    async def _upload(self, connection: UpstreamConnection, chunked: bool) -> None:
        """Send the rest of the body, unless Triton answers before its end."""
        seconds = self._upstream.timeout
        more = True
        while more and connection.open and not connection.has_head:
            message = await self._receive()
            if message["type"] != "http.request":
                self._left = True
                connection.close()
                return
            more = message.get("more_body", False)
            self._keep(message)
            if not more and self._model is not None:
                await self._know(self._model)
                self._rules.switch.note_step(self._model, self._facts)
            piece: bytes = message.get("body", b"")
            if piece:
                await connection.write(_chunk(piece) if chunked else piece, seconds)
        if chunked and not more:
            await connection.write(b"0\r\n\r\n", seconds)
        if more:
            self._unread = True

    async def _pass_back(self, connection: UpstreamConnection, began: float) -> None:
        seconds = self._upstream.timeout
        fields = passed_on(connection.fields, _HOP_BY_HOP | {b"date"})  # this server says the date
        if self._unread:
            fields.append((b"connection", b"close"))
        piece = await connection.piece(seconds)
        self.status = connection.status
        start = {"type": "http.response.start", "status": connection.status, "headers": fields}
        await self._send(start)
        pieces: list[bytes] = []
        held = self._held
        while True:
            if held is not None and not held.ended and held.hold(len(piece)):
                pieces.append(piece)
            over = connection.is_over
            taken = time.perf_counter() - began
            await self._send({"type": "http.response.body", "body": piece, "more_body": not over})
            if over:
                break
            piece = await connection.piece(seconds)
        if held is not None and not held.ended:
            held.answered(raw_answer(connection.status, connection.fields, pieces), taken)

    # clients that leave

    def _listen_later(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().call_later(
                LEAVING_AFTER_SECONDS, self._listen, context=contextvars.Context()
            )

    def _listen(self) -> None:
        self._leaving = asyncio.create_task(self._wait_for_leaving(), context=contextvars.Context())

    async def _wait_for_leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._close()

    def _stop_listening(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None


def passed_on(fields: Fields, dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers that are passed on: not those of the connection, nor `dropped`."""
    named = {
        option.strip().lower()
        for name, value in fields
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    return [
        field for field in fields if (name := field[0].lower()) not in dropped and name not in named
    ]


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _given(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that returns `message` first."""
    first = [message]

    async def next_message() -> Message:
        return first.pop() if first else await receive()

    return next_message
