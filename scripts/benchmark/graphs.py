"""Graphs, in process: a chain, filters that skip, MapReduce, and small items beside large ones."""

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
FEW_BOXES, MANY_BOXES = 3, 300
BOXES_PER_BATCH = 16
Submit = Callable[[dict[str, Any]], Awaitable[Any]]


def measure(quick: bool) -> list[Figure]:
    return [
        uvloop.run(chain(5 if quick else 11)),
        uvloop.run(skips(5 if quick else 11)),
        uvloop.run(map_reduce(5 if quick else 11)),
        uvloop.run(small_beside_large(3 if quick else 7, seconds=3.0 if quick else 6.0)),
    ]


async def chain(runs: int) -> Figure:
    """Measure the node-runs per second of 8 Identity nodes in a chain, with 256 callers."""
    names = [f"n{number}" for number in range(8)]
    nodes = {
        name: {"backend": "Identity", "max": 32, "next": following}
        for name, following in pairwise(names)
    }
    nodes[names[-1]] = {"backend": "Identity", "max": 32}
    rates = []
    async with Pipeline.load(nodes) as pipeline:
        for run in range(runs + 1):  # the first is to warm up
            rate = 8 * await drive(pipeline, [{"data": 0}] * 20_000, 256)
            if run:
                rates.append(rate)
    say(f"{PART}, chain: {[round(rate) for rate in rates]}")
    return of_runs(
        PART, "chain of 8 Identity nodes, 256 callers", rates, "node-runs/s", least=60_000
    )


async def skips(runs: int) -> Figure:
    """Measure the µs that a node adds to a request if a filter skips it.

    A chain with 200 such nodes is compared with the same chain without them.
    """
    costs = []
    async with Pipeline.load(skipping(0)) as without, Pipeline.load(skipping(SKIPS)) as with_skips:
        for run in range(runs + 1):  # the first is to warm up
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
    """Compare MapReduce over 100 digits with as many digits sent to the classifier's node alone.

    Both have the same number of digits in flight.
    """
    digits = tomllib.loads((DIGITS / "digits.toml").read_text())["digits"]
    digits |= {"model": str(DIGITS / "digits.onnx"), "labels": str(DIGITS / "labels.txt")}
    config = {"page": {"backend": "MapReduce", "jump": "digits"}, "digits": digits}
    crop = (DIGITS / "digit.png").read_bytes()
    ratios = []
    note = ""
    async with Pipeline.load(config) as pipeline:
        pages = [{"data": [crop] * CROPS}] * PAGES
        crops = [{"data": crop, "node_name": "digits"}] * (PAGES * CROPS)
        for pair in range(pairs + 1):  # the first is to warm up
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
    """Compare the p99 of items with 3 boxes, when 1 item in 10 has 300, with their p99 alone.

    Both loads have the same number of boxes per second.
    """
    config = {
        "page": {"backend": "MapReduce", "jump": "box"},
        "box": {"backend": "Boxes", "max": BOXES_PER_BATCH},
    }
    boxes = 0.5 * BOXES_PER_BATCH / Boxes.SECONDS  # per second: half of what the node can do
    ratios = []
    note = ""
    async with Pipeline.load(config) as pipeline:
        for _ in range(runs):
            alone = await small_p99(pipeline, boxes / FEW_BOXES, seconds, large_share=0.0)
            mean_boxes = 0.9 * FEW_BOXES + 0.1 * MANY_BOXES
            mixed = await small_p99(pipeline, boxes / mean_boxes, seconds, large_share=0.1)
            ratios.append(mixed / alone)
            note = f"p99 {mixed * 1000:.1f} to {alone * 1000:.1f} ms"
            say(f"{PART}, small beside large: {note}")
    return of_runs(
        PART,
        f"p99 of items with {FEW_BOXES} boxes beside some with {MANY_BOXES} ÷ alone",
        ratios,
        most=3.0,
        note=note,
    )


class Boxes:
    """A stand-in for a model on a GPU, which takes as long for a full batch as for one item."""

    SECONDS = 0.002

    def forward(self, batch: list[dict[str, Any]]) -> None:
        time.sleep(self.SECONDS)
        for item in batch:
            item["result"] = item["data"]


register_backend("Boxes", Boxes)


async def small_p99(pipeline: Pipeline, rate: float, seconds: float, large_share: float) -> float:
    """Send items at random, `rate` per second, and return the p99 of the small ones in seconds."""
    choice = random.Random(1)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()

    async def one(boxes: int, due: float) -> None:
        await pipeline({"data": [0] * boxes})
        if boxes == FEW_BOXES:
            latencies.append(loop.time() - due)

    running: set[asyncio.Task[None]] = set()
    due = begun = loop.time()
    while due < begun + seconds:
        due += choice.expovariate(rate)
        await asyncio.sleep(due - loop.time())
        boxes = MANY_BOXES if choice.random() < large_share else FEW_BOXES
        task = loop.create_task(one(boxes, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return quantiles(latencies, n=100)[98]


async def drive(submit: Submit, items: list[dict[str, Any]], concurrency: int) -> float:
    """Send all items from `concurrency` callers, and return the items per second."""
    waiting = iter(items)

    async def client() -> None:
        for item in waiting:
            await submit(item)

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(concurrency)])
    return len(items) / (time.perf_counter() - started)
