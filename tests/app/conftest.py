"""Fixtures for tests over HTTP: an app that uvicorn serves in a thread, `penstock …` as a process,
and the model of examples/.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from penstock.app.log_settings import log_settings
from penstock.app.server.connection import Connection
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits" / "digits.toml"


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock a test moves."""

    _ahead = 0.0

    def time(self) -> float:
        return super().time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let the loop, which runs in another thread, see a later time."""
        self.call_soon_threadsafe(self.advance_here, seconds)

    def advance_here(self, seconds: float) -> None:
        """Do the same from a callback or a task of the loop."""
        self._ahead += seconds


def plain_client(base_url: str, timeout: float = 30) -> httpx.Client:
    """Return an httpx client that knows no certificates: to load them takes 20 ms of each."""
    # Above a limit, httpcore may close an idle connection that another thread has just taken.
    limits = httpx.Limits(max_keepalive_connections=None)
    return httpx.Client(base_url=base_url, timeout=timeout, verify=False, limits=limits)


@contextlib.contextmanager
def serving(
    app: ASGIApp,
    loop: Literal["uvloop", "asyncio"] | Clock = "uvloop",
    http: Any = "httptools",
    ws: Any = "none",
    **options: Any,
) -> Iterator[httpx.Client]:
    """Serve an app by uvicorn on a free port. Yields an httpx client of it.

    `loop`: uvicorn's name of it, or a loop whose clock the test moves.
    `http`: uvicorn's name of its protocol class; "penstock", that of `penstock serve`; or its
    `Connections`, to look at them.
    """
    if http == "penstock":
        http = Connections(Settings())
    if isinstance(loop, Clock):  # uvicorn's own time-out of idle connections goes by it, too
        options.setdefault("timeout_keep_alive", 3600)
    if isinstance(http, Connections):
        http = partial(Connection, http)
    config = uvicorn.Config(
        app,
        port=0,
        loop="asyncio" if isinstance(loop, Clock) else loop,
        http=http,
        ws=ws,
        lifespan="on",
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def announce(sockets: list[socket.socket] | None = None) -> None:
        try:
            await startup(sockets)
        finally:
            started.set()

    server.startup = announce  # type: ignore[method-assign]  # a hook that uvicorn lacks

    def run_on(clock: Clock) -> None:
        with asyncio.Runner(loop_factory=lambda: clock) as runner:
            runner.run(server.serve())

    def run() -> None:
        try:
            if isinstance(loop, Clock):
                run_on(loop)
            else:
                server.run()
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        started.wait()  # the limit of the test ends it
        assert server.started, "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        with plain_client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


class Process:
    """`penstock …` as a process, with the lines of its standard error."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "penstock", *map(str, arguments)]
        settings = {
            name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
        } | environment
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line of the log that matches, whether it has come or is still to come.

        So two lines that come at about the same time may be waited for in either order.
        """
        for line in chain(tuple(self.lines), self._more()):
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"it ended without {pattern!r}: {''.join(self.lines)}")

    def _more(self) -> Iterator[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            yield line

    def listening(self) -> httpx.Client:
        """Wait until it listens. Return an httpx client."""
        return plain_client(self.wait_for(r"listening on (http://\S+),")[1])

    def end(self, timeout: float = 30) -> int:
        """Wait for its end. Return its exit code; the rest of the log is in `lines`."""
        self.process.wait(timeout)
        for _ in self._more():  # not `communicate`: it forgets what `_more` has read ahead
            pass
        return self.process.returncode


@pytest.fixture(scope="session")
def running() -> Any:
    return serving


@contextlib.contextmanager
def leaving(client: httpx.Client, path: str, body: bytes, **headers: str) -> Iterator[None]:
    """Send a request whose client leaves at the end of the block, without reading an answer."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, 60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        yield


@pytest.fixture(scope="session", name="leaving")
def _leaving() -> Any:
    return leaving


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A clock for `running(…, loop=clock)`."""
    made = Clock()
    yield made
    made.close()


@contextlib.contextmanager
def spawning() -> Iterator[Callable[..., Process]]:
    """Yield a function that starts `penstock …`. Its processes end with the block."""
    processes: list[Process] = []

    def start(*arguments: object, **environment: str) -> Process:
        processes.append(Process(*arguments, **environment))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.process.kill()
            process.process.communicate()


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    with spawning() as start:
        yield start


@pytest.fixture(scope="module")
def spawn_shared() -> Iterator[Callable[..., Process]]:
    """Like `spawn`, for a process that the tests of a module share."""
    with spawning() as start:
        yield start


@pytest.fixture(scope="session")
def digits() -> Path:
    return DIGITS


@pytest.fixture
def kept_log_settings() -> Iterator[None]:
    """Put back what clients change of the log of this process."""
    logger = logging.getLogger("penstock")
    level = logger.level
    yield
    logger.setLevel(level)
    log_settings.reset()


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that needs no model: its server starts in half the time."""
    file = tmp_path_factory.mktemp("echo") / "echo.toml"
    file.write_text('[echo]\nbackend = "Identity"\n')
    return file


@pytest.fixture(scope="session")
def digit() -> bytes:
    """A PNG of a three."""
    return (EXAMPLES / "digits" / "digit.png").read_bytes()


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
