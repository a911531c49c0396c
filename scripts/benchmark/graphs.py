"""Graphs, in process: a long chain, filters that skip, MapReduce against posting its parts directly, small items beside large ones."""

from __future__ import annotations

import asyncio
import random
import time
import tomllib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from statistics import quantiles
from typing import Any

import uvloop
from figures import ROOT, Figure, of_runs, say

from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.pipeline import Pipeline

PART = "graphs"
DIGITS = ROOT / "examples" / "digits"
CROPS = 100
PAGES = 60
SKIPS = 200
SMALL, LARGE = 3, 300
LARGEST = 16
Call = Callable[[dict[str, Any]], Awaitable[Any]]


def measure(quick: bool) -> list[Figure]:
    return [
        uvloop.run(chain(5 if quick else 11)),
        uvloop.run(skips(5 if quick else 11)),
        uvloop.run(map_reduce(5 if quick else 11)),
        uvloop.run(small_beside_large(3 if quick else 7, seconds=3.0 if quick else 6.0)),
    ]


async def chain(runs: int) -> Figure:
    """8 Identity nodes, 256 callers."""
    names = [f"n{number}" for number in range(8)]
    nodes = {
        name: {"backend": "Identity", "max": 32, "next": following}
        for name, following in pairwise(names)
    }
    nodes[names[-1]] = {"backend": "Identity", "max": 32}
    rates = []
    async with Pipeline.load(nodes) as pipeline:
        for run in range(runs + 1):
            rate = 8 * await drive(pipeline, [{"data": 0}] * 20_000, 256)
            if run:
                rates.append(rate)
    say(f"{PART}, chain: {[round(rate) for rate in rates]}")
    return of_runs(
        PART, "chain of 8 Identity nodes, 256 callers", rates, "node-runs/s", least=60_000
    )


async def skips(runs: int) -> Figure:
    """What one node that a filter skips adds to a request, in µs: a chain with 200 of them against the same chain without."""
    costs = []
    async with Pipeline.load(skipping(0)) as without, Pipeline.load(skipping(SKIPS)) as with_skips:
        for run in range(runs + 1):
            seconds = [
                1 / await drive(pipeline, [{"data": 0}] * 4_000, 16)
                for pipeline in (without, with_skips)
            ]
            if run:
                costs.append((seconds[1] - seconds[0]) / SKIPS * 1e6)
    say(f"{PART}, skips: {[round(cost, 3) for cost in costs]}")
    return of_runs(PART, "a node that a filter skips", costs, "µs", most=2.0)


def skipping(count: int) -> dict[str, Any]:
    names = ["first", *(f"skip{number}" for number in range(count)), "last"]
    nodes: dict[str, Any] = {
        name: {"backend": "Identity", "filter": "Skip", "next": after}
        for name, after in pairwise(names)
    }
    del nodes["first"]["filter"]
    return nodes | {"last": {"backend": "Identity", "filter": "or"}}


async def map_reduce(pairs: int) -> Figure:
    """Digits in hundreds through MapReduce, against as many posted to the classifier's node one by one, as many in flight."""
    digits = tomllib.loads((DIGITS / "digits.toml").read_text())["digits"]
    digits |= {"model": str(DIGITS / "digits.onnx"), "labels": str(DIGITS / "labels.txt")}
    config = {"page": {"backend": "MapReduce", "jump": "digits"}, "digits": digits}
    crop = (DIGITS / "digit.png").read_bytes()
    ratios = []
    async with Pipeline.load(config) as pipeline:
        pages = [{"data": [crop] * CROPS}] * PAGES
        crops = [{"data": crop, "node_name": "digits"}] * (PAGES * CROPS)
        for pair in range(pairs + 1):
            whole = CROPS * await drive(pipeline, pages, 4)
            single = await drive(pipeline, crops, 4 * CROPS)
            if pair:
                ratios.append(whole / single)
                note = f"{whole:,.0f} to {single:,.0f} crops/s"
    say(f"{PART}, MapReduce: {[round(ratio, 3) for ratio in ratios]}")
    return of_runs(
        PART, f"MapReduce over {CROPS} crops: rate ÷ posting each", ratios, least=0.9, note=note
    )


async def small_beside_large(runs: int, seconds: float) -> Figure:
    """The p99 of items with 3 boxes where 1 of 10 has 300, against their p99 alone with as many boxes a second."""
    config = {
        "page": {"backend": "MapReduce", "jump": "box"},
        "box": {"backend": "Boxes", "max": LARGEST},
    }
    boxes = 0.5 * LARGEST / Boxes.SECONDS  # a second: half of what the node can do
    ratios = []
    async with Pipeline.load(config) as pipeline:
        for _ in range(runs):
            alone = await offered(pipeline, boxes / SMALL, seconds, large_share=0.0)
            mixed = await offered(
                pipeline, boxes / (0.9 * SMALL + 0.1 * LARGE), seconds, large_share=0.1
            )
            ratios.append(mixed / alone)
            note = f"p99 {mixed * 1000:.1f} to {alone * 1000:.1f} ms"
            say(f"{PART}, small beside large: {note}")
    return of_runs(
        PART,
        f"p99 of items with {SMALL} boxes beside some with {LARGE} ÷ alone",
        ratios,
        most=3.0,
        note=note,
    )


class Boxes:
    """As a model on a device that takes as long for a full batch as for one item."""

    SECONDS = 0.002

    def forward(self, batch: list[dict[str, Any]]) -> None:
        time.sleep(self.SECONDS)
        for item in batch:
            item["result"] = item["data"]


register_backend("Boxes", Boxes)


async def offered(pipeline: Pipeline, rate: float, seconds: float, large_share: float) -> float:
    """The p99 of small items, seconds, where items come at random with this rate."""
    choice = random.Random(1)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()

    async def one(boxes: int, due: float) -> None:
        await pipeline({"data": [0] * boxes})
        if boxes == SMALL:
            latencies.append(loop.time() - due)

    running: set[asyncio.Task[None]] = set()
    due = begun = loop.time()
    while due < begun + seconds:
        due += choice.expovariate(rate)
        await asyncio.sleep(due - loop.time())
        task = loop.create_task(one(LARGE if choice.random() < large_share else SMALL, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return quantiles(latencies, n=100)[98]


async def drive(call: Call, items: list[dict[str, Any]], concurrency: int) -> float:
    """Items a second, with as many callers."""
    waiting = iter(items)

    async def client() -> None:
        for item in waiting:
            await call(item)

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(concurrency)])
    return len(items) / (time.perf_counter() - started)
