"""Streamed inputs over HTTP: a body that Python logic reads while it arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock import create_app, create_router
from penstock.app.server.connections import Connections
from penstock.app.server.socket_states import queued_bytes
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load

EVENTS = "Accept: text/event-stream"
MEGABYTE = 1 << 20


class Logic:
    """What the logic of these tests waits for, and what it tells."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waits = threading.Event()
        self.ended = threading.Event()


LOGIC = Logic()


@register_backend("UploadSizes")
async def sizes(item: Any, call: Any) -> Any:
    """Yield the size of each chunk."""
    try:
        async for chunk in item["data"]:
            yield len(chunk)
    finally:
        LOGIC.ended.set()


@register_backend("UploadText")
async def text(item: Any, call: Any) -> Any:
    return "".join([chunk async for chunk in item["data"]]).upper()


@register_backend("UploadSum")
async def total(item: Any, call: Any) -> Any:
    """Add up the bytes; wait for the gate after the first chunk."""
    size = 0
    try:
        async for chunk in item["data"]:
            size += len(chunk)
            LOGIC.waits.set()
            while not LOGIC.gate.is_set():
                await asyncio.sleep(0.001)
    finally:
        LOGIC.ended.set()
    return size


@register_backend("UploadFirst")
async def first(item: Any, call: Any) -> Any:
    """Read no more than one chunk."""
    async for chunk in item["data"]:
        return len(chunk)
    return None


@pytest.fixture(autouse=True)
def begin() -> None:
    LOGIC.__init__()  # type: ignore[misc]  # the backends of all tests refer to it


def configs() -> Any:
    kinds = {"sizes": "bytes", "text": "text", "sum": "bytes", "first": "bytes"}
    return [
        load(
            {
                "pipeline": {
                    "name": name,
                    "timeout": 1000.0,
                    "inputs": {"sound": {"kind": kind, "stream": True}},
                },
                "node": {"backend": f"Upload{name.title()}"},
            }
        )
        for name, kind in kinds.items()
    ]


class Client:
    """A client that sends a body in pieces and reads while it does."""

    def __init__(self, base: httpx.Client, name: str, *lines: str) -> None:
        self.socket = socket.create_connection((base.base_url.host, base.base_url.port), 60)
        self.file = self.socket.makefile("rb")
        head = [f"POST /predict/{name} HTTP/1.1", "Host: x", *lines, "", ""]
        self.socket.sendall("\r\n".join(head).encode())

    def send(self, chunk: bytes) -> None:
        """Send a chunk; an empty one is the last."""
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def head(self) -> str:
        lines = [self.file.readline().decode()]
        while lines[-1] != "\r\n":
            assert lines[-1], lines
            lines.append(self.file.readline().decode())
        return "".join(lines)

    def answer(self) -> tuple[str, Any]:
        """Return the head and the JSON of an answer with a Content-Length."""
        head = self.head()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        return head, json.loads(self.file.read(length))

    def event(self) -> str:
        """Return the next event of a chunked answer."""
        size = int(self.file.readline(), 16)
        event = self.file.read(size).decode()
        assert self.file.readline() == b"\r\n"
        return event

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[httpx.Client]:
    with running(create_app(configs(), settings=Settings()), http="penstock") as client:
        yield client


@contextlib.contextmanager
def client(base: httpx.Client, name: str, *lines: str) -> Iterator[Client]:
    made = Client(base, name, *(lines or ("Transfer-Encoding: chunked",)))
    with contextlib.closing(made):
        yield made


def as_a_router() -> Any:
    from fastapi import FastAPI

    host = FastAPI()
    host.include_router(create_router(configs(), settings=Settings()))
    return host


@pytest.mark.parametrize("http", ["penstock", "httptools"])
@pytest.mark.parametrize("app", [lambda: create_app(configs()), as_a_router])
def test_a_chunk_is_answered_before_the_next_is_sent(running: Any, app: Any, http: str) -> None:
    with (
        running(app(), http=http) as base,
        client(base, "sizes", "Transfer-Encoding: chunked", EVENTS) as stream,
    ):
        stream.send(b"four")
        assert stream.head().startswith("HTTP/1.1 200 OK")
        assert stream.event() == 'data: {"result":4}\n\n'
        stream.send(b"seventeen")
        assert stream.event() == 'data: {"result":9}\n\n'
        stream.send(b"")
        assert stream.event() == 'event: end\ndata: {"parts":2}\n\n'


def test_a_whole_body_is_read_and_the_connection_stays(server: httpx.Client) -> None:
    assert server.post("/predict/sizes", content=b"whole").json() == {"result": [5]}
    assert server.post("/predict/sizes", content=b"").json() == {"result": []}
    assert server.post("/predict/text", content="ärger").json() == {"result": "ÄRGER"}
    latin = {"Content-Type": "text/plain; charset=iso-8859-1"}
    answer = server.post("/predict/text", content="ärger".encode("latin-1"), headers=latin)
    assert answer.json() == {"result": "ÄRGER"}
    wave = {"Content-Type": "audio/wav"}
    assert server.post("/predict/sizes", content=b"RIFF", headers=wave).json() == {"result": [4]}
    body = iter([b"a" * 300_000] * 10)
    assert sum(server.post("/predict/sizes", content=body).json()["result"]) == 3_000_000
    sound: Any = {"name": "sound", "shape": [1], "datatype": "BYTES", "data": ["one"]}
    infer = server.post("/v2/models/text/infer", json={"inputs": [sound]})
    assert infer.json()["outputs"][0]["data"] == ["ONE"], infer.text


def test_a_character_may_be_cut_and_bad_text_is_refused(server: httpx.Client) -> None:
    with client(server, "text") as stream:
        for piece in (b"\xc3", b"\xa4", b"b", b""):
            stream.send(piece)
        assert stream.answer()[1] == {"result": "ÄB"}
    for pieces in ((b"\xff",), (b"ok\xc3", b"")):
        with client(server, "text") as stream:
            for piece in pieces:
                stream.send(piece)
            problem = stream.answer()[1]
            assert problem["code"] == "invalid_request"
            assert problem["detail"] == "input 'sound' is not valid UTF-8"
    unmarked = server.post(
        "/predict/text", content=b"null", headers={"Content-Type": "text/plain; charset=utf-16"}
    )
    assert unmarked.status_code == 400
    assert unmarked.json()["detail"] == "input 'sound' is not valid UTF-16"


def test_a_client_is_read_no_further_ahead_than_a_window(running: Any) -> None:
    settings = Settings(max_memory=2 * MEGABYTE, max_body=MEGABYTE)
    app = create_app(configs(), settings=settings)
    with running(app, http=Connections(settings)) as base:
        before = budget.used
        with client(base, "sum", f"Content-Length: {64 * MEGABYTE}") as stream:
            sending = threading.Thread(target=stream.socket.sendall, args=(bytes(64 * MEGABYTE),))
            sending.start()
            assert LOGIC.waits.wait(60)
            # More than the kernel's queues hold: it goes on when the logic does.
            assert sending.is_alive()
            assert budget.used - before < MEGABYTE
            LOGIC.gate.set()
            assert stream.answer()[1] == {"result": 64 * MEGABYTE}
            sending.join()


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_client_that_leaves_while_the_logic_waits_elsewhere(
    server: httpx.Client, framing: str
) -> None:
    """The server does not read then, and sees the departure by the state of the connection."""
    with client(server, "sum", framing) as stream:
        for _ in range(10):
            if "chunked" in framing:
                stream.send(bytes(16_384))
            else:
                stream.socket.sendall(bytes(16_384))
            while queued_bytes(stream.socket):  # so that it comes in pieces
                time.sleep(0.001)
        assert LOGIC.waits.wait(60)
    assert LOGIC.ended.wait(60)


def test_a_client_that_leaves_cancels_the_wait_for_a_chunk(server: httpx.Client) -> None:
    with client(server, "sizes", "Transfer-Encoding: chunked", EVENTS) as stream:
        stream.send(b"four")
        stream.head()
        stream.event()
        assert not LOGIC.ended.is_set()
    assert LOGIC.ended.wait(60)


def test_logic_that_stops_reading_answers_at_once(server: httpx.Client) -> None:
    with client(server, "first") as stream:  # of unknown length: the connection closes
        stream.send(b"four")
        head, answer = stream.answer()
        assert answer == {"result": 4}
        assert "connection: close" in head.lower()
    with client(server, "first", f"Content-Length: {64 * MEGABYTE}") as stream:
        stream.socket.sendall(b"four")
        head, answer = stream.answer()
        assert answer == {"result": 4}
        assert "connection: close" in head.lower()
    with client(server, "first", "Content-Length: 8") as stream:  # little: it is thrown away
        stream.socket.sendall(b"four")
        head, answer = stream.answer()
        assert "connection: close" not in head.lower()
        stream.socket.sendall(b"more" + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.answer()[1] == {"live": True}


async def test_nothing_is_read_any_more_once_the_answer_is_there() -> None:
    app = create_app(configs())
    ended: list[str] = []
    messages = [{"type": "http.request", "body": b"four", "more_body": True}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def send(message: Any) -> None:
        """Take the answer."""

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict/first",
        "raw_path": b"/predict/first",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": None,
        "server": None,
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
        await asyncio.sleep(0)
        assert ended == ["cancelled"]


def test_silence_ends_a_stream_and_a_slow_one_goes_on(running: Any, clock: Any) -> None:
    settings = Settings(body_timeout=30)
    app = create_app(configs(), settings=settings)
    with running(app, loop=clock, http=Connections(settings)) as base:
        with client(base, "sizes", "Transfer-Encoding: chunked", EVENTS) as stream:
            for number in range(1, 5):
                stream.send(b"four")
                if number == 1:
                    stream.head()
                assert stream.event() == 'data: {"result":4}\n\n'
                clock.advance(20)
            clock.advance(20)
            event = stream.event()
            assert event.startswith("event: error\n")
            assert "nothing of the body arrived for 30 s" in event
        assert LOGIC.ended.wait(60)
        with client(base, "sum") as stream:
            stream.send(b"four")
            assert LOGIC.waits.wait(60)
            LOGIC.gate.set()
            clock.advance(40)
            head, problem = stream.answer()
            assert head.startswith("HTTP/1.1 400")
            assert "(body_timeout)" in problem["detail"]


def test_max_stream_bounds_the_whole(running: Any) -> None:
    settings = Settings(max_stream=1000, max_body=10)
    app = create_app(configs(), settings=settings)
    with running(app, http=Connections(settings)) as base:
        assert base.post("/predict/sizes", content=bytes(1000)).json() == {"result": [1000]}
        refused = base.post("/predict/sizes", content=bytes(1001))
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        with client(base, "sizes") as stream:
            for _ in range(2):
                stream.send(bytes(600))
            assert (
                stream.answer()[1]["detail"] == "the stream has more than 1000 bytes (max_stream)"
            )


def test_a_deadline_holds_for_the_whole_stream(server: httpx.Client) -> None:
    with client(server, "sizes", "Transfer-Encoding: chunked", "Penstock-Deadline-Ms: 50") as late:
        assert late.answer()[1]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("path", "headers", "status", "detail"),
    [
        ("sizes/batch", {}, 400, "each in a request of its own"),
        ("sizes", {"Content-Encoding": "gzip"}, 415, "can't be compressed"),
        ("sizes", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "not as multipart"),
        ("sizes", {"Content-Type": "application/json"}, 415, "not as json"),
        ("text", {"Content-Type": "image/png"}, 415, "send it as one of text/*"),
    ],
)
def test_what_no_stream_can_be(
    server: httpx.Client, path: str, headers: dict[str, str], status: int, detail: str
) -> None:
    refused = server.post(f"/predict/{path}", content=b"body", headers=headers)
    assert refused.status_code == status
    assert detail in refused.json()["detail"]


def test_the_document_says_how_the_body_is_read(server: httpx.Client) -> None:
    document = server.get("/openapi.json").json()
    operation = document["paths"]["/predict/sizes"]["post"]
    assert "read as it arrives" in operation["description"]
    assert list(operation["requestBody"]["content"]) == ["application/octet-stream"]
    assert "/predict/sizes/batch" not in document["paths"]
    assert list(document["paths"]["/predict/text"]["post"]["requestBody"]["content"]) == [
        "text/plain"
    ]
