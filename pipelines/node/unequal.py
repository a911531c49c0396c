"""Executors on devices of different kinds: rule 10 of docs/explanation/scheduling.md."""

from __future__ import annotations

from collections.abc import Sequence
from math import nextafter
from typing import Any

from penstock.backends.base import UNBOUNDED

from ..overload.estimate import Estimate
from .queue import NEVER, Batch, Bucket, Entry
from .scheduler import Scheduler, Startable

UNEQUAL = 1.3
"""A device is slower than another one if it takes so many times as long for as many rows."""
LEAST_BATCHES = 8
"""Until each device has run so many batches, nothing is known of their speeds."""
SPEED_WEIGHT = 0.05
"""The weight of a new batch in the speed of its device: equal devices must not seem unequal."""
OBSERVED_SECONDS = 0.002
"""After its first batches a device's speed is learned from a batch this often."""
EARLY_BATCHES = 100


class Speeds:
    """The seconds of a batch on each device of a node, by its rows, as measured.

    `unequal`: one device is slower than another one. `learning`: one has run too few batches.
    """

    __slots__ = ("_estimates", "_next", "learning", "unequal")

    def __init__(self) -> None:
        self._estimates: dict[str, Estimate] = {}
        self._next: dict[str, float] = {}  # when to learn from a batch again
        self.learning = self.unequal = False

    def add(self, device: str) -> None:
        """Measure a device from now on, afresh if it was known: it may have been replaced."""
        self._estimates[device] = Estimate(SPEED_WEIGHT)
        self._next[device] = 0.0
        self._compare(1)

    def forget(self, device: str) -> None:
        """Measure a device no longer: nothing runs there."""
        self._estimates.pop(device, None)
        self.learning = self.unequal = False
        if self._estimates:
            self._compare(1)

    def observe(self, device: str, rows: int, started: float, ended: float) -> None:
        """Learn from a batch that has run. Times are seconds."""
        if ended < self._next[device]:
            return
        estimate = self._estimates[device]
        estimate.observe(rows, ended - started)
        if estimate.batches > EARLY_BATCHES:
            self._next[device] = ended + OBSERVED_SECONDS
        self._compare(rows)

    def _compare(self, rows: int) -> None:
        estimates = self._estimates.values()
        self.learning = len(estimates) > 1 and any(
            estimate.batches < LEAST_BATCHES for estimate in estimates
        )
        seconds = [estimate.seconds(rows) for estimate in estimates]
        self.unequal = not self.learning and max(seconds) > UNEQUAL * min(seconds)

    def batches(self, device: str) -> int:
        return self._estimates[device].batches

    def seconds(self, device: str, rows: float) -> float:
        """Return the seconds of a batch on a device."""
        return self._estimates[device].seconds(rows)

    def rows_within(self, device: str, seconds: float, most: int) -> int:
        """Return the most rows, up to `most`, that a device runs within some seconds; 0: none."""
        take = self._estimates[device].seconds
        if take(most) <= seconds:
            return most
        low, high = 0, most  # `high` takes longer
        while high - low > 1:
            middle = (low + high) // 2
            if take(middle) <= seconds:
                low = middle
            else:
                high = middle
        return low


class DeviceScheduler(Scheduler):
    """The scheduler of a node whose instances are on several devices.

    Each batch goes where it is expected to end first. While the devices are equal it decides as
    any other scheduler does.
    """

    __slots__ = ("_queues_since", "_waits_until", "speeds")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.speeds = Speeds()
        self._waits_until = NEVER
        self._queues_since: float | None = None  # since when decisions have left items in the queue

    def add(self, executor: Startable) -> None:
        super().add(executor)
        self.speeds.add(executor.device)

    def remove(self, executor: Startable) -> Batch | None:
        batch = super().remove(executor)
        if not any(other.device == executor.device for other in (*self.idle, *self.running)):
            self.speeds.forget(executor.device)
        return batch

    def decide(self, now: float) -> float:
        self._waits_until = NEVER
        wake = super().decide(now)
        if not self.queued:
            self._queues_since = None
        elif self._queues_since is None:
            self._queues_since = now
        return min(wake, self._waits_until)

    def _executor_for(
        self, bucket: Bucket, head: Entry, now: float, idle: Sequence[Startable] | None = None
    ) -> Startable | None:
        speeds = self.speeds
        self.limit = UNBOUNDED
        if not speeds.unequal and not speeds.learning:
            return super()._executor_for(bucket, head, now)
        for kind in self._kinds(bucket.size):
            executor = super()._executor_for(bucket, head, now, kind)
            if executor is not None:
                return executor if speeds.learning else self._bounded(executor, bucket, head, now)
        return None

    def _kinds(self, rows: int) -> list[list[Startable]]:
        """Return the idle executors by the speed of their devices, the fastest first.

        While the speeds are not known, those of the device that has run the fewest batches.
        """
        speeds = self.speeds
        if speeds.learning:
            by_batches: dict[float, list[Startable]] = {}
            for executor in self.idle:
                by_batches.setdefault(speeds.batches(executor.device), []).append(executor)
            return [by_batches[batches] for batches in sorted(by_batches)]
        seconds = {
            executor: speeds.seconds(executor.device, min(rows, executor.max))
            for executor in self.idle
        }
        fastest: list[float] = []  # of each kind
        for each in sorted(seconds.values()):
            if not fastest or each > UNEQUAL * fastest[-1]:
                fastest.append(each)
        bounds = [*fastest[1:], NEVER]
        return [
            [executor for executor, each in seconds.items() if low <= each < high]
            for low, high in zip(fastest, bounds, strict=True)
        ]

    def _bounded(
        self, executor: Startable, bucket: Bucket, head: Entry, now: float
    ) -> Startable | None:
        """Bound the batch of an executor to what it ends before faster ones have done all that
        queues. None if that is not even the head.
        """
        speeds = self.speeds
        rows = min(bucket.size, executor.max)
        own = speeds.seconds(executor.device, rows)
        ends: list[float] = []
        rate, shortest = 0.0, NEVER
        for other, batch in self.running.items():
            seconds = speeds.seconds(other.device, min(rows, other.max))
            if other.max < head.size or not other.ready or batch.stuck or own <= UNEQUAL * seconds:
                continue
            ends.append(batch.started + speeds.seconds(other.device, batch.size))
            rate += other.max / max(1e-9, speeds.seconds(other.device, other.max))
            shortest = min(shortest, speeds.seconds(other.device, min(self.queued, other.max)))
        if not ends:
            return executor
        within = max(0.0, min(ends) - now) + max(self.queued / rate, shortest)
        # A queue that has lasted for so long is likely to last as long again.
        since = self._queues_since if self._queues_since is not None else now
        within = max(within, now - since)
        self.limit = speeds.rows_within(executor.device, within, executor.max)
        if self.limit >= head.size:
            return executor
        until = since + speeds.seconds(executor.device, head.size)
        self._waits_until = min(self._waits_until, max(until, nextafter(now, NEVER)))
        return None
