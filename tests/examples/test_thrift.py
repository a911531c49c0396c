"""examples/thrift: a pipe behind another RPC library, in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from thriftpy2.rpc import client_context

from ..ports import free_port
from .conftest import Load

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGE = EXAMPLES / "digits" / "digit.png"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve on a free port; SIGINT must end the server in good order."""
    port = free_port()
    command = [sys.executable, "-W", "error", str(EXAMPLES / "thrift" / "server.py"), str(port)]
    with subprocess.Popen(command) as server:
        try:
            until = time.monotonic() + 60
            while True:
                assert server.poll() is None
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < until
                    time.sleep(0.05)
            yield port
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def client(load: Load) -> ModuleType:
    return load(EXAMPLES / "thrift" / "client.py")


def test_the_client_prints_digits(
    client: ModuleType, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client.main(str(IMAGE), str(IMAGE), port=port)
    assert capsys.readouterr().out == f"{IMAGE}: 3 (95%)\n" * 2


def test_threads_share_the_pipe(client: ModuleType, port: int) -> None:
    image = IMAGE.read_bytes()

    def ask(_: int) -> list[int]:
        with client_context(client.digits.Digits, "127.0.0.1", port, socket_timeout=60_000) as rpc:
            return [rpc.read(image).digit for _ in range(10)]

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(16))) == [[3] * 10] * 16


def test_a_refusal_is_an_exception_of_the_service(client: ModuleType, port: int) -> None:
    with client_context(client.digits.Digits, "127.0.0.1", port, socket_timeout=60_000) as rpc:
        with pytest.raises(client.digits.Refused, match="not an image file") as refused:
            rpc.read(b"no image")
        assert refused.value.code == "invalid_input"
        assert rpc.read(IMAGE.read_bytes()).digit == 3  # the connection lives
