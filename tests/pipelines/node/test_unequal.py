"""Rule 10: executors on devices of different kinds, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipelines.node.queue import NEVER, Batch, Entry
from penstock.pipelines.node.scheduler import DeviceGroup, Scheduler
from penstock.pipelines.node.unequal import DeviceScheduler
from penstock.testing import FakeExecutor


class Kind(NamedTuple):
    """A device whose batch of n rows takes `start` + n × `row` seconds, and its executors."""

    start: float
    row: float
    max: int
    executors: int = 1

    def seconds(self, rows: int) -> float:
        return self.start + self.row * rows

    @property
    def rate(self) -> float:
        """Rows per second at its largest batch."""
        return self.executors * self.max / self.seconds(self.max)


class Future:
    def done(self) -> bool:
        return False


class Line(FakeExecutor):
    def __init__(self, kind: Kind, group: DeviceGroup) -> None:
        super().__init__(kind.max, group)
        self.kind = kind
        self.device = group.name


class Simulation:
    """A scheduler whose executors take as long as their devices do. Timers are kept to."""

    def __init__(
        self, *kinds: Kind, noise: float = 0.05, scheduler: type[Scheduler] = DeviceScheduler
    ) -> None:
        self.scheduler = scheduler("node", on_expired=self.never, on_stuck=self.never)
        self.now = 0.0
        self.ended: list[tuple[float, float, str]] = []  # came, ended, device; of each item
        self.lines: list[Line] = []
        self._random = random.Random(1)
        self._noise = noise
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._timer = NEVER
        for number, kind in enumerate(kinds):
            group = DeviceGroup(f"cuda:{number}")
            for _ in range(kind.executors):
                self.lines.append(line := Line(kind, group))
                line.start = lambda batch, line=line: self._started(line, batch)  # type: ignore[method-assign, misc]
                self.scheduler.add(line)

    def never(self, _: object) -> None:
        raise AssertionError("nothing expires, and nothing is stuck")

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), act))

    def arrive(self, items: int = 1) -> None:
        future: Any = Future()
        for _ in range(items):
            self.scheduler.enqueue(Entry({"data": self.now}, future), None, self.now)

    def _started(self, line: Line, batch: Batch) -> None:
        line.batches.append(batch)
        seconds = line.kind.seconds(batch.size) * self._random.lognormvariate(0, self._noise)
        self.at(self.now + seconds, lambda: self._ended(line, batch))

    def _ended(self, line: Line, batch: Batch) -> None:
        self.scheduler.release(line)
        if isinstance(self.scheduler, DeviceScheduler):
            self.scheduler.speeds.observe(line.device, batch.size, batch.started, self.now)
        for entry in batch.entries:
            self.ended.append((entry.item["data"], self.now, line.device))
        self.on_answers(len(batch.entries))

    def on_answers(self, items: int) -> None:
        """Do what the clients do with their answers."""

    def run(self, until: float) -> None:
        """Let happen what happens until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
            wake = self.scheduler.decide(self.now)
            assert wake > self.now
            if wake < NEVER:
                self.at(wake, lambda: None)

    def loops(self, number: int) -> None:
        """Run closed loops, which send an item as soon as they have the answer to the last."""
        self.on_answers = self.arrive  # type: ignore[method-assign]
        self.at(self.now, lambda: self.arrive(number))

    def rate(self, since: float) -> float:
        """Return the items per second that ended after a time."""
        return sum(ended >= since for _, ended, _ in self.ended) / (self.now - since)


FAST = Kind(0.002, 0.0005, 16)
SLOW = Kind(0.010, 0.0025, 16)
"""It takes five times as long as `FAST`."""

KINDS = st.builds(
    lambda slower, start, most, executors: Kind(
        0.01 * slower * start, 0.01 * slower * (1 - start) / most, most, executors
    ),
    st.floats(1.0, 10.0),
    st.floats(0.0, 0.7),
    st.sampled_from([4, 16, 32]),
    st.integers(1, 2),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(KINDS, min_size=2, max_size=4))
def test_together_they_are_as_fast_as_the_sum_and_nobody_starves(kinds: list[Kind]) -> None:
    simulation = Simulation(*kinds)
    rows = sum(kind.executors * kind.max for kind in kinds)
    number = 2 * rows
    longest = max(kind.seconds(kind.max) for kind in kinds)
    simulation.loops(number)
    simulation.run(12 * longest)
    since = simulation.now
    simulation.run(36 * longest)
    together = sum(kind.rate for kind in kinds)
    assert simulation.rate(since) >= 0.95 * together
    waits = [ended - came for came, ended, _ in simulation.ended if ended >= since]
    assert max(waits) <= 1.5 * (number / together + longest)
    queued = [simulation.now - entry.enqueued for entry in simulation.scheduler]
    assert max(queued, default=0.0) <= 1.5 * (number / together + longest)


@settings(max_examples=20, deadline=None)
@given(
    kind=KINDS,
    devices=st.integers(2, 3),
    load=st.one_of(st.floats(0.05, 1.2), st.integers(1, 200)),
)
def test_between_equal_devices_nothing_changes(kind: Kind, devices: int, load: float | int) -> None:
    """Each item is answered at the same moment as by the scheduler that knows no speeds, if the
    batches of both take exactly as long.
    """

    def answered(scheduler: type[Scheduler]) -> list[tuple[float, float]]:
        simulation = Simulation(*[kind] * devices, noise=0.0, scheduler=scheduler)
        if isinstance(load, int):
            simulation.loops(load)
        else:
            poisson(simulation, load * devices * kind.rate)
        simulation.run(30 * kind.seconds(kind.max))
        return [(came, ended) for came, ended, _ in simulation.ended]

    nothing_changes = answered(DeviceScheduler) == answered(Scheduler)
    assert nothing_changes  # the lists are too long to be compared in words


def poisson(simulation: Simulation, rate: float) -> None:
    moments = random.Random(2)

    def send() -> None:
        simulation.arrive()
        simulation.at(simulation.now + moments.expovariate(rate), send)

    simulation.at(0.0, send)


@pytest.mark.parametrize("load", [0.1, 0.5])
def test_at_a_low_load_the_slow_device_makes_nobody_wait(load: float) -> None:
    waits = {}
    for scheduler in (Scheduler, DeviceScheduler):
        simulation = Simulation(FAST, SLOW, scheduler=scheduler)
        poisson(simulation, load * FAST.rate)
        simulation.run(4.0)
        seconds = sorted(ended - came for came, ended, _ in simulation.ended if came > 1.0)
        waits[scheduler] = seconds[int(len(seconds) * 0.99)]
    assert waits[DeviceScheduler] < 0.6 * waits[Scheduler]


class Decisions:
    """A scheduler of a fast and a slow device whose speeds are known, and a time that is moved."""

    def __init__(self, fast: int = 8, slow: int = 8) -> None:
        self.scheduler = DeviceScheduler("node", on_expired=print, on_stuck=print)
        self.fast, self.slow = FakeExecutor(fast), FakeExecutor(slow)
        self.fast.device, self.slow.device = "cuda:0", "cuda:1"
        self.now = 0.0
        for executor in (self.fast, self.slow):
            self.scheduler.add(executor)
        for rows in (1, 8) * 8:
            self.scheduler.speeds.observe("cuda:0", rows, 0.0, 0.1 * rows)
            self.scheduler.speeds.observe("cuda:1", rows, 0.0, 0.4 * rows)

    def put(self, items: int) -> float:
        future: Any = Future()
        for _ in range(items):
            self.scheduler.enqueue(Entry({"data": self.now}, future), None, self.now)
        return self.scheduler.decide(self.now)

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        return tuple([batch.size for batch in each.batches] for each in (self.fast, self.slow))  # type: ignore[return-value]


def test_of_two_idle_devices_the_faster_one_starts() -> None:
    decisions = Decisions()
    decisions.put(1)
    assert decisions.sizes == ([1], [])


def test_an_item_waits_for_a_faster_device_that_ends_it_sooner_and_at_most_for_its_own_time() -> (
    None
):
    decisions = Decisions()
    decisions.put(1)
    decisions.now = 0.01
    assert decisions.put(1) == pytest.approx(0.41)  # 0.09 + 0.1 there, 0.4 here
    assert decisions.sizes == ([1], [])
    decisions.now = 0.4
    assert decisions.scheduler.decide(0.4) == pytest.approx(0.41)
    decisions.now = 0.42  # the fast one should have ended: something holds it
    assert decisions.scheduler.decide(0.42) > 0.42
    assert decisions.sizes == ([1], [1])


def test_a_slower_device_takes_what_it_ends_before_faster_ones_have_done_all() -> None:
    decisions = Decisions()
    decisions.put(8 + 8 + 4)  # the fast one ends 8 after 0.8 s, and the other 12 after 2 s
    assert decisions.sizes == ([8], [5])


def test_no_item_waits_for_a_device_that_is_hardly_faster() -> None:
    decisions = Decisions()
    alike = FakeExecutor(8)
    alike.device = "cuda:2"
    decisions.scheduler.add(alike)
    for rows in (1, 8) * 8:
        decisions.scheduler.speeds.observe("cuda:2", rows, 0.0, 0.12 * rows)
    decisions.put(1)
    decisions.put(1)
    assert decisions.sizes == ([1], [])
    decisions.scheduler.release(alike)
    decisions.now = 0.095  # the other one will have done it at 0.2, this one at 0.215
    decisions.put(1)
    assert [batch.size for batch in alike.batches] == [1, 1]


def test_devices_are_measured_before_they_are_compared() -> None:
    decisions = Decisions()
    decisions.scheduler = DeviceScheduler("node", on_expired=print, on_stuck=print)
    decisions.scheduler.add(decisions.fast)
    decisions.scheduler.add(decisions.slow)
    for number in range(16):
        decisions.put(1)
        (executor,) = decisions.scheduler.running
        decisions.scheduler.release(executor)
        seconds = 0.1 if executor.device == "cuda:0" else 0.4
        decisions.scheduler.speeds.observe(executor.device, 1, 0.0, seconds)
        assert sum(map(sum, decisions.sizes)) == number + 1
    assert decisions.sizes == ([1] * 8, [1] * 8)
    decisions.put(1)
    assert decisions.sizes == ([1] * 9, [1] * 8)


def test_a_device_that_has_left_is_not_compared() -> None:
    decisions = Decisions()
    decisions.put(1)
    decisions.scheduler.remove(decisions.fast)
    decisions.put(1)
    assert decisions.sizes == ([1], [1])
    assert not decisions.scheduler.speeds.unequal
