"""Real servers for tests: `running(app)` in a thread of this process, `spawn(...)` as the command line in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits" / "digits.toml"


@contextlib.contextmanager
def serving(app: Any, loop: Any = "uvloop", http: Any = "httptools", **options: Any) -> Any:
    """An httpx client of the app, served by uvicorn on a free port."""
    config = uvicorn.Config(
        app, port=0, loop=loop, http=http, ws="none", lifespan="on", log_config=None, **options
    )
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def announce(sockets: Any = None) -> None:
        try:
            await startup(sockets)
        finally:
            started.set()

    server.startup = announce
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30) and server.started, "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Process:
    """`penstock …` as a process, with the lines of its standard error."""

    def __init__(self, *arguments: Any, **environment: Any) -> None:
        command = [sys.executable, "-W", "error", "-m", "penstock", *map(str, arguments)]
        settings = {
            name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
        } | environment
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings
        )
        self.lines = []

    def wait_for(self, pattern: Any) -> Any:
        """The first line of the log that matches, now or later: two that come at about the same time may come in either order."""
        for line in chain(tuple(self.lines), self._more()):
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it ended without {pattern!r}: {''.join(self.lines)}")

    def _more(self) -> Any:
        for line in self.process.stderr:
            self.lines.append(line)
            yield line

    def listening(self) -> Any:
        """An httpx client, once it listens."""
        return httpx.Client(base_url=self.wait_for(r"listening on (http://\S+),")[1], timeout=30)

    def end(self, timeout: Any = 30) -> Any:
        """Its exit code; the rest of the log is in `lines`."""
        _, rest = self.process.communicate(timeout=timeout)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture(scope="session")
def running() -> Any:
    return serving


@pytest.fixture
def spawn() -> Any:
    found = []

    def start(*arguments: Any, **environment: Any) -> Any:
        found.append(Process(*arguments, **environment))
        return found[-1]

    yield start
    for each in found:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


@pytest.fixture(scope="session")
def digits() -> Any:
    return DIGITS


@pytest.fixture(scope="session")
def digit() -> Any:
    """A PNG of a three."""
    return (EXAMPLES / "digits" / "digit.png").read_bytes()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
