"""The asyncio face: a loaded pipeline, its life, and how requests come in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from penstock.backends.errors import InvalidRequest, MissingData, NotFound, NotReady
from penstock.backends.item import Item
from penstock.backends.suggestions import did_you_mean

from .admission import Admission
from .config import PipelineConfig, load
from .node import Node
from .run import Run

logger = logging.getLogger("penstock.pipeline")


class Pipeline:
    """A pipeline, loaded and checked. Serves between `start` and `close`, or inside `async with`.

    ```python
    async with Pipeline.load("digits.toml") as pipeline:
        answer = await pipeline({"data": png_bytes})
    ```
    """

    def __init__(self, config: PipelineConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.name = config.name
        self.answer_keys = ("result", *(port.name for port in config.outputs if port.name != "result"))  # what a network client gets
        self.nodes: tuple[Node, ...] = ()
        self.state = "created"  # then loading, ready, draining, closed
        self._clock = clock
        self.entry: Node
        self._loop: asyncio.AbstractEventLoop | None = None
        self._create_future: Callable[[], asyncio.Future[Item]]
        self._admission = Admission(config.max_requests)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], *, name: str | None = None) -> Self:
        """Read and check a pipeline: a TOML file, a dict of node dicts, a flat dict (one node), or an expression string.

        Raises `ConfigError` with every problem found; `TypeError` for another type of source. Nothing is started.
        """
        return cls(load(source, name=name))

    def __repr__(self) -> str:
        active = sum(len(node.scheduler.running) for node in self.nodes)
        queued = sum(node.scheduler.queued for node in self.nodes)
        return f"<Pipeline {self.name}: {self.state}, {active} active, {queued} queued>"

    # life

    async def start(self) -> None:
        """Load every backend on its executor thread and warm it up. Raises `BackendError` if one can't be; nothing is left running then."""
        if self.state != "created":
            raise RuntimeError(f"pipeline {self.name!r} was started before; load it again")
        self.state = "loading"
        loop = self._loop = asyncio.get_running_loop()
        self._create_future = loop.create_future
        update = self._admission.update
        self.nodes = nodes = tuple(Node(config, self.config, loop, self._clock, update) for config in self.config.nodes.values())
        self._admission.nodes = nodes
        for node, following in pairwise(nodes):
            node.next = following
        self.entry = nodes[0]
        starting = [asyncio.ensure_future(node.start()) for node in nodes]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            await asyncio.wait([*starting, asyncio.ensure_future(self.close(0))])
            raise
        if self.state != "loading":
            raise NotReady(f"pipeline {self.name!r} was closed while it loaded")
        self.state = "ready"

    async def close(self, timeout: float = 10.0) -> None:
        """Take nothing more in, let what is inside end within `timeout` seconds, fail the rest with `NotReady`, end the threads.

        Idempotent; while one call drains, another one with a shorter timeout ends it sooner. A thread that runs native code can't be
        killed: after its bound it is reported and left behind.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        if self.state != "closed":
            self.state = "draining"
            if self._admission.inside and timeout > 0:
                await asyncio.wait([self._admission.wait_empty()], timeout=timeout)
            self.state = "closed"
        left = max(ends - loop.time(), 1.0)  # for the threads to end; a second at least
        await asyncio.gather(*[node.close(left) for node in self.nodes])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    @property
    def not_ready(self) -> str:
        """Why the pipeline is not ready; empty if it is."""
        if self.state != "ready":
            return f"pipeline {self.name!r} is {self.state}"
        return "; ".join(reason for node in self.nodes if (reason := node.not_ready))

    @property
    def inside(self) -> int:
        """Requests that were admitted and have not ended."""
        return self._admission.inside

    @property
    def refused(self) -> dict[str, int]:
        """How many requests were refused at admission, by code."""
        return self._admission.refused

    # requests

    @overload
    async def __call__(self, item: Mapping[str, Any], *, timeout: float | None = None, priority: int | None = None) -> Item: ...
    @overload
    async def __call__(
        self, item: Sequence[Mapping[str, Any]], *, timeout: float | None = None, priority: int | None = None
    ) -> list[Item]: ...
    async def __call__(
        self, item: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, timeout: float | None = None, priority: int | None = None
    ) -> Item | list[Item]:
        """Run one item, or a list of items as one call, and return new dicts: the final items, `data` as the caller gave it.

        The caller's dict is not changed, and must not be changed by others, until the call returns.

        `timeout`: seconds until the deadline, at most the pipeline's own. `priority`: 1 (highest) to the entry node's `priority_levels`.

        Raises `InvalidInput` for a soft failure (in a list it stays with its item, as `error`), `MissingData`, `QueueFull`, `Overloaded`,
        `NotReady`, `DeadlineExceeded`, `BackendError`. An exception in one item of a list cancels the others. RuntimeError in another
        event loop than that of `start`.
        """
        if asyncio._get_running_loop() is not self._loop and self._loop is not None:
            raise RuntimeError(
                f"pipeline {self.name!r} was started in another event loop than this one, and can be called in that one only: load it "
                "once for each loop, or use `penstock.pipe`, which takes calls from any thread"
            )
        if type(item) is not dict and isinstance(item, (list, tuple)):
            return await self._call_many(item, timeout, priority)
        run = self.submit_nowait(as_item(item), timeout, priority)
        try:
            answer: Item = await run.future
        except BaseException:
            run.leave()
            raise
        if "error" in answer:
            raise answer["error"]
        return answer

    async def _call_many(self, items: Sequence[Mapping[str, Any]], timeout: float | None, priority: int | None) -> list[Item]:
        runs: list[Run] = []
        try:
            for item in items:
                runs.append(self.submit_nowait(as_item(item), timeout, priority))  # noqa: PERF401  those inside are left if one is refused
            answers: list[Item] = await asyncio.gather(*[run.future for run in runs])
            return answers
        finally:
            for run in runs:
                run.leave()

    def submit_nowait(
        self, item: Item, timeout: float | None = None, priority: int | None = None, future: asyncio.Future[Item] | None = None
    ) -> Run:
        """Admit a request and queue it at the entry, or at the item's `node_name`. The item is read until the request ends, never
        changed; it holds neither `result` nor `error`.

        Await `run.future` for the final item (a soft failure is in its `error`), and call `run.leave` if that wait is cancelled.
        `future`: takes the answer in place of one of the loop's own.
        Raises what `__call__` raises at once: `MissingData`, `InvalidRequest`, `NotFound`, `QueueFull`, `Overloaded`, `NotReady`.
        """
        if self.state != "ready":
            raise NotReady(f"pipeline {self.name!r} is {self.state}")
        if "data" not in item:
            raise MissingData(f"pipeline {self.name!r}: the item has no 'data'; its keys are {sorted(map(str, item))}")
        limit = self.config.timeout
        if timeout is None or not timeout <= limit:  # not a number is no limit either
            timeout = limit
        size = self._size_of(item) if "request_size" in item else 1
        if priority is not None:
            self._check_priority(priority)
        node = self.entry if "node_name" not in item else self._node_named(item["node_name"])
        # Admission's books are kept here and in `finish`, not by calls: this is the hot path.
        admission = self._admission
        rows = admission.rows + size
        if admission.inside >= admission.max_requests or rows * admission.pace + admission.run_time > timeout:
            admission.check(size, timeout, priority)
        admission.inside += 1
        admission.rows = rows
        now = self._clock()
        run = Run(item, self._create_future() if future is None else future, now + timeout, priority, size, admission, node)
        node.enqueue(run, now)
        return run

    def _node_named(self, name: Any) -> Node:
        """Where an item with `node_name` enters: in a chain any node may be the entry, since what follows needs nothing else."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = [node.name for node in self.nodes]
        hint = did_you_mean(name, names) if isinstance(name, str) else ""
        raise NotFound(f"pipeline {self.name!r} has no node {name!r} (node_name){hint}; its nodes are {', '.join(names)}")

    def check_admission(self, timeout: float | None = None, priority: int | None = None) -> None:
        """Raise `NotReady`, `QueueFull` or `Overloaded` if `submit_nowait` would now. For callers to whom the item's data has yet to come:
        under overload, what is refused should not cost its transport too.
        """
        if self.state != "ready":
            raise NotReady(f"pipeline {self.name!r} is {self.state}")
        limit = self.config.timeout
        budget = limit if timeout is None or timeout > limit else timeout
        admission = self._admission
        if admission.inside >= admission.max_requests or (admission.rows + 1) * admission.pace + admission.run_time > budget:
            admission.check(1, budget, priority)

    def _check_priority(self, priority: int) -> None:
        levels = self.entry.config.priority_levels
        if not levels:
            raise InvalidRequest(
                f"pipeline {self.name!r} has no priorities (node {self.entry.name!r} sets no priority_levels); got priority {priority}"
            )
        if not 1 <= priority <= levels:
            raise InvalidRequest(f"pipeline {self.name!r} has {levels} priority levels, 1 is the highest; got priority {priority}")

    def _size_of(self, item: Item) -> int:
        size = item["request_size"]
        if not isinstance(size, int) or size < 1:
            raise InvalidRequest(f"pipeline {self.name!r}: 'request_size' is a positive int, the rows of this item; got {size!r}")
        bound = min(node.scheduler.max for node in self.nodes)
        if size > bound:
            raise InvalidRequest(f"inference request batch-size must be <= {bound} for {self.name!r}; got {size}")
        return size


def as_item(item: Any) -> Item:
    """The caller's item, without what an earlier call may have left in it. Raises `TypeError`.

    It is copied only where that is needed: each node works on a copy anyway, made when its batch starts.
    """
    if type(item) is not dict:
        if not isinstance(item, Mapping):
            raise TypeError(f"an item is a dict with 'data', or a list of such; got {type(item).__name__}")
        item = dict(item)
    if "result" in item or "error" in item:
        return {key: value for key, value in item.items() if key not in ("result", "error")}
    return item  # type: ignore[no-any-return]
