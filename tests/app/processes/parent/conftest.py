"""Servers of several processes whose children are stubs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("stub_server.py")


class Server:
    """`stub_server.py` as a process."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        self.address: tuple[str, int] | str = ""
        given = {"port": 0, "processes": 2, "drain_timeout": 2, **options}
        command = [f"--{name}={value}" for name, value in given.items()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(PROGRAM), "serve", *command],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "STUB": str(folder)},
        )
        self._lines: list[str] = []
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()
        with self._more:
            self._lines.append("END")
            self._more.notify_all()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str, times: int = 1) -> str:
        """Wait until so many lines have a text. Return the last of these."""

        def found() -> list[str]:
            return [line for line in self._lines if text in line]

        with self._more:
            assert self._more.wait_for(
                lambda: len(found()) >= times or self._lines[-1:] == ["END"], 30
            ), self.log
            assert len(found()) >= times, self.log
            return found()[times - 1]

    def ready(self) -> Server:
        self.wait_for("processes are ready")
        return self

    def tell(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end, and for those of its children. Return its exit code."""
        code = self.process.wait(30)
        self.wait_for("END")
        return code

    def connect(self) -> Client:
        if not self.address:
            where = self.wait_for("listening on").split("listening on ")[1].split(",")[0].strip()
            if where.startswith("unix:"):
                self.address = where.removeprefix("unix:")
            else:
                host, _, port = where.removeprefix("http://").rpartition(":")
                self.address = (host.strip("[]"), int(port))
        return Client(self.address)

    def ask(self) -> tuple[str, int, str]:
        """Return the answer to a request on a new connection: front, process id, release."""
        with self.connect() as client:
            return client.ask()


class Client:
    """A connection that stays open."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(30)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, 30)
        self._file = self.socket.makefile("rb")
        self.closes = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self) -> None:
        self.socket.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")

    def receive(self) -> tuple[str, int, str]:
        length = 0
        assert self._file.readline() == b"HTTP/1.1 200 OK\r\n"
        while (line := self._file.readline()) != b"\r\n":
            self.closes |= line == b"connection: close\r\n"
            if line.startswith(b"content-length:"):
                length = int(line.split()[1])
        front, number, pid, *release = self._file.read(length).decode().split()
        return f"{front} {number}", int(pid), " ".join(release)

    def ask(self) -> tuple[str, int, str]:
        self.send()
        return self.receive()

    def is_closed(self) -> bool:
        """Wait until the server closes it."""
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextlib.contextmanager
def stub_server(folder: Path, **options: object) -> Iterator[Server]:
    server = Server(folder, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.signal(signal.SIGTERM)
                server.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that no other test uses."""
    with stub_server(tmp_path) as one:
        yield one
