"""In process, no-op items: a Pipeline against the plain loop, on one event loop, in alternation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from figures import Figure, of_runs, say
from plain_loop import PlainLoop

from penstock.pipelines.pipeline import Pipeline

LARGEST = 32
PART = "in process"


def measure(quick: bool) -> list[Figure]:
    pairs = 3 if quick else 7
    many, alone = (60_000, 2_000) if quick else (300_000, 10_000)
    figures = []
    for name, run, asked in (("uvloop", uvloop.run, True), ("asyncio", asyncio.run, False)):
        for concurrency, items in ((512, many), (1, alone)):
            plain, ours = run(compare(concurrency, items, pairs))
            ratios = [a / b for a, b in zip(ours, plain, strict=True)]
            say(f"{PART}, {name}, {concurrency}: {[round(ratio, 3) for ratio in ratios]}")
            rates = f"{sorted(ours)[pairs // 2]:,.0f} to {sorted(plain)[pairs // 2]:,.0f} items/s"
            least = (0.5 if concurrency > 1 else 0.8) if asked else None
            note = rates if concurrency > 1 else f"{rates}; a quarter slower is 0.8"
            figures.append(of_runs(PART, f"{name}, concurrency {concurrency}: rate ÷ plain loop's", ratios, least=least, note=note))
    return figures


async def compare(concurrency: int, items: int, pairs: int) -> tuple[list[float], list[float]]:
    """Items a second: the plain loop's and the pipeline's, pair by pair."""
    plain: list[float] = []
    ours: list[float] = []
    async with Pipeline.load({"noop": {"backend": "Identity", "max": LARGEST}}) as pipeline:
        loop = PlainLoop(LARGEST)
        for pair in range(-1, pairs):  # the first is to warm up
            for call, rates in ((loop.submit, plain), (pipeline, ours)):
                rate = await drive(call, concurrency, items)
                if pair >= 0:
                    rates.append(rate)
        loop.inbox.put(None)
    return plain, ours


async def drive(call: Callable[[dict[str, Any]], Awaitable[Any]], concurrency: int, items: int) -> float:
    each = items // concurrency

    async def client() -> None:
        for number in range(each):
            await call({"data": number})

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(concurrency)])
    return each * concurrency / (time.perf_counter() - started)
