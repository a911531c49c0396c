"""Answers as Server-Sent Events: parts as they come, how they end, and a pipeline that goes no
faster than its reader.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope

from penstock import create_app, create_router, lifespan
from penstock.app.http.events import wants_events
from penstock.app.settings import Settings
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load

EVENTS = {"Accept": "text/event-stream"}
MEGABYTE = "x" * 1_000_000


class Source:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.advanced = 0
        self.ended = threading.Event()


SOURCE = Source()


@register_backend("StreamSource")
async def source(item: Any, call: Any) -> Any:
    """Do what the words of `data` say: a number yields itself, others do something."""
    try:
        for word in item["data"].decode().split():
            SOURCE.advanced += 1
            if word == "fail":
                raise ValueError("secret of /etc/model")
            if word == "unreadable":
                raise InvalidInput("the rest can't be read")
            if word == "wait":
                await asyncio.Event().wait()
            yield (
                {"large": MEGABYTE, "some": MEGABYTE[:100_000], "odd": object()}[word]
                if word.isalpha()
                else int(word)
            )
    finally:
        SOURCE.ended.set()


@register_backend("StreamTwice")
class Twice:
    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = (
                item["data"] if isinstance(item["data"], str) else {"twice": 2 * item["data"]}
            )
            item["note"] = "two\nlines"


@register_backend("Odd")
class Odd:
    """Answers an object that has no JSON form."""

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = object()


@pytest.fixture(autouse=True)
def begin() -> None:
    SOURCE.reset()


def configs() -> Any:
    table = {"name": "parts", "outputs": {"note": {"kind": "text"}}}
    return [
        load(
            {
                "pipeline": table,
                "source": {"backend": "StreamSource", "next": "twice"},
                "twice": {"backend": "StreamTwice"},
            }
        ),
        load({"pipeline": {"name": "raw"}, "source": {"backend": "StreamSource"}}),
        load({"pipeline": {"name": "echo"}, "echo": {"backend": "Identity"}}),
        load({"pipeline": {"name": "odd"}, "odd": {"backend": "Odd"}}),
    ]


def plain() -> FastAPI:
    return create_app(configs(), settings=Settings())


def behind_an_http_middleware() -> FastAPI:
    app = plain()

    @app.middleware("http")
    async def passes(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return app


def as_a_router() -> Any:
    host = FastAPI()
    host.include_router(create_router(configs(), settings=Settings()))
    return host


def mounted() -> Any:
    models = plain()
    host = FastAPI(lifespan=lambda host: lifespan(models))
    host.mount("/", models)
    return host


HOSTS = pytest.mark.parametrize("host", [plain, behind_an_http_middleware, as_a_router, mounted])


@pytest.fixture(scope="module")
def client(running: Any) -> Any:
    with running(plain(), http="penstock") as client:
        yield client


def events_in(lines: Any) -> Any:
    """Yield the events as a browser reads them (HTML, 9.2.6): one without data does not count."""
    name = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield name or "message", json.loads("\n".join(data))
            name, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
    assert not name and not data  # the last one was complete


def events(client: httpx.Client, data: bytes, path: Any = "/predict/parts", **headers: Any) -> Any:
    with client.stream("POST", path, content=data, headers=EVENTS | headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        return list(events_in(answer.iter_lines()))


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def metric(client: httpx.Client, name: Any) -> Any:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def inside(client: httpx.Client) -> Any:
    return metric(client, "penstock_requests_in_flight{")


@HOSTS
def test_an_event_a_part_and_the_end(running: Any, host: Any) -> None:
    with running(host()) as client:
        assert events(client, b"1 2 3") == [
            ("message", {"result": {"twice": 2}, "note": "two\nlines"}),
            ("message", {"result": {"twice": 4}, "note": "two\nlines"}),
            ("message", {"result": {"twice": 6}, "note": "two\nlines"}),
            ("end", {"parts": 3}),
        ]
        assert inside(client) == 0


def test_each_part_comes_as_soon_as_it_is_there(client: httpx.Client) -> None:
    with client.stream("PUT", "/predict/parts", content=b"1 wait", headers=EVENTS) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["result"] == {
            "twice": 2
        }  # while the source waits forever
        assert not SOURCE.ended.is_set()
    assert SOURCE.ended.wait(60)


def test_headers(client: httpx.Client) -> None:
    with client.stream(
        "POST", "/predict/parts", content=b"1", headers=EVENTS | {"X-Request-Id": "story-1"}
    ) as answer:
        assert (
            answer.headers["cache-control"] == "no-store"
            and answer.headers["x-request-id"] == "story-1"
        )
        assert (
            answer.headers["transfer-encoding"] == "chunked"
            and "content-length" not in answer.headers
        )
        answer.read()


def test_curl(client: httpx.Client) -> None:
    command = [
        "curl",
        "-sN",
        "-H",
        "Accept: text/event-stream",
        "-d",
        "1 2",
        f"{client.base_url}/predict/raw",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert (
        answer.stdout
        == 'data: {"result":1}\n\ndata: {"result":2}\n\nevent: end\ndata: {"parts":2}\n\n'
    )


def test_without_the_accept_header_the_parts_results_are_one_answer(client: httpx.Client) -> None:
    answer = client.post("/predict/parts", content=b"1 2")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"result": [{"twice": 2}, {"twice": 4}]}
    assert client.post("/predict/raw", content=b" ").json() == {"result": []}
    images = [("images", b"1"), ("images", b"fail"), ("images", b"2 3")]
    answer = client.post("/predict/raw/batch", files=images, headers=EVENTS).json()["results"]
    assert (
        answer[0] == {"result": [1]}
        and answer[1]["code"] == "backend_error"
        and answer[2] == {"result": [2, 3]}
    )


def test_a_pipeline_that_does_not_stream_gives_one_event(client: httpx.Client) -> None:
    assert events(client, b"abc", "/predict/echo") == [
        ("message", {"result": "YWJj"}),
        ("end", {"parts": 1}),
    ]


def test_no_part_at_all(client: httpx.Client) -> None:
    assert events(client, b" ", "/predict/raw") == [("end", {"parts": 0})]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"fail", 500, "backend_error"),
        (b"unreadable 1", 422, "invalid_input"),
        (b"odd", 500, "backend_error"),
    ],
)
def test_an_error_before_the_first_part_is_an_ordinary_problem(
    client: httpx.Client, data: bytes, status: int, code: Any
) -> None:
    answer = client.post("/predict/raw", content=data, headers=EVENTS)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert inside(client) == 0


@pytest.mark.parametrize(
    ("word", "status", "code"),
    [
        ("fail", 500, "backend_error"),
        ("unreadable", 422, "invalid_input"),
        ("odd", 500, "backend_error"),
    ],
)
def test_a_later_error_is_the_last_event(
    client: httpx.Client, word: str, status: int, code: str
) -> None:
    headers = {"X-Request-Id": "story-2"}
    first, (name, problem) = events(client, f"1 {word} 2".encode(), "/predict/raw", **headers)
    assert first == ("message", {"result": 1}) and name == "error"
    assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, "story-2")
    assert "secret" not in problem["detail"]
    assert SOURCE.ended.wait(60)
    assert inside(client) == 0


def test_a_deadline_that_passes_after_the_first_part(client: httpx.Client) -> None:
    (first, _), (last, problem) = patiently(client, b"1 wait 2")
    assert (first, last) == ("message", "error")
    assert (problem["status"], problem["code"]) == (504, "deadline_exceeded")
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)


def patiently(client: httpx.Client, data: bytes) -> Any:
    """Return the events of a request with the shortest deadline that passes after the first."""
    for milliseconds in (200, 2_000, 20_000):
        headers = EVENTS | {"Penstock-Deadline-Ms": str(milliseconds)}
        with client.stream("POST", "/predict/raw", content=data, headers=headers) as answer:
            if answer.status_code == 200:
                return list(events_in(answer.iter_lines()))
            assert answer.status_code == 504
    raise AssertionError("no event came within 20 s")


@pytest.mark.parametrize(
    ("path", "data", "parts"),
    [
        ("/predict/odd", b"x", 0),  # one answer, of a pipeline that doesn't stream
        ("/predict/raw", b"odd", 0),
        ("/predict/raw", b"1 odd 2", 1),
    ],
)
def test_an_event_that_can_not_be_written_is_a_failure(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, path: str, data: bytes, parts: int
) -> None:
    name = path.rpartition("/")[2]

    def counted() -> tuple[float, float]:
        return (
            metric(client, f'nv_inference_request_success{{model="{name}"'),
            metric(client, f'nv_inference_request_failure{{model="{name}",reason="OTHER"'),
        )

    succeeded, failed = counted()
    with caplog.at_level("ERROR", "penstock.http"):
        answer = client.post(
            path, content=data, headers=EVENTS | {"X-Request-Id": "unwritable"}
        ).text
    assert answer.count('data: {"result"') == parts and "can't be written as JSON" in answer
    assert counted() == (succeeded, failed + 1)
    (record,) = [record for record in caplog.records if record.name == "penstock.http"]
    assert "not JSON serializable: object" in record.getMessage()
    assert record.request_id == "unwritable" and record.pipeline == name  # type: ignore[attr-defined]  # from `extra`


def test_the_connection_serves_on(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url, limits=httpx.Limits(max_connections=1)) as one:
        for _ in range(3):
            assert events(one, b"1", "/predict/raw")[-1] == ("end", {"parts": 1})
            assert one.post("/predict/raw", content=b"1").json() == {"result": [1]}


@HOSTS
@pytest.mark.parametrize(
    "data", [b"1 wait", b"some " * 200_000], ids=["while it waits", "while it sends"]
)
def test_a_client_that_leaves_ends_the_node(running: Any, host: Any, data: bytes) -> None:
    with running(host()) as client:
        with client.stream("POST", "/predict/raw", content=data, headers=EVENTS) as answer:
            chunks = answer.iter_raw()  # kept: where it is collected, httpx closes the connection
            assert next(chunks).startswith(b'data: {"result":')
            assert not SOURCE.ended.is_set()
        assert SOURCE.ended.wait(60)
        until(lambda: inside(client) == 0)
        assert metric(client, 'penstock_items_total{node="source",outcome="cancelled"') == 1


def test_a_client_that_leaves_before_the_first_part(client: httpx.Client, leaving: Any) -> None:
    with leaving(client, "/predict/raw", b"wait", **EVENTS):
        until(lambda: SOURCE.advanced)
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)


def test_a_slow_reader_slows_the_node(client: httpx.Client) -> None:
    parts = 64
    body = b"large " * parts
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reader.settimeout(30)
        reader.connect((client.base_url.host, client.base_url.port))
        head = (
            b"POST /predict/raw HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        reader.sendall(head + body)

        def stands_still() -> Any:
            """Return whether the source makes no step during a hundred other requests."""
            before = SOURCE.advanced
            for _ in range(100):
                client.get("/health/live")
            return SOURCE.advanced == before > 0

        until(stands_still)
        assert SOURCE.advanced < parts / 3  # the kernel's buffers hold some of them
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-64:] + reader.recv(1 << 20)
        assert b'event: end\ndata: {"parts":64}\n\n' in received
    assert SOURCE.advanced == parts


def request(data: bytes) -> tuple[Scope, Receive]:
    """Make the scope and `receive` of a request whose client stays."""
    headers = [(b"accept", b"text/event-stream")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict/raw",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    return scope, receive


async def test_the_next_part_is_requested_once_the_former_one_has_been_taken() -> None:
    app = plain()
    sent: list[Message] = []
    taken = asyncio.Semaphore(0)

    async def send(message: Message) -> None:
        sent.append(message)
        await taken.acquire()

    async def idle() -> None:
        for _ in range(50):  # nothing here runs in a thread
            await asyncio.sleep(0)

    async with lifespan(app):
        answer = asyncio.create_task(app(*request(b"1 2 3"), send))
        for advanced, messages in (
            (1, 1),
            (1, 2),
            (2, 3),
            (3, 4),
            (3, 5),
        ):  # the head, three parts, the end
            await idle()
            assert (SOURCE.advanced, len(sent)) == (advanced, messages)
            taken.release()
        await answer
    assert [message.get("more_body") for message in sent[1:]] == [True, True, True, None]


@pytest.mark.parametrize("data", [b"1 wait", b"1 2 3"])
async def test_a_server_that_raises_where_the_client_left(data: bytes) -> None:
    """Some raise OSError from `send` (ASGI 2.4)."""
    app = plain()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    async with lifespan(app):
        await app(*request(data), send)
        assert app.state.penstock.get("raw").in_flight == 0
        assert await asyncio.to_thread(SOURCE.ended.wait, 10)


async def test_a_server_that_cancels_the_request() -> None:
    app = plain()
    begun = asyncio.Event()

    async def send(message: Message) -> None:
        begun.set()

    async with lifespan(app):
        answer = asyncio.create_task(app(*request(b"1 wait"), send))
        await begun.wait()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        assert app.state.penstock.get("raw").in_flight == 0
        assert await asyncio.to_thread(SOURCE.ended.wait, 10)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"text/event-stream, */*", True),
        (b"application/json;q=0.5, text/event-stream", True),
        (b"application/json;q=0.5,text/event-stream; q=0.6", True),
        (b"application/json, text/event-stream", False),
        (b"text/event-stream;q=0", False),
        (b"text/event-stream;q=0, */*", False),
        (b"*/*", False),
        (b"text/*", False),
        (b"application/json", False),
        (b"text/event-stream;q=high", True),
        (b"text/event-streams", False),
        (b"", False),
    ],
)
def test_accept_headers_that_ask_for_events(accept: bytes, wanted: bool) -> None:
    assert wants_events(accept) is wanted
