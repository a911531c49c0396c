"""No-op items in process: a Pipeline and the plain loop, in turn on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import uvloop
from figures import Figure, of_runs, say
from plain_loop import PlainLoop

from penstock.pipelines.pipeline import Pipeline

MAX_BATCH = 32
Submit = Callable[[dict[str, Any]], Awaitable[Any]]
PART = "in process"


class Run(NamedTuple):
    rate: float
    """Items per second."""
    processor: float
    """Processor time of the whole process per item, in µs."""


def measure(quick: bool) -> list[Figure]:
    pairs = 7 if quick else 15
    many, alone = (50_000, 2_000) if quick else (100_000, 5_000)
    figures = []
    for name, run, has_target in (("uvloop", uvloop.run, True), ("asyncio", asyncio.run, False)):
        executors = ("thread", "loop") if has_target else ("thread",)
        for (concurrency, items), executor in product(((512, many), (1, alone)), executors):
            plain, ours = run(compare(concurrency, items, pairs, executor))
            ratios = [our.rate / other.rate for our, other in zip(ours, plain, strict=True)]
            say(f"{PART}, {name}, {concurrency}, {executor}: {[round(each, 3) for each in ratios]}")
            our, other = (
                Run(*(median(values) for values in zip(*runs, strict=True)))
                for runs in (ours, plain)
            )
            note = (
                f"{our.rate:,.0f} to {other.rate:,.0f} items/s; "
                f"CPU {our.processor:.2f} to {other.processor:.2f} µs an item"
            )
            least = None
            if has_target and executor == "thread":
                least = 0.65 if concurrency > 1 else 0.85
            where = "" if executor == "thread" else ', executor = "loop"'
            figures.append(
                of_runs(
                    PART,
                    f"{name}, concurrency {concurrency}{where}: rate ÷ plain loop's",
                    ratios,
                    least=least,
                    note=note,
                )
            )
    return figures


async def compare(
    concurrency: int, items: int, pairs: int, executor: str
) -> tuple[list[Run], list[Run]]:
    """Return the runs of the plain loop and those of the pipeline, pair by pair."""
    plain: list[Run] = []
    ours: list[Run] = []
    noop = {"backend": "Identity", "max": MAX_BATCH, "executor": executor}
    async with Pipeline.load({"noop": noop}) as pipeline:
        loop = PlainLoop(MAX_BATCH)
        sides: list[tuple[Submit, list[Run]]] = [(loop.submit, plain), (pipeline, ours)]
        for pair in range(-1, pairs):  # the first is to warm up
            for submit, runs in sides:
                run = await drive(submit, concurrency, items)
                if pair >= 0:
                    runs.append(run)
            sides.reverse()  # so that a drift of the machine favours neither
        loop.inbox.put(None)
    return plain, ours


async def drive(submit: Submit, concurrency: int, items: int) -> Run:
    """Send `items`, spread over `concurrency` callers."""
    items_per_caller = items // concurrency
    items = items_per_caller * concurrency

    async def client() -> None:
        for number in range(items_per_caller):
            await submit({"data": number})

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[client() for _ in range(concurrency)])
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return Run(items / seconds, used / items * 1e6)
