"""Load from wrk, on several servers in turns, so that a drift of the machine favours none."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from figures import say
from servers import Server

from penstock.app.bench.usage import processor_seconds

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True, slots=True)
class Side:
    """A server, the path of its requests, and the script that tells wrk what to send."""

    name: str
    server: Server
    path: str
    script: Path
    beside: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes what is open while the side is loaded."""


class Run(NamedTuple):
    rate: float
    """Requests per second."""
    p50: float
    """Milliseconds."""
    p99: float
    """Milliseconds."""
    processor: float
    """The server's processor time per request, in µs."""
    requests: int
    """How many were answered."""
    generator: float = 0.0
    """wrk's own processor time per request, in µs."""


def require_wrk() -> None:
    """Raise RuntimeError if wrk is not installed."""
    if shutil.which("wrk") is None:
        raise RuntimeError(
            "wrk is not installed (apt install wrk); "
            "a generator in Python is slower than these servers"
        )


def in_turns(
    sides: Sequence[Side], connections: int, *, quick: bool, seconds: int = 1, turns: int = 9
) -> dict[str, list[Run]]:
    """Load the sides in turns. Return the runs of each by its name: the n-th of each were in a row.

    The order of the sides is reversed at each turn. `quick`: only 3 turns.
    """
    turns = 3 if quick else turns
    order = list(sides)
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    for turn in range(-1, turns):  # the first is to warm up
        for side in order:
            with side.beside():
                run = load(side, connections, seconds)
            if turn >= 0:
                runs[side.name].append(run)
        order.reverse()
    for name, its in runs.items():
        say(f"   {connections:3}, {name}: {[round(run.rate) for run in its]}")
    return runs


def load(side: Side, connections: int, seconds: int) -> Run:
    """Load a server and return its figures. Raises RuntimeError if a request fails."""
    url = side.server.url(side.path)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    used = processor_seconds(side.server.pid) or 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        [*command, "-s", str(side.script), url], capture_output=True, text=True, check=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (processor_seconds(side.server.pid) or 0.0) - used
    run = read_output(output, url, used)
    generator = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return run._replace(generator=generator / run.requests * 1e6)


def read_output(output: str, url: str, processor_seconds: float) -> Run:
    """Read what `wrk --latency` printed. Raises RuntimeError if a request failed."""
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{url} failed under wrk:\n{output}")
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    total = re.search(r"(\d+) requests in", output)
    if rate is None or total is None:
        raise RuntimeError(f"the output of wrk lacks a figure:\n{output}")
    p50, p99 = (_percentile(output, percent) for percent in (50, 99))
    return Run(float(rate[1]), p50, p99, processor_seconds / int(total[1]) * 1e6, int(total[1]))


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)\b", output)
    if found is None:
        raise RuntimeError(f"the output of wrk lacks its {percent} % line:\n{output}")
    return float(found[1]) * MILLISECONDS[found[2]]


def ratios(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """Divide the rates of two sides, turn by turn."""
    return [run.rate / other.rate for run, other in zip(runs, others, strict=True)]


def compared(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """Describe two sides by the medians of their runs."""
    our, other = (
        Run(*(median(values) for values in zip(*of_side, strict=True)))
        for of_side in (runs, others)
    )
    return (
        f"{our.rate:,.0f} to {other.rate:,.0f} requests/s; "
        f"server's CPU {our.processor:.0f} to {other.processor:.0f} µs a request; "
        f"p50 {our.p50:.3g} to {other.p50:.3g} ms"
    )


def of_connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"
