"""`/status` as events from real servers, which end while clients watch."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from penstock import Settings, create_app

EVENTS = {"accept": "text/event-stream"}

LONG_NAME = "n" * 12_000
"""So long that a snapshot of 256 nodes is larger than what a connection and the kernel hold."""


def events_of(answer: httpx.Response) -> Iterator[Any]:
    """Yield the snapshots of an answer as they come."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@contextlib.contextmanager
def stalled(client: httpx.Client, path: str = "/status") -> Iterator[socket.socket]:
    """Watch by a socket that nobody reads after the head."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect((client.base_url.host, client.base_url.port))
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        head = connection.recv(100)
        assert head.startswith(b"HTTP/1.1 200")
        yield connection


def large(folder: Path) -> Path:
    """Write pipelines whose snapshot is of six megabytes. They have no threads."""
    for number in range(16):
        nodes = [
            f'[{LONG_NAME}{index}]\nbackend = "Identity"\nexecutor = "loop"' for index in range(16)
        ]
        (folder / f"large_{number}.toml").write_text("\n".join(nodes))
    return folder


def test_penstock_serve_waits_for_no_one_who_watches(spawn: Any, tmp_path: Path) -> None:
    server = spawn(
        "serve", large(tmp_path), "--port", 0, "--drain-timeout", 600, "--send-timeout", 600
    )
    with server.listening() as client:
        server.wait_for("ready after")
        with (
            stalled(client),
            client.stream("GET", "/status", headers=EVENTS) as watching,
        ):
            snapshots = events_of(watching)
            assert next(snapshots)["ready"]
            server.process.send_signal(signal.SIGTERM)
            for _ in snapshots:  # to its proper end
                pass
            assert server.end(60) == 0
    assert not any("ERROR" in line or "Traceback" in line for line in server.lines)


UVICORN = """
import sys

import uvicorn

from penstock import create_app

app = create_app({"pipeline": {"name": "it"}, "net": {"backend": "Identity"}})
uvicorn.run(app, port=int(sys.argv[1]))
"""


def test_uvicorn_waits_for_no_one_who_watches() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", UVICORN, str(port)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        log = iter(process.stderr.readline, "")
        assert any("running on" in line for line in log)
        url = f"http://127.0.0.1:{port}/status"
        with httpx.stream("GET", url, headers=EVENTS, timeout=60, verify=False) as watching:
            snapshots = events_of(watching)
            assert next(snapshots)["ready"]
            process.send_signal(signal.SIGTERM)
            for _ in snapshots:
                pass
        process.wait(60)
        rest = "".join(log)
        assert "Traceback" not in rest and "ERROR" not in rest
    finally:
        process.kill()
        process.communicate()


def test_who_leaves_makes_room(running: Any) -> None:
    app = create_app({"net": {"backend": "Identity"}}, settings=Settings(max_watchers=1))
    with running(app, http="penstock") as client:
        for _ in range(3):
            watch_once(client)


def watch_once(client: httpx.Client) -> None:
    """Watch as soon as there is room, see that there is no more then, and leave."""
    while True:
        with client.stream("GET", "/status", headers=EVENTS) as watching:
            if watching.status_code == 503:
                continue
            snapshots = events_of(watching)  # kept: without it httpx closes the connection
            assert next(snapshots)["ready"]
            refused = client.get("/status", headers=EVENTS)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert client.get("/status").status_code == 200
            return
