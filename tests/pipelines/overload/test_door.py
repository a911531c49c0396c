"""The rule, on a clock that is an argument."""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.pipelines.overload.door import (
    Door,
    LevelEndings,
    Pressure,
    retry_after,
)
from penstock.pipelines.overload.estimate import Estimate
from penstock.pipelines.overload.rates import Rates
from penstock.pipelines.overload.ticket import Ticket


class Entrance:
    """The doors of some levels in front of a node that answers 20 rows per second.

    So ten rows can be answered within the target of half a second.
    """

    def __init__(self, levels: int = 1) -> None:
        self.endings = [LevelEndings() for _ in range(levels)]
        self.pressure = Pressure()
        self.doors = tuple(
            Door([endings], self.pressure if endings is self.endings[-1] else None)
            for endings in self.endings
        )
        self.pressure.doors = self.doors
        self.rates = Rates()
        self.rates.update([station((1, 0.05), executors=1, most=2)])
        self.now = 100.0
        self.idle_until = 90.0  # the executors have been busy for long
        assert self.rates.base == pytest.approx(10)
        self.rates.base = 10

    @property
    def door(self) -> Door:
        return self.doors[-1]

    def comes(
        self, client: Hashable = None, size: int = 1, level: int = 0, patient: bool = False
    ) -> Ticket | None:
        """Let a request come; None: it was refused."""
        doors = self.doors[level:]
        if not doors[0].admits(size, client, self.rates, self.idle_until, self.now):
            return None
        return self.enters(doors, size, client, patient)

    def enters(
        self, doors: tuple[Door, ...], size: int, client: Hashable, patient: bool = False
    ) -> Ticket:
        ticket = Ticket(doors, self.pressure, size, self.now, client=client, patient=patient)
        self.door.requests += 1
        self.door.rows += size
        return ticket

    def ends(self, ticket: Ticket, how: str = "") -> None:
        self.door.note()
        ticket.leave(how, self.now)
        self.door.requests -= 1
        self.door.rows -= ticket.rows
        if not how:
            self.endings[-1].succeeded += 1
            self.endings[-1].rows += ticket.rows
        elif how in ("cancelled", "expired"):
            self.endings[-1].given_up += 1

    def looks(self) -> None:
        self.door.note()
        self.door.observe(self.idle_until, self.rates.base, self.now)

    def is_pressed(self) -> bool:
        return self.pressure.on

    def press(self) -> None:
        """Begin pressure: one is answered, two are refused."""
        self.looks()
        self.endings[-1].succeeded += 1
        for _ in range(2):
            assert not self.pressure.on
            self.door.refuse(self.now)
        assert self.pressure.on

    def fill(self, rows: int, client: Hashable = None) -> list[Ticket]:
        return [self.enters(self.doors, 1, client) for _ in range(rows)]


def station(*batches: tuple[int, float], executors: int, most: int, parts: float = 1.0) -> Any:
    estimate = Estimate()
    for size, seconds in batches:
        estimate.observe(size, seconds)
    return SimpleNamespace(
        estimate=estimate, executor_count=executors, max_rows=most, parts_per_item=parts
    )


def test_as_many_rows_come_in_as_can_be_answered_within_the_target() -> None:
    entrance = Entrance()
    assert all(entrance.comes() for _ in range(10))
    assert entrance.comes() is None


def test_a_burst_comes_in_while_an_executor_was_idle_lately() -> None:
    entrance = Entrance()
    entrance.idle_until = entrance.now = 100.0
    assert all(entrance.comes() for _ in range(80))
    entrance.now += 0.9
    assert entrance.comes()
    entrance.now += 0.2
    assert entrance.comes() is None


def test_one_out_one_in() -> None:
    entrance = Entrance()
    inside = entrance.fill(64)
    for _ in range(100):
        entrance.looks()
        entrance.ends(inside.pop())
        entrance.now += 0.1
        ticket = entrance.comes()
        assert ticket is not None
        inside.append(ticket)
    assert entrance.comes() is None  # and no more


def test_whoever_left_long_ago_leaves_no_place() -> None:
    entrance = Entrance()
    inside = entrance.fill(64)
    for ticket in inside[:32]:
        entrance.ends(ticket)
    for _ in range(3):
        entrance.now += 1.1
        entrance.looks()
    assert entrance.comes() is None


def test_what_left_before_a_quiet_time_leaves_no_place() -> None:
    entrance = Entrance()
    for ticket in entrance.fill(64):
        entrance.ends(ticket)
    entrance.looks()
    entrance.now += 3.0  # nobody comes
    entrance.fill(30)
    assert entrance.comes() is None


def test_a_burst_leaves_room_for_those_of_it_that_pause() -> None:
    entrance = Entrance()
    entrance.idle_until = entrance.now - 0.5
    assert all(entrance.comes() for _ in range(30))
    entrance.now += 0.6
    assert all(entrance.comes() for _ in range(10))  # `base`
    assert entrance.comes() is None


def test_pressure_begins_with_refusals_and_ends_without_them() -> None:
    entrance = Entrance()
    inside = entrance.fill(30)
    entrance.looks()
    assert [entrance.comes() for _ in range(5)] == [None] * 5
    assert not entrance.is_pressed()  # nothing has ended: nothing is known
    entrance.ends(inside.pop())
    entrance.looks()
    assert entrance.is_pressed()
    entrance.ends(inside.pop())
    assert entrance.comes() is None  # under pressure no place is kept
    for _ in range(2):
        entrance.now += 1.0
        entrance.looks()
    assert not entrance.is_pressed()


def test_an_idle_executor_ends_pressure() -> None:
    entrance = Entrance()
    entrance.fill(30)
    entrance.press()
    entrance.now += 0.5
    entrance.idle_until = entrance.now
    entrance.looks()
    assert not entrance.pressure.on


def test_callers_that_give_up_are_a_sign_of_pressure() -> None:
    entrance = Entrance()
    inside = entrance.fill(30)
    entrance.looks()
    for _ in range(10):
        entrance.ends(inside.pop())
    entrance.ends(inside.pop(), "cancelled")
    entrance.looks()
    assert not entrance.pressure.on
    entrance.ends(inside.pop(), "expired")
    entrance.looks()
    assert entrance.pressure.on


def test_late_rows_do_not_count_while_pressure_lasts() -> None:
    entrance = Entrance()
    inside = entrance.fill(30)
    inside[0].become_late()
    assert not inside[0].late  # no pressure
    entrance.press()
    for ticket in inside[:28]:
        ticket.become_late()
        ticket.become_late()
    assert entrance.door.n == 2
    assert entrance.comes()
    entrance.ends(inside[0])
    assert entrance.door.n == 3
    entrance.pressure.turn(False)
    assert not inside[1].late
    assert entrance.door.n == 30
    entrance.ends(inside[1])
    assert entrance.door.n == 29


def test_patient_rows_do_not_count() -> None:
    entrance = Entrance()
    patient = [entrance.enters(entrance.doors, 1, "b", patient=True) for _ in range(50)]
    assert entrance.pressure.sorts
    assert entrance.comes()
    patient[0].become_late()
    for ticket in patient:
        entrance.ends(ticket)
    assert (entrance.door.n, entrance.pressure.sorts) == (1, False)


def test_a_client_gets_its_share() -> None:
    entrance = Entrance()
    entrance.fill(30, "flood")
    assert entrance.comes("flood") is None
    assert all(entrance.comes("small") for _ in range(5))
    assert entrance.comes("small") is None  # more than half of ten
    assert all(entrance.comes("third") for _ in range(3))
    assert entrance.comes("third") is None  # more than a third


def test_all_requests_without_a_client_are_one() -> None:
    entrance = Entrance()
    entrance.fill(30)
    assert entrance.comes() is None
    assert entrance.comes("named")
    assert entrance.comes() is None


def test_a_higher_level_does_not_see_lower_ones() -> None:
    entrance = Entrance(3)
    for _ in range(40):
        entrance.enters(entrance.doors[2:], 1, "flood")
    entrance.press()
    assert entrance.comes("flood", level=2) is None
    assert entrance.doors[0].n == entrance.doors[1].n == 0
    assert all(entrance.comes("flood", level=0) for _ in range(10))
    assert entrance.comes("flood", level=0) is None  # its own fill the room
    assert entrance.comes("flood", level=1) is None  # those above it count
    assert [door.rows for door in entrance.doors] == [10, 10, 50]


def test_the_target_and_the_base() -> None:
    rates = Rates()
    assert rates.base == float("inf")
    rates.update([station((1, 2.0), (16, 5.0), executors=1, most=16)])
    assert rates.target == pytest.approx(20)  # ten of the shortest batches
    assert rates.base == pytest.approx(20 / 5 * 16)
    assert Rates(timeout=3.0).target == 0.5
    short = Rates(timeout=3.0)
    short.update([station((1, 2.0), executors=1, most=1)])
    assert short.target == 1.5  # half of the time-out: more would be late anyhow
    wish = Rates(max_wait=0.2)
    wish.update([station((1, 0.01), executors=2, most=1)])
    assert wish.target == 0.2
    assert wish.base == pytest.approx(40)


def test_the_slowest_node_counts_with_all_its_parts() -> None:
    rates = Rates()
    rates.update(
        [
            station((1, 0.01), executors=1, most=8),
            station((1, 0.001), executors=1, most=8, parts=50.0),
        ]
    )
    assert rates.slowest == 1
    assert rates.best == pytest.approx(0.05)
    assert rates.alone == pytest.approx(0.06)
    assert rates.base == pytest.approx(0.6 / 0.05)
    assert rates.burst == 0.5


def test_refused_clients_do_not_come_back_together() -> None:
    assert all(1 <= retry_after(0.2) <= 2 for _ in range(50))
    assert len({retry_after(10) for _ in range(200)}) > 5
    assert retry_after(1000) == 30
