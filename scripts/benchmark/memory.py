"""The digits server: memory when idle and over many requests, and the time to its first answer."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from figures import ROOT, Figure, of_runs, say
from servers import ask, penstock, process

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import closed_loop
from penstock.app.bench.usage import rss

PART = "digits server"
EXAMPLE = ROOT / "examples" / "digits"
PATH = "/predict/digits"
CLIENTS = 64
SETTLING_REQUESTS = 10_000
"""Requests after which the allocator's pools and all buffers exist. Growth counts from here."""
MOST_GROWTH_MB = 3.0
"""The memory that the allocator takes and gives back at any time.

A leak of 16 bytes per request would grow as much over 200,000 requests.
"""


def measure(quick: bool) -> list[Figure]:
    requests = 30_000 if quick else 200_000
    image = (EXAMPLE / "digit.png").read_bytes()
    figures = [_first_answer(image, 3 if quick else 5)]
    with penstock(EXAMPLE / "digits.toml") as server:
        time.sleep(1)
        idle = _rss(server.pid)
        figures.append(Figure(PART, "RSS idle after start", idle, "MB", most=170))
        sizes = asyncio.run(_grow(server.url(PATH), image, requests, server.pid))
        say(f"{PART}: RSS {idle:.1f}, then {[round(size, 1) for size in sizes]} MB")
        grown = sizes[-1] - sizes[0]
        quarters = ", ".join(f"{size:.1f}" for size in sizes[1:])
        note = f"{sizes[0]:.1f} MB after {SETTLING_REQUESTS:,}, then {quarters} at each quarter"
        figures.append(
            Figure(
                PART,
                f"RSS growth over {requests:,} requests",
                grown,
                "MB",
                most=MOST_GROWTH_MB,
                note=note,
            )
        )
    return figures


def _first_answer(image: bytes, runs: int) -> Figure:
    """Measure the time from the start of the process to the first 200, asking all the time."""
    command = [
        str(Path(sys.executable).with_name("penstock")),
        "serve",
        str(EXAMPLE / "digits.toml"),
        "--log-level",
        "warning",
    ]
    times = []
    for _ in range(runs):
        with process(command, None) as server:
            while ask(server.port, "POST", PATH, image) != 200:
                if time.perf_counter() > server.started + 60:
                    raise RuntimeError("the digits server did not answer within a minute")
                time.sleep(0.01)
            times.append(time.perf_counter() - server.started)
    say(f"{PART}: first answers after {[round(seconds, 2) for seconds in times]} s")
    return of_runs(PART, "start to first answer", times, "s", most=1.5)


async def _grow(url: str, image: bytes, requests: int, pid: int) -> list[float]:
    """Return the RSS after the settling requests, and after each quarter of the rest, in MB."""
    client = HttpClient(url)
    sizes = []
    for count in (SETTLING_REQUESTS, *[requests // 4] * 4):
        record = await closed_loop(client.send, [image], CLIENTS, requests=count)
        failed = sum(sample.status != 200 for sample in record.samples)
        if failed:
            raise RuntimeError(f"{failed} of {count} requests failed")
        sizes.append(_rss(pid))
    await client.close()
    return sizes


def _rss(pid: int) -> float:
    size = rss(pid)
    if size is None:
        raise RuntimeError("the server's memory can't be read from /proc")
    return size
