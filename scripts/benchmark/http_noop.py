"""A no-op pipeline over HTTP and its peers: wrk sends 1 kB bodies to them in turns.

All servers run all the time. mosec has an environment of its own, `.venv-mosec`, which is made if
it is missing; where that can't be done, its rows say why.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from figures import HTTP, Figure, of_runs, say
from servers import MOSEC_VERSION, Server, mosec, penstock, process, pss
from wrk import Run, Side, compared, in_turns, load, of_connections, ratios, require_wrk

PART = HTTP
PROTOCOL = "asyncio.Protocol with httptools on uvloop, 15 lines"
BARE = "bare ASGI app on uvicorn"
MOSEC = f"mosec {MOSEC_VERSION} (Rust front end)"
THREAD, LOOP = "Penstock", 'Penstock, `executor = "loop"`'
LEAST_OF_BARE = {
    THREAD: {1: 0.53, 16: 1.1, 64: 1.3, 256: 1.4},
    LOOP: {1: 0.9, 16: 1.5, 64: 1.6, 256: 1.8},
}
"""Targets by connections, as multiples of the bare ASGI app's rate."""
LEAST_OF_MOSEC = {64: 1.3, 256: 1.3}
AIMS_OF_MOSEC = {(THREAD, 64): 1.5}

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
    require_wrk()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        (folder / "noop_backend.py").write_text(NOOP)
        (folder / "noop.toml").write_text(f'{PIPELINE}executor = "thread"\n')
        (folder / "loop.toml").write_text(f'{PIPELINE}executor = "loop"\n')
        (folder / "post.lua").write_text(WRK)

        def side(name: str, server: Server, path: str) -> Side:
            return Side(name, server, path, folder / "post.lua")

        def script(file: str) -> Server:
            command = [sys.executable, str(Path(__file__).with_name(file))]
            return running.enter_context(process(command, "/"))

        ours = side(THREAD, running.enter_context(penstock(folder / "noop.toml")), "/predict/noop")
        figures.append(_memory(ours))  # while no other server shares its libraries
        sides = [side(PROTOCOL, script("bare_protocol.py"), "/")]
        sides += [side(BARE, script("bare.py"), "/"), ours]
        on_loop = running.enter_context(penstock(folder / "loop.toml"))
        sides.append(side(LOOP, on_loop, "/predict/noop"))
        try:
            server = running.enter_context(mosec("mosec_noop.py"))
        except (OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            say(f"   {MOSEC} is not measured: {reason}")
            figures.append(Figure(PART, "rate ÷ mosec's", math.nan, note=reason))
        else:
            sides.append(side(MOSEC, server, "/inference"))
        runs = {
            connections: in_turns(sides, connections, quick=quick)
            for connections in LEAST_OF_BARE[THREAD]
        }
    figures += peers(runs)
    for connections, of_sides in runs.items():
        figures += comparisons(of_sides, connections)
    return figures


def peers(runs: dict[int, dict[str, list[Run]]]) -> list[Figure]:
    """Return the cells of the part's own table: the rates by connections, and the p99 at 64."""
    figures = [
        of_runs(
            PART, name, [run.rate for run in its], "requests/s", column=of_connections(connections)
        )
        for connections, of_sides in runs.items()
        for name, its in of_sides.items()
    ]
    figures += [
        of_runs(PART, name, [run.p99 for run in its], "ms", column="p99 at 64, ms")
        for name, its in runs[64].items()
    ]
    return figures


def comparisons(runs: dict[str, list[Run]], connections: int) -> list[Figure]:
    """Return the rates of Penstock as multiples of its peers', and its own latencies."""
    figures = []
    among = of_connections(connections)
    for name in (THREAD, LOOP):
        ours, what = runs[name], "loop" if name == LOOP else "thread"
        figures.append(
            of_runs(
                PART,
                f"{what}: rate ÷ bare ASGI app's, {among}",
                ratios(ours, runs[BARE]),
                least=LEAST_OF_BARE[name][connections],
                note=compared(ours, runs[BARE]),
            )
        )
        if MOSEC in runs:
            figures.append(
                of_runs(
                    PART,
                    f"{what}: rate ÷ mosec's, {among}",
                    ratios(ours, runs[MOSEC]),
                    least=LEAST_OF_MOSEC.get(connections),
                    aim=AIMS_OF_MOSEC.get((name, connections)),
                    note=compared(ours, runs[MOSEC]),
                )
            )
        figures += _latencies(ours, what, connections)
    return figures


def _latencies(ours: Sequence[Run], what: str, connections: int) -> list[Figure]:
    if connections == 1:
        p50s = [run.p50 for run in ours]
        return [of_runs(PART, f"{what}: p50 at one connection", p50s, "ms", most=0.2)]
    if connections == 64:
        spread = [run.p99 / run.p50 for run in ours]
        note = f"p99 {median(run.p99 for run in ours):.3g} ms"
        return [of_runs(PART, f"{what}: p99 ÷ p50, 64 connections", spread, most=2.0, note=note)]
    return []


def _memory(side: Side) -> Figure:
    idle = pss(side.server.pid)
    load(side, 64, 1)
    note = f"{idle:.1f} MB before its first request"
    return Figure(
        PART, "PSS after a second at 64 connections", pss(side.server.pid), "MB", most=64, note=note
    )
