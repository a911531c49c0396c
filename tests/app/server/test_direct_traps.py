"""What goes wrong around predict requests on the direct way, and must cost no other request."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock import create_app
from penstock.app.server import connection, head
from penstock.app.settings import Settings
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load

from . import test_direct
from .doors import open_door, request, wait_until
from .test_direct import CASES, GATE, INSIDE, LAST, door

# pytest finds fixtures by the names of the module.
calls = test_direct.calls
gate = test_direct.gate

SLEEPER = "import time\ndef sleep(data):\n    time.sleep(float(data))\n    return data.decode()\n"


def statuses(answers: bytes) -> list[bytes]:
    return re.findall(rb"^HTTP/1.1 ([0-9]+)", answers, re.MULTILINE)


def read_answers(client: socket.socket, count: int) -> bytes:
    """Read until so many answers with JSON have come."""
    received = b""
    while received.count(b"\r\n\r\n{") < count or not received.endswith(b"}"):
        more = client.recv(1 << 16)
        assert more, received
        received += more
    return received


def test_a_transport_that_closes_inside_the_delivery(
    running: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has reset the connection, and the loop has not told the connection yet."""

    def write(self: Any, data: bytes) -> None:
        if b"leaves" in data:
            self._transport.abort()
            self._transport.write(data)
        written(self, data)

    written = connection.Connection.write
    monkeypatch.setattr(connection.Connection, "write", write)
    with door(running, True) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        clients[0].sendall(request(body=b"wait"))
        assert INSIDE.wait(60)
        for client, name in zip(clients[1:], ("first", "leaves", "last"), strict=True):
            client.sendall(request("/predict/one", b"data", f"X-Request-Id: {name}"))
        GATE.set()
        assert [statuses(clients[index].recv(1 << 16)) for index in (0, 1, 3)] == [[b"200"]] * 3
        with contextlib.suppress(ConnectionResetError):
            assert clients[2].recv(1) == b""
        assert statuses(server.exchange(LAST)) == [b"200"]


def test_a_client_that_leaves_with_several_pipelined(running: Any, calls: list[str]) -> None:
    """None of those behind the first begins, and none of them holds memory."""
    with door(running, True) as server:
        held = budget.used
        with server.connect() as client:
            client.sendall(request(body=b"wait") + 3 * request(body=bytes(5000)))
            assert INSIDE.wait(60)
        wait_until(lambda: not server.connections.open)
        GATE.set()
        wait_until(lambda: budget.used == held)
        assert statuses(server.exchange(LAST)) == [b"200"]
    assert calls == ["one", "one"]


@pytest.mark.parametrize("name", ["raw", "health"])
def test_a_mistake_of_ours_in_the_parsers_callbacks_is_no_400(
    running: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """httptools turns it into an error of the parser."""

    def on_header(self: Any, name: bytes, value: bytes) -> None:
        if name == b"Mistake":
            raise ZeroDivisionError
        heard(self, name, value)

    heard = head.HeadParser.on_header
    monkeypatch.setattr(head.HeadParser, "on_header", on_header)
    with door(running, True) as server:
        data = CASES[name].replace(b"Host: x", b"Host: x\r\nMistake: 1")
        assert server.exchange(data) == b""  # closed, and logged by the loop
        assert server.connections.closed["malformed"] == 0
        assert statuses(server.exchange(LAST)) == [b"200"]


def test_a_late_outcome_never_answers_the_next_request(running: Any, calls: list[str]) -> None:
    """The first batch hangs, so its request is answered before it ends."""
    settings = Settings()
    hangs = {"pipeline": {"name": "hangs"}, "probe": {"backend": "DirectProbe", "stuck_after": 0.1}}
    other = {"pipeline": {"name": "other"}, "probe": {"backend": "DirectProbe"}}
    app = create_app([load(hangs), load(other)], settings=settings)
    with open_door(running, app, settings, True) as server, server.connect() as client:
        client.sendall(request("/predict/hangs", b"wait", "X-Request-Id: first"))
        answer = read_answers(client, 1)
        assert statuses(answer) == [b"504"] and b"stuck_after" in answer
        INSIDE.clear()
        client.sendall(request("/predict/other", b"wait", "X-Request-Id: second"))
        assert INSIDE.wait(60)
        GATE.set()  # both batches end
        answer = read_answers(client, 1)
        assert statuses(answer) == [b"200"] and b"x-request-id: second" in answer
        client.sendall(request("/predict/other", b"12345", "X-Request-Id: third"))
        answer = read_answers(client, 1)
        assert statuses(answer) == [b"200"] and b"x-request-id: third" in answer
    assert calls == ["hangs", "other", "other"]


def facts_of(record: Any) -> tuple[Any, ...]:
    """Return pipeline, path, status, bytes and the kinds of the times of a line."""
    access = record.access
    assert access["ms"] >= 0 and access["client"].startswith("127.0.0.1:")
    times = {name: type(access[name]) for name in ("queue_ms", "run_ms") if name in access}
    size = access["bytes"] if access["status"] == 200 else None  # an error's has its request's id
    return record.pipeline, access["path"], access["status"], size, times


def test_same_lines_in_the_access_log(
    running: Any, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = ("raw", "put", "query", "version", "unknown", "text", "fail", "json", "too large")
    lines = []
    answers: list[bytes] = []
    facts: list[list[tuple[Any, ...]]] = []
    caplog.set_level(logging.INFO, "penstock.access")
    for direct in (True, False):
        caplog.clear()
        with door(running, direct) as server:
            answers += [server.exchange(CASES[name] + LAST) for name in names]
            wait_until(lambda: not server.connections.open)
        seen = [record for record in caplog.records if record.name == "penstock.access"]
        lines.append([re.sub(r"127.0.0.1:\d+", "client", line.getMessage()) for line in seen])
        facts.append([facts_of(record) for record in seen])
    assert lines[0] == lines[1]
    assert facts[0] == facts[1]
    size = int(re.findall(rb"content-length: (\d+)", answers[2])[0])
    ran = {"queue_ms": float, "run_ms": float}
    size = int(re.findall(rb"content-length: (\d+)", answers[2])[0])
    ran = {"queue_ms": float, "run_ms": float}
    assert ("one", "/predict/one?a=b&c", 200, size, ran) in facts[0]
    assert ("one", "/predict/one", 500, None, ran) in facts[0]
    assert (None, "/predict/two", 404, None, {}) in facts[0]
    assert 'client - "POST /predict/one?a=b&c HTTP/1.1" 200' in lines[0]
    assert len(lines[0]) >= 2 * len(names) - 1 and len(calls) >= len(names)


@pytest.fixture
def served(spawn: Any, tmp_path: Path) -> Iterator[Any]:
    """`penstock serve`, which waits a while for bodies once it drains."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    config = tmp_path / "sleep.toml"
    config.write_text('[node]\nbackend = "Python[sleeper.py:sleep]"\n')
    process = spawn("serve", config, "--port", 0, PENSTOCK_DRAIN_GRACE="60")
    with process.listening() as client:
        process.wait_for("ready after")
        yield process, client


@pytest.mark.parametrize("way", ["direct", "asgi"])
def test_a_body_that_ends_while_the_server_drains(served: Any, way: str) -> None:
    """It is refused like every new request, and its answer arrives."""
    process, client = served
    data = request(
        "/predict/sleep", b"0.01", *(["Content-Encoding: identity"] if way == "asgi" else [])
    )
    with socket.create_connection(("127.0.0.1", client.base_url.port), 60) as wire:
        wire.sendall(data[:-2])
        client.get("/health/live")  # it has the head by now
        client.close()
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("draining")
        wire.sendall(data[-2:])
        received = b""
        while more := wire.recv(1 << 16):
            received += more
    assert statuses(received) in ([b"200"], [b"503"]) and b"connection: close\r\n" in received
    assert received.endswith(b'{"result":"0.01"}') or b'"code":"not_ready"' in received
    assert process.end(60) == 0
