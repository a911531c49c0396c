"""The page at `/`: its bytes, its first paint, and what watching and remembering cost the server.

Rates are those of the no-op pipeline at 64 connections, where a request is cheapest and a cost
shows most. The server has a processor to itself. wrk and whoever watches share the others, so a
browser that draws takes no time from the server but for what it asks of it.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from figures import ROOT, WEB_PAGE, Figure, of_runs, say
from http_noop import NOOP, PIPELINE, WRK
from servers import Server, penstock, pss
from wrk import Side, compared, in_turns, ratios, require_wrk

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import NO_ANSWER
from penstock.app.http.assets import MEDIA_TYPES
from penstock.app.http.request_id import MAX_ID_CHARACTERS

sys.path.append(str(ROOT / "scripts" / "browser"))

from chromium import browsing

PART = WEB_PAGE
ASSETS = ROOT / "app" / "page" / "assets"
CONNECTIONS = 64
TURNS = 21
"""Costs of one per cent are less than what a turn differs from the next."""
CALLERS = 32
HISTORY = 1024
"""Requests that are remembered: the default of `request_history`."""
CLOSED, READ, OPEN = "closed", "its events read", "open in Chromium"
ON, OFF = f"request_history = {HISTORY}", "request_history = 0"
PAINTED = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""

CHAIN = """
[pipeline]
name = "chain"

[pipeline.inputs]
data = { kind = "bytes" }

[first]
backend = "Python[noop_backend.py:size]"
max = 32
next = "second"

[second]
backend = "Identity"
max = 32
next = "third"

[third]
backend = "Identity"
max = 32
"""
INFER = """
wrk.method = "POST"
wrk.body = '{"inputs":[{"name":"data","datatype":"BYTES","shape":[1],"data":["x"]}]}'
wrk.headers["Content-Type"] = "application/json"
"""
DOORS = {
    "predict": ("/predict/noop", "post.lua"),
    "predict, 3 nodes": ("/predict/chain", "post.lua"),
    "infer": ("/v2/models/noop/infer", "infer.lua"),
}
"""Ways in for requests that are remembered: path, and what wrk sends."""

CROWDED = {
    "parts": """
[pipeline]
name = "parts"

[pipeline.inputs]
data = { kind = "text" }

[split]
backend = "Python[crowded.py:split]"
max = 32
next = "parts"

[parts]
backend = "MapReduce"
jump = "part"
split = "parts"
merge = "result"
next = "fail"

[part]
backend = "Python[crowded.py:size]"
max = 32

[fail]
backend = "Python[crowded.py:fail]"
""",
    "nodes": """
[pipeline]
name = "nodes"

[pipeline.inputs]
data = { kind = "text" }
"""
    + "".join(
        f"""
[node{number}]
backend = "Identity"
max = 1
next = "{f"node{number + 1}" if number < 63 else "fail"}"
"""
        for number in range(1, 64)
    )
    + """
[fail]
backend = "Python[crowded.py:fail]"
max = 1
""",
}
"""Requests that take the most memory, and then fail."""

CROWDED_CODE = """
from penstock import InvalidInput

def split(item):
    return {"result": item["data"], "parts": [item["data"]] * 64}

def size(data):
    return len(data)

def fail(data):
    raise InvalidInput("😀" * 10_000)
"""


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    ours, others = processors()
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        pipelines = folder / "pipelines"
        pipelines.mkdir()
        (pipelines / "noop_backend.py").write_text(NOOP)
        (pipelines / "noop.toml").write_text(f'{PIPELINE}executor = "thread"\n')
        (pipelines / "chain.toml").write_text(CHAIN)
        (folder / "post.lua").write_text(WRK)
        (folder / "infer.lua").write_text(INFER)
        with pinned(ours):
            server = running.enter_context(penstock(pipelines))
            other = running.enter_context(penstock(pipelines, "--request-history=0"))
        figures = [*sizes(server), first_paint(server, 3 if quick else 9)]

        def compare(
            name: str, it: Side, yardstick: Side, least: float | None, note: str = ""
        ) -> Figure:
            runs = in_turns([yardstick, it], CONNECTIONS, quick=quick, turns=TURNS)
            of_it, of_yardstick = runs[it.name], runs[yardstick.name]
            turns = zip(of_it, of_yardstick, strict=True)
            processor = median(run.processor / bare.processor for run, bare in turns)
            return of_runs(
                PART,
                name,
                ratios(of_it, of_yardstick),
                least=least,
                note=f"{compared(of_it, of_yardstick)}; CPU × {processor:.3f}{note}",
            )

        side = partial(Side, path="/predict/noop", script=folder / "post.lua")
        with pinned(others):
            closed = side(CLOSED, server)
            watch = Watch(server)
            read = side(READ, server, beside=watch.read)
            figures.append(compare(f"rate with {READ} ÷ {CLOSED}", read, closed, 0.99))
            say(f"   {watch.events} events were read")
            with Tab(server) as tab:
                shown = side(OPEN, server, beside=tab.open)
                note = "; Chromium shares a processor with wrk"
                figures.append(compare(f"rate {OPEN} ÷ {CLOSED}", shown, closed, None, note))
            for door, (path, script) in DOORS.items():
                on, off = (
                    Side(name, one, path, folder / script)
                    for name, one in ((ON, server), (OFF, other))
                )
                figures.append(compare(f"{door}: rate with {ON} ÷ {OFF}", on, off, 0.98))
    for pipeline, requests in (("parts", "of 64 parts"), ("nodes", "of 64 nodes")):
        figures.append(memory_of_history(pipeline, f"memory of {HISTORY} requests {requests}"))
    return figures


def processors() -> tuple[set[int], set[int]]:
    """Return the server's processor, and those of the others.

    Raises RuntimeError if there is only one.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise RuntimeError("two processors are needed, one of them for the server alone")
    return {first}, set(others)


@contextmanager
def pinned(processors: set[int]) -> Iterator[None]:
    """Bind this process to processors for a while, and what it starts meanwhile for good."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


def sizes(server: Server) -> list[Figure]:
    """Return how large all files of the page are: as they are, and as the server compresses them.

    Raises RuntimeError if the server lacks one.
    """
    paths = sorted(file for file in ASSETS.rglob("*") if file.suffix in MEDIA_TYPES)
    raw = sum(path.stat().st_size for path in paths)
    sent = sum(sent_bytes(server, path.relative_to(ASSETS).as_posix()) for path in paths)
    return [
        Figure(PART, "all its files", raw / 1000, "kB", most=260, note=f"{len(paths)} files"),
        Figure(PART, "all its files as they are sent, by gzip", sent / 1000, "kB"),
    ]


def sent_bytes(server: Server, asset: str) -> int:
    path = "/" if asset == "index.html" else f"/page/{asset}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        size = len(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}")
    return size


def first_paint(server: Server, runs: int) -> Figure:
    """Measure from the start of the navigation until something shows, always in a new browser."""
    times = []
    for _ in range(runs):
        with browsing() as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(server.url("/"))
            times.append(float(page.evaluate(PAINTED)))
    return of_runs(PART, "first contentful paint, nothing cached", times, "ms", most=500)


class Watch:
    """Reads the events of /status as the page does, but draws nothing."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.events = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        with socket.create_connection(("127.0.0.1", self._server.port), 30) as connection:
            head = "GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
            connection.sendall(head.encode())
            file = connection.makefile("rb")
            if b" 200 " not in (line := file.readline()):
                raise RuntimeError(f"/status was answered with {line.decode()}")
            reader = threading.Thread(target=self._read, args=(file,))
            reader.start()
            try:
                yield
            finally:
                connection.shutdown(socket.SHUT_RDWR)
                reader.join()

    def _read(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            self.events += line.startswith(b"data:")


class Tab:
    """Chromium, with the page open or not."""

    def __init__(self, server: Server) -> None:
        self._url = server.url("/")
        self._running = ExitStack()

    def __enter__(self) -> Tab:
        browser = self._running.enter_context(browsing())
        self._page = browser.new_page(viewport={"width": 1440, "height": 900})
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Show the page, and an empty one afterwards."""
        self._page.goto(self._url)
        self._page.get_by_role("button", name="Send", exact=True).wait_for()  # comes last
        yield
        self._page.goto("about:blank")


def memory_of_history(pipeline: str, what: str) -> Figure:
    """Return by how much a server that remembers is larger than one that does not.

    Both have answered the same requests of a pipeline of CROWDED.
    """
    sizes = []
    for history in (HISTORY, 0):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "crowded.py").write_text(CROWDED_CODE)
            (folder / "crowded.toml").write_text(CROWDED[pipeline])
            with penstock(folder / "crowded.toml", f"--request-history={history}") as server:
                asyncio.run(crowd(server.url(f"/predict/{pipeline}")))
                sizes.append(pss(server.pid))
    full, empty = sizes
    note = f"{full:.1f} to {empty:.1f} MB"
    return Figure(PART, what, full - empty, "MB", most=20, note=note)


async def crowd(url: str) -> None:
    """Send more requests than are remembered, each with an id as long as one may be.

    Raises RuntimeError if one gets no answer.
    """
    numbers = iter(range(HISTORY + 128))

    async def caller() -> None:
        for number in numbers:
            client = HttpClient(url, {"X-Request-Id": f"{number:0{MAX_ID_CHARACTERS}}"})
            answer = await client.send(b"x" * 1000)
            await client.close()
            if answer.status == NO_ANSWER:
                raise RuntimeError(f"request {number} got no answer")

    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
