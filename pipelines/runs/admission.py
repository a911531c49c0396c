"""Admission: the one place where a request may be refused for load, at the pipeline's entry (docs/explanation/scheduling.md, rule 6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from penstock.backends.errors import Overloaded, QueueFull

from ..node.node import Node
from ..node.statistics import RequestStatistics


class Admission:
    """Counts what is inside, and estimates whether one more can be answered in time.

    `inside` counts requests, `rows` their `request_size`. A refusal costs no queue, no future and no thread.
    """

    __slots__ = (
        "beside",
        "draining",
        "inside",
        "max_requests",
        "nodes",
        "pace",
        "refused",
        "requests",
        "rows",
        "run_time",
    )

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.nodes: Sequence[Node] = ()
        self.beside: Sequence[Admission] = ()  # of the pipeline's exposed nodes
        self.max_requests = max_requests
        self.inside = 0
        self.draining: asyncio.Future[None] | None = None
        self.rows = 0
        self.pace = 0.0  # seconds per row at the slowest node; 0 until a batch has run
        self.run_time = 0.0  # seconds an item spends running, over all nodes
        self.refused = {"queue_full": 0, "overloaded": 0}
        self.requests = RequestStatistics(clock)

    def update(self) -> None:
        """A batch has run: the rates have changed."""
        pace = run_time = 0.0
        for node in self.nodes:
            pace = max(pace, node.seconds_per_item)
            run_time += node.statistics.seconds_per_batch
        self.pace = pace
        self.run_time = run_time
        for each in self.beside:
            each.update()

    def check(self, size: int, budget: float, priority: int | None) -> None:
        """Raise `QueueFull` or `Overloaded` if a request of `size` rows with `budget` seconds left should not come in.

        `Pipeline.submit_nowait` asks only where the bound is reached or the first condition below holds, and keeps the books itself.
        """
        if self.inside >= self.max_requests:
            self.refused["queue_full"] += 1
            raise QueueFull(
                f"{self.inside} requests are inside, no more than {self.max_requests} (max_requests) may be"
            )
        if (
            (self.rows + size) * self.pace + self.run_time > budget
        ):  # as if all rows inside were ahead: no finer estimate is larger
            self._estimate(size, budget, priority)

    def leave(self, size: int) -> None:
        """A request has ended, of `size` rows."""
        self.inside -= 1
        self.rows -= size
        self.settle()

    def end(self, size: int, came: float, failure: str) -> None:
        """A request has ended that came at `came`. `failure`: as `RequestStatistics` calls it; "" for a good end."""
        if failure:
            self.requests.fail(failure, came)
        else:
            self.requests.succeed(size, came)
        self.leave(size)

    def settle(self) -> None:
        """Tell who waits for it that nobody is inside any more."""
        if self.draining is not None and not self.inside and not self.draining.done():
            self.draining.set_result(None)
            self.draining = None

    def wait_empty(self) -> asyncio.Future[None]:
        """A future that ends when nobody is inside any more. Somebody must be."""
        if self.draining is None or self.draining.done():
            self.draining = asyncio.get_running_loop().create_future()
        return self.draining

    def _estimate(self, size: int, budget: float, priority: int | None) -> None:
        """Refuse only what would have to queue: where a group is idle an estimate may be wrong, and running corrects it."""
        slowest = max(self.nodes, key=lambda node: node.seconds_per_item, default=None)
        if slowest is None or not slowest.scheduler.would_queue:
            return
        ahead = 0.0
        for node in self.nodes:
            ahead += node.ahead_of(priority) / node.parts_per_item
            if node is slowest:
                break
        if slowest.parts_per_item > 1:  # most parts do not queue there yet
            ahead = max(ahead, self.rows)
        wait = (ahead + size) * self.pace + self.run_time
        if wait > budget:
            self.refused["overloaded"] += 1
            raise Overloaded(
                f"an answer would take about {wait * 1000:.0f} ms ({ahead:.0f} rows ahead at node {slowest.name!r}), "
                f"the deadline is in {budget * 1000:.0f} ms"
            )


class NodeAdmission(Admission):
    """Of an exposed node. What comes in there is inside the pipeline, and counts there; how it ends is counted here.

    To be made before anything is inside.
    """

    __slots__ = ("_whole",)

    def __init__(self, whole: Admission, nodes: Sequence[Node]) -> None:
        self._whole = whole
        super().__init__(whole.max_requests, whole.requests.clock)
        self.nodes = nodes

    @property
    def inside(self) -> int:
        return self._whole.inside

    @inside.setter
    def inside(self, count: int) -> None:
        self._whole.inside = count

    @property
    def rows(self) -> int:
        return self._whole.rows

    @rows.setter
    def rows(self, count: int) -> None:
        self._whole.rows = count

    @property
    def draining(self) -> asyncio.Future[None] | None:
        return self._whole.draining

    @draining.setter
    def draining(self, future: asyncio.Future[None] | None) -> None:
        self._whole.draining = future
