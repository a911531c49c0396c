"""The decision: which batch starts now, and on which executor.

`Scheduler.decide` is synchronous. It reads the queue, the executors and the time that it is given,
starts batches, and returns when it wants to be called next. All waiting is in `node.py`, which
calls it after every change: items arrived, a caller left, a timer fired, an executor reported.
docs/explanation/scheduling.md has the rules; comments here give their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

from penstock.backends.base import UNBOUNDED
from penstock.backends.errors import BackendError

from ..config.definition import QueuePolicy
from ..overload.door import Pressure
from ..overload.estimate import Estimate
from .outflow import Outflow
from .queue import NEVER, Batch, BatchStart, Bucket, Entry, SingleBucket, fail_all


class DeviceGroup:
    """The executors of one node that share a device. On the CPU each executor is its own group."""

    __slots__ = ("busy", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy = 0  # running executors

    def __repr__(self) -> str:
        return f"<DeviceGroup {self.name}: {self.busy} busy>"


class Startable(Protocol):
    """The part of an executor that the decision needs.

    `last`: the batch that it ran last, if the node notes batches. `freed`: when it became free
    otherwise: it was loaded.
    """

    name: str
    device: str
    device_group: DeviceGroup
    freed: float
    last: Batch | None
    max: int

    @property
    def ready(self) -> bool: ...

    def start(self, batch: Batch) -> None: ...


class Scheduler:
    """The queue, the executors and the decision of one node.

    `batching_timeout`, `stuck_after` and `queue_timeout` are seconds. `queue_policies` has one for
    each level, or is empty. `combine`: entries share batches. Three functions are called
    during a decision: `on_expired` with each entry whose deadline or `queue_timeout` came while it
    queued, `on_stuck` with each batch that has run for `stuck_after`, and `on_start` with each
    batch as it starts. They may queue more entries.

    `notes`: each batch gets a `BatchStart`.
    """

    __slots__ = (
        "_arrivals",
        "_bucket_class",
        "_delays",
        "_held",
        "_idle_at",
        "_keyless",
        "_patience",
        "_spare",
        "_spare_at",
        "_taken",
        "_times_out",
        "_was_idle",
        "batching_timeout",
        "buckets",
        "earliest",
        "estimate",
        "idle",
        "levels",
        "limit",
        "max",
        "name",
        "notes",
        "on_expired",
        "on_start",
        "on_stuck",
        "outflow",
        "pressure",
        "queue_timeout",
        "queued",
        "running",
        "small",
        "stuck_after",
        "takes_turns",
    )

    def __init__(
        self,
        name: str,
        *,
        batching_timeout: float = 0.0,
        priority_levels: int = 0,
        stuck_after: float = 60.0,
        queue_timeout: float = NEVER,
        queue_policies: Sequence[QueuePolicy] = (),
        combine: bool = True,
        on_expired: Callable[[Entry], None],
        on_stuck: Callable[[Batch], None],
        on_start: Callable[[Batch], None] | None = None,
    ) -> None:
        self.name = name
        self.batching_timeout = batching_timeout
        self.levels = priority_levels or 1
        self.stuck_after = stuck_after
        self.queue_timeout = queue_timeout
        self._bucket_class = Bucket if combine else SingleBucket
        # By level: the seconds that an entry may queue.
        self._patience = [queue_timeout] * self.levels
        for level, policy in enumerate(queue_policies):
            if policy.timeout is not None:
                self._patience[level] = min(policy.timeout, queue_timeout)
        # By level, True if late entries are delayed. Then each level has another one right behind
        # it, for them: `Entry.priority` is odd there. Empty: no level delays any.
        self._delays: list[bool] = []
        if any(policy.delays for policy in queue_policies):
            self._delays = [policy.delays for policy in queue_policies]
            self.levels *= 2
            self._patience = [
                seconds for patience in self._patience for seconds in (patience, queue_timeout)
            ]
        self._times_out = min(self._patience) < NEVER
        self.on_expired = on_expired
        self.on_stuck = on_stuck
        self.on_start = on_start
        self.outflow = Outflow()
        self.estimate = Estimate()
        self.pressure = Pressure()
        self.takes_turns = False  # the buckets are in the order of `Turns`
        self.buckets: dict[Hashable, Bucket] = {}  # none of them empty
        # The bucket of nodes that share runs by no key, kept while it is empty: it costs each batch
        # of one request more to make another.
        self._keyless = self._bucket_class(None, self.levels)
        self.idle: list[Startable] = []  # the executor that ran last is last
        self.running: dict[Startable, Batch] = {}
        self.queued = 0  # sum of the queued entries' sizes
        self.max = 1  # the largest batch that any executor has taken: no larger entry may queue
        self._arrivals = 0
        # No queued entry expires before this. It may be too early, but never too late.
        self.earliest = NEVER
        # An executor was idle after the last decision, or at this time for the last time.
        self._was_idle = False
        self._idle_at = -NEVER
        # A batch of at most so many rows shows that the node has time left (rule 6).
        self.small = 0
        # The levels below this index could have had more of the last batch.
        self._spare = 0
        self._spare_at = [-NEVER] * self.levels  # by level: until when that was so
        self.limit = UNBOUNDED  # the most rows of the batch that starts next (rule 10)
        self.notes = False
        self._held: tuple[float, float] | None = None  # by rule 9, since the last batch
        self._taken = 0

    def __repr__(self) -> str:
        active, idle = len(self.running), len(self.idle)
        return f"<Scheduler {self.name}: {active} active, {idle} idle, {self.queued} queued>"

    # changes, each followed by a decision

    def enqueue(self, entry: Entry, key: Hashable, now: float) -> None:
        """Add an entry to the end of its bucket."""
        bucket = self.buckets.get(key)
        if bucket is None:
            if key is None and not self.takes_turns:  # without a call: this is the hot path
                bucket = self.buckets[key] = self._keyless
            else:
                bucket = self._add_bucket(key)
        self._arrivals += 1
        entry.arrival = self._arrivals
        entry.enqueued = now
        entry.bucket = bucket
        bucket.levels[entry.priority].append(entry)
        size = entry.size
        bucket.size += size
        self.queued += size
        if entry.deadline < self.earliest:  # noqa: PLR1730  a call costs more
            self.earliest = entry.deadline
        if self._times_out:
            self.earliest = min(self.earliest, now + self._patience[entry.priority])

    def _add_bucket(self, key: Hashable) -> Bucket:
        if key is None and not self.takes_turns:
            bucket = self._keyless
        else:
            bucket = self._bucket_class(key, self.levels)
            if self.takes_turns:
                bucket.take_turns(self.pressure)
        self.buckets[key] = bucket
        return bucket

    def put_back(self, entry: Entry, now: float) -> None:
        """Queue an entry again whose batch was lost. It keeps its place in the order of arrival."""
        key = entry.bucket.key
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self._add_bucket(key)
        entry.enqueued = now
        entry.bucket = bucket
        bucket.put_back(entry)
        self.queued += entry.size
        self.earliest = min(self.earliest, entry.deadline, now + self._patience[entry.priority])

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
        if not self.buckets and executor.ready:  # there may be no decision before something comes
            self._was_idle = True

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
        self.earliest = NEVER
        return entries

    # the decision

    def decide(self, now: float) -> float:
        """Start every batch that may start at `now` (rule 1).

        Returns when to decide next if nothing changes before; infinity if there is no need.
        """
        if self._was_idle:
            self._idle_at = now
        if now >= self.earliest:
            self._expire(now)
        pressure = self.pressure
        if pressure.sorts or self.takes_turns:
            self._order(now)
        if self.outflow.bytes and self.outflow.full:  # rule 9
            if self.notes and self.buckets:
                self._held = now if self._held is None else self._held[0], NEVER
            return self._next_wake(now)
        while self.idle and self.buckets:
            choice = self._choose(now)
            if choice is None:
                break
            bucket, executor = choice
            queued = bucket.size
            limit = executor.max
            if self.limit < limit:  # noqa: PLR1730  a call costs more
                limit = self.limit
            if bucket.takes_turns or self.queued > pressure.base:
                limit, good = self._limits(limit, bucket.head.size)
                entries, size = bucket.take(limit, good)
            else:
                entries, size = bucket.take(limit)
            self._settle(bucket, queued - bucket.size)
            if entries:  # empty if all their callers have left
                lowest = entries[-1].priority
                if size <= self.small and not self.buckets:
                    lowest = self.levels
                if lowest or self._spare:
                    self._note_spare(lowest, now)
                if self.notes:
                    start = self._noted(
                        executor, entries, bucket, now, size=size, queued=queued, limit=limit
                    )
                    self._start(executor, entries, size, now, start)
                else:
                    self._start(executor, entries, size, now)
        self._was_idle = False
        for executor in self.idle:  # not `any`: this is the hot path
            if executor.ready:
                self._was_idle = True
                break
        return self._next_wake(now)

    def _note_spare(self, lowest: int, now: float) -> None:
        """Note that a batch had room left for the levels above `lowest`."""
        for level in range(self._spare):
            self._spare_at[level] = now
        self._spare = lowest

    def _order(self, now: float) -> None:
        """Bring the buckets into the order of `Turns`, or back (rule 6)."""
        turns = self.pressure.sorts
        if turns != self.takes_turns:
            self.takes_turns = turns
            self._keyless = self._bucket_class(None, self.levels)
            for bucket in self.buckets.values():
                if turns:
                    bucket.take_turns(self.pressure)
                else:
                    bucket.end_turns()
        if turns:
            for bucket in self.buckets.values():
                bucket.settle(now, self.estimate.recent)

    def _limits(self, most: int, head: int) -> tuple[int, int]:
        """Return the most rows of a batch if many wait, and to how many late ones fill it (rule 6).

        `head`: the rows of the entry that goes in any case.
        """
        pressure, estimate = self.pressure, self.estimate
        good = max(head, estimate.good_size(most))
        if pressure.on or pressure.shared or self.queued > pressure.base:
            most = max(good, estimate.most_within(pressure.target, most))
        return most, good

    def idle_until(self, now: float, level: int) -> float:
        """Return when an executor was idle for the last time: `now` if one is.

        It counts as idle too while it runs a small batch that was all that queued. To a level it
        counts as idle while it runs a batch that has lower ones in it.
        """
        # What came since the last decision has not been decided on: it may be a burst.
        if self._was_idle or level < self._spare:
            return now
        return max(self._idle_at, self._spare_at[level])

    def _noted(
        self,
        executor: Startable,
        entries: list[Entry],
        bucket: Bucket,
        now: float,
        *,
        size: int,
        queued: int,
        limit: int,
    ) -> BatchStart:
        """Note why a batch of a bucket starts now. `queued`: the rows of the bucket before."""
        if (held := self._held) is not None:
            held, self._held = (held[0], now), None
        self._taken += size
        last = executor.last
        # A tuple's own constructor: the one of a named tuple is Python, and costs twice as much.
        return tuple.__new__(
            BatchStart,
            (
                executor.name,
                executor.device,
                executor.max,
                now,
                executor.freed if last is None else max(executor.freed, last.ended),
                entries[0].enqueued,
                queued,
                self.queued,
                limit,
                len(self.running),
                len(self.idle) - 1,
                executor.device_group.busy > 0,
                bucket.takes_turns,
                held,
                self._taken,
                self.estimate.recent,
                self.batching_timeout,
            ),
        )

    def _start(
        self,
        executor: Startable,
        entries: list[Entry],
        size: int,
        now: float,
        start: BatchStart | None = None,
    ) -> None:
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
        if start is not None:
            batch.start = start
            executor.last = batch
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
        return self.room <= self.queued

    @property
    def room(self) -> int:
        """The rows that the executors of idle groups take at once."""
        room = 0
        for executor in self.idle:
            if executor.ready and not executor.device_group.busy:
                room += executor.max
        return room

    def _choose(self, now: float) -> tuple[Bucket, Startable] | None:
        """Choose the bucket with the smallest head (priority, arrival) that may start (rule 3)."""
        buckets: Iterable[Bucket] = self.buckets.values()
        if len(self.buckets) > 1:
            buckets = sorted(buckets, key=lambda bucket: bucket.rank)
        for bucket in buckets:
            executor = self._executor_for(bucket, bucket.head, now)
            if executor is not None:
                return bucket, executor
        return None

    def _executor_for(
        self, bucket: Bucket, head: Entry, now: float, idle: Sequence[Startable] | None = None
    ) -> Startable | None:
        """Choose the executor that may start this bucket now, if there is one of the `idle`.

        Rule 2: an executor of an idle group always may; one of a partly busy group only if the
        bucket is full or overdue. Rule 3: of several, take the smallest `max` that holds the whole
        bucket, else the largest; never one that is too small for the head.
        """
        if idle is None:
            idle = self.idle
        best: Startable | None = None
        best_rank = (False, False, 0)
        for executor in reversed(idle):  # the one that ran last has warm caches
            if executor.max < head.size or not executor.ready:
                continue
            busy = executor.device_group.busy > 0
            if busy and bucket.size < executor.max and now < bucket.oldest + self.batching_timeout:
                continue
            if len(idle) == 1:  # nothing to compare it with
                return executor
            small = executor.max < bucket.size
            rank = (busy, small, -executor.max if small else executor.max)
            if best is None or rank < best_rank:
                best, best_rank = executor, rank
        return best

    def _expire(self, now: float) -> None:
        """Answer every queued entry that has reached its deadline (rule 5), and delay late ones."""
        self.earliest = NEVER
        expired: list[Entry] = []
        for bucket in list(self.buckets.values()):
            queued = bucket.size
            for entry in bucket.take_expired(now, self._patience):
                if self._is_delayed(entry, now):
                    bucket.delay(entry)
                else:
                    expired.append(entry)
            self._settle(bucket, queued - bucket.size)
            for entry in bucket:
                end = min(entry.deadline, entry.enqueued + self._patience[entry.priority])
                self.earliest = min(self.earliest, end)
        # Only now, because this may remove other entries from the buckets, or queue new ones.
        failure: Exception | None = None
        for entry in expired:
            try:
                self.on_expired(entry)
            except Exception as error:  # the others are out of their buckets: they must end too
                failure = error
        if failure is not None:
            raise failure

    def _is_delayed(self, entry: Entry, now: float) -> bool:
        """Return whether an entry that has queued too long goes behind the others of its level."""
        return (
            bool(self._delays)
            and entry.priority % 2 == 0
            and self._delays[entry.priority // 2]
            and now < min(entry.deadline, entry.enqueued + self.queue_timeout)
        )

    def _next_wake(self, now: float) -> float:
        wake = self.earliest if self.buckets else NEVER
        if self.idle and self.buckets:
            largest = max(executor.max for executor in self.idle)
            for bucket in self.buckets.values():
                timeout = bucket.oldest + self.batching_timeout
                if now < timeout < wake and bucket.head.size <= largest:
                    wake = timeout
        for batch in self.running.values():
            if not batch.stuck:
                ends = batch.watched + self.stuck_after
                if ends <= now:
                    batch.stuck = True
                    self.on_stuck(batch)
                    if batch.stuck:
                        continue
                    ends = batch.watched + self.stuck_after  # `on_stuck` has ended what hung
                if ends < wake:  # noqa: PLR1730  a call costs more
                    wake = ends
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
