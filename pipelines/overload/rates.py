"""How fast a pipeline is, and how many rows may therefore be inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from .estimate import Estimate

LEAST_TARGET_SECONDS = 0.5
TARGET_IN_SHORTEST = 10
"""An admitted request should wait at most as long as this many of the shortest batches."""
BURST_SECONDS = 1.0
PARTS_BURST_SECONDS = 0.5
"""The same for a graph that splits items: what they cost shows late."""


class Station(Protocol):
    """The part of a node with executors that the rule needs."""

    estimate: Estimate
    parts_per_item: float

    @property
    def executor_count(self) -> int: ...
    @property
    def max_rows(self) -> int: ...


class Rates:
    """How fast a pipeline is, and how many rows may therefore be inside. Times are in seconds.

    `best`: per row at the slowest node, at its best size, all executors together; 0 before the
    first batch. `alone`: what a request takes that is alone. `target`: how long an admitted request
    should wait at most. `base`: the rows that may be inside without any other reason. `burst`: how
    long a full queue may be new. `small`: the rows of a batch of the slowest node that show that
    it has time left.
    """

    __slots__ = (
        "_max_wait",
        "_timeout",
        "alone",
        "base",
        "best",
        "burst",
        "slowest",
        "small",
        "target",
    )

    def __init__(self, max_wait: float | None = 0.0, timeout: float = math.inf) -> None:
        """`max_wait`: the target; 0: it follows from the shortest batch, and from `timeout`, after
        which an answer is worth nothing.
        """
        self._max_wait = max_wait
        self._timeout = timeout
        self.best = self.alone = 0.0
        self.target = max_wait or min(LEAST_TARGET_SECONDS, timeout / 2)
        self.base = math.inf
        self.burst = BURST_SECONDS
        self.small = 0
        self.slowest: int | None = None  # its index

    def update(self, nodes: Sequence[Station]) -> None:
        """Take the present estimates of the nodes."""
        best = alone = 0.0
        slowest = None
        splits = False
        for index, node in enumerate(nodes):
            estimate, parts = node.estimate, node.parts_per_item
            per_row = estimate.per_row * parts / max(1, node.executor_count)
            if parts > 1:
                splits = True
                alone += max(estimate.alone, per_row)
            else:
                alone += estimate.alone
            if per_row > best:
                best, slowest = per_row, index
        self.best, self.alone, self.slowest = best, alone, slowest
        self.target = target = self._max_wait or min(
            max(LEAST_TARGET_SECONDS, TARGET_IN_SHORTEST * alone), self._timeout / 2
        )
        self.burst = PARTS_BURST_SECONDS if splits else max(BURST_SECONDS, 2 * alone)
        if slowest is None:
            self.base = math.inf
            return
        node = nodes[slowest]
        good = node.estimate.good_size(node.max_rows)
        self.small = good // 2 if node.estimate.sizes > 1 else 0
        rows = good * max(1, node.executor_count) / node.parts_per_item
        self.base = max(
            2 * rows, target / best
        )  # a batch to run and one to queue, at each executor
