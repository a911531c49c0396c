"""The rules of scheduling, one by one, without threads and with a time that is an argument.

docs/explanation/scheduling.md has the rules.
"""

from __future__ import annotations

from typing import Any

import pytest

from penstock.pipelines.node.queue import NEVER, Batch, Entry
from penstock.pipelines.node.scheduler import DeviceGroup, Scheduler
from penstock.testing import FakeExecutor


class Future:
    gone = False

    def done(self) -> bool:
        return self.gone


class RecordingExecutor(FakeExecutor):
    @property
    def ran(self) -> list[str]:
        return ["".join(entry.item["data"] for entry in batch.entries) for batch in self.batches]


class Harness:
    """A scheduler, its executors, and its reports."""

    def __init__(self, *groups: list[int], **options: Any) -> None:
        self.expired: list[str] = []
        self.stuck: list[Batch] = []
        self.scheduler = Scheduler(
            "node",
            on_expired=lambda entry: self.expired.append(entry.item["data"]),
            on_stuck=self.stuck.append,
            **options,
        )
        self.executors: list[RecordingExecutor] = []
        for number, members in enumerate(groups):
            device_group = DeviceGroup(str(number))
            for bound in members:
                self.executors.append(RecordingExecutor(bound, device_group))
                self.scheduler.add(self.executors[-1])
        self.now = 0.0

    def put(
        self, name: str, key: Any = None, size: int = 1, priority: int = 0, deadline: float = NEVER
    ) -> Entry:
        future: Any = Future()
        entry = Entry({"data": name}, future, deadline, None, size)
        entry.priority = priority
        self.scheduler.enqueue(entry, key, self.now)
        return entry

    def put_all(self, names: str, **options: Any) -> None:
        for name in names:
            self.put(name, **options)

    def decide(self, now: float | None = None) -> float:
        if now is not None:
            self.now = now
        return self.scheduler.decide(self.now)

    def finish(self, executor: int = 0) -> None:
        self.scheduler.release(self.executors[executor])

    def would_queue(self) -> bool:
        return self.scheduler.would_queue

    @property
    def ran(self) -> list[list[str]]:
        return [executor.ran for executor in self.executors]


# rule 1: late binding


def test_while_executors_are_busy_the_queue_and_the_next_batch_grow() -> None:
    harness = Harness([8])
    harness.put("a")
    harness.decide()
    for name in "bcd":
        harness.put(name)
        harness.decide()
    assert harness.ran == [["a"]]
    assert harness.scheduler.queued == 3
    harness.finish()
    harness.decide()
    assert harness.ran == [["a", "bcd"]]
    assert repr(harness.scheduler) == "<Scheduler node: 1 active, 0 idle, 0 queued>"


def test_one_decision_starts_on_every_idle_executor() -> None:
    harness = Harness([2], [2])
    harness.put_all("abcde")
    harness.decide()
    assert sorted(batch for ran in harness.ran for batch in ran) == ["ab", "cd"]
    assert harness.scheduler.queued == 1


# rule 2: idle first


def test_an_idle_group_starts_at_once_with_all_that_fits_whatever_the_timeout() -> None:
    harness = Harness([4], batching_timeout=10.0)
    harness.put_all("ab")
    harness.decide()
    assert harness.ran == [["ab"]]


def test_a_partly_busy_group_starts_only_a_full_bucket() -> None:
    harness = Harness([3, 3], batching_timeout=10.0)
    harness.put("a")
    harness.decide()
    harness.put_all("bc")
    harness.decide()
    assert harness.scheduler.queued == 2
    harness.put("d")
    harness.decide()
    assert sorted(harness.ran) == [["a"], ["bcd"]]


def test_full_means_full_for_the_executor_that_would_run_it() -> None:
    harness = Harness([2, 2], [8], batching_timeout=10.0)
    harness.put_all("abcdefgh")  # goes to the executor of 8
    harness.put("i", key="other")  # goes to one of the two
    harness.decide()
    harness.put_all("jk")
    harness.decide()
    assert harness.scheduler.queued == 0


def test_a_partly_busy_group_starts_a_timed_out_bucket_exactly_then() -> None:
    harness = Harness([3, 3], batching_timeout=0.010)
    harness.put("a")
    harness.decide(1.0)
    harness.put("b")
    assert harness.decide(1.002) == 1.010  # b came at 1.0
    harness.put("c")
    assert harness.decide(1.009) == 1.010
    assert harness.scheduler.queued == 2
    harness.decide(1.010)
    assert sorted(harness.ran) == [["a"], ["bc"]]


def test_the_oldest_of_low_priority_starts_the_timeout_too() -> None:
    harness = Harness([3, 3], batching_timeout=1.0, priority_levels=2)
    harness.put("a")
    harness.decide()
    harness.put("b", priority=1)
    harness.now = 0.9
    harness.put("c", priority=0)
    assert harness.decide() == 1.0
    harness.decide(1.0)
    assert sorted(harness.ran) == [["a"], ["cb"]]


def test_batching_timeout_0_never_waits() -> None:
    harness = Harness([8, 8])
    harness.put("a")
    harness.decide()
    harness.put("b")
    harness.decide()
    assert sorted(harness.ran) == [["a"], ["b"]]


def test_an_idle_group_is_preferred_to_a_partly_busy_one() -> None:
    harness = Harness([4], [4, 4])
    for name in "abc":
        harness.put(name)
        harness.decide()
    assert harness.ran == [["b"], ["c"], ["a"]]


def test_the_executor_that_ran_last_runs_next() -> None:
    harness = Harness([4], [4])
    for name in "abc":
        harness.put(name)
        harness.decide()
        running = next(iter(harness.scheduler.running))
        harness.scheduler.release(running)
    assert sorted(harness.ran, key=len) == [[], ["a", "b", "c"]]


# rule 3: choice


def test_the_smallest_head_goes_so_no_shape_starves() -> None:
    harness = Harness([2])
    harness.put("a", key="busy")
    harness.decide()
    harness.put("b", key="rare")
    harness.put_all("cdef", key="busy")
    order = []
    for _ in range(3):
        harness.finish()
        harness.decide()
        order.append(harness.executors[0].ran[-1])
        harness.put_all("xy", key="busy")
    assert order == ["b", "cd", "ef"]


def test_shapes_do_not_mix() -> None:
    harness = Harness([8])
    for name, key in ("a", 1), ("b", 2), ("c", 1), ("d", 2):
        harness.put(name, key=key)
    harness.decide()
    harness.finish()
    harness.decide()
    assert harness.ran == [["ac", "bd"]]
    assert not harness.scheduler.buckets


def test_a_batch_stops_at_the_first_item_that_does_not_fit_and_that_stays_in_front() -> None:
    harness = Harness([4])
    for name, size in ("a", 3), ("b", 2), ("c", 1):
        harness.put(name, size=size)
    harness.decide()
    assert harness.ran == [["a"]]
    assert harness.scheduler.queued == 3
    assert next(iter(harness.scheduler)).item["data"] == "b"
    harness.finish()
    harness.decide()
    assert harness.ran == [["a", "bc"]]
    assert harness.executors[0].batches[1].size == 3


def test_request_sizes_fill_a_bucket() -> None:
    harness = Harness([4, 4], batching_timeout=10.0)
    harness.put("a")
    harness.decide()
    harness.put("b", size=3)
    harness.decide()
    assert harness.scheduler.queued == 3
    harness.put("c", size=2)  # passes max: full
    harness.decide()
    assert sorted(harness.ran) == [["a"], ["b"]]


def test_of_several_groups_the_smallest_max_that_holds_the_bucket_is_taken() -> None:
    for waiting, chosen in ("a", 1), ("abc", 4), ("abcdefgh", 8), ("abcdefghijk", 8):
        harness = Harness([8], [1], [4])
        harness.put_all(waiting)
        first = {executor.max: executor for executor in harness.executors}
        harness.decide()
        assert first[chosen].ran[0].startswith("a"), waiting


def test_an_item_waits_for_an_executor_that_it_fits() -> None:
    harness = Harness([1], [4], batching_timeout=1.0)
    harness.put("x", size=4)
    harness.decide()
    harness.put("big", size=2)
    harness.put("small")
    assert harness.decide() == 60.0  # nothing changes until x ends or counts as stuck
    assert harness.ran == [[], ["x"]]
    harness.finish(1)
    harness.decide()
    assert harness.ran == [[], ["x", "bigsmall"]]


def test_a_small_item_after_a_big_one_starts_when_the_big_one_leaves() -> None:
    harness = Harness([1], [4])
    harness.put("x", size=4)
    harness.decide()
    big = harness.put("big", size=2)
    harness.put("small")
    harness.decide()
    assert harness.scheduler.discard(big)
    harness.decide()
    assert harness.ran == [["small"], ["x"]]


def test_fewer_than_min_run_at_once() -> None:
    harness = Harness([8])
    harness.put("a")
    harness.decide()
    assert harness.ran == [["a"]]


# rule 4: priorities


def test_priorities_are_strict_and_keep_the_order_inside() -> None:
    harness = Harness([2], priority_levels=3)
    harness.put("x")
    harness.decide()
    for name, priority in ("a", 2), ("b", 1), ("c", 0), ("d", 1), ("e", 0), ("f", 2):
        harness.put(name, priority=priority)
    for _ in range(3):
        harness.finish()
        harness.decide()
    assert harness.ran == [["x", "ce", "bd", "af"]]


def test_priority_comes_before_arrival_between_shapes() -> None:
    harness = Harness([2], priority_levels=2)
    harness.put("x")
    harness.decide()
    harness.put("a", key=1, priority=1)
    harness.put("b", key=2, priority=0)
    harness.finish()
    harness.decide()
    assert harness.ran == [["x", "b"]]


# rule 5: deadlines


def test_an_item_expires_exactly_at_its_deadline_wherever_it_queues() -> None:
    harness = Harness([1])
    harness.put("x")
    harness.decide()
    harness.put("a")
    harness.put("b", deadline=2.0)
    harness.put("c", key="other", deadline=1.0)
    assert harness.decide() == 1.0
    assert harness.decide(0.999) == 1.0
    assert harness.expired == []
    assert harness.decide(1.0) == 2.0
    assert harness.expired == ["c"]
    assert list(harness.scheduler.buckets) == [None]
    harness.decide(2.0)
    assert harness.expired == ["c", "b"]
    assert harness.scheduler.queued == 1
    harness.finish()
    harness.decide()
    assert harness.ran == [["x", "a"]]


def test_what_has_expired_does_not_run_even_if_an_executor_is_free() -> None:
    harness = Harness([4])
    harness.put("a", deadline=1.0)
    harness.put("b", deadline=1.5)
    harness.decide(1.0)
    assert (harness.expired, harness.ran) == (["a"], [["b"]])


def test_an_item_whose_caller_left_does_not_run() -> None:
    harness = Harness([4])
    entry = harness.put("a")
    entry.future.gone = True  # type: ignore[attr-defined]
    harness.put("b")
    harness.decide()
    assert harness.ran == [["b"]]
    entry = harness.put("c")
    entry.future.gone = True  # type: ignore[attr-defined]
    harness.finish()
    harness.decide()
    assert harness.ran == [["b"]]
    assert (harness.scheduler.queued, harness.scheduler.buckets, len(harness.scheduler.idle)) == (
        0,
        {},
        1,
    )
    assert harness.executors[0].device_group.busy == 0


def test_discard() -> None:
    harness = Harness([1])
    running = harness.put("x")
    harness.decide()
    waiting = harness.put("a", size=2)
    assert not harness.scheduler.discard(running)
    assert harness.scheduler.discard(waiting)
    assert not harness.scheduler.discard(waiting)
    assert (harness.scheduler.queued, harness.scheduler.buckets) == (0, {})


def test_without_queued_items_no_wake_up_is_asked_for() -> None:
    harness = Harness([1], stuck_after=NEVER)
    assert harness.decide() == NEVER
    harness.put("a", deadline=5.0)
    assert harness.decide() == NEVER  # it runs, and what runs does not expire


# rule 6: admission


def test_an_executor_that_is_being_replaced_is_not_idle() -> None:
    harness = Harness([1], [1])
    harness.executors[1].ready = False
    harness.put_all("ab")
    harness.decide(1.0)
    assert harness.ran == [["a"], []]
    harness.decide(5.0)
    assert harness.scheduler.idle_until(5.0, 0) <= 1.0
    assert harness.would_queue()
    harness.scheduler.drain()
    harness.scheduler.remove(harness.executors[0])
    harness.decide(6.0)
    assert harness.scheduler.idle_until(6.0, 0) <= 1.0
    harness.executors[1].ready = True
    harness.decide(7.0)
    assert harness.scheduler.idle_until(7.0, 0) == 7.0
    assert not harness.would_queue()


def test_would_queue() -> None:
    harness = Harness([2, 2], [2])
    assert not harness.would_queue()
    harness.put_all("abcde")
    assert not harness.would_queue()  # there is room for six
    harness.put("f")
    assert harness.would_queue()
    harness.decide()
    assert harness.would_queue()
    harness.finish(2)
    assert not harness.would_queue()


def test_a_partly_busy_group_is_not_an_idle_group() -> None:
    harness = Harness([2, 2])
    harness.put("a")
    harness.decide()
    assert harness.would_queue()


# stuck, dead, closed


def test_a_batch_that_runs_for_stuck_after_is_reported_once() -> None:
    harness = Harness([1], stuck_after=5.0)
    harness.put("a")
    assert harness.decide(1.0) == 6.0
    assert harness.decide(5.9) == 6.0
    assert harness.stuck == []
    assert harness.decide(6.0) == NEVER
    harness.decide(7.0)
    assert [batch.entries[0].item["data"] for batch in harness.stuck] == ["a"]
    assert harness.stuck[0].stuck


def test_removing_an_executor_gives_back_its_batch_and_frees_its_group() -> None:
    harness = Harness([4, 4])
    harness.put("a")
    harness.decide()
    index = next(i for i, executor in enumerate(harness.executors) if executor.batches)
    batch = harness.scheduler.remove(harness.executors[index])
    assert batch is harness.executors[index].batches[0]
    assert harness.executors[index].device_group.busy == 0
    assert harness.scheduler.remove(harness.executors[1 - index]) is None
    assert repr(harness.scheduler) == "<Scheduler node: 0 active, 0 idle, 0 queued>"
    harness.put("b")
    harness.decide()
    assert harness.scheduler.max == 4  # the bound stays while executors are restarted
    harness.scheduler.add(harness.executors[0])
    harness.decide()
    assert harness.executors[0].ran[-1] == "b"


def test_drain() -> None:
    harness = Harness([1])
    harness.put_all("abc", deadline=3.0)
    harness.put("d", key="other")
    harness.decide()
    assert sorted(entry.item["data"] for entry in harness.scheduler.drain()) == ["b", "c", "d"]
    assert (harness.scheduler.queued, harness.scheduler.buckets) == (0, {})
    harness.decide(3.0)
    assert harness.expired == []


class Uncopied(dict[str, Any]):
    def copy(self) -> Any:
        raise MemoryError


class Failed(Entry):
    """An entry that keeps the error it ended with."""

    error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        self.error = error


def test_a_batch_that_can_not_start_fails_and_leaves_the_executor_idle() -> None:
    harness = Harness([2])
    future: Any = Future()
    entry = Failed(Uncopied(data="a"), future, NEVER, None, 1)
    harness.scheduler.enqueue(entry, None, 0.0)
    with pytest.raises(MemoryError):
        harness.scheduler.decide(0.0)
    assert str(entry.error) == "node 'node': the batch can't start: MemoryError"
    assert repr(harness.scheduler) == "<Scheduler node: 0 active, 1 idle, 0 queued>"
    harness.put("b")
    harness.scheduler.decide(0.0)
    assert harness.executors[0].ran == ["b"]


def test_a_failing_report_of_one_expiry_holds_no_other_back() -> None:
    expired: list[str] = []

    def report(entry: Entry) -> None:
        expired.append(entry.item["data"])
        if entry.item["data"] == "a":
            raise ValueError("a mistake")

    scheduler = Scheduler("node", on_expired=report, on_stuck=lambda batch: None)
    for name in "ab":
        future: Any = Future()
        scheduler.enqueue(Entry({"data": name}, future, 1.0, None, 1), None, 0.0)
    with pytest.raises(ValueError, match="a mistake"):
        scheduler.decide(2.0)
    assert expired == ["a", "b"] and scheduler.queued == 0


def test_a_queue_that_ran_empty_in_turns_begins_again_in_the_order_of_arrival() -> None:
    harness = Harness([2])
    entry = harness.put("a")
    harness.scheduler.pressure.turn(True)
    harness.decide()
    assert entry.bucket.takes_turns
    harness.scheduler.pressure.turn(False)
    harness.finish()
    harness.decide()

    harness.put_all("bcd")
    assert not harness.put("e").bucket.takes_turns
    harness.decide()
    harness.finish()
    harness.decide()
    assert harness.ran == [["a", "bc", "de"]]


# what is noted of a batch


def noted(harness: Harness, executor: int = 0) -> tuple[str, tuple[int, int, int, int]]:
    """Return the rule that started the newest batch of an executor, and how many rows queued before
    and after, and how many other executors ran and were idle.
    """
    start = harness.executors[executor].batches[-1].start
    assert start is not None and start.decided == harness.now
    return start.rule, (start.queued, start.left, start.running, start.idle)


def end(harness: Harness, executor: int = 0) -> None:
    harness.executors[executor].batches[-1].ended = harness.now
    harness.finish(executor)


def test_the_rule_that_started_a_batch_is_noted() -> None:
    harness = Harness([2], [2])
    harness.scheduler.notes = True
    harness.put("a")
    harness.decide(1.0)
    assert noted(harness, 1) == ("idle", (1, 0, 0, 1))
    harness.put_all("bcdef")
    harness.decide(2.0)
    assert noted(harness) == ("idle", (5, 3, 1, 0))
    harness.now = 3.0
    end(harness)
    harness.decide(4.0)
    assert noted(harness) == ("freed", (3, 1, 1, 0))
    start = harness.executors[0].batches[-1].start
    assert start is not None
    assert (start.freed, start.oldest, start.taken, start.limit) == (3.0, 1.0, 5, 2)


def test_it_is_noted_that_a_device_was_partly_busy() -> None:
    harness = Harness([2, 2], batching_timeout=1.0)
    harness.scheduler.notes = True
    harness.put("a")
    harness.decide(1.0)
    harness.put("b")
    harness.decide(1.5)
    assert len(harness.executors[0].batches) == 0
    harness.decide(2.5)
    assert noted(harness) == ("late", (1, 0, 1, 0))
    end(harness)
    harness.put_all("cd")
    harness.decide()
    assert noted(harness) == ("full", (2, 0, 1, 0))


def test_it_is_noted_how_long_results_further_down_held_the_node() -> None:
    harness = Harness([2])
    harness.scheduler.notes = True
    outflow = harness.scheduler.outflow
    outflow.bytes = outflow.limit + 1
    harness.put("a")
    harness.decide(1.0)
    harness.decide(2.0)
    assert not harness.executors[0].batches
    outflow.bytes = 0
    harness.decide(3.0)
    assert noted(harness)[0] == "downstream"
    start = harness.executors[0].batches[-1].start
    assert start is not None and start.held == (1.0, 3.0)
    end(harness)
    harness.put("b")
    harness.decide(4.0)
    assert noted(harness)[0] == "idle"


def test_nothing_is_noted_unless_somebody_asked_for_it() -> None:
    harness = Harness([2])
    harness.put("a")
    harness.decide(1.0)
    assert harness.executors[0].batches[0].start is None
