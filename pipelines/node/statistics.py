"""Plain counters of nodes and pipelines. The metrics endpoint formats them when it is scraped."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from penstock.backends.errors import DeadlineExceeded, InvalidInput, NotReady

from ..overload.estimate import Estimate
from ..overload.ticket import GIVEN_UP
from .queue import Batch

SECONDS_BOUNDS = (
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
ESTIMATE_SECONDS = 0.002
"""The estimate learns from a batch this often, and from each of the first `EARLY_BATCHES`."""
EARLY_BATCHES = 100
BATCH_SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts by bucket. Upper bounds are inclusive; one more bucket counts all larger values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, value: float, count: int) -> None:
        """Observe the same value `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def observe_all(self, values: Sequence[float]) -> None:
        """Observe several values. Cheap if all are in one bucket, as a batch's queue times are."""
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
    """Counters of how the requests of a pipeline ended. `Admission.refused` counts refusals.

    `succeeded` counts good requests, and `rows` their rows (rows.py). Their times are seconds:
    `seconds` from the first queue to the answer, `queued` while nothing of a request ran,
    `computed` while something did, `reading` and `writing` what a network protocol spent on their
    tensors before and after. `run.py` updates the first five without a call, for speed.

    `failures`: soft (the input can't be read), failed, expired, cancelled, unready (the pipeline
    was closed meanwhile), unwritten (a network protocol could not write the answer).

    `hits` counts good requests that were answered from a cache, and took `hit_seconds` together;
    `joined` are those of them that got the answer of an equal request under way, for which they
    waited `joined_seconds` more. None of them is in `succeeded`, nor in `seconds`. `misses` counts
    those that were looked up and ran, `miss_seconds` is what looking up and keeping took.
    `uncached` could not be looked up.

    `given_up` counts those that were cancelled or expired after more than `patience` seconds.
    """

    __slots__ = (
        "_between",
        "clock",
        "failed_seconds",
        "failures",
        "given_up",
        "hit_seconds",
        "hits",
        "joined",
        "joined_seconds",
        "miss_seconds",
        "misses",
        "patience",
        "queued",
        "reading",
        "rows",
        "seconds",
        "succeeded",
        "uncached",
        "writing",
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.succeeded = 0
        self.rows = 0
        self.seconds = self.queued = self.reading = self.writing = 0.0
        # Seconds in which nothing of a request queued and nothing ran (graphs only).
        self._between = 0.0
        self.failures: dict[str, int] = dict.fromkeys(
            ("soft", "failed", "expired", "cancelled", "unready", "unwritten"), 0
        )
        self.failed_seconds = 0.0
        self.given_up = 0
        self.patience = math.inf
        self.hits = self.joined = self.misses = self.uncached = 0
        self.hit_seconds = self.joined_seconds = self.miss_seconds = 0.0

    @property
    def answered(self) -> int:
        """All good requests, also those for which nothing ran."""
        return self.succeeded + self.hits

    @property
    def computed(self) -> float:
        return self.seconds - self.queued - self._between

    def spend(self, queued: float, computed: float) -> None:
        """Add the time that a good request queued and ran."""
        self.queued += queued
        self._between -= queued + computed

    def wait(self, seconds: float, how: str) -> None:
        """Add the time that a step of a sequence waited for its turn: it queued.

        `how`: a key of `failures`, or "" for a good request.
        """
        if how:
            self.failed_seconds += seconds
        else:
            self.seconds += seconds
            self.queued += seconds

    def succeed(self, size: int, since: float) -> None:
        """Count a request of `size` rows that came at `since` and has its answer.

        `spend` adds the times that it queued and ran.
        """
        self.succeeded += 1
        self.rows += size
        seconds = self.clock() - since
        self.seconds += seconds
        self._between += seconds

    def fail(self, how: str, since: float) -> None:
        """Count a request that came at `since` and failed; `how` is a key of `failures`."""
        self.failures[how] += 1
        seconds = self.clock() - since
        self.failed_seconds += seconds
        if how in GIVEN_UP and seconds > self.patience:
            self.given_up += 1

    def answer_from_cache(self, since: float, *, joined: bool = False) -> None:
        """Count a request that came at `since` and has its answer without a run of its own."""
        self.hits += 1
        seconds = self.clock() - since
        if joined:
            self.joined += 1
            self.joined_seconds += seconds
        else:
            self.hit_seconds += seconds

    def take_back(self, size: int) -> None:
        """Count a request as unwritten that was counted as good a moment ago.

        `size`: its rows; 0 if it was answered from a cache.
        """
        if size:
            self.succeeded -= 1
            self.rows -= size
        else:
            self.hits -= 1
        self.failures["unwritten"] += 1


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the spans (start, end) lasted."""
    total = 0.0
    until = -math.inf
    for start, end in sorted(spans):
        if end > until:
            total += end - max(start, until)
            until = end
    return total


def kind_of_failure(error: BaseException) -> str:
    """Return the key of `RequestStatistics.failures` for this error."""
    if isinstance(error, InvalidInput):
        return "soft"
    if isinstance(error, DeadlineExceeded):
        return "expired"
    return "unready" if isinstance(error, NotReady) else "failed"


class NodeStatistics:
    """Counters of one node, and the estimate of its batches' times. Warm-up is not counted.

    `outcomes`: items by how they left the node: ok, soft (unreadable), failed, expired (while they
    queued, or late), cancelled. `sizes`: by number of rows, how many batches ran, and for how many
    seconds. `last`: when the last batch ended, on the node's clock.
    """

    __slots__ = (
        "_estimate_at",
        "batch_seconds",
        "estimate",
        "last",
        "outcomes",
        "queue_seconds",
        "restarts",
        "sizes",
    )

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(
            ("ok", "soft", "failed", "expired", "cancelled"), 0
        )
        self.queue_seconds = Histogram(SECONDS_BOUNDS)
        self.batch_seconds = Histogram(SECONDS_BOUNDS)
        self.sizes: dict[int, list[float]] = {}
        self.last: float | None = None
        self.restarts = 0
        self.estimate = Estimate()
        self._estimate_at = -math.inf

    @property
    def batches(self) -> int:
        """The number of batches that have run."""
        return sum(int(count) for count, _ in self.sizes.values())

    @property
    def batch_size(self) -> Histogram:
        """The rows of the batches. Made when it is read, from `sizes`."""
        histogram = Histogram(BATCH_SIZE_BOUNDS)
        for size, (count, _) in self.sizes.items():
            histogram.add(size, int(count))
        return histogram

    def observe_batch(self, batch: Batch) -> None:
        """Count a batch that has run. Its items count as ok; `count` corrects that."""
        entries = batch.entries
        started = batch.started
        size = batch.size
        seconds = batch.ended - started
        self.outcomes["ok"] += len(entries)
        if len(entries) == 1:
            self.queue_seconds.observe(started - entries[0].enqueued)
        else:
            self.queue_seconds.observe_all([started - entry.enqueued for entry in entries])
        self.batch_seconds.observe(seconds)
        self.last = batch.ended
        total = self.sizes.get(size)
        if total is None:
            self.sizes[size] = [1, seconds]
        else:
            total[0] += 1
            total[1] += seconds
        if batch.ended >= self._estimate_at and not batch.hung:
            self.estimate.observe(size, seconds)
            if self.estimate.batches > EARLY_BATCHES:
                self._estimate_at = batch.ended + ESTIMATE_SECONDS

    def count(self, outcome: str) -> None:
        """Count an item of an observed batch as something else than ok."""
        self.outcomes["ok"] -= 1
        self.outcomes[outcome] += 1
