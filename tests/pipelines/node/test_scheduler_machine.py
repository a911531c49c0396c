"""Whatever happens to a scheduler, in whatever order: its guarantees hold after every decision.

docs/explanation/scheduling.md has the guarantees. The test keeps its own records, and states by
itself when a bucket is ready.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.pipelines.node.queue import NEVER, Batch, Entry
from penstock.pipelines.node.scheduler import DeviceGroup, Scheduler

pytestmark = pytest.mark.timeout(300)  # seconds; it takes 8 of one processor

TIMEOUT = 2.0


class Future:
    def __init__(self) -> None:
        self.ends: list[str] = []

    def done(self) -> bool:
        return bool(self.ends)


class FakeExecutor:
    def __init__(self, bound: int, device_group: DeviceGroup, machine: SchedulerMachine) -> None:
        self.name = f"executor of {bound}"
        self.device = device_group.name
        self.device_group = device_group
        self.max = bound
        self.ready = True
        self.freed = 0.0
        self.last: Batch | None = None
        self.machine = machine

    def start(self, batch: Batch) -> None:
        self.machine.started(self, batch)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        groups=st.lists(
            st.lists(st.sampled_from([1, 2, 4, 4, 8]), min_size=1, max_size=2),
            min_size=1,
            max_size=2,
        ),
        levels=st.sampled_from([0, 0, 3]),
        timeout=st.sampled_from([0.0, TIMEOUT]),
    )
    def build(self, groups: list[list[int]], levels: int, timeout: float) -> None:
        self.now = 0.0
        self.levels = levels
        self.timeout = timeout
        self.waiting: list[Entry] = []  # in order of arrival
        self.running: dict[FakeExecutor, Batch] = {}
        self.free: list[FakeExecutor] = []
        self.dead: list[FakeExecutor] = []
        self.all: list[Entry] = []
        self.came: dict[int, float] = {}
        self.names = 0
        self.wake = NEVER
        self.scheduler = Scheduler(
            "node",
            batching_timeout=timeout,
            priority_levels=levels,
            stuck_after=7.0,
            on_expired=self.expired,
            on_stuck=self.stuck,
        )
        self.reported_stuck: list[Batch] = []
        for number, members in enumerate(groups):
            device_group = DeviceGroup(str(number))
            for bound in members:
                executor = FakeExecutor(bound, device_group, self)
                self.free.append(executor)
                self.scheduler.add(executor)
        self.max = max(executor.max for executor in self.free)

    # calls by the scheduler

    def started(self, executor: FakeExecutor, batch: Batch) -> None:
        assert executor in self.free
        if not any(entry.future.done() for entry in self.waiting):
            heads = [
                (bucket[0].priority, bucket[0].arrival)
                for key in range(3)
                if self.ready(bucket := self.bucket(key)) is not None
            ]
            assert (batch.entries[0].priority, batch.entries[0].arrival) == min(heads), (
                "another bucket was ready, and its head came first"
            )
        self.free.remove(executor)
        self.running[executor] = batch
        assert batch.executor is executor
        assert batch.entries
        assert batch.size == sum(entry.size for entry in batch.entries) <= executor.max
        keys = {entry.item["key"] for entry in batch.entries}
        assert len(keys) == 1, "a batch mixes shapes"
        order = self.bucket(keys.pop())
        for entry in order[: len(batch.entries)]:
            assert entry.deadline > self.now, "a batch has an expired item"
            assert not entry.future.done(), "a batch has a cancelled item"
        assert order[: len(batch.entries)] == batch.entries, (
            "a batch does not take its bucket in order"
        )
        rest = order[len(batch.entries) :]
        assert not rest or batch.size + rest[0].size > executor.max, (
            "a batch left out what would have fitted"
        )
        for entry in batch.entries:
            self.waiting.remove(entry)

    def expired(self, entry: Entry) -> None:
        assert entry.deadline <= self.now
        if not entry.future.done():
            self.end(entry, "expired")
        self.waiting.remove(entry)

    def stuck(self, batch: Batch) -> None:
        assert batch not in self.reported_stuck
        assert self.now >= batch.started + 7.0
        self.reported_stuck.append(batch)

    # the test's own records

    def bucket(self, key: int) -> list[Entry]:
        """Return the entries that wait and may run, in the order in which they must start."""
        return sorted(
            (
                entry
                for entry in self.waiting
                if entry.item["key"] == key and not entry.future.done()
            ),
            key=lambda entry: entry.priority,
        )

    def ready(self, bucket: list[Entry]) -> FakeExecutor | None:
        """Return an idle executor that may take the bucket now, if there is one."""
        if not bucket:
            return None
        size = sum(entry.size for entry in bucket)
        timed_out = (
            self.now >= min(self.came[entry.item["data"]] for entry in bucket) + self.timeout
        )
        for executor in self.free:
            group_is_idle = not any(
                other.device_group is executor.device_group for other in self.running
            )
            if executor.max >= bucket[0].size and (
                group_is_idle or timed_out or size >= executor.max
            ):
                return executor
        return None

    def end(self, entry: Entry, how: str) -> None:
        future: Any = entry.future
        future.ends.append(how)

    def decide(self) -> None:
        self.wake = self.scheduler.decide(self.now)
        assert self.wake > self.now
        queued = set(map(id, self.scheduler))
        for entry in list(self.waiting):
            if entry.future.done() and id(entry) not in queued:  # dropped on the way to a batch
                self.waiting.remove(entry)

    # what may happen

    @rule(
        count=st.integers(1, 5),
        size=st.sampled_from([1, 1, 2, 3, 4]),
        key=st.sampled_from([0, 0, 1, 2]),
        priority=st.integers(0, 2),
        wait=st.sampled_from([NEVER, 0.0, 1.0, 3.0, 10.0]),
    )
    def arrive(self, count: int, size: int, key: int, priority: int, wait: float) -> None:
        for _ in range(count):
            self.names += 1
            future: Any = Future()
            entry = Entry(
                {"data": self.names, "key": key}, future, self.now + wait, None, min(size, self.max)
            )
            entry.priority = min(priority, max(self.levels - 1, 0))
            self.waiting.append(entry)
            self.all.append(entry)
            self.came[self.names] = self.now
            self.scheduler.enqueue(entry, key, self.now)
        self.decide()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), at_once=st.booleans())
    def leave(self, data: st.DataObject, at_once: bool) -> None:
        """Cancel a caller: its future is done now, and its task discards the entry later."""
        entry = data.draw(st.sampled_from(self.waiting))
        if not entry.future.done():
            self.end(entry, "cancelled")
        if at_once:
            self.discard(entry)
            self.decide()

    @rule()
    def tasks_of_cancelled_callers_run(self) -> None:
        for entry in [entry for entry in self.waiting if entry.future.done()]:
            self.discard(entry)
        self.decide()

    def discard(self, entry: Entry) -> None:
        assert self.scheduler.discard(entry)
        assert not self.scheduler.discard(entry)
        self.waiting.remove(entry)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        """Decide at every moment that the scheduler asked for, as the timer would."""
        end = self.now + seconds
        for _ in range(1000):
            if self.wake > end:
                break
            self.now = self.wake
            self.decide()
        else:
            raise AssertionError("the scheduler asks to be called again and again")
        self.now = end  # nothing is due until then

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["ok", "failed"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        executor = data.draw(st.sampled_from(list(self.running)))
        batch = self.running.pop(executor)
        self.free.append(executor)
        self.scheduler.release(executor)
        self.decide()
        for entry in batch.entries:
            if not entry.future.done():
                self.end(entry, how)

    @precondition(lambda self: self.running or self.free)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        executor = data.draw(st.sampled_from([*self.running, *self.free]))
        batch = self.scheduler.remove(executor)
        assert batch is self.running.pop(executor, None)
        if batch is None:
            self.free.remove(executor)
        else:
            for entry in batch.entries:
                if not entry.future.done():
                    self.end(entry, "died")
        self.dead.append(executor)
        self.decide()

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(self.dead))
        self.dead.remove(dead)
        executor = FakeExecutor(dead.max, dead.device_group, self)
        self.free.append(executor)
        self.scheduler.add(executor)
        self.decide()

    @precondition(lambda self: len(self.waiting) > 12)
    @rule()
    def close(self) -> None:
        for entry in self.scheduler.drain():
            self.waiting.remove(entry)
            if not entry.future.done():
                self.end(entry, "closed")
        assert not self.waiting
        self.decide()

    # guarantees

    @invariant()
    def nothing_that_may_start_waits(self) -> None:
        if self.wake <= self.now:
            return  # a timer is due at this moment
        if any(entry.future.done() for entry in self.waiting):
            return  # a discard follows, and a decision after it
        for key in range(3):
            executor = self.ready(self.bucket(key))
            assert executor is None, f"bucket {key} is ready, and {executor} idle"

    @invariant()
    def nothing_expired_waits(self) -> None:
        if self.wake > self.now:
            assert all(entry.deadline > self.now for entry in self.waiting)

    @invariant()
    def the_totals_are_right(self) -> None:
        scheduler = self.scheduler
        assert scheduler.queued == sum(entry.size for entry in self.waiting)
        assert sorted(entry.item["data"] for entry in scheduler) == sorted(
            entry.item["data"] for entry in self.waiting
        )
        for key, bucket in scheduler.buckets.items():
            assert len(bucket) > 0
            assert bucket.size == sum(entry.size for entry in bucket)
            assert all(entry.item["key"] == key and entry.bucket is bucket for entry in bucket)
        assert scheduler.running == self.running
        assert set(scheduler.idle) == set(self.free)
        assert len(scheduler.idle) == len(self.free)
        for executor in (*self.free, *self.running, *self.dead):
            assert executor.device_group.busy == sum(
                other.device_group is executor.device_group for other in self.running
            )

    @invariant()
    def every_entry_ends_at_most_once(self) -> None:
        for entry in self.all:
            future: Any = entry.future
            assert len(future.ends) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for executor in list(self.dead):
            self.dead.remove(executor)
            self.free.append(FakeExecutor(executor.max, executor.device_group, self))
            self.scheduler.add(self.free[-1])
        self.decide()
        while self.running:
            executor, batch = next(iter(self.running.items()))
            del self.running[executor]
            self.free.append(executor)
            self.scheduler.release(executor)
            self.decide()
            for entry in batch.entries:
                if not entry.future.done():
                    self.end(entry, "ok")
        # All executors are idle and no time has passed: everything has ended, and nothing is left.
        for entry in self.all:
            future: Any = entry.future
            assert len(future.ends) == 1
        assert not self.waiting
        assert (self.scheduler.queued, self.scheduler.buckets, self.scheduler.running) == (
            0,
            {},
            {},
        )
        assert all(executor.device_group.busy == 0 for executor in self.free)


SchedulerMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestScheduler = SchedulerMachine.TestCase
