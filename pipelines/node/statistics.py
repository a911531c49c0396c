"""Plain counters: what a node and a pipeline did. Exposition formats are made from them at scrape, elsewhere."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from penstock.backends.errors import DeadlineExceeded, InvalidInput, NotReady

from .queue import Batch

SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts by bucket, `bounds` inclusive above, one more for what is larger than the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Observe several; cheap where they fall into one bucket, as the queue times of a batch mostly do."""
        self.sum += sum(values)
        low = bisect_left(self.bounds, min(values))
        if bisect_left(self.bounds, max(values)) == low:
            self.counts[low] += len(values)
        else:
            for value in values:
                self.counts[bisect_left(self.bounds, value)] += 1

    @property
    def count(self) -> int:
        return sum(self.counts)


class RequestStatistics:
    """How the requests of a pipeline ended, from wherever they came. What was refused at the entry is in `Admission.refused`.

    `succeeded`, `rows` (their `request_size`) and seconds are of the good ones; `run.py` keeps them by itself, for speed. `seconds`: from
    their first queue to their answer, of which `queued` until something of them ran, and `computed` from then on. `reading` and
    `writing`: what a network's face spent on their tensors before and after.
    `failures`: soft (an input that can't be read), failed, expired, cancelled, unready (the pipeline was closed under it), unwritten (it
    had an answer, which the network's face could not write).
    """

    __slots__ = (
        "_between",
        "clock",
        "failed_seconds",
        "failures",
        "queued",
        "reading",
        "rows",
        "seconds",
        "succeeded",
        "writing",
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.succeeded = 0
        self.rows = 0
        self.seconds = self.queued = self.reading = self.writing = 0.0
        self._between = (
            0.0  # seconds of graphs in which nothing of a request queued and nothing ran
        )
        self.failures: dict[str, int] = dict.fromkeys(
            ("soft", "failed", "expired", "cancelled", "unready", "unwritten"), 0
        )
        self.failed_seconds = 0.0

    @property
    def computed(self) -> float:
        return self.seconds - self.queued - self._between

    def spend(self, queued: float, computed: float) -> None:
        """Where the time of a good request went."""
        self.queued += queued
        self._between -= queued + computed

    def succeed(self, size: int, since: float) -> None:
        """A request of `size` rows that came at `since` has its answer; `spend` has been told the rest."""
        self.succeeded += 1
        self.rows += size
        seconds = self.clock() - since
        self.seconds += seconds
        self._between += seconds

    def fail(self, how: str, since: float) -> None:
        self.failures[how] += 1
        self.failed_seconds += self.clock() - since

    def take_back(self, size: int) -> None:
        """A request of `size` rows that has succeeded a moment ago has failed: its answer could not be written."""
        self.succeeded -= 1
        self.rows -= size
        self.failures["unwritten"] += 1


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasted, of spans from a start to an end."""
    total = 0.0
    until = -math.inf
    for start, end in sorted(spans):
        if end > until:
            total += end - max(start, until)
            until = end
    return total


def kind_of_failure(error: BaseException) -> str:
    """The name that `RequestStatistics.failures` has for it."""
    if isinstance(error, InvalidInput):
        return "soft"
    if isinstance(error, DeadlineExceeded):
        return "expired"
    return "unready" if isinstance(error, NotReady) else "failed"


class NodeStatistics:
    """Counters of one node, and the rate of its last 32 batches (warm-up never counts: it is no batch).

    `outcomes`: items by how they left the node: ok, soft (unreadable), failed, expired (queued or late), cancelled.
    `sizes`: by rows, how many batches there were and the seconds that they ran. `last`: when the last batch ended, on the node's clock.
    """

    __slots__ = (
        "_recent", "_recent_seconds", "_recent_size", "batch_seconds", "batch_size", "batches", "last", "outcomes", "queue_seconds",
        "restarts", "seconds_per_batch", "seconds_per_item", "sizes",
    )  # fmt: skip

    RECENT = 32

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(
            ("ok", "soft", "failed", "expired", "cancelled"), 0
        )
        self.queue_seconds = Histogram(SECONDS)
        self.batch_seconds = Histogram(SECONDS)
        self.batch_size = Histogram(SIZES)
        self.sizes: dict[int, list[float]] = {}
        self.last: float | None = None
        self.restarts = 0
        self._recent: list[tuple[int, float]] = []  # a ring, at most RECENT long
        self._recent_size = 0
        self._recent_seconds = 0.0
        self.batches = 0
        self.seconds_per_item = 0.0  # executor time that a row costs, lately
        self.seconds_per_batch = 0.0  # how long a batch takes, lately

    def observe_batch(self, batch: Batch) -> None:
        """Count a batch that has run, and its items as ok; `count` moves those that are not."""
        started = batch.started
        size = batch.size
        seconds = batch.ended - started
        self.outcomes["ok"] += len(batch.entries)
        self.queue_seconds.observe_all([started - entry.enqueued for entry in batch.entries])
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)
        self.last = batch.ended
        found = self.sizes.get(size)
        if found is None:
            self.sizes[size] = [1, seconds]
        else:
            found[0] += 1
            found[1] += seconds
        self._recent_size += size
        self._recent_seconds += seconds
        if len(self._recent) < self.RECENT:
            self._recent.append((size, seconds))
        else:
            slot = self.batches % self.RECENT
            old_size, old_seconds = self._recent[slot]
            self._recent_size -= old_size
            self._recent_seconds -= old_seconds
            self._recent[slot] = size, seconds
        self.batches += 1
        self.seconds_per_item = self._recent_seconds / self._recent_size
        self.seconds_per_batch = self._recent_seconds / len(self._recent)

    def count(self, outcome: str) -> None:
        """An item of an observed batch was not ok."""
        self.outcomes["ok"] -= 1
        self.outcomes[outcome] += 1
