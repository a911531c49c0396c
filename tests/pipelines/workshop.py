"""Nodes that a test scripts and holds, and a pipeline that is checked for leaks at its end.

Nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from penstock.backends.base import Backend, Context
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.composites.fan_out import FanOut
from penstock.pipelines.pipeline import Pipeline

BOUND = 20.0
"""Seconds after which a test that hangs fails."""


class Workshop:
    """All nodes with the backend `Work`.

    `acts[node](item)` is what a node does. It returns the result, or None if it has put that into
    the item itself. A node without an act returns its data. `ran` has the node and the data of
    every batch, in the order in which they began; `items` has copies of all their items.
    """

    def __init__(self) -> None:
        self.acts: dict[str, Callable[[Item], Any]] = {}
        self.ran: list[tuple[str, list[Any]]] = []
        self.items: list[Item] = []
        self._gates: dict[str, threading.Event] = {}
        self._entered: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(0))
        register_backend("Work", self._backend())

    def inputs(self, node: str) -> list[Any]:
        """Return the data that the node has been given, in order."""
        return [data for name, batch in self.ran if name == node for data in batch]

    def batches(self, node: str) -> list[list[Any]]:
        return [batch for name, batch in self.ran if name == node]

    def hold(self, node: str) -> None:
        """Make batches of this node stop at their beginning, until `release`."""
        self._gates[node] = threading.Event()

    def release(self, node: str) -> None:
        self._gates[node].set()

    def release_all(self) -> None:
        for gate in self._gates.values():
            gate.set()

    async def begun(self, node: str) -> None:
        """Wait until one more batch of the node has begun."""
        assert await asyncio.to_thread(self._entered[node].acquire, timeout=BOUND)

    def _backend(workshop: Any) -> type[Backend]:  # noqa: N805  # pyright: ignore[reportSelfClsParameterName]
        class Work(Backend):
            def init(self, params: Any, context: Context) -> None:
                self.node = context.node

            def forward(self, batch: list[Item]) -> None:
                workshop.ran.append((self.node, [item["data"] for item in batch]))
                workshop.items.extend(item.copy() for item in batch)
                workshop._entered[self.node].release()
                gate = workshop._gates.get(self.node)
                assert gate is None or gate.wait(BOUND)
                act = workshop.acts.get(self.node, lambda item: item["data"])
                for item in batch:
                    result = act(item)
                    if result is not None:
                        item["result"] = result

        return Work


def mark(workshop: Workshop, *nodes: str) -> None:
    """Make each of these nodes return its name around its data: `name(data)`."""
    for node in nodes:
        workshop.acts[node] = partial(_marked, node)


def _marked(node: str, item: Item) -> str:
    return f"{node}({item['data']})"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until the condition holds.

    Only for conditions that a thread's report or a due timer brings about.
    """
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(number: int = 20) -> None:
    """Let the loop do what needs no thread and no timer."""
    for _ in range(number):
        await asyncio.sleep(0)


def queued(pipeline: Pipeline, node: str) -> int:
    """Return how many rows queue at a node."""
    (running_node,) = [running for running in pipeline.nodes if running.name == node]
    return running_node.scheduler.queued


def waiting(pipeline: Pipeline, node: str) -> int:
    """Return how many items wait at a composite."""
    (composite,) = [waits for waits in pipeline._graph.composites if waits.name == node]
    return len(composite.waiting)


def outcomes(pipeline: Pipeline, node: str) -> dict[str, int]:
    """Count how items have left the node, without the outcomes that never happened."""
    counts = next(
        plan_node.node.statistics.outcomes
        for plan_node in pipeline.plan.nodes.values()
        if plan_node.name == node
    )
    return {outcome: count for outcome, count in counts.items() if count}


def assert_empty(pipeline: Pipeline) -> None:
    """Assert that nothing of any request is left."""
    assert pipeline.in_flight == 0
    pressure = pipeline._admission.pressure
    for door in pressure.doors:
        assert (door.requests, door.rows, door.late, door.patient) == (0, 0, 0, 0)
        assert (door.named, door.clients) == (0, {})
    assert pressure.patient == 0
    for node in pipeline.nodes:
        assert (node.scheduler.queued, node.scheduler.buckets, node.scheduler.running) == (
            0,
            {},
            {},
        ), node
        assert node.outflow.bytes == 0, node
    for composite in pipeline._graph.composites:
        assert not composite.waiting, composite
        if isinstance(composite, FanOut):
            assert (
                composite.queued,
                [lane.turns for lane in composite._lanes.values() if lane.turns],
            ) == (0, []), composite


@asynccontextmanager
async def serve(
    tables: Mapping[str, Any],
    *,
    workshop: Workshop | None = None,
    name: str = "p",
    clock: Clock | None = None,
) -> AsyncIterator[Pipeline]:
    """Start the pipeline of a file with these tables.

    At the end, assert that nothing is left in it, that no task runs, and that the loop has reported
    no error.
    """
    reported: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    before = asyncio.all_tasks()
    config = Pipeline.load(tables, name=name).config
    pipeline = Pipeline(config) if clock is None else Pipeline(config, clock=clock)
    async with asyncio.timeout(BOUND):
        async with pipeline:
            schedulers = {node._scheduling for node in pipeline.nodes}
            try:
                yield pipeline
            finally:
                if workshop is not None:
                    workshop.release_all()
            await until(lambda: not any(node.scheduler.running for node in pipeline.nodes))
            await turns()
            assert_empty(pipeline)
            assert asyncio.all_tasks() <= before | schedulers
    assert asyncio.all_tasks() <= before
    gc.collect()  # a future whose exception was not retrieved reports that when it is freed
    assert reported == []
