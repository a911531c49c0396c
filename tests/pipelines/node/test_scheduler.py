"""The rules of design §4, one by one, with executors that run nothing and a time that is an argument."""

from __future__ import annotations

from typing import Any

from penstock.pipelines.node.queue import NEVER, Batch, Entry
from penstock.pipelines.node.scheduler import Group, Scheduler


class Future:
    gone = False

    def done(self) -> bool:
        return self.gone


class FakeExecutor:
    def __init__(self, bound: int, group: Group) -> None:
        self.max = bound
        self.group = group
        self.batches: list[Batch] = []

    def start(self, batch: Batch) -> None:
        self.batches.append(batch)

    @property
    def ran(self) -> list[str]:
        return ["".join(entry.item["data"] for entry in batch.entries) for batch in self.batches]


class House:
    """A scheduler, its executors, and what it reported."""

    def __init__(self, *groups: list[int], **options: Any) -> None:
        self.expired: list[str] = []
        self.stuck: list[Batch] = []
        self.scheduler = Scheduler(
            "node",
            on_expired=lambda entry: self.expired.append(entry.item["data"]),
            on_stuck=self.stuck.append,
            **options,
        )
        self.executors: list[FakeExecutor] = []
        for number, members in enumerate(groups):
            group = Group(str(number))
            for bound in members:
                self.executors.append(FakeExecutor(bound, group))
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

    @property
    def ran(self) -> list[list[str]]:
        return [executor.ran for executor in self.executors]


# rule 1: late binding


def test_while_executors_are_busy_the_queue_and_the_next_batch_grow() -> None:
    house = House([8])
    house.put("a")
    house.decide()
    for name in "bcd":
        house.put(name)
        house.decide()
    assert house.ran == [["a"]]
    assert house.scheduler.queued == 3
    house.finish()
    house.decide()
    assert house.ran == [["a", "bcd"]]
    assert repr(house.scheduler) == "<Scheduler node: 1 active, 0 idle, 0 queued>"


def test_one_decision_starts_on_every_idle_executor() -> None:
    house = House([2], [2])
    house.put_all("abcde")
    house.decide()
    assert sorted(batch for ran in house.ran for batch in ran) == ["ab", "cd"]
    assert house.scheduler.queued == 1


# rule 2: idle first


def test_an_idle_group_starts_at_once_with_all_that_fits_whatever_the_timeout() -> None:
    house = House([4], batching_timeout=10.0)
    house.put_all("ab")
    house.decide()
    assert house.ran == [["ab"]]


def test_a_partly_busy_group_starts_only_a_full_bucket() -> None:
    house = House([3, 3], batching_timeout=10.0)
    house.put("a")
    house.decide()
    house.put_all("bc")
    house.decide()
    assert house.scheduler.queued == 2
    house.put("d")
    house.decide()
    assert sorted(house.ran) == [["a"], ["bcd"]]


def test_full_means_full_for_the_executor_that_would_run_it() -> None:
    house = House([2, 2], [8], batching_timeout=10.0)
    house.put_all("abcdefgh")  # goes to the executor of 8
    house.put("i", key="other")  # goes to one of the two
    house.decide()
    house.put_all("jk")
    house.decide()
    assert house.scheduler.queued == 0


def test_a_partly_busy_group_starts_a_timed_out_bucket_exactly_then() -> None:
    house = House([3, 3], batching_timeout=0.010)
    house.put("a")
    house.decide(1.0)
    house.put("b")
    assert house.decide(1.002) == 1.010  # b came at 1.0
    house.put("c")
    assert house.decide(1.009) == 1.010
    assert house.scheduler.queued == 2
    house.decide(1.010)
    assert sorted(house.ran) == [["a"], ["bc"]]


def test_the_oldest_of_low_priority_starts_the_timeout_too() -> None:
    house = House([3, 3], batching_timeout=1.0, priority_levels=2)
    house.put("a")
    house.decide()
    house.put("b", priority=1)
    house.now = 0.9
    house.put("c", priority=0)
    assert house.decide() == 1.0
    house.decide(1.0)
    assert sorted(house.ran) == [["a"], ["cb"]]


def test_batching_timeout_0_never_waits() -> None:
    house = House([8, 8])
    house.put("a")
    house.decide()
    house.put("b")
    house.decide()
    assert sorted(house.ran) == [["a"], ["b"]]


def test_an_idle_group_is_preferred_to_a_partly_busy_one() -> None:
    house = House([4], [4, 4])
    for name in "abc":
        house.put(name)
        house.decide()
    assert house.ran == [["b"], ["c"], ["a"]]


def test_the_executor_that_ran_last_runs_next() -> None:
    house = House([4], [4])
    for name in "abc":
        house.put(name)
        house.decide()
        running = next(iter(house.scheduler.running))
        house.scheduler.release(running)
    assert sorted(house.ran, key=len) == [[], ["a", "b", "c"]]


# rule 3: choice


def test_the_smallest_head_goes_so_no_shape_starves() -> None:
    house = House([2])
    house.put("a", key="busy")
    house.decide()
    house.put("b", key="rare")
    house.put_all("cdef", key="busy")
    order = []
    for _ in range(3):
        house.finish()
        house.decide()
        order.append(house.executors[0].ran[-1])
        house.put_all("xy", key="busy")
    assert order == ["b", "cd", "ef"]


def test_shapes_do_not_mix() -> None:
    house = House([8])
    for name, key in ("a", 1), ("b", 2), ("c", 1), ("d", 2):
        house.put(name, key=key)
    house.decide()
    house.finish()
    house.decide()
    assert house.ran == [["ac", "bd"]]
    assert not house.scheduler.buckets


def test_a_batch_stops_at_the_first_item_that_does_not_fit_and_that_stays_in_front() -> None:
    house = House([4])
    for name, size in ("a", 3), ("b", 2), ("c", 1):
        house.put(name, size=size)
    house.decide()
    assert house.ran == [["a"]]
    assert house.scheduler.queued == 3
    assert next(iter(house.scheduler)).item["data"] == "b"
    house.finish()
    house.decide()
    assert house.ran == [["a", "bc"]]
    assert house.executors[0].batches[1].size == 3


def test_request_sizes_fill_a_bucket() -> None:
    house = House([4, 4], batching_timeout=10.0)
    house.put("a")
    house.decide()
    house.put("b", size=3)
    house.decide()
    assert house.scheduler.queued == 3
    house.put("c", size=2)  # passes max: full
    house.decide()
    assert sorted(house.ran) == [["a"], ["b"]]


def test_groups_the_smallest_max_that_holds_the_bucket() -> None:
    for waiting, chosen in ("a", 1), ("abc", 4), ("abcdefgh", 8), ("abcdefghijk", 8):
        house = House([8], [1], [4])
        house.put_all(waiting)
        first = {executor.max: executor for executor in house.executors}
        house.decide()
        assert first[chosen].ran[0].startswith("a"), waiting


def test_an_item_waits_for_an_executor_that_it_fits() -> None:
    house = House([1], [4], batching_timeout=1.0)
    house.put("x", size=4)
    house.decide()
    house.put("big", size=2)
    house.put("small")
    assert house.decide() == 60.0  # only the end of x, or its getting stuck, helps
    assert house.ran == [[], ["x"]]
    house.finish(1)
    house.decide()
    assert house.ran == [[], ["x", "bigsmall"]]


def test_what_stood_behind_a_big_item_starts_when_that_leaves() -> None:
    house = House([1], [4])
    house.put("x", size=4)
    house.decide()
    big = house.put("big", size=2)
    house.put("small")
    house.decide()
    assert house.scheduler.discard(big)
    house.decide()
    assert house.ran == [["small"], ["x"]]


def test_fewer_than_min_run_at_once() -> None:
    house = House([8])
    house.put("a")
    house.decide()
    assert house.ran == [["a"]]


# rule 4: priorities


def test_priorities_are_strict_and_keep_the_order_inside() -> None:
    house = House([2], priority_levels=3)
    house.put("x")
    house.decide()
    for name, priority in ("a", 2), ("b", 1), ("c", 0), ("d", 1), ("e", 0), ("f", 2):
        house.put(name, priority=priority)
    for _ in range(3):
        house.finish()
        house.decide()
    assert house.ran == [["x", "ce", "bd", "af"]]


def test_priority_comes_before_arrival_between_shapes() -> None:
    house = House([2], priority_levels=2)
    house.put("x")
    house.decide()
    house.put("a", key=1, priority=1)
    house.put("b", key=2, priority=0)
    house.finish()
    house.decide()
    assert house.ran == [["x", "b"]]


# rule 5: deadlines


def test_an_item_expires_exactly_at_its_deadline_wherever_it_queues() -> None:
    house = House([1])
    house.put("x")
    house.decide()
    house.put("a")
    house.put("b", deadline=2.0)
    house.put("c", key="other", deadline=1.0)
    assert house.decide() == 1.0
    assert house.decide(0.999) == 1.0
    assert house.expired == []
    assert house.decide(1.0) == 2.0
    assert house.expired == ["c"]
    assert list(house.scheduler.buckets) == [None]
    house.decide(2.0)
    assert house.expired == ["c", "b"]
    assert house.scheduler.queued == 1
    house.finish()
    house.decide()
    assert house.ran == [["x", "a"]]


def test_what_has_expired_does_not_run_even_if_an_executor_is_free() -> None:
    house = House([4])
    house.put("a", deadline=1.0)
    house.put("b", deadline=1.5)
    house.decide(1.0)
    assert (house.expired, house.ran) == (["a"], [["b"]])


def test_an_item_whose_caller_left_does_not_run() -> None:
    house = House([4])
    entry = house.put("a")
    entry.future.gone = True  # type: ignore[attr-defined]
    house.put("b")
    house.decide()
    assert house.ran == [["b"]]
    entry = house.put("c")
    entry.future.gone = True  # type: ignore[attr-defined]
    house.finish()
    house.decide()
    assert house.ran == [["b"]]
    assert (house.scheduler.queued, house.scheduler.buckets, len(house.scheduler.idle)) == (
        0,
        {},
        1,
    )
    assert house.executors[0].group.busy == 0


def test_discard() -> None:
    house = House([1])
    running = house.put("x")
    house.decide()
    waiting = house.put("a", size=2)
    assert not house.scheduler.discard(running)
    assert house.scheduler.discard(waiting)
    assert not house.scheduler.discard(waiting)
    assert (house.scheduler.queued, house.scheduler.buckets) == (0, {})


def test_nothing_queued_nothing_to_wake_for() -> None:
    house = House([1], stuck_after=NEVER)
    assert house.decide() == NEVER
    house.put("a", deadline=5.0)
    assert house.decide() == NEVER  # it runs: nothing expires any more


# what rule 6 asks


def test_would_queue() -> None:
    house = House([2, 2], [2])
    assert not house.scheduler.would_queue
    house.put_all("abcde")
    assert not house.scheduler.would_queue  # five in a room for six
    house.put("f")
    assert house.scheduler.would_queue
    house.decide()
    assert house.scheduler.would_queue
    house.finish(2)
    assert not house.scheduler.would_queue


def test_a_partly_busy_group_is_no_idle_group() -> None:
    house = House([2, 2])
    house.put("a")
    house.decide()
    assert house.scheduler.would_queue


# stuck, dead, closed


def test_a_batch_that_runs_for_stuck_after_is_reported_once() -> None:
    house = House([1], stuck_after=5.0)
    house.put("a")
    assert house.decide(1.0) == 6.0
    assert house.decide(5.9) == 6.0
    assert house.stuck == []
    assert house.decide(6.0) == NEVER
    house.decide(7.0)
    assert [batch.entries[0].item["data"] for batch in house.stuck] == ["a"]
    assert house.stuck[0].stuck


def test_removing_an_executor_gives_back_its_batch_and_frees_its_group() -> None:
    house = House([4, 4])
    house.put("a")
    house.decide()
    index = next(i for i, executor in enumerate(house.executors) if executor.batches)
    batch = house.scheduler.remove(house.executors[index])
    assert batch is house.executors[index].batches[0]
    assert house.executors[index].group.busy == 0
    assert house.scheduler.remove(house.executors[1 - index]) is None
    assert repr(house.scheduler) == "<Scheduler node: 0 active, 0 idle, 0 queued>"
    house.put("b")
    house.decide()
    assert house.scheduler.max == 4  # what fits does not change while they are restarted
    house.scheduler.add(house.executors[0])
    house.decide()
    assert house.executors[0].ran[-1] == "b"


def test_drain() -> None:
    house = House([1])
    house.put_all("abc", deadline=3.0)
    house.put("d", key="other")
    house.decide()
    assert sorted(entry.item["data"] for entry in house.scheduler.drain()) == ["b", "c", "d"]
    assert (house.scheduler.queued, house.scheduler.buckets) == (0, {})
    house.decide(3.0)
    assert house.expired == []
