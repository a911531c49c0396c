"""Admission at a pipeline's entry: the one place that may refuse a request for load.

Rule 6 of docs/explanation/scheduling.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from penstock.backends.errors import Overloaded, QueueFull

from ..node.node import Node
from ..node.statistics import RequestStatistics


class Admission:
    """Counts the requests in flight, and estimates whether one more can be answered in time.

    `in_flight` counts requests, `rows` their rows (node/rows.py). A refusal costs no queue, no
    future and no thread.
    """

    __slots__ = (
        "draining",
        "exposed",
        "in_flight",
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
        self.exposed: Sequence[Admission] = ()  # those of the pipeline's exposed nodes
        self.max_requests = max_requests
        self.in_flight = 0
        self.draining: asyncio.Future[None] | None = None
        self.rows = 0
        self.pace = 0.0  # seconds per row at the slowest node; 0 until a batch has run
        self.run_time = 0.0  # seconds an item spends running, over all nodes
        self.refused = {"queue_full": 0, "overloaded": 0}
        self.requests = RequestStatistics(clock)

    def update(self) -> None:
        """Take the new rates after a batch has run."""
        pace = run_time = 0.0
        for node in self.nodes:
            pace = max(pace, node.seconds_per_item)
            run_time += node.statistics.seconds_per_batch
        self.pace = pace
        self.run_time = run_time
        for admission in self.exposed:
            admission.update()

    def check(self, size: int, budget: float, priority: int | None) -> None:
        """Raise `QueueFull` or `Overloaded` if a request of `size` rows should be refused.

        `budget`: the seconds until its deadline. `Pipeline.submit_nowait` calls this only if one of
        the two conditions below holds. It counts the request itself.
        """
        if self.in_flight >= self.max_requests:
            self.refused["queue_full"] += 1
            raise QueueFull(
                f"too many requests in flight: {self.in_flight} "
                f"(max_requests = {self.max_requests})"
            )
        # As if all rows in flight were ahead of it: no finer estimate is larger.
        if (self.rows + size) * self.pace + self.run_time > budget:
            self._estimate(size, budget, priority)

    def leave(self, size: int) -> None:
        """Stop counting a request of `size` rows that has ended."""
        self.in_flight -= 1
        self.rows -= size
        self.settle()

    def end(self, size: int, came: float, failure: str) -> None:
        """Count the end of a request that came at `came`, and stop counting it as in flight.

        `failure`: a key of `RequestStatistics.failures`, or "" for a good end.
        """
        if failure:
            self.requests.fail(failure, came)
        else:
            self.requests.succeed(size, came)
        self.leave(size)

    def settle(self) -> None:
        """Wake the waiter of `wait_empty` if no request is in flight."""
        if self.draining is not None and not self.in_flight and not self.draining.done():
            self.draining.set_result(None)
            self.draining = None

    def wait_empty(self) -> asyncio.Future[None]:
        """Return a future that is done when no request is in flight. There must be one now."""
        if self.draining is None or self.draining.done():
            self.draining = asyncio.get_running_loop().create_future()
        return self.draining

    def _estimate(self, size: int, budget: float, priority: int | None) -> None:
        """Raise `Overloaded` if the request would have to queue, and for too long.

        If a group is idle nothing is refused: the estimate may be wrong, and a run corrects it.
        """
        slowest = max(self.nodes, key=lambda node: node.seconds_per_item, default=None)
        if slowest is None or not slowest.scheduler.would_queue:
            return
        ahead = 0.0
        for node in self.nodes:
            ahead += node.ahead_of(priority) / node.parts_per_item
            if node is slowest:
                break
        if slowest.parts_per_item > 1:  # most parts are not queued there yet
            ahead = max(ahead, self.rows)
        wait = (ahead + size) * self.pace + self.run_time
        if wait > budget:
            self.refused["overloaded"] += 1
            raise Overloaded(
                f"an answer would take about {wait * 1000:.0f} ms ({ahead:.0f} rows ahead at node "
                f"{slowest.name!r}), the deadline is in {budget * 1000:.0f} ms"
            )


class NodeAdmission(Admission):
    """The admission of an exposed node.

    Its requests are in flight in the whole pipeline, and count there; how they end is counted here.
    Make it before any request is in flight.
    """

    __slots__ = ("_whole",)

    def __init__(self, whole: Admission, nodes: Sequence[Node]) -> None:
        self._whole = whole
        super().__init__(whole.max_requests, whole.requests.clock)
        self.nodes = nodes

    @property
    def in_flight(self) -> int:
        return self._whole.in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self._whole.in_flight = count

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
    def draining(  # pyright: ignore[reportIncompatibleVariableOverride]  an attribute as a property
        self, future: asyncio.Future[None] | None
    ) -> None:
        self._whole.draining = future
