"""The decision: which batch starts now, and on which executor.

`Scheduler.decide` is synchronous. It reads the queue, the executors and the time that it is given,
starts batches, and returns when it wants to be called next. All waiting is in `node.py`, which
calls it after every change: items arrived, a caller left, a timer fired, an executor reported.
docs/explanation/scheduling.md has the rules; comments here give their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from penstock.backends.errors import BackendError

from .outflow import Outflow
from .queue import NEVER, Batch, Bucket, Entry, fail_all


class DeviceGroup:
    """The executors of one node that share a device. On the CPU each executor is its own group."""

    __slots__ = ("busy", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy = 0  # running executors

    def __repr__(self) -> str:
        return f"<DeviceGroup {self.name}: {self.busy} busy>"


class Startable(Protocol):
    """The part of an executor that the decision needs."""

    device_group: DeviceGroup
    max: int

    @property
    def ready(self) -> bool: ...

    def start(self, batch: Batch) -> None: ...


class Scheduler:
    """The queue, the executors and the decision of one node.

    `batching_timeout` and `stuck_after` are seconds. Three functions are called during a decision:
    `on_expired` with each entry whose deadline came while it queued, `on_stuck` with each batch
    that has run for `stuck_after`, and `on_start` with each batch as it starts. They may queue more
    entries.
    """

    __slots__ = (
        "_arrivals",
        "_earliest",
        "batching_timeout",
        "buckets",
        "idle",
        "levels",
        "max",
        "name",
        "on_expired",
        "on_start",
        "on_stuck",
        "outflow",
        "queued",
        "running",
        "stuck_after",
    )

    def __init__(
        self,
        name: str,
        *,
        batching_timeout: float = 0.0,
        priority_levels: int = 0,
        stuck_after: float = 60.0,
        on_expired: Callable[[Entry], None],
        on_stuck: Callable[[Batch], None],
        on_start: Callable[[Batch], None] | None = None,
    ) -> None:
        self.name = name
        self.batching_timeout = batching_timeout
        self.levels = priority_levels or 1
        self.stuck_after = stuck_after
        self.on_expired = on_expired
        self.on_stuck = on_stuck
        self.on_start = on_start
        self.outflow = Outflow()
        self.buckets: dict[Hashable, Bucket] = {}  # none of them empty
        self.idle: list[Startable] = []  # the executor that ran last is last
        self.running: dict[Startable, Batch] = {}
        self.queued = 0  # sum of the queued entries' sizes
        self.max = 1  # the largest batch that any executor has taken: no larger entry may queue
        self._arrivals = 0
        # No queued entry expires before this. It may be too early, but never too late.
        self._earliest = NEVER

    def __repr__(self) -> str:
        active, idle = len(self.running), len(self.idle)
        return f"<Scheduler {self.name}: {active} active, {idle} idle, {self.queued} queued>"

    # changes, each followed by a decision

    def enqueue(self, entry: Entry, key: Hashable, now: float) -> None:
        """Add an entry to the end of its bucket."""
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = Bucket(key, self.levels)
        self._arrivals += 1
        entry.arrival = self._arrivals
        entry.enqueued = now
        entry.bucket = bucket
        bucket.levels[entry.priority].append(entry)
        size = entry.size
        bucket.size += size
        self.queued += size
        if entry.deadline < self._earliest:  # noqa: PLR1730  a call costs more
            self._earliest = entry.deadline

    def discard(self, entry: Entry) -> bool:
        """Drop a queued entry whose caller left. Return whether the entry was queued."""
        bucket = entry.bucket
        if not bucket.remove(entry):
            return False
        self._settle(bucket, entry.size)
        return True

    def add(self, executor: Startable) -> None:
        """Take a new executor into use."""
        self.idle.append(executor)
        self.max = max(self.max, executor.max)

    def release(self, executor: Startable) -> None:
        """Make the executor idle: its batch has ended."""
        del self.running[executor]
        executor.device_group.busy -= 1
        self.idle.append(executor)

    def remove(self, executor: Startable) -> Batch | None:
        """Remove an executor. Return the batch that it was running, if any."""
        batch = self.running.pop(executor, None)
        if batch is not None:
            executor.device_group.busy -= 1
        elif executor in self.idle:
            self.idle.remove(executor)
        return batch

    def drain(self) -> list[Entry]:
        """Remove and return all queued entries."""
        entries = [entry for bucket in self.buckets.values() for entry in bucket]
        for bucket in self.buckets.values():
            bucket.clear()
        self.buckets.clear()
        self.queued = 0
        self._earliest = NEVER
        return entries

    # the decision

    def decide(self, now: float) -> float:
        """Start every batch that may start at `now` (rule 1).

        Returns when to decide next if nothing changes before; infinity if there is no need.
        """
        if now >= self._earliest:
            self._expire(now)
        if self.outflow.bytes and self.outflow.full:  # rule 9
            return self._next_wake(now)
        while self.idle and self.buckets:
            choice = self._choose(now)
            if choice is None:
                break
            bucket, executor = choice
            queued = bucket.size
            entries, size = bucket.take(executor.max)
            self._settle(bucket, queued - bucket.size)
            if entries:  # empty if all their callers have left
                self._start(executor, entries, size, now)
        return self._next_wake(now)

    def _start(self, executor: Startable, entries: list[Entry], size: int, now: float) -> None:
        try:
            batch = Batch(self.name, executor, entries, size, now)  # copies the items
        except Exception as error:  # MemoryError: these entries are out of their bucket already
            cause, kind = error, type(error).__name__

            def failure() -> BackendError:
                made = BackendError(f"node {self.name!r}: the batch can't start: {kind}")
                made.__cause__ = cause
                return made

            fail_all(entries, failure)
            raise
        self.idle.remove(executor)
        executor.device_group.busy += 1
        self.running[executor] = batch
        executor.start(batch)
        if self.on_start is not None:
            self.on_start(batch)

    @property
    def would_queue(self) -> bool:
        """True if one more item would have to wait (rule 6).

        That is so if no group is idle, or if the queued items fill the idle executors.
        """
        room = 0
        for executor in self.idle:
            if not executor.device_group.busy:
                room += executor.max
        return room <= self.queued

    def _choose(self, now: float) -> tuple[Bucket, Startable] | None:
        """Choose the bucket with the smallest head (priority, arrival) that may start (rule 3)."""
        choice: tuple[Bucket, Startable] | None = None
        order = (0, 0)
        for bucket in self.buckets.values():
            head = bucket.head
            if choice is not None and (head.priority, head.arrival) >= order:
                continue
            executor = self._executor_for(bucket, head, now)
            if executor is not None:
                choice = bucket, executor
                order = head.priority, head.arrival
        return choice

    def _executor_for(self, bucket: Bucket, head: Entry, now: float) -> Startable | None:
        """Choose the executor that may start this bucket now, if there is one.

        Rule 2: an executor of an idle group always may; one of a partly busy group only if the
        bucket is full or overdue. Rule 3: of several, take the smallest `max` that holds the whole
        bucket, else the largest; never one that is too small for the head.
        """
        overdue = now >= bucket.oldest + self.batching_timeout
        best: Startable | None = None
        best_rank = (False, False, 0)
        for executor in reversed(self.idle):  # the one that ran last has warm caches
            if executor.max < head.size or not executor.ready:
                continue
            busy = executor.device_group.busy > 0
            if busy and not overdue and bucket.size < executor.max:
                continue
            small = executor.max < bucket.size
            rank = (busy, small, -executor.max if small else executor.max)
            if best is None or rank < best_rank:
                best, best_rank = executor, rank
        return best

    def _expire(self, now: float) -> None:
        """Answer every queued entry that has reached its deadline (rule 5)."""
        self._earliest = NEVER
        expired: list[Entry] = []
        for bucket in list(self.buckets.values()):
            queued = bucket.size
            expired += bucket.take_expired(now)
            self._settle(bucket, queued - bucket.size)
            for entry in bucket:
                self._earliest = min(self._earliest, entry.deadline)
        # Only now, because this may remove other entries from the buckets, or queue new ones.
        failure: Exception | None = None
        for entry in expired:
            try:
                self.on_expired(entry)
            except Exception as error:  # the others are out of their buckets: they must end too
                failure = error
        if failure is not None:
            raise failure

    def _next_wake(self, now: float) -> float:
        wake = self._earliest if self.buckets else NEVER
        if self.idle:
            largest = max(executor.max for executor in self.idle)
            for bucket in self.buckets.values():
                timeout = bucket.oldest + self.batching_timeout
                if now < timeout < wake and bucket.head.size <= largest:
                    wake = timeout
        for batch in self.running.values():
            if not batch.stuck:
                if batch.watched + self.stuck_after <= now:
                    batch.stuck = True
                    self.on_stuck(batch)
                if not batch.stuck:  # `on_stuck` may have ended what hung
                    wake = min(wake, batch.watched + self.stuck_after)
        return wake

    def _settle(self, bucket: Bucket, gone: int) -> None:
        """Correct the totals after `gone` rows left the bucket."""
        self.queued -= gone
        if not bucket.size:
            del self.buckets[bucket.key]

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all queued entries, bucket by bucket."""
        for bucket in self.buckets.values():
            yield from bucket
