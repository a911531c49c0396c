"""A no-op pipeline over HTTP, compared with a bare ASGI app: wrk sends 1 kB bodies to them in turn.

Both servers run all the time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from figures import Figure, of_runs, say
from servers import Server, penstock, process

from penstock.app.bench.usage import processor_seconds

PART = "HTTP no-op"
TARGETS = {1: (0.5, 0.6), 16: (0.5, 0.65), 64: (0.65, 0.75), 256: (0.65, 0.85)}
"""Connections -> target and aim, as shares of the bare app's rate."""

NOOP = """
def size(data):
    return len(data)
"""
PIPELINE = """
[pipeline]
name = "noop"

[pipeline.inputs]
data = { kind = "bytes" }

[noop]
backend = "Python[noop_backend.py:size]"
max = 32
"""
WRK = """
wrk.method = "POST"
wrk.body = string.rep("x", 1024)
wrk.headers["Content-Type"] = "application/octet-stream"
"""


def measure(quick: bool) -> list[Figure]:
    if shutil.which("wrk") is None:
        raise RuntimeError(
            "wrk is not installed (apt install wrk); "
            "a generator in Python is slower than these servers"
        )
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "noop_backend.py").write_text(NOOP)
        (folder / "noop.toml").write_text(PIPELINE)
        (folder / "post.lua").write_text(WRK)
        bare_command = [sys.executable, str(Path(__file__).with_name("bare.py"))]
        with process(bare_command, "/") as bare, penstock(folder / "noop.toml") as ours:
            for connections, targets in TARGETS.items():
                figures += _compare(
                    bare, ours, connections=connections, targets=targets, quick=quick, folder=folder
                )
    return figures


def _compare(
    bare: Server,
    ours: Server,
    *,
    connections: int,
    targets: tuple[float, float],
    quick: bool,
    folder: Path,
) -> list[Figure]:
    seconds, pairs = (1, 5) if quick else (2, 9)
    sides = [(bare, "/"), (ours, "/predict/noop")]
    runs: dict[Server, list[Run]] = {bare: [], ours: []}
    for pair in range(-1, pairs):  # the first is to warm up
        for server, path in sides:
            run = wrk(server, path, connections, seconds, folder)
            if pair >= 0:
                runs[server].append(run)
        sides.reverse()  # so that a drift of the machine favours neither
    ratios = [our.rate / other.rate for our, other in zip(runs[ours], runs[bare], strict=True)]
    say(f"{PART}, {connections}: {[round(ratio, 3) for ratio in ratios]}")
    our, other = (
        Run(*(median(values) for values in zip(*runs[server], strict=True)))
        for server in (ours, bare)
    )
    costs = f"server's CPU {our.processor:.0f} to {other.processor:.0f} µs a request"
    note = (
        f"{our.rate:,.0f} to {other.rate:,.0f} requests/s; {costs}; "
        f"p50 {our.p50:.3g} to {other.p50:.3g} ms"
    )
    what = f"rate ÷ bare ASGI app's, {connections} connection{'s' if connections > 1 else ''}"
    figures = [of_runs(PART, what, ratios, least=targets[0], aim=targets[1], note=note)]
    if connections == 1:
        figures.append(
            of_runs(PART, "p50 at one connection", [run.p50 for run in runs[ours]], "ms", most=0.2)
        )
    return figures


class Run(NamedTuple):
    rate: float
    """Requests per second."""
    p50: float
    """Milliseconds."""
    processor: float
    """The server's processor time per request, in µs."""


def wrk(server: Server, path: str, connections: int, seconds: int, folder: Path) -> Run:
    """Load a server with wrk and return its figures. Raises RuntimeError if a request fails."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(folder / "post.lua"),
        server.url(path),
    ]
    used = processor_seconds(server.pid) or 0.0
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = (processor_seconds(server.pid) or 0.0) - used
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{server.url(path)} failed under wrk:\n{output}")
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    total = re.search(r"(\d+) requests in", output)
    middle = re.search(r"50%\s+([\d.]+)(us|ms|s)", output)
    if rate is None or middle is None or total is None:
        raise RuntimeError(f"the output of wrk lacks a figure:\n{output}")
    p50 = float(middle[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[middle[2]]
    return Run(float(rate[1]), p50, used / int(total[1]) * 1e6)
