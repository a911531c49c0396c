"""HTTP/2 on one connection, without sockets: what a client sends, and what is answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hpack import Decoder, Encoder

from penstock.app.grpc.http2 import wire
from penstock.app.grpc.http2.connection import (
    Connection,
)
from penstock.app.grpc.http2.floods import MAX_IDLE_FRAMES
from penstock.app.grpc.http2.frames import MAX_FRAME_BYTES
from penstock.app.grpc.http2.limits import CALL_WINDOW, MAX_UNREAD_BYTES, Limits
from penstock.app.grpc.http2.server import Http2Server
from penstock.app.grpc.http2.wire import frame
from penstock.backends.memory import budget

LIMITS = Limits(
    max_message=1 << 22,
    max_head=8192,
    max_connections=2,
    max_calls=100,
    head_timeout=30,
    idle_timeout=75,
    send_timeout=30,
    max_streams=8,
    ping_seconds=60,
    ping_timeout=20,
    min_ping_seconds=10,
    max_ping_strikes=2,
)


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed: Any = False  # so that a test may look twice
        self.aborted: Any = False

    def write(self, data: Any) -> None:
        assert not self.aborted
        self.written += data

    def writelines(self, pieces: Any) -> None:
        for piece in pieces:
            self.write(piece)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 4711)

    def get_write_buffer_size(self) -> int:
        return len(self.written)


class Service:
    """Echoes: the messages of a call, joined, or one by one."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.running = 0

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            "s",
            {
                "Join": grpc.stream_unary_rpc_method_handler(self._join),
                "Each": grpc.stream_stream_rpc_method_handler(self._each),
                "Hold": grpc.stream_unary_rpc_method_handler(self._hold),
                "Fail": grpc.stream_unary_rpc_method_handler(self._fail),
            },
        )

    async def _join(self, messages: Any, context: Any) -> bytes:
        parts = [bytes(message) async for message in messages]
        context.set_trailing_metadata((("count", str(len(parts))),))
        return b"".join(parts)

    async def _each(self, messages: Any, context: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield bytes(message)

    async def _hold(self, messages: Any, context: Any) -> bytes:
        self.running += 1
        try:
            await self.held.wait()
        finally:
            self.running -= 1
        return b"held"

    async def _fail(self, messages: Any, context: Any) -> bytes:
        raise ValueError("secret")


class Client:
    """A connection's other end."""

    def __init__(self, server: Http2Server) -> None:
        self.transport = Transport()
        self.connection = Connection(server)
        self.connection.connection_made(self.transport)
        self._encoder, self._decoder = Encoder(), Decoder()
        self._read = 0
        self._next = 1

    def send(self, *frames: bytes) -> None:
        self.connection.data_received(b"".join(frames))

    def begin(self) -> Client:
        self.send(wire.PREFACE, wire.settings(()))
        self.frames()
        return self

    def block(self, method: str, **headers: str) -> bytes:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/s/{method}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *((name.replace("_", "-"), value) for name, value in headers.items()),
        ]
        encoded: bytes = self._encoder.encode(fields)
        return encoded

    def headers(self, method: str, flags: int = wire.END_HEADERS, **headers: str) -> bytes:
        """Return the frame that opens the next stream."""
        opened = frame(wire.HEADERS, flags, self._next, self.block(method, **headers))
        self._next += 2
        return opened

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Return the frames that came since the last call: kind, flags, stream, payload."""
        found = []
        written = self.transport.written
        while self._read < len(written):
            size = int.from_bytes(written[self._read : self._read + 3], "big")
            start = self._read + wire.HEAD_BYTES
            kind, flags = written[self._read + 3], written[self._read + 4]
            stream = int.from_bytes(written[self._read + 5 : start], "big")
            found.append((kind, flags, stream, bytes(written[start : start + size])))
            self._read = start + size
        return found

    def answers(self) -> dict[int, tuple[bytes, dict[str, str]]]:
        """Return the content of each stream, and its headers and trailers, as far as they came."""
        streams: dict[int, tuple[bytes, dict[str, str]]] = {}
        for kind, _, stream, payload in self.frames():
            content, fields = streams.get(stream, (b"", {}))
            if kind == wire.DATA:
                streams[stream] = content + payload, fields
            elif kind == wire.HEADERS:
                streams[stream] = (
                    content,
                    fields
                    | {str(name): str(value) for name, value in self._decoder.decode(payload)},
                )
        return streams

    def gone(self) -> tuple[int, bytes] | None:
        """Return the code and the reason of a GOAWAY, and forget the frames before it."""
        away = [payload for kind, _, _, payload in self.frames() if kind == wire.GOAWAY]
        return (int.from_bytes(away[-1][4:8], "big"), away[-1][8:]) if away else None


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def data(stream: int, content: bytes, *, ends: bool = False) -> bytes:
    return frame(wire.DATA, int(ends), stream, content)


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[Http2Server]:
    one = Http2Server([service.handler()], LIMITS)
    before = budget.used
    yield one
    service.held.set()
    await settle()
    assert not service.running
    assert budget.used == before


@pytest.fixture
async def client(server: Http2Server) -> Client:
    return Client(server).begin()


async def test_a_call(client: Client) -> None:
    client.send(
        client.headers("Join"), data(1, message(b"one")), data(1, message(b"two"), ends=True)
    )
    await settle()
    content, fields = client.answers()[1]
    assert content == message(b"onetwo")
    assert fields[":status"] == "200" and fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "0" and fields["count"] == "2"
    assert not client.connection.calls


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_bytes_come_in_any_pieces(server: Http2Server, size: int) -> None:
    client = Client(server)
    padded = b"\3" + message(b"padded") + bytes(3)
    block = client.block("Join", long="x" * 300)
    sent = b"".join(
        [
            wire.PREFACE,
            wire.settings([(99, 1)]),
            frame(
                wire.HEADERS,
                wire.PADDED | wire.WITH_PRIORITY,
                1,
                b"\2" + bytes(5) + block[:9] + b"  ",
            ),
            frame(wire.CONTINUATION, 0, 1, block[9:20]),
            frame(wire.CONTINUATION, wire.END_HEADERS, 1, block[20:]),
            frame(200, 0, 0, b"unknown kinds are ignored"),
            frame(wire.PRIORITY, 0, 1, bytes(5)),
            frame(wire.DATA, wire.PADDED, 1, padded),
            data(1, b""),
            data(1, message(b"-") + message(b"")),
            data(1, message(b"x" * 20_000)[:5000]),
            data(1, message(b"x" * 20_000)[5000:], ends=True),
        ]
    )
    for start in range(0, len(sent), size):
        client.send(sent[start : start + size])
    await settle()
    content, fields = client.answers()[1]
    assert content[5:] == b"padded-" + b"x" * 20_000 and fields["count"] == "4"


async def test_answers_respect_the_windows(client: Client) -> None:
    """Two large answers share the connection, and neither exceeds what the client takes."""
    client.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 10)]))
    for stream in (1, 3):
        client.send(client.headers("Join"), data(stream, message(b"x" * 100_000), ends=True))
    await settle()
    got = client.answers()
    assert {stream: len(content) for stream, (content, _) in got.items() if stream} == {
        1: 10,
        3: 10,
    }
    client.send(wire.window_update(1, 200_000), wire.window_update(3, 200_000))
    got = client.answers()
    assert sum(len(content) for content, _ in got.values()) == wire.DEFAULT_WINDOW - 20
    assert all(len(content) > 20_000 for stream, (content, _) in got.items() if stream)
    client.send(wire.window_update(0, 1 << 20))
    got = client.answers()
    assert all(fields["grpc-status"] == "0" for _, fields in got.values())
    assert not client.connection.calls


async def test_a_stream_waits_for_its_reader(client: Client) -> None:
    client.send(client.headers("Each"))
    parts = [message(b"x" * 40_000) for _ in range(20)]
    for part in parts:
        client.send(data(1, part))
        await settle()
    assert len(client.answers()[1][0]) == wire.DEFAULT_WINDOW
    client.send(
        wire.window_update(1, 1 << 21), wire.window_update(0, 1 << 21), data(1, b"", ends=True)
    )
    for _ in range(20):
        await settle()
    content, fields = client.answers()[1]
    assert len(content) == sum(map(len, parts)) - wire.DEFAULT_WINDOW
    assert fields["grpc-status"] == "0"


async def test_a_client_that_sends_on_gets_window(client: Client, service: Service) -> None:
    """But not for a handler that does not read."""
    size = CALL_WINDOW // 2
    client.send(client.headers("Join"), client.headers("Hold"))
    for _ in range(8):
        client.send(data(1, message(bytes(size - 5))))
        await settle()
    updates = [stream for kind, _, stream, _ in client.frames() if kind == wire.WINDOW_UPDATE]
    assert updates.count(1) >= 7
    for _ in range(8):
        client.send(data(3, message(bytes(size - 5))))
        await settle()
    client.send(data(3, bytes(size)))  # of empty messages
    assert client.gone() is None
    client.send(data(3, bytes(size)))
    assert client.gone() == (wire.FLOW_CONTROL_ERROR, b"more DATA than the window")
    client.connection.connection_lost(None)


STARTED = wire.PREFACE + wire.settings(())
OPENED = STARTED + frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x83")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (STARTED + frame(wire.DATA, 0, 0, b"x"), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.DATA, 0, 1, b"x"), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.HEADERS, wire.END_HEADERS, 0, b"\x83"), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.HEADERS, wire.END_HEADERS, 2, b"\x83"), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.HEADERS, wire.END_HEADERS, 1, b"\xff\xff"), wire.COMPRESSION_ERROR),
        (STARTED + frame(wire.HEADERS, 0, 1, b"\x83") + wire.settings(()), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.CONTINUATION, 0, 1, b"\x83"), wire.PROTOCOL_ERROR),
        (OPENED + frame(wire.DATA, wire.PADDED, 1, b"\2x"), wire.PROTOCOL_ERROR),
        (OPENED + frame(wire.DATA, wire.PADDED, 1, b""), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.HEADERS, 0, 1, bytes(1 << 14) + b"x"), wire.FRAME_SIZE_ERROR),
        (OPENED + wire.head(MAX_FRAME_BYTES + 1, wire.DATA, 0, 1), wire.FRAME_SIZE_ERROR),
        (STARTED + frame(wire.SETTINGS, 0, 1, b""), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.SETTINGS, 0, 0, b"12345"), wire.FRAME_SIZE_ERROR),
        (STARTED + wire.settings([(4, 1 << 31)]), wire.FLOW_CONTROL_ERROR),
        (STARTED + wire.settings([(5, 100)]), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.PING, 0, 0, b"1234567"), wire.FRAME_SIZE_ERROR),
        (STARTED + frame(wire.PING, 0, 1, bytes(8)), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.PUSH_PROMISE, 0, 1, bytes(8)), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.PRIORITY, 0, 1, bytes(4)), wire.FRAME_SIZE_ERROR),
        (STARTED + frame(wire.GOAWAY, 0, 0, bytes(7)), wire.FRAME_SIZE_ERROR),
        (STARTED + frame(wire.HEADERS, 0x24, 1, bytes(4)), wire.FRAME_SIZE_ERROR),
        (STARTED + frame(wire.HEADERS, wire.PADDED, 1, b"\2x"), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.SETTINGS, wire.ACK, 0, bytes(6)), wire.FRAME_SIZE_ERROR),
        (STARTED + wire.window_update(0, 0), wire.PROTOCOL_ERROR),
        (STARTED + wire.window_update(1, 1), wire.PROTOCOL_ERROR),
        (STARTED + frame(wire.WINDOW_UPDATE, 0, 0, b"123"), wire.FRAME_SIZE_ERROR),
        (STARTED + wire.window_update(0, (1 << 31) - 1), wire.FLOW_CONTROL_ERROR),
        (STARTED + wire.reset(1, 8), wire.PROTOCOL_ERROR),
        (OPENED + frame(wire.RST_STREAM, 0, 1, b"12345"), wire.FRAME_SIZE_ERROR),
    ],
)
async def test_violations_end_the_connection(server: Http2Server, sent: bytes, code: int) -> None:
    client = Client(server)
    client.send(sent)
    gone = client.gone()
    assert gone is not None and gone[0] == code and gone[1]
    assert client.transport.closed
    written = len(client.transport.written)
    client.send(STARTED)  # nothing of it is heard
    assert len(client.transport.written) == written
    client.connection.connection_lost(None)


@pytest.mark.parametrize(
    "flood",
    [
        lambda client: wire.settings(()),
        lambda client: frame(wire.SETTINGS, wire.ACK, 0, b""),
        lambda client: frame(wire.PRIORITY, 0, 1, bytes(5)),
        lambda client: frame(200, 0, 0, b""),
        lambda client: data(1, b""),
        lambda client: frame(wire.DATA, wire.PADDED, 1, b"\1\0"),
        lambda client: wire.window_update(0, 1),
        lambda client: wire.window_update(1, 1),
        lambda client: frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x83"),
        lambda client: frame(wire.GOAWAY, 0, 0, bytes(8)),
        lambda client: wire.reset(1, 8),
        lambda client: frame(wire.PING, wire.ACK, 0, bytes(8)),
        lambda client: client.headers("Join") + wire.reset(client._next - 2, 8),
    ],
)
async def test_floods_end_the_connection(
    client: Client, flood: Callable[[Client], bytes], service: Service
) -> None:
    client.send(client.headers("Hold"))
    for _ in range(MAX_IDLE_FRAMES + 10):
        client.send(flood(client))
    gone = client.gone()
    assert gone is not None and gone[0] == wire.ENHANCE_YOUR_CALM
    client.connection.connection_lost(None)
    await settle()


async def test_a_client_that_pings_too_often(client: Client) -> None:
    ping = frame(wire.PING, 0, 0, b"12345678")
    client.send(ping, ping, ping)
    answered = [
        payload for kind, flags, _, payload in client.frames() if kind == wire.PING and flags
    ]
    assert answered == [b"12345678"] * 3
    client.send(client.headers("Join"), data(1, message(b""), ends=True))
    await settle()  # an answer was sent, so pings are forgiven
    client.send(ping, ping)
    assert client.gone() is None
    client.send(ping)
    assert client.gone() == (wire.ENHANCE_YOUR_CALM, b"too_many_pings")


async def test_continuations_have_a_bound(client: Client) -> None:
    client.send(frame(wire.HEADERS, 0, 1, b"\x83"))
    for _ in range(33):
        client.send(frame(wire.CONTINUATION, 0, 1, bytes(1000)))
    assert client.gone() == (wire.ENHANCE_YOUR_CALM, b"headers far exceed max_head")


async def test_headers_that_are_large_only_when_decoded(client: Client) -> None:
    """A field in the table takes one byte each time."""
    first = client.block("Join", large="x" * 4000)
    assert client.gone() is None
    client.send(frame(wire.HEADERS, wire.END_HEADERS, 1, first + b"\xbe" * 2))
    assert client.answers()[1][1]["grpc-status"] == "8"  # of this call alone
    client.send(frame(wire.HEADERS, wire.END_HEADERS, 3, b"\xbe" * 10))
    gone = client.gone()
    assert gone is not None and gone[0] == wire.COMPRESSION_ERROR


async def test_more_calls_than_may_be(client: Client, server: Http2Server) -> None:
    for _ in range(LIMITS.max_streams + 1):
        client.send(client.headers("Hold"))
    refused = [
        (stream, payload) for kind, _, stream, payload in client.frames() if kind == wire.RST_STREAM
    ]
    assert refused == [(2 * LIMITS.max_streams + 1, wire.REFUSED_STREAM.to_bytes(4, "big"))]
    server.limits = replace(LIMITS, max_calls=LIMITS.max_streams)
    other = Client(server).begin()
    other.send(other.headers("Join"))
    assert other.answers()[1][1]["grpc-status"] == "8"
    full = Client(server)
    assert full.transport.aborted
    for one in (client, other):
        one.connection.connection_lost(None)
    await settle()
    again = Client(server).begin()
    again.send(again.headers("Join"), data(1, message(b"a"), ends=True))
    await settle()
    assert again.answers()[1][1]["grpc-status"] == "0"


@pytest.mark.parametrize("leaves", ["reset", "lost"])
async def test_a_client_that_leaves(
    client: Client, server: Http2Server, service: Service, leaves: str
) -> None:
    client.send(client.headers("Hold"), client.headers("Join"))
    await settle()
    assert service.running == 1
    client.send(client.headers("Hold") + wire.reset(5, 8))  # before its handler has begun
    if leaves == "reset":
        client.send(wire.reset(1, 8), wire.reset(3, 8))
    else:
        client.connection.connection_lost(None)
    await settle()
    assert not service.running and not client.connection.calls
    assert not server._calls


async def test_a_deadline(client: Client, service: Service) -> None:
    client.send(client.headers("Hold", grpc_timeout="1n"))
    while 1 not in (got := client.answers()):
        await asyncio.sleep(0.001)
    assert got[1][1]["grpc-status"] == "4"
    await settle()
    assert not service.running


@pytest.mark.parametrize(
    ("method", "status", "text"),
    [("Nope", "12", "Method not found!"), ("Fail", "2", "the handler failed")],
)
async def test_calls_that_fail(
    client: Client, method: str, status: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.send(client.headers(method), data(1, message(b""), ends=True))
    await settle()
    fields = client.answers()[1][1]
    assert (fields["grpc-status"], fields["grpc-message"]) == (status, text)
    assert "secret" not in str(fields)


async def test_messages_have_a_bound(client: Client) -> None:
    client.send(
        client.headers("Join"), data(1, b"\0" + (LIMITS.max_message + 1).to_bytes(4, "big"))
    )
    await settle()
    fields = client.answers()[1][1]
    assert fields["grpc-status"] == "8" and "max_body" in fields["grpc-message"]
    client.send(data(1, b"what is on its way is thrown away", ends=True))
    assert client.gone() is None


async def test_what_is_due(server: Http2Server, service: Service) -> None:
    """Idle and dead connections end, each by its own bound."""
    client = Client(server)
    connection, now = client.connection, client.connection._since
    connection.look(now + 29)
    assert not client.transport.aborted
    connection.look(now + 31)
    assert client.transport.aborted  # it has not begun
    connection.connection_lost(None)

    client = Client(server).begin()
    client.connection.look(now + 76 + client.connection._since - now)
    assert client.gone() == (wire.NO_ERROR, b"idle_timeout")
    client.connection.connection_lost(None)

    client = Client(server).begin()
    client.send(client.headers("Hold"))
    heard = client.connection._heard
    client.connection.look(heard + 61)
    assert wire.PING in [kind for kind, *_ in client.frames()]
    client.send(frame(wire.PING, wire.ACK, 0, bytes(8)))
    client.connection.look(heard + 82)
    assert not client.transport.aborted
    client.connection.look(heard + 130)
    client.connection.look(heard + 151)
    assert client.transport.aborted
    client.connection.connection_lost(None)

    client = Client(server).begin()
    client.connection.pause_writing()
    client.send(client.headers("Join"), data(1, message(b"x"), ends=True))
    await settle()
    stalled = client.connection._sender.stalled
    client.connection.look(stalled + 29)
    assert not client.transport.aborted
    client.connection.resume_writing()
    assert client.answers()[1][1]["grpc-status"] == "0"
    assert client.connection._sender.stalled is None


async def test_the_end_waits_for_calls(
    client: Client, server: Http2Server, service: Service
) -> None:
    client.send(client.headers("Hold"), client.headers("Hold"))
    await settle()
    stopping = asyncio.create_task(server.stop(60))
    await settle()
    assert client.gone() == (wire.NO_ERROR, b"the server ends")
    client.send(client.headers("Join"))
    assert (wire.RST_STREAM, 5) in [(kind, stream) for kind, _, stream, _ in client.frames()]
    assert Client(server).transport.aborted
    assert not stopping.done() and not client.transport.closed
    service.held.set()
    await stopping
    assert client.transport.closed
    assert [fields["grpc-status"] for _, fields in client.answers().values()] == ["0", "0"]


async def test_calls_that_do_not_end_in_time(client: Client, server: Http2Server) -> None:
    client.send(client.headers("Hold"))
    await settle()
    await server.stop(0)
    await settle()
    assert client.answers()[1][1]["grpc-status"] == "14"
    assert client.transport.closed


async def test_any_bytes(server: Http2Server) -> None:
    """Change a good conversation at random: nothing is raised, and the server goes on."""
    chance = random.Random(5)
    model = Client(server)
    good = b"".join(
        [
            wire.PREFACE,
            wire.settings([(wire.INITIAL_WINDOW_SIZE, 30)]),
            model.headers("Join", x="y"),
            data(1, message(b"a" * 50), ends=True),
            frame(wire.PING, 0, 0, bytes(8)),
            model.headers("Each"),
            data(3, message(b"b" * 50)),
            wire.window_update(1, 100),
            wire.window_update(0, 100),
            wire.reset(3, 8),
            model.headers("Hold", grpc_timeout="1S"),
            data(5, message(b"")),
        ]
    )
    model.connection.connection_lost(None)
    for _ in range(400):
        sent = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 5])):
            place = chance.randrange(len(sent))
            how = chance.random()
            if how < 0.6:
                sent[place] = chance.randrange(256)
            elif how < 0.8:
                del sent[place : place + chance.randrange(1, 9)]
            else:
                sent[place:place] = chance.randbytes(chance.randrange(1, 9))
        client = Client(server)
        step = chance.choice([3, 50, len(sent)])
        for start in range(0, len(sent), step):
            client.send(bytes(sent[start : start + step]))
        await asyncio.sleep(0)
        gone = client.gone()
        assert gone is None or gone[1] != b"internal error"
        client.connection.connection_lost(None)
    await settle()
    assert not server._calls and not server._connections
    client = Client(server).begin()
    client.send(client.headers("Join"), data(1, message(b"a"), ends=True))
    await settle()
    assert client.answers()[1][1]["grpc-status"] == "0"


async def test_a_client_that_reads_nothing_is_not_answered_for_ever(client: Client) -> None:
    """Answers other than DATA are not held back by its windows."""
    client.connection.pause_writing()
    sent = 0
    while not client.transport.aborted:
        client.send(client.headers("Nope"))
        sent += 1
        assert sent < MAX_UNREAD_BYTES
    assert len(client.transport.written) < 2 * MAX_UNREAD_BYTES
    client.connection.connection_lost(None)


async def test_a_client_that_gives_no_window(client: Client) -> None:
    client.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 0)]), client.headers("Each"))
    for _ in range(5):
        client.send(data(1, message(bytes(40_000))))
        await settle()
    call = client.connection.calls[1]
    assert 40_000 < call.unsent < 100_000  # the handler waits
    assert budget.used
    client.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 5)]), client.headers("Join"))
    client.send(data(3, message(b""), ends=True))  # the connection is in use
    await settle()
    client.connection.look(call.stalled + 29)
    assert 1 in client.connection.calls
    client.frames()
    client.connection.look(call.stalled + 31)
    assert client.frames()[0] == (wire.RST_STREAM, 0, 1, wire.CANCEL.to_bytes(4, "big"))
    assert not client.connection.calls and not client.transport.aborted


async def test_a_client_that_reads_nothing(client: Client) -> None:
    client.send(client.headers("Hold"))
    client.connection.pause_writing()
    stalled = client.connection._sender.stalled
    client.connection.look(stalled + 29)
    assert not client.transport.aborted
    client.connection.look(stalled + 31)
    assert client.transport.aborted
    client.connection.connection_lost(None)


async def test_messages_that_wait_are_counted(
    client: Client, server: Http2Server, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = budget.used
    for stream in range(1, 2 * LIMITS.max_streams, 2):
        client.send(client.headers("Hold"))
        client.send(
            data(stream, message(bytes(300_000))), data(stream, message(bytes(400_000))[:200_000])
        )
    held = budget.used - before
    assert held >= LIMITS.max_streams * 500_000
    monkeypatch.setattr(budget, "limit", budget.used)
    client.frames()
    client.send(data(1, bytes(1000)))
    assert client.answers()[1][1]["grpc-status"] == "14"
    assert budget.used - before < held
    client.connection.connection_lost(None)
    assert budget.used == before
    await settle()


async def test_padding_is_not_collected(client: Client) -> None:
    client.send(client.headers("Join"))
    content = message(b"x" * 200_000)
    payload = b"\xff" + content + bytes(255)
    sent = frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1, payload)
    for start in range(0, len(sent), 1000):
        client.send(sent[start : start + 1000])
        assert len(client.connection._frames._buffer) < 20
    await settle()
    assert client.answers()[1][0] == content[: wire.DEFAULT_WINDOW]
    client.connection.connection_lost(None)


@pytest.mark.parametrize(
    ("encoding", "flag", "status"),
    [
        ("identity", 1, "13"),
        ("snappy", 1, "12"),
        ("gzip", 2, "13"),
        ("snappy", 0, "0"),
        ("gzip", 0, "0"),
    ],
)
async def test_what_messages_say_about_compression(
    client: Client, encoding: str, flag: int, status: str
) -> None:
    client.send(client.headers("Join", grpc_encoding=encoding))
    client.send(data(1, bytes((flag, 0, 0, 0, 2)) + b"ab", ends=True))
    await settle()
    fields = client.answers()[1][1]
    assert fields["grpc-status"] == status
    assert fields["grpc-accept-encoding"] == "identity, deflate, gzip"


@pytest.mark.parametrize(
    ("method", "content_type", "status"),
    [("GET", "application/grpc", "405"), ("POST", "application/json", "415")],
)
async def test_what_is_not_grpc(
    client: Client, method: str, content_type: str, status: str
) -> None:
    fields = [
        (b":path", b"/"),
        (b":method", method.encode()),
        (b"content-type", content_type.encode()),
    ]
    client.send(frame(wire.HEADERS, 5, 1, wire.literals(fields)))
    content, answered = client.answers()[1]
    assert answered[":status"] == status and b"speaks gRPC" in content
    client.send(client.headers("Join"))  # stream 1 again: it is ignored
    assert not client.connection.calls


async def test_http_1(server: Http2Server) -> None:
    client = Client(server)
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    answer = bytes(client.transport.written)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"speaks gRPC" in answer
    assert client.transport.closed
    client.connection.connection_lost(None)


async def test_updates_of_windows_wake_only_whom_they_concern(client: Client) -> None:
    client.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 0)]))
    for stream in range(1, 2 * LIMITS.max_streams, 2):
        client.send(client.headers("Join"), data(stream, message(b"x" * 100), ends=True))
    await settle()
    client.frames()
    client.send(wire.window_update(5, 50))
    assert [stream for kind, _, stream, _ in client.frames() if kind == wire.DATA] == [5]
    client.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 1000)]))
    answers = client.answers()
    assert all(fields["grpc-status"] == "0" for stream, (_, fields) in answers.items() if stream)
    assert not client.connection.calls


async def test_small_updates_after_messages_are_no_flood(client: Client) -> None:
    """gRPC's own clients send some for each message of a stream."""
    client.send(client.headers("Each"))
    for _ in range(MAX_IDLE_FRAMES // 2):
        client.send(data(1, message(b"x")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        client.send(wire.window_update(1, 6), wire.window_update(0, 6), wire.window_update(0, 1))
        client.send(frame(wire.PING, 0, 0, bytes(8)))
    assert client.gone() is None
    client.connection.connection_lost(None)
    await settle()


@pytest.mark.parametrize("fields", [{"grpc_timeout": "1"}, {"a_bin": "!"}, {"connection": "close"}])
async def test_a_bad_call_ends_alone(client: Client, fields: dict[str, Any]) -> None:
    """Others share its connection, behind a proxy."""
    client.send(client.headers("Join"), client.headers("Join", **fields))
    answered = client.answers()[3][1]
    assert answered["grpc-status"] == "13" and "malformed" in answered["grpc-message"]
    client.send(data(1, message(b"good"), ends=True))
    await settle()
    assert client.answers()[1][0] == message(b"good")
