"""WebSockets: chunks of a streamed input one way, parts of the answer the other way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from penstock import create_app, create_router
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load

KEY = "the-key/with+odd=characters"


class Logic:
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waits = threading.Event()
        self.ended = threading.Event()
        self.yielded = 0


LOGIC = Logic()


@register_backend("SocketSizes")
async def sizes(item: Any, call: Any) -> Any:
    try:
        async for chunk in item["data"]:
            yield len(chunk)
    finally:
        LOGIC.ended.set()


@register_backend("SocketEcho")
async def echo(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        if chunk == b"fail":
            raise ValueError("secret of /etc/model")
        if chunk == b"unreadable":
            raise InvalidInput("this is no sound")
        yield chunk


@register_backend("SocketText")
async def text(item: Any, call: Any) -> Any:
    return [chunk async for chunk in item["data"]]


@register_backend("SocketGate")
async def gate(item: Any, call: Any) -> Any:
    """Read one chunk, then wait for the gate before each further one. Yield much."""
    try:
        async for chunk in item["data"]:
            LOGIC.waits.set()
            while not LOGIC.gate.is_set():
                await asyncio.sleep(0.001)
            yield len(chunk)
    finally:
        LOGIC.ended.set()


@register_backend("SocketFlood")
async def flood(item: Any, call: Any) -> Any:
    async for _ in item["data"]:
        for _ in range(60):
            LOGIC.yielded += 1
            yield bytes(500_000)


@pytest.fixture(autouse=True)
def begin() -> None:
    LOGIC.__init__()  # type: ignore[misc]  # the backends of all tests refer to it


def configs() -> Any:
    kinds = {"sizes": "bytes", "echo": "bytes", "text": "text", "gate": "bytes", "flood": "bytes"}
    yield load({"pipeline": {"name": "whole"}, "node": {"backend": "Identity"}})
    for name, kind in kinds.items():
        table = {
            "name": name,
            "timeout": 1000.0,
            "max_requests": 1 if name == "gate" else 100,
            "inputs": {"data": {"kind": kind, "stream": True}},
        }
        yield load({"pipeline": table, "node": {"backend": f"Socket{name.title()}"}})


def open_socket(server: httpx.Client, name: str, **options: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.base_url.port}/predict/{name}/stream"
    opened: ClientConnection = connect(
        url, open_timeout=60, close_timeout=60, ping_interval=None, **options
    )
    return opened


def closed(stream: ClientConnection) -> tuple[int, str]:
    """Return the code and the reason by which the server closes."""
    with pytest.raises(ConnectionClosed) as caught:
        stream.recv(timeout=60)
    frame = caught.value.rcvd
    assert frame is not None
    return frame.code, frame.reason


def as_a_router(settings: Settings) -> FastAPI:
    host = FastAPI()
    host.include_router(create_router(list(configs()), settings=settings))
    return host


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[httpx.Client]:
    settings = Settings(max_message=100_000, max_stream=200_000)
    with running(create_app(list(configs()), settings=settings), http=Connections(settings)) as it:
        yield it


@pytest.mark.parametrize("end", ["", b"", '{"end": true}'])
def test_each_part_is_answered_before_the_next_chunk_is_sent(
    server: httpx.Client, end: str | bytes
) -> None:
    with open_socket(server, "sizes") as stream:
        for chunk in (b"four", bytes(70_000)):
            stream.send(chunk)
            assert json.loads(stream.recv(timeout=60)) == {"result": len(chunk)}
        stream.send(end)
        assert closed(stream) == (1000, "")


def test_bytes_are_answered_as_binary_messages_and_fragments_are_joined(
    server: httpx.Client,
) -> None:
    with open_socket(server, "echo") as stream:
        stream.send([b"in ", b"three ", b"fragments"])
        assert stream.recv(timeout=60) == b"in three fragments"
        stream.ping().wait(60)
        stream.send("")
        assert closed(stream) == (1000, "")
    with open_socket(server, "text") as stream:  # one answer, once the input has ended
        for message in ("ärger", '{"json": 1}', ""):
            stream.send(message)
        assert json.loads(stream.recv(timeout=60)) == {"result": ["ärger", '{"json": 1}']}
        assert closed(stream) == (1000, "")


@pytest.mark.parametrize(
    ("name", "message", "code", "reason"),
    [
        ("echo", "text", 1003, "unsupported_media: input 'data' is of kind bytes"),
        ("text", b"binary", 1003, "unsupported_media: input 'data' is of kind text"),
        ("echo", b"unreadable", 1007, "invalid_input: this is no sound"),
        ("echo", b"fail", 1011, "backend_error: node 'node': backend SocketEcho raised ValueError"),
        ("sizes", bytes(100_001), 1009, "the message has more than 100000 bytes (max_message)"),
        ("whole", None, 1008, "not_found: pipeline 'whole' reads no stream"),
        ("none", None, 1008, "not_found: there is no pipeline 'none'"),
    ],
)
def test_close_codes_say_what_happened(
    server: httpx.Client, name: str, message: Any, code: int, reason: str
) -> None:
    with open_socket(server, name) as stream:
        if message is not None:
            stream.send(message)
        found = closed(stream)
        assert found[0] == code
        assert reason in found[1]


def test_a_stream_has_a_bound(server: httpx.Client) -> None:
    with open_socket(server, "sizes") as stream:
        for _ in range(3):
            stream.send(bytes(90_000))
        stream.recv(timeout=60)
        stream.recv(timeout=60)
        assert closed(stream) == (
            1009,
            "too_large: the stream has more than 200000 bytes (max_stream)",
        )


def test_a_client_that_leaves_ends_the_request(server: httpx.Client) -> None:
    with open_socket(server, "sizes") as stream:
        stream.send(b"four")
        stream.recv(timeout=60)
    assert LOGIC.ended.wait(60)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_client_that_leaves_while_the_logic_works(server: httpx.Client, chunks: int) -> None:
    """With more chunks the server does not read, and sees it by the state of the connection."""
    with open_socket(server, "gate") as stream:
        for _ in range(chunks):
            stream.send(b"four")
        assert LOGIC.waits.wait(60)
        stream.socket.shutdown(socket.SHUT_RDWR)
        assert LOGIC.ended.wait(60)


def test_admission_counts_open_sockets(server: httpx.Client) -> None:
    with open_socket(server, "gate") as first:
        first.send(b"four")
        assert LOGIC.waits.wait(60)
        with open_socket(server, "gate") as second:
            code, reason = closed(second)
            assert code == 1013
            assert reason.startswith("queue_full: too many requests in flight")
        LOGIC.gate.set()
        first.send("")
        assert json.loads(first.recv(timeout=60)) == {"result": 4}


def test_a_client_is_read_no_further_ahead_than_a_message(running: Any) -> None:
    settings = Settings(max_memory=4 << 20)
    with running(create_app(list(configs()), settings=settings), http=Connections(settings)) as it:
        before = budget.used
        with open_socket(it, "gate") as stream:

            def send_many() -> None:
                for _ in range(60):
                    stream.send(bytes(500_000))

            stream.send(bytes(500_000))
            sending = threading.Thread(target=send_many)
            sending.start()
            assert LOGIC.waits.wait(60)
            for _ in range(150):  # each gives the server the time to read more
                it.get("/health/live")
            assert sending.is_alive()
            # The logic's next chunk, one message, and what came behind it.
            assert 1_000_000 <= budget.used - before < 3 << 20
            LOGIC.gate.set()
            for _ in range(61):
                assert json.loads(stream.recv(timeout=60)) == {"result": 500_000}
            sending.join()
            stream.send("")
            assert closed(stream) == (1000, "")


def test_the_logic_goes_no_faster_than_its_reader(server: httpx.Client) -> None:
    with open_socket(server, "flood", max_queue=1) as stream:
        stream.send(b"begin")
        for _ in range(150):  # each gives the server the time to send more
            server.get("/health/live")
        assert 0 < LOGIC.yielded < 60
        for _ in range(60):
            assert len(stream.recv(timeout=60)) == 500_000
        stream.send("")
        assert closed(stream) == (1000, "")


def subprotocols(key: str) -> list[Subprotocol]:
    text = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
    return [Subprotocol("penstock"), Subprotocol(f"penstock.bearer.{text}")]


@pytest.mark.parametrize(
    "make", [create_app, lambda _, settings: as_a_router(settings)], ids=["app", "router"]
)
def test_a_key_in_a_header_or_as_a_subprotocol(
    running: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.model_validate({"api_key": KEY, "access_log": True})
    caplog.set_level(logging.INFO)  # the client logs headers at DEBUG
    with running(make(list(configs()), settings=settings), http=Connections(settings)) as it:
        header = {"Authorization": f"Bearer {KEY}"}
        with open_socket(it, "sizes", additional_headers=header) as stream:
            assert stream.subprotocol is None
            stream.send("")
            assert closed(stream) == (1000, "")
        with open_socket(it, "sizes", subprotocols=subprotocols(KEY)) as stream:
            assert stream.subprotocol == "penstock"
            stream.send("")
            assert closed(stream) == (1000, "")
        for options in ({}, {"subprotocols": subprotocols("wrong")}):
            with open_socket(it, "sizes", **options) as stream:
                code, reason = closed(stream)
                assert code == 1008
                assert reason.startswith("unauthorized: ")
    assert "GET /predict/sizes/stream" in caplog.text
    assert KEY not in caplog.text
    assert subprotocols(KEY)[1] not in caplog.text


def test_pages_of_other_origins_are_refused(running: Any) -> None:
    settings = Settings(cors_origins="https://example.com")
    with running(create_app(list(configs()), settings=settings), http=Connections(settings)) as it:
        own = f"http://127.0.0.1:{it.base_url.port}"
        for origin, code in (
            (own, 1000),
            ("https://example.com", 1000),
            ("https://evil.com", 1008),
        ):
            with open_socket(it, "sizes", origin=origin) as stream:
                if code == 1000:
                    stream.send("")
                assert closed(stream)[0] == code


def test_silence_ends_a_socket(running: Any, clock: Any) -> None:
    settings = Settings(body_timeout=30, ping_interval=1000)
    with (
        running(
            create_app(list(configs()), settings=settings), loop=clock, http=Connections(settings)
        ) as it,
        open_socket(it, "sizes") as stream,
    ):
        for _ in range(3):
            stream.send(b"four")
            stream.recv(timeout=60)
            clock.advance(20)
        clock.advance(20)
        assert closed(stream)[0] == 1008
        assert LOGIC.ended.wait(60)


def raw(server: httpx.Client, **fields: str) -> socket.socket:
    """Open a socket by hand, and send a handshake with other fields if they are given."""
    sent = {
        "Host": "x",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    lines = ["GET /predict/sizes/stream HTTP/1.1", *(f"{n}: {v}" for n, v in sent.items()), "", ""]
    client = socket.create_connection(("127.0.0.1", server.base_url.port), 60)
    client.sendall("\r\n".join(lines).encode())
    return client


def head_of(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    return head


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a frame of a client, whose mask changes nothing."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.mark.parametrize(
    ("frame", "code"),
    [(b"\x82\x01a", 1002), (masked(1, b"\xff"), 1007), (masked(3, b""), 1002)],
    ids=["unmasked", "text", "opcode"],
)
def test_malformed_frames_close_the_socket(server: httpx.Client, frame: bytes, code: int) -> None:
    with raw(server) as client:
        head = head_of(client)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455, 1.3
        client.sendall(frame)
        answer = client.recv(4)
        assert (answer[0], int.from_bytes(answer[2:])) == (0x88, code)


@pytest.mark.parametrize("field", ["Sec_WebSocket_Key", "Sec_WebSocket_Version"])
def test_a_malformed_handshake_is_refused(server: httpx.Client, field: str) -> None:
    with raw(server, **{field: "8"}) as client:
        assert head_of(client).startswith(b"HTTP/1.1 400 ")


def test_other_paths_take_no_socket(server: httpx.Client) -> None:
    with pytest.raises(InvalidStatus, match="403"), open_socket(server, "a/b/c"):
        pass


def test_a_client_that_answers_no_ping_is_disconnected(running: Any, clock: Any) -> None:
    settings = Settings(body_timeout=1000, ping_interval=20)
    app = create_app(list(configs()), settings=settings)
    with (
        running(app, loop=clock, http=Connections(settings)) as it,
        open_socket(it, "sizes") as alive,
        raw(it) as dead,
    ):
        head_of(dead)
        clock.advance(25)
        assert dead.recv(2) == b"\x89\x00"  # a ping
        for _ in range(2):
            alive.send(b"four")  # behind its pong
            assert json.loads(alive.recv(timeout=60)) == {"result": 4}
            clock.advance(25)
        with contextlib.suppress(ConnectionResetError):
            assert dead.recv(1) == b""
        alive.send("")
        assert closed(alive) == (1000, "")


def test_memory_that_is_full_refuses_a_message(running: Any) -> None:
    settings = Settings(max_memory=1 << 20, max_message=8 << 20)
    app = create_app(list(configs()), settings=settings)
    with running(app, http=Connections(settings)) as it, open_socket(it, "sizes") as stream:
        with contextlib.suppress(ConnectionClosed):
            stream.send(bytes(6 << 20))
        code, reason = closed(stream)
        assert code in (1009, 1013)
        assert "(max_memory)" in reason


def test_a_drain_lets_a_socket_end(spawn: Any, tmp_path: Path) -> None:
    (tmp_path / "logic.py").write_text(
        "async def sizes(item, call):\n"
        "    async for chunk in item['data']:\n"
        "        yield len(chunk)\n"
    )
    (tmp_path / "sizes.toml").write_text(
        "[pipeline.inputs]\ndata = { kind = 'bytes', stream = true }\n"
        "[node]\nbackend = 'Python[logic.py:sizes]'\n"
    )
    process = spawn("serve", tmp_path / "sizes.toml", "--port", 0)
    with process.listening() as it:
        process.wait_for("ready")
        with open_socket(it, "sizes") as stream:
            stream.send(b"four")
            stream.recv(timeout=60)
            process.process.terminate()
            process.wait_for("draining: 1 requests in flight")
            with open_socket(it, "sizes") as late:
                assert closed(late)[0] == 1013
            stream.send(b"seventeen")
            assert json.loads(stream.recv(timeout=60)) == {"result": 9}
            stream.send("")
            assert closed(stream) == (1000, "")
        assert process.end() == 0


@pytest.mark.parametrize("ws", ["wsproto", "websockets-sansio"])
def test_behind_uvicorns_own_protocols(running: Any, ws: str) -> None:
    app = as_a_router(Settings())
    with running(app, ws=ws) as it, open_socket(it, "sizes") as stream:
        stream.send(b"four")
        assert json.loads(stream.recv(timeout=60)) == {"result": 4}
        stream.send("")
        assert closed(stream) == (1000, "")
    assert LOGIC.ended.wait(60)
