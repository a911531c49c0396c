"""How connections end: refused uploads, clients that leave in each way, HTTP/1.0, shutdown.

Most run directly and behind a proxy, which is where answers got lost.
"""

from __future__ import annotations

import http.client
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

OPERATORS = """
import time
from pathlib import Path
from penstock.backends.base import Backend

class Gate(Backend):
    'Notes that it runs, and waits for the file that its data names.'
    def forward(self, batch):
        for item in batch:
            path = Path(item["data"].decode())
            with open(path.with_suffix(".runs"), "a") as file:
                file.write("run\\n")
            while not path.exists():
                time.sleep(0.005)
            item["result"] = "done"

async def parts(item, call):
    for number in range(3):
        yield number
"""


class Running:
    """A server that a test sends to."""

    def __init__(self, process: Any, client: httpx.Client, port: int, directory: Path) -> None:
        self.process = process
        self.client = client
        self.server_port = client.base_url.port or 0
        self.port = port
        self.directory = directory
        self.gates: set[Path] = set()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)

    def metric(self, name: str) -> float:
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(name)

    def in_flight(self) -> float:
        return self.metric('penstock_requests_in_flight{pipeline="gate"}')

    def runs(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return len((self.directory / f"{name}.runs").read_text().splitlines())
        return 0

    def gate(self, name: str, more: bytes = b"") -> bytes:
        """Return a request that waits for `open`."""
        self.gates.add(self.directory / name)
        body = str(self.directory / name).encode()
        return b"POST /predict/gate HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
            more,
            len(body),
            body,
        )

    def open(self, name: str) -> None:
        (self.directory / name).touch()

    def open_all(self) -> None:
        """Let the server go on after a test that failed."""
        for gate in self.gates:
            gate.touch()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def shared(
    spawn_shared: Any, door: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server for the tests that don't end it."""
    yield from start(spawn_shared, door, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def server(shared: Running, tmp_path: Path) -> Iterator[Running]:
    """The shared server, with gates of the test's own. It holds nothing at the end."""
    running = Running(shared.process, shared.client, shared.port, tmp_path)
    yield running
    running.open_all()
    until(lambda: running.in_flight() == 0)


@pytest.fixture
def own_server(spawn: Any, door: Any, tmp_path: Path) -> Iterator[Running]:
    yield from start(spawn, door, tmp_path)


@pytest.fixture
def patient_server(spawn: Any, door: Any, tmp_path: Path) -> Iterator[Running]:
    """A server that waits at shutdown for clients that stand still for a while."""
    yield from start(spawn, door, tmp_path, PENSTOCK_DRAIN_GRACE="20")


def start(spawn: Any, door: Any, directory: Path, **environment: str) -> Iterator[Running]:
    pipelines = directory / "pipelines"
    pipelines.mkdir()
    (pipelines / "operators.py").write_text(OPERATORS)
    (pipelines / "gate.toml").write_text('[node]\nbackend = "Python[operators.py:Gate]"\n')
    (pipelines / "parts.toml").write_text('[source]\nbackend = "Python[operators.py:parts]"\n')
    process = spawn("serve", pipelines, "--port", 0, **environment)
    with process.listening() as client:
        process.wait_for("ready")
        running = Running(process, client, door(client.base_url.port), directory)
        yield running
        if process.process.poll() is None:
            assert client.get("/health/live").status_code == 200
            client.close()
            process.process.terminate()
            assert process.end() == 0
        assert "Traceback" not in "".join(process.lines)


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


def test_a_refused_upload_gets_its_answer(server: Running) -> None:
    def upload(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            connection.request("POST", "/predict/nothing", bytes(1_000_000))
            return connection.getresponse().status
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(upload, range(40))) == [404] * 40


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("where", ["head", "body", "handling"])
def test_a_client_that_leaves(server: Running, how: str, where: str) -> None:
    request = server.gate("a")
    with server.connect() as first, server.connect() as second:
        first.sendall(server.gate("first"))
        until(lambda: server.runs("first"))  # so that the other waits in the queue
        second.sendall({"head": request[:20], "body": request[:-5], "handling": request}[where])
        if where == "handling":
            until(lambda: server.in_flight() == 2)
        if how == "RST":
            second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        second.close()
        until(lambda: server.in_flight() == 1)
        server.open("first")
        assert receive_answer(first).endswith(b'"done"}')
    until(lambda: server.in_flight() == 0)
    assert server.runs("a") == 0


def receive_answer(connection: socket.socket) -> bytes:
    """Return one whole answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _more(connection)
    return head + b"\r\n\r\n" + body


def _more(connection: socket.socket) -> bytes:
    more = connection.recv(65536)
    assert more, "the server closed"
    return more


@pytest.mark.parametrize("door", ["direct"], indirect=True)
def test_a_half_closed_client_gets_its_answer(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(server.gate("a"))
        connection.shutdown(socket.SHUT_WR)
        until(lambda: server.runs("a"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.open("a")
        answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'"done"}')
        assert b"connection: close\r\n" in answer
    with server.connect() as connection:  # several at once, too
        connection.sendall(server.gate("a") * 3)
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection).count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_what_came_behind_the_last_request_is_not_run(server: Running, how: str) -> None:
    with server.connect() as connection:
        connection.sendall(server.gate("a") + server.gate("b"))
        until(lambda: server.runs("a"))
        if how == "RST":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.open("a")
    server.open("b")
    until(lambda: server.in_flight() == 0)
    server.client.get("/health/live")
    assert server.runs("b") == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_events_reach_clients_of_each_version(server: Running, version: str) -> None:
    """HTTP/1.0 knows no chunks, and nginx speaks it by default."""
    with server.connect() as connection:
        connection.sendall(
            b"POST /predict/parts HTTP/%b\r\nHost: x\r\nAccept: text/event-stream\r\n"
            b"Connection: close\r\nContent-Length: 1\r\n\r\nx" % version.encode()
        )
        head, _, body = receive_all(connection).partition(b"\r\n\r\n")
    assert b" 200 " in head
    if b"chunked" not in head:
        assert body.startswith(b"data: ") and body.endswith(b'event: end\ndata: {"parts":3}\n\n')
    else:
        assert version == "1.1"


@pytest.mark.parametrize("door", ["direct"], indirect=True)
def test_no_request_of_a_busy_client_is_lost_at_shutdown(patient_server: Running) -> None:
    """32 clients keep their connections and send without a pause. They may be told to go away; no
    request may be lost.
    """
    server = patient_server
    lost: list[str] = []
    answered = [0] * 32
    ended = threading.Event()

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not ended.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                return  # it was never connected, so nothing is lost
            try:
                connection.request("POST", "/predict/nothing", b"x")
                connection.getresponse().read()  # closes if it says `Connection: close`
                answered[number] += 1
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
                return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: min(answered) > 3)
        server.process.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
    finally:
        ended.set()
    assert not lost
    assert server.process.end() == 0


@pytest.mark.parametrize("begun", ["head", "body"])
@pytest.mark.parametrize("door", ["direct"], indirect=True)
def test_a_half_sent_request_does_not_hold_the_shutdown(own_server: Running, begun: str) -> None:
    """It would hold it for `drain_timeout`, 30 s."""
    server = own_server
    request = server.gate("a")
    with server.connect() as connection:
        connection.sendall(request[:20] if begun == "head" else request[:-5])
        server.client.get("/health/live")
        server.process.process.send_signal(signal.SIGTERM)
        answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.1 503") and b"shutting down" in answer
    assert server.process.end(25) == 0
