"""Python that holds the GIL: two processes compared with one thread.

A no-op pipeline runs beside them, to see how much they delay it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import uvloop
from figures import Figure, of_runs, say

from penstock.app.server.switch_interval import SHORT_SECONDS
from penstock.pipelines.pipeline import Pipeline

PART = "process"
BUSY = f"Python[{Path(__file__).with_name('busy.py')}:Busy]"
CLIENTS = 8
NOOP_INTERVAL_SECONDS = 0.002
"""Time between two items of the no-op pipeline, so that it does hardly any work itself."""


PYTHONS_INTERVAL_SECONDS = 0.005


class Side(NamedTuple):
    """One of the executors that are compared."""

    executor: str
    instances: int
    interval: float = PYTHONS_INTERVAL_SECONDS
    """Python's switch interval meanwhile. `penstock serve` chooses it (switch_interval.py)."""

    def __str__(self) -> str:
        plural = "es" * (self.executor == "process" and self.instances > 1)
        short = f", turns of {self.interval * 1000:g} ms"
        return f"{self.instances} {self.executor}{plural}{short * (self == SHORT_TURNS)}"

    def load(self) -> Pipeline:
        table = {
            "backend": BUSY,
            "executor": self.executor,
            "instance_num": self.instances,
            "max": 1,
        }
        return Pipeline.load({"busy": table}, name=self.executor)


THREAD, PROCESS, PROCESSES = Side("thread", 1), Side("process", 1), Side("process", 2)
SHORT_TURNS = Side("thread", 1, SHORT_SECONDS)
SIDES = (None, THREAD, SHORT_TURNS, PROCESS, PROCESSES)


class Run(NamedTuple):
    rate: float
    """Items per second."""
    worker: float
    """Processor time per item of the threads that computed, in ms."""
    server: float
    """Processor time per item of this process, in ms. It includes the computing of a thread."""
    p99: float
    """The no-op pipeline's p99 meanwhile, in ms."""


def measure(quick: bool) -> list[Figure]:
    return uvloop.run(compare(5 if quick else 7, 1.0 if quick else 2.0))


async def compare(rounds: int, seconds: float) -> list[Figure]:
    runs: dict[Side | None, list[Run]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        noop = await stack.enter_async_context(
            Pipeline.load({"backend": "Identity", "executor": "thread"})
        )
        pipelines = {
            side: await stack.enter_async_context(side.load()) for side in runs if side is not None
        }
        order = list(runs)
        for number in range(-1, rounds):  # the first is to warm up
            for side in order:
                busy = pipelines.get(side) if side is not None else None
                sys.setswitchinterval(PYTHONS_INTERVAL_SECONDS if side is None else side.interval)
                measured = await run(busy, noop, seconds)
                if number >= 0:
                    runs[side].append(measured)
            order.reverse()  # so that a drift of the machine favours none
    thread, processes = runs[THREAD], runs[PROCESSES]
    figures = [_throughput(thread, processes)]
    p99_alone = [one.p99 for one in runs[None]]
    figures.append(of_runs(PART, "no-op pipeline's p99, alone", p99_alone, "ms"))
    for side in (THREAD, SHORT_TURNS, PROCESS, PROCESSES):
        p99 = [one.p99 for one in runs[side]]
        say(f"{PART}: p99 beside {side}: {[round(value, 2) for value in p99]} ms")
        note = f"{median(p99) / median(p99_alone):.1f} times that alone"
        figures.append(of_runs(PART, f"no-op pipeline's p99, beside {side}", p99, "ms", note=note))
    spared = [other.p99 / one.p99 for one, other in zip(runs[PROCESS], thread, strict=True)]
    figures.append(of_runs(PART, "p99 beside 1 thread ÷ beside 1 process", spared, least=2))
    return figures


def _throughput(thread: list[Run], processes: list[Run]) -> Figure:
    ratios = [two.rate / one.rate for one, two in zip(thread, processes, strict=True)]
    one, two = (
        Run(*(median(values) for values in zip(*runs, strict=True))) for runs in (thread, processes)
    )
    # The ratio that two processors could give if nothing else ran on them: an item costs `worker`
    # in a child, and `server` here on top.
    possible = 2 * one.server / (two.worker + two.server)
    note = (
        f"{two.rate:,.0f} to {one.rate:,.0f} items/s; CPU an item: thread and loop "
        f"{one.server:.2f} ms, child {two.worker:.2f} ms and server {two.server:.2f} ms: "
        f"by CPU alone {possible:.2f}"
    )
    say(f"{PART}: {[round(ratio, 2) for ratio in ratios]}; {note}")
    return of_runs(PART, "2 processes' rate ÷ 1 thread's", ratios, least=1.8, note=note)


async def run(busy: Pipeline | None, noop: Pipeline, seconds: float) -> Run:
    """Load one side for `seconds`, and measure the no-op pipeline meanwhile.

    Without a side only the no-op pipeline runs.
    """
    until = time.perf_counter() + seconds
    spent: dict[int, list[float]] = {}
    done = 0

    async def client(pipeline: Pipeline) -> None:
        nonlocal done
        while time.perf_counter() < until:
            worker, used = (await pipeline({"data": None}))["result"]
            spent.setdefault(worker, []).append(used)
            done += 1

    latencies: list[float] = []

    async def watch() -> None:
        item: dict[str, Any] = {"data": 1}
        while (started := time.perf_counter()) < until:
            await noop(item)
            latencies.append(time.perf_counter() - started)
            await asyncio.sleep(NOOP_INTERVAL_SECONDS)

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(
        watch(),
        *[client(busy) for _ in range(CLIENTS if busy is not None else 0) if busy is not None],
    )
    elapsed, used = time.perf_counter() - started, time.process_time() - used
    workers = sum(
        (max(times) - min(times)) / max(1, len(times) - 1) * len(times) for times in spent.values()
    )
    p99 = sorted(latencies)[int(len(latencies) * 0.99)] * 1000
    return Run(done / elapsed, workers / max(1, done) * 1000, used / max(1, done) * 1000, p99)
