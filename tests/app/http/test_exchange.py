"""Clients that leave, that are slow, or that send ahead: none of them costs a backend work, a task,
or another request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import httpx
import pytest
from fastapi import FastAPI

from penstock import create_app, create_router, lifespan
from penstock.app.http.exchange import SLOW_AFTER_SECONDS
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load
from penstock.testing import Gate

GATE = Gate()
SEEN: list[bytes] = []
CONNECTIONS: list[socket.socket] = []
"""The connections of the test, which are closed when it ends, however it ends."""


@register_backend("WatchGate")
class WatchGate(Backend):
    """Answers the length of `data`; a batch of b"wait" waits at the gate first."""

    def forward(self, batch: Any) -> None:
        SEEN.extend([item["data"] for item in batch])
        if batch[0]["data"] == b"wait":
            GATE.wait()
        for item in batch:
            item["result"] = len(item["data"])


@pytest.fixture(autouse=True)
def gate() -> Any:
    GATE.reset()
    SEEN.clear()
    yield
    GATE.open()
    for connection in CONNECTIONS:
        connection.close()
    CONNECTIONS.clear()


def config() -> Any:
    return load({"pipeline": {"name": "gate"}, "gate": {"backend": "WatchGate", "max": 4}})


def watched(app: FastAPI) -> FastAPI:
    """Return the app, with routes for the tasks of the loop and the bytes that requests hold."""

    @app.get("/tasks")
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    @app.get("/held")
    async def held() -> int:
        return budget.used

    return app


def plain(body_timeout: float = 20) -> FastAPI:
    return watched(create_app(config(), settings=Settings(body_timeout=body_timeout)))


def behind_an_http_middleware(body_timeout: float = 20) -> FastAPI:
    app = plain(body_timeout)

    @app.middleware("http")
    async def passes(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return app


def as_a_router(body_timeout: float = 20) -> FastAPI:
    host = FastAPI()
    host.include_router(create_router(config(), settings=Settings(body_timeout=body_timeout)))
    return watched(host)


def mounted(body_timeout: float = 20) -> FastAPI:
    models = create_app(config(), settings=Settings(body_timeout=body_timeout))
    host = watched(FastAPI(lifespan=lambda host: lifespan(models)))
    host.mount("/", models)
    return host


HOSTS = pytest.mark.parametrize(
    ("host", "http"),
    [
        (plain, "httptools"),
        (plain, "penstock"),
        (behind_an_http_middleware, "httptools"),
        (as_a_router, "httptools"),
        (mounted, "httptools"),
    ],
)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def inside(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("penstock_requests_in_flight{")
    )


def connect(client: httpx.Client, data: bytes) -> socket.socket:
    """Open a connection and send `data` on it."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), 60)
    CONNECTIONS.append(connection)
    connection.sendall(data)
    return connection


def request(
    body: Any,
    path: Any = "/predict/gate",
    kind: Any = "application/octet-stream",
    length: Any = None,
) -> Any:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length or len(body)}\r\n\r\n"
    )
    return head.encode() + body


def batch_request(*images: Any) -> Any:
    body = json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()
    return request(body, "/predict/gate/batch", "application/json")


def answers(file: BinaryIO, count: int) -> list[Any]:
    """Return the bodies of `count` answers of status 200 from one connection."""
    bodies = []
    for _ in range(count):
        assert file.readline() == b"HTTP/1.1 200 OK\r\n"
        length = 0
        while (line := file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        bodies.append(json.loads(file.read(length)))
    return bodies


@HOSTS
def test_a_client_that_leaves_while_queued_never_reaches_the_backend(
    running: Any, host: Any, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(host(), http=http) as client, ThreadPoolExecutor(2) as pool:
        tasks = client.get("/tasks").json()
        blocker = pool.submit(client.post, "/predict/gate", content=b"wait")
        GATE.wait_entered()
        leaving = [connect(client, request(b"left")) for _ in range(5)]
        leaving.append(connect(client, batch_request(b"left", b"left", b"left")))
        stays = pool.submit(client.post, "/predict/gate", content=b"stays")
        until(lambda: inside(client) == 1 + 5 + 3 + 1)
        for connection in leaving:
            connection.close()
        until(lambda: inside(client) == 2)
        GATE.open()
        assert blocker.result().json() == {"result": 4}
        assert stays.result().json() == {"result": 5}
        assert client.post("/predict/gate", content=b"last").json() == {"result": 4}
        until(lambda: client.get("/tasks").json() <= tasks)
    assert SEEN == [b"wait", b"stays", b"last"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO], caplog.text


@HOSTS
def test_a_client_that_leaves_while_its_batch_runs(
    running: Any, host: Any, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its batch goes on, and its answer is dropped."""
    with running(host(), http=http) as client:
        tasks = client.get("/tasks").json()
        leaving = [connect(client, request(b"wait"))]
        GATE.wait_entered()
        leaving.append(connect(client, batch_request(b"left")))
        until(lambda: inside(client) == 2)
        for connection in leaving:
            connection.close()
        until(lambda: inside(client) == 0)
        GATE.open()
        assert client.post("/predict/gate", content=b"next").json() == {"result": 4}
        until(lambda: client.get("/tasks").json() <= tasks)
    assert SEEN == [b"wait", b"next"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO], caplog.text


@HOSTS
@pytest.mark.parametrize("patient", [False, True])
def test_a_client_that_leaves_during_the_upload(
    running: Any, host: Any, http: str, patient: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with running(host(), http=http) as client:
        tasks, held = client.get("/tasks").json(), client.get("/held").json()
        leaving = [connect(client, request(b"half", length=1000)) for _ in range(5)]
        until(lambda: client.get("/held").json() >= held + 5 * 1000)
        if patient:
            time.sleep(3 * SLOW_AFTER_SECONDS)  # they have timers now
        for connection in leaving:
            connection.close()
        until(lambda: client.get("/held").json() <= held)
        until(lambda: client.get("/tasks").json() <= tasks)
        assert client.post("/predict/gate", content=b"next").json() == {"result": 4}
    assert SEEN == [b"next"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO], caplog.text


@HOSTS
def test_slow_requests_keep_their_connection(running: Any, host: Any, http: str) -> None:
    """The task that listens for a departure must not take the next request."""
    with (
        running(host(), http=http) as client,
        connect(client, request(b"wait")) as wire,
        wire.makefile("rb") as file,
    ):
        for opened in range(3):
            GATE.wait_entered()
            time.sleep(3 * SLOW_AFTER_SECONDS)  # a task listens now
            if opened == 1:
                wire.sendall(
                    request(b"ahead") + batch_request(b"a", b"bc")
                )  # pipelined while one runs
            GATE.open()
            assert answers(file, 1) == [{"result": 4}]
            if opened == 1:
                assert answers(file, 2) == [
                    {"result": 5},
                    {"results": [{"result": 1}, {"result": 2}]},
                ]
            GATE.close()
            if opened < 2:
                wire.sendall(request(b"wait"))


def test_pipelined_requests_are_answered_in_order(running: Any) -> None:
    with running(plain()) as client:
        sent = b"".join(request(b"x" * size) for size in range(1, 30))
        with connect(client, sent) as wire, wire.makefile("rb") as file:
            assert answers(file, 29) == [{"result": size} for size in range(1, 30)]


@HOSTS
@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json"])
def test_an_upload_that_takes_too_long_is_answered_and_ended(
    running: Any, host: Any, http: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        running(host(0.3), http=http) as client,
        connect(client, b"") as wire,
        wire.makefile("rb") as others,
    ):
        tasks = client.get("/tasks").json()
        slow = [connect(client, request(b"half", length=8, kind=kind)) for _ in range(3)]

        def all_answered() -> bool:
            # Others are answered meanwhile. Their bodies come with their heads: the bound, which is
            # short here, can't pass between the two.
            wire.sendall(request(b"others"))
            assert answers(others, 1) == [{"result": 6}]
            return all(readable(connection) for connection in slow)

        until(all_answered)
        for connection in slow:
            with connection.makefile("rb") as file:
                head, _, body = file.read().partition(
                    b"\r\n\r\n"
                )  # to the end: the server has closed
            assert head.startswith(b"HTTP/1.1 400 ") and b"connection: close" in head
            problem = json.loads(body)
            assert (
                problem["code"] == "invalid_request"
                and "within 0.3 s (body_timeout)" in problem["detail"]
            )
            connection.close()
        until(lambda: client.get("/tasks").json() <= tasks)
    assert set(SEEN) == {b"others"}
    assert not [record for record in caplog.records if record.levelno > logging.INFO], caplog.text


def readable(connection: Any) -> Any:
    return bool(select.select([connection], [], [], 0)[0])


@HOSTS
def test_the_bound_covers_the_upload_and_not_the_answer(
    running: Any, host: Any, http: str, clock: Any
) -> None:
    """A body that comes slowly, but in time, gets its answer however long that takes."""
    with running(host(), loop=clock, http=http) as client:
        for wanted, sent in (
            ({"result": 4}, request(b"wait")),
            ({"results": [{"result": 4}]}, batch_request(b"wait")),
        ):
            GATE.reset()
            SEEN.clear()
            with begun(client, clock, sent) as wire, wire.makefile("rb") as file:
                wire.sendall(sent[-1:])
                GATE.wait_entered()
                pass_time(clock, client, 20)
                pass_time(clock, client, 1)
                GATE.open()
                assert answers(file, 1) == [wanted]


def begun(client: httpx.Client, clock: Any, sent: bytes) -> socket.socket:
    """Send all but the last byte, and wait until the server has seen that this is slow."""
    held = client.get("/held").json()
    wire = connect(client, sent[:-1])
    until(lambda: client.get("/held").json() > held)
    pass_time(clock, client, 1)
    return wire


def pass_time(clock: Any, client: httpx.Client, seconds: float) -> None:
    """Move the clock, and let the loop run the timers that are due."""
    clock.advance(seconds)
    client.get("/tasks")


INFER = {"inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["four"]}]}
DOORS = pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict/gate", b"four"),
        ("/predict/gate/batch", json.dumps({"images": ["Zm91cg=="]}).encode()),
        ("/v2/models/gate/infer", json.dumps(INFER).encode()),
        ("/v2/repository/index", b"{}"),
    ],
)


@DOORS
@pytest.mark.parametrize("http", ["httptools", "penstock"])
def test_a_body_that_arrives_while_the_loop_stands_still_is_in_time(
    running: Any, clock: Any, http: str, path: str, body: bytes
) -> None:
    app = plain()

    @app.get("/stall")
    async def stall() -> None:
        GATE.wait()
        clock.advance_here(20)

    sent = request(body, path, "application/json" if body[:1] == b"{" else "image/x")
    with (
        running(app, loop=clock, http=http) as client,
        ThreadPoolExecutor(1) as pool,
        begun(client, clock, sent) as wire,
        wire.makefile("rb") as file,
    ):
        stalled = pool.submit(client.get, "/stall")
        GATE.wait_entered()
        wire.sendall(sent[-1:])
        GATE.open()
        assert stalled.result().status_code == 200
        assert answers(file, 1)


@DOORS
@pytest.mark.parametrize("http", ["httptools", "penstock"])
def test_the_bound_does_not_cover_what_follows_the_upload(
    running: Any, clock: Any, http: str, path: str, body: bytes
) -> None:
    """A large body is parsed on a helper thread, which may be busy."""
    body = body.replace(b"{", b"{" + b" " * (1 << 21), 1)
    sent = request(body, path, "application/json" if body[:1] == b"{" else "image/x")
    with running(plain(), loop=clock, http=http) as client, ThreadPoolExecutor(1) as helper:
        clock.call_soon_threadsafe(clock.set_default_executor, helper)
        helper.submit(GATE.wait)
        GATE.wait_entered()
        with begun(client, clock, sent) as wire, wire.makefile("rb") as file:
            wire.sendall(sent[-1:])
            if body[:1] == b"{":
                until(lambda: helper._work_queue.qsize())
            pass_time(clock, client, 20)
            pass_time(clock, client, 1)
            GATE.open()
            assert answers(file, 1)


def test_uploads_that_drip_cost_others_nothing(running: Any) -> None:
    with running(plain()) as client, ThreadPoolExecutor(4) as pool:
        dripping = [connect(client, request(b"", length=1000)) for _ in range(50)]
        for _ in range(5):
            for connection in dripping:
                connection.sendall(b"x")
            answers = list(
                pool.map(
                    lambda index: client.post("/predict/gate", content=b"x" * index).json(),
                    range(1, 21),
                )
            )
            assert answers == [{"result": index} for index in range(1, 21)]
        for connection in dripping:
            connection.close()


# Without a server: what a host may do.


class Asgi:
    """Send one request to the app in this loop. It receives `messages`, then nothing more."""

    def __init__(self, app: Any, *messages: Any, path: Any = "/predict/gate") -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [],
            "asgi": {"version": "3.0"},
        }
        self.messages = list(messages)
        self.sent: list[Any] = []
        self.task = asyncio.create_task(app(self.scope, self.receive, self.send))

    async def receive(self) -> Any:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: str) -> None:
        self.sent.append(message)


def body(data: bytes) -> Any:
    return {"type": "http.request", "body": data}


async def turn_until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_a_host_that_cancels_the_request(many: bool, slow: bool) -> None:
    app = create_app(config(), settings=Settings(body_timeout=20))
    async with lifespan(app):
        pipeline = app.state.penstock.pipelines["gate"]
        first = Asgi(app, body(b"wait"))
        await GATE.entered()
        sent, path = (
            (b'{"images": ["bGVmdA==", "bGVmdA=="]}', "/predict/gate/batch")
            if many
            else (b"left", "/predict/gate")
        )
        second = Asgi(app, body(sent), path=path)
        await turn_until(lambda: pipeline.in_flight == 2 + many)
        if slow:
            await asyncio.sleep(3 * SLOW_AFTER_SECONDS)
        second.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second.task
        assert second.task.cancelled() and second.sent == [] and pipeline.in_flight == 1
        GATE.open()
        await first.task
        assert first.sent[0]["status"] == 200 and SEEN == [b"wait"]


async def test_a_host_that_cancels_an_upload() -> None:
    app = create_app(config(), settings=Settings(body_timeout=20))
    async with lifespan(app):
        for wait in (0, 3 * SLOW_AFTER_SECONDS):
            request = Asgi(app, {"type": "http.request", "body": b"half", "more_body": True})
            await asyncio.sleep(wait)
            request.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request.task
            assert request.sent == []
        assert uploads_timed() == []


def test_a_cancellation_at_the_moment_of_the_bound_is_obeyed(clock: Any) -> None:
    async def cancelled_at_the_bound() -> None:
        app = create_app(config(), settings=Settings(body_timeout=20))
        async with lifespan(app):
            request = Asgi(app, {"type": "http.request", "body": b"half", "more_body": True})
            await turn_until(uploads_timed)
            (first,) = uploads_timed()
            clock.advance_here(20)
            await turn_until(lambda: uploads_timed() not in ([first], []))
            (timer,) = uploads_timed()  # it ends the upload, once what has arrived is read
            clock.call_at(timer.when(), request.task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await request.task
            assert request.sent == []

    clock.run_until_complete(cancelled_at_the_bound())


def uploads_timed() -> Any:
    """Return the timers of uploads that this loop (asyncio's own) still holds."""
    loop: Any = asyncio.get_running_loop()
    return [
        handle
        for handle in loop._scheduled
        if not handle.cancelled() and "upload" in repr(handle).lower()
    ]


async def test_no_timer_stays_when_an_upload_ends() -> None:
    app = create_app(config(), settings=Settings(body_timeout=20))
    async with lifespan(app):
        for last, status in ((body(b"ful"), 200), ({"type": "http.disconnect"}, 499)):
            request = Asgi(app, {"type": "http.request", "body": b"a", "more_body": True})
            await turn_until(uploads_timed)
            assert len(uploads_timed()) == 1
            request.task.cancel()
            await asyncio.wait([request.task])
            assert uploads_timed() == []
            request = Asgi(app, {"type": "http.request", "body": b"a", "more_body": True}, last)
            await request.task
            assert request.sent[0]["status"] == status and uploads_timed() == []


async def test_messages_without_their_optional_keys() -> None:
    app = create_app(config(), settings=Settings())
    async with lifespan(app):
        request = Asgi(
            app,
            {"type": "http.request", "more_body": True},
            {"type": "http.request", "body": b"four"},
        )
        await request.task
        assert request.sent[1]["body"] == b'{"result":4}'
        request = Asgi(app, {"type": "http.request"})
        await request.task
        assert request.sent[0]["status"] == 400
