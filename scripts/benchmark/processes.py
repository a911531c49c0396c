"""Python that holds the GIL: two processes against one thread, and what a no-op pipeline beside them notices."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import uvloop
from figures import Figure, of_runs, say

from penstock.pipelines.pipeline import Pipeline

PART = "process"
BUSY = f"Python[{Path(__file__).with_name('busy.py')}:Busy]"
CLIENTS = 8
INTERVAL = 0.002
"""Seconds between two items of the no-op pipeline: it hardly works itself."""


class Side(NamedTuple):
    executor: str
    instances: int

    def __str__(self) -> str:
        return f"{self.instances} {self.executor}{'es' * (self.executor == 'process' and self.instances > 1)}"

    def load(self) -> Pipeline:
        table = {
            "backend": BUSY,
            "executor": self.executor,
            "instance_num": self.instances,
            "max": 1,
        }
        return Pipeline.load({"busy": table}, name=str(self).replace(" ", "_"))


THREAD, PROCESS, PROCESSES = Side("thread", 1), Side("process", 1), Side("process", 2)


class Run(NamedTuple):
    rate: float
    """Items a second."""
    worker: float
    """Processor time per item of the threads that computed, ms."""
    server: float
    """Processor time per item of this process, ms. A thread's computing is in it."""
    p99: float
    """Of the no-op pipeline meanwhile, ms."""


def measure(quick: bool) -> list[Figure]:
    return uvloop.run(compare(5 if quick else 9, 1.0 if quick else 2.0))


async def compare(rounds: int, seconds: float) -> list[Figure]:
    runs: dict[Side | None, list[Run]] = {side: [] for side in (None, THREAD, PROCESS, PROCESSES)}
    async with AsyncExitStack() as stack:
        noop = await stack.enter_async_context(Pipeline.load("Identity"))
        pipelines = {
            side: await stack.enter_async_context(side.load()) for side in runs if side is not None
        }
        order = list(runs)
        for number in range(-1, rounds):  # the first is to warm up
            for side in order:
                found = await run(pipelines.get(side) if side is not None else None, noop, seconds)
                if number >= 0:
                    runs[side].append(found)
            order.reverse()  # so that a drift of the machine favours none
    thread, processes = runs[THREAD], runs[PROCESSES]
    figures = [_throughput(thread, processes)]
    alone = median(each.p99 for each in runs[None])
    figures.append(
        of_runs(PART, "no-op pipeline's p99, alone", [each.p99 for each in runs[None]], "ms")
    )
    for side in (THREAD, PROCESS, PROCESSES):
        p99 = [each.p99 for each in runs[side]]
        say(f"{PART}: p99 beside {side}: {[round(each, 2) for each in p99]} ms")
        note = f"{median(p99) / alone:.1f} times that alone"
        figures.append(of_runs(PART, f"no-op pipeline's p99, beside {side}", p99, "ms", note=note))
    spared = [other.p99 / one.p99 for one, other in zip(runs[PROCESS], thread, strict=True)]
    figures.append(of_runs(PART, "p99 beside 1 thread ÷ beside 1 process", spared, least=2))
    return figures


def _throughput(thread: list[Run], processes: list[Run]) -> Figure:
    ratios = [two.rate / one.rate for one, two in zip(thread, processes, strict=True)]
    one, two = (
        Run(*(median(values) for values in zip(*each, strict=True))) for each in (thread, processes)
    )
    # What the machine would give if nothing else ran on its two processors: each child computes for `worker`, the server's share is on top.
    possible = 2 * one.server / (two.worker + two.server)
    note = (
        f"{two.rate:,.0f} to {one.rate:,.0f} items/s; CPU an item: thread and loop {one.server:.2f} ms, child {two.worker:.2f} ms and "
        f"server {two.server:.2f} ms: by CPU alone {possible:.2f}"
    )
    say(f"{PART}: {[round(each, 2) for each in ratios]}; {note}")
    return of_runs(PART, "2 processes' rate ÷ 1 thread's", ratios, least=1.8, note=note)


async def run(busy: Pipeline | None, noop: Pipeline, seconds: float) -> Run:
    """One side's work for so long, and the no-op pipeline's latencies meanwhile."""
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
            await asyncio.sleep(INTERVAL)

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
