"""Admission: which requests are refused, and the estimates that decide it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.backends.errors import Overloaded, QueueFull
from penstock.pipelines.node.queue import Batch, Entry
from penstock.pipelines.node.statistics import NodeStatistics
from penstock.pipelines.runs.admission import Admission


def node(
    name: str = "node",
    *,
    pace: float = 0.1,
    run: float = 0.1,
    ahead: int = 0,
    queues: bool = True,
    parts: float = 1.0,
) -> Any:
    return SimpleNamespace(
        name=name,
        parts_per_item=parts,
        seconds_per_item=pace,
        statistics=SimpleNamespace(seconds_per_batch=run),
        scheduler=SimpleNamespace(would_queue=queues),
        ahead_of=lambda priority: ahead if priority != 1 else 0,
    )


def admission(*nodes: Any, max_requests: int = 100) -> Admission:
    made = Admission(max_requests)
    made.nodes = nodes
    made.update()
    return made


def enter(gate: Admission, rows: int, budget: float, priority: int | None) -> None:
    gate.check(rows, budget, priority)
    gate.in_flight += 1
    gate.rows += rows


def leave(gate: Admission, rows: int) -> None:
    gate.in_flight -= 1
    gate.rows -= rows
    gate.settle()


def test_a_bound_on_requests_in_flight() -> None:
    gate = admission(node(pace=0, run=0), max_requests=2)
    enter(gate, 5, 1.0, None)
    enter(gate, 5, 1.0, None)
    assert (gate.in_flight, gate.rows) == (2, 10)
    with pytest.raises(QueueFull, match=r"^too many requests in flight: 2 \(max_requests = 2\)$"):
        enter(gate, 1, 1.0, None)
    leave(gate, 5)
    enter(gate, 1, 1.0, None)
    assert (gate.in_flight, gate.rows) == (2, 6)
    assert gate.refused == {"queue_full": 1, "overloaded": 0}


def fill(gate: Admission, rows: int) -> None:
    enter(gate, rows, float("inf"), None)


def test_a_request_that_would_wait_past_its_deadline_is_refused() -> None:
    gate = admission(node(ahead=8))
    fill(gate, 8)
    enter(gate, 1, 1.01, None)  # (8 + 1) × 0.1 + 0.1
    assert gate.in_flight == 2
    with pytest.raises(
        Overloaded,
        match=r"about 1000 ms \(8 rows ahead at node 'node'\), the deadline is in 990 ms",
    ):
        enter(gate, 1, 0.99, None)
    assert (gate.in_flight, gate.rows, gate.refused["overloaded"]) == (2, 9, 1)


def test_an_estimate_never_refuses_what_would_not_queue() -> None:
    gate = admission(node(pace=1000, run=1000, queues=False))
    enter(gate, 1, 0.001, None)
    assert gate.in_flight == 1


def test_before_the_first_batch_all_are_admitted() -> None:
    gate = admission(node(pace=0, run=0, ahead=50))
    fill(gate, 50)
    enter(gate, 1, 0.001, None)


def test_the_slowest_node_decides_and_nodes_after_it_do_not_count() -> None:
    gate = admission(
        node("a", pace=0.01, run=0.1, ahead=2, queues=False),
        node("b", ahead=3),
        node("c", pace=0.01, run=0.1, ahead=90),
    )
    fill(gate, 95)
    assert gate.run_time == pytest.approx(0.3)
    enter(gate, 1, 0.91, None)  # (2 + 3 + 1) × 0.1 + 0.3
    with pytest.raises(Overloaded, match="5 rows ahead at node 'b'"):
        enter(gate, 1, 0.89, None)


def test_a_request_with_priority_does_not_wait_for_the_others() -> None:
    gate = admission(node(ahead=50))
    fill(gate, 50)
    enter(gate, 1, 0.5, 1)
    with pytest.raises(Overloaded):
        enter(gate, 1, 0.5, 2)


async def test_wait_empty() -> None:
    gate = admission(node(pace=0, run=0))
    enter(gate, 1, 1.0, None)
    enter(gate, 1, 1.0, None)
    empty = gate.wait_empty()
    assert gate.wait_empty() is empty  # two may wait
    leave(gate, 1)
    assert not empty.done()
    leave(gate, 1)
    assert empty.done()
    enter(gate, 1, 1.0, None)
    assert not gate.wait_empty().done()


def test_the_rate_is_that_of_the_last_32_batches() -> None:
    future: Any = None

    def observe(statistics: NodeStatistics, size: int, seconds: float) -> None:
        entry = Entry({}, future)
        entry.enqueued = 0.0
        batch = Batch("node", None, [entry], size, 1.0)
        batch.ended = 1.0 + seconds
        statistics.observe_batch(batch)

    statistics = NodeStatistics()
    for _ in range(10):
        observe(statistics, 1, 100.0)
    assert statistics.seconds_per_item == 100.0
    for _ in range(32):
        observe(statistics, 4, 2.0)
    assert statistics.seconds_per_item == pytest.approx(0.5)
    assert statistics.seconds_per_batch == pytest.approx(2.0)
    assert (statistics.batches, statistics.batch_size.count, statistics.queue_seconds.count) == (
        42,
        42,
        42,
    )
    assert statistics.batch_size.counts[2] == 32
    assert statistics.queue_seconds.sum == 42.0
    assert statistics.last == 3.0
    assert statistics.sizes == {1: [10, 1000.0], 4: [32, 64.0]}
    observe(statistics, 4, 3.0)
    statistics.count("failed")
    assert (statistics.outcomes["ok"], statistics.outcomes["failed"]) == (42, 1)


def test_of_a_request_that_becomes_parts_its_rows_count() -> None:
    """Five requests have ten parts each, of which only two queue yet.

    The estimate must not take the short queue for all the work ahead.
    """
    gate = admission(node(pace=0.1, run=0.0, ahead=2, parts=10.0))
    fill(gate, 5)
    with pytest.raises(Overloaded, match="about 600 ms \\(5 rows ahead"):
        enter(gate, 1, 0.5, None)
    enter(gate, 1, 0.7, None)
