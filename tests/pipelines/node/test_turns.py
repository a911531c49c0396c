"""The order of a queue under pressure."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.pipelines.node.queue import NEVER, Bucket, Entry
from penstock.pipelines.node.turns import Turns
from penstock.pipelines.overload.door import Door, LevelEndings, Pressure
from penstock.pipelines.overload.ticket import Ticket


class Future:
    def done(self) -> bool:
        return False


class Queue:
    def __init__(self) -> None:
        self.pressure = Pressure()
        self.door = Door([LevelEndings()], self.pressure)
        self.pressure.doors = (self.door,)
        self.pressure.turn(True)
        self.pressure.target = 1.0
        self.bucket = Bucket("key")
        self.bucket.take_turns(self.pressure)
        self.arrivals = 0

    def entry(
        self,
        name: str,
        client: str | None = None,
        *,
        came: float = 0.0,
        deadline: float = NEVER,
        patient: bool = False,
        size: int = 1,
    ) -> Entry:
        future: Any = Future()
        made = Entry({"data": name}, future, deadline, size=size)
        made.ticket = Ticket(
            (self.door,), self.pressure, size, came, client=client, patient=patient
        )
        self.door.rows += size
        made.arrival = self.arrivals = self.arrivals + 1
        made.enqueued = came
        return made

    def put(self, names: str, client: str | None = None, **options: Any) -> None:
        for name in names:
            entry = self.entry(name, client, **options)
            self.bucket.levels[0].append(entry)
            self.bucket.size += entry.size

    def take(self, limit: int = 100, fill: int | None = None) -> str:
        entries, size = self.bucket.take(limit, fill)
        assert size == sum(entry.size for entry in entries)
        assert self.bucket.size == sum(entry.size for entry in self.bucket)
        return "".join(entry.item["data"] for entry in entries)


def test_clients_take_turns() -> None:
    queue = Queue()
    queue.put("abcdef", "flood")
    queue.put("12", "small")
    queue.put("x")
    assert queue.take(4) == "a1xb"
    assert queue.take() == "2cdef"
    assert len(queue.bucket) == 0


def test_late_entries_stand_behind_the_rest_and_only_fill_a_batch() -> None:
    queue = Queue()
    queue.put("abcd", came=0.0)
    queue.put("12", came=2.0)
    queue.bucket.settle(2.5, 0.1)
    assert queue.door.late == 4
    assert queue.bucket.rank[1] == 0
    assert queue.take(8, 3) == "12a"
    assert queue.take(8, 3) == "bcd"


def test_what_has_started_does_not_become_late() -> None:
    queue = Queue()
    queue.put("a")
    entry = queue.bucket.head
    assert entry.ticket is not None
    entry.ticket.started = True
    queue.bucket.settle(10.0, 0.1)
    assert queue.door.late == 0


def test_a_late_request_is_late_at_the_next_node_too() -> None:
    queue = Queue()
    late = queue.entry("l")
    assert late.ticket is not None
    late.ticket.become_late()
    queue.bucket.levels[0].append(late)
    queue.bucket.size = 1
    queue.put("f")
    assert queue.take() == "fl"


def test_patient_entries_go_last_until_they_are_nearly_due() -> None:
    queue = Queue()
    queue.put("p", patient=True, deadline=10.0)
    queue.put("ab")
    queue.bucket.settle(1.0, 0.5)
    assert queue.take(2) == "ab"
    queue.put("cd")
    queue.bucket.settle(9.0, 0.5)
    assert queue.take() == "pcd"


def test_a_patient_entry_that_would_be_answered_too_late_goes_last() -> None:
    queue = Queue()
    queue.put("p", patient=True, deadline=10.0)
    queue.put("q", patient=True, deadline=10.4)
    queue.put("r", patient=True, deadline=20.0)
    queue.put("a", came=9.0)
    queue.bucket.settle(9.7, 0.5)
    assert queue.take() == "qarp"


def test_a_client_takes_turns_with_the_patient_ones_of_another_that_are_nearly_due() -> None:
    queue = Queue()
    queue.put("pqrs", "flood", patient=True, deadline=10.0)
    queue.put("ab", "small", came=9.0)
    queue.bucket.settle(9.0, 0.5)
    assert queue.take() == "paqbrs"


@pytest.mark.parametrize("again", [False, True])
def test_late_ones_are_not_late_any_more_when_pressure_has_ended(again: bool) -> None:
    queue = Queue()
    queue.put("p", "offline", patient=True, deadline=100.0)
    queue.put("ab", "one", came=0.0)
    queue.bucket.settle(2.0, 0.1)
    assert queue.door.late == 2
    queue.pressure.turn(False)
    if again:
        queue.pressure.turn(True)
    queue.put("c", "one", came=2.5)
    queue.bucket.settle(3.0, 0.1)
    assert queue.door.late == 2 * again
    assert queue.take() == ("cpab" if again else "abcp")


def test_after_pressure_the_order_is_that_of_arrival_again() -> None:
    queue = Queue()
    queue.put("abc", "flood", came=0.0)
    queue.put("1", "small", came=3.0)
    queue.bucket.settle(3.0, 0.1)
    queue.pressure.turn(False)
    queue.bucket.end_turns()
    assert queue.take() == "abc1"
    assert queue.door.late == 0


def test_an_entry_leaves_from_whatever_lane() -> None:
    queue = Queue()
    queue.put("a", "one")
    queue.put("p", "one", patient=True, deadline=100.0)
    queue.put("b", "one", came=5.0)
    queue.bucket.settle(5.0, 0.1)
    assert len(queue.bucket) == 3
    for entry in list(queue.bucket):
        entry.bucket = queue.bucket
        assert queue.bucket.remove(entry)
        assert not queue.bucket.remove(entry)
    assert (len(queue.bucket), queue.bucket.size) == (0, 0)
    with pytest.raises(IndexError):
        _ = queue.bucket.rank


def test_entries_without_a_ticket_are_one_client() -> None:
    pressure = Pressure()
    future: Any = Future()
    entries = [Entry({"data": name}, future) for name in "ab"]
    turns = Turns(pressure, entries)
    pressure.on = True
    turns.settle(1e9, 0.1)  # no admission counts them, so they are never late
    assert [turns.popleft() for _ in range(2)] == entries
