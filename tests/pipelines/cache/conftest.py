"""A Redis server of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.ports import free_port

START_SECONDS = 30.0


class RedisServer:
    """A server with its data in memory alone, and a client of it to look at what it holds."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--dir", str(directory), *options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.client = redis.Redis(port=self.port, socket_timeout=START_SECONDS)

    def wait(self) -> None:
        """Wait until it answers."""
        from redis.backoff import ConstantBackoff
        from redis.retry import Retry

        attempts = Retry(ConstantBackoff(0.05), int(START_SECONDS / 0.05))
        attempts.call_with_retry(self.client.ping, lambda error: None)

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(START_SECONDS)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    assert shutil.which("redis-server"), "redis-server is not installed: apt install redis-server"
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()
