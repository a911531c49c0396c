"""Admission: which requests are refused, and the estimates that decide it.

tests/pipelines/overload has the rule by itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.backends.errors import Overloaded, QueueFull
from penstock.pipelines.config.load import load
from penstock.pipelines.node.queue import Batch, Entry
from penstock.pipelines.node.statistics import NodeStatistics
from penstock.pipelines.overload.estimate import Estimate
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
    """Make a node that takes `run` seconds for a batch and `pace` for a row, with all executors."""
    estimate = Estimate()
    if run:
        estimate.observe(1, run)
    return SimpleNamespace(
        name=name,
        parts_per_item=parts,
        estimate=estimate,
        executor_count=run / pace if run else 1,
        max_rows=1,
        statistics=SimpleNamespace(),
        scheduler=SimpleNamespace(would_queue=queues, idle_until=lambda now, level: -1e9),
        level_of=lambda priority: 0,
        ahead_of=lambda priority: ahead if priority != 1 else 0,
    )


def admission(*nodes: Any, levels: int = 0, **settings: Any) -> Admission:
    made = Admission(
        load(
            {
                "pipeline": {"max_requests": 100, **settings},
                "node": {"backend": "Identity", "priority_levels": levels},
            }
        )
    )
    made.nodes = nodes
    made.refresh(0.0)
    return made


def enter(
    gate: Admission, rows: int, timeout: float | None = None, priority: int | None = None
) -> None:
    gate.check(rows, timeout, priority, None, 0.0)
    gate.ticket(rows, timeout, priority, None, 0.0)
    gate.door.requests += 1
    gate.door.rows += rows


def fill(gate: Admission, rows: int) -> None:
    gate.door.requests += 1
    gate.door.rows += rows


def test_a_bound_on_requests_in_flight() -> None:
    gate = admission(node(run=0), max_requests=2)
    enter(gate, 5)
    enter(gate, 5)
    assert (gate.door.requests, gate.door.rows) == (2, 10)
    with pytest.raises(QueueFull, match=r"^too many requests in flight: 2 \(max_requests = 2\)$"):
        enter(gate, 1)
    gate.leave(5)
    enter(gate, 1)
    assert (gate.door.requests, gate.door.rows) == (2, 6)
    assert gate.refused == {"queue_full": 1, "overloaded": 0}


def test_requests_of_lower_levels_take_no_place_of_higher_ones() -> None:
    gate = admission(node(run=0), levels=3, max_requests=2)
    enter(gate, 1, priority=3)
    enter(gate, 1, priority=3)
    with pytest.raises(QueueFull):
        enter(gate, 1, priority=3)
    enter(gate, 1, priority=1)
    enter(gate, 1, priority=2)
    with pytest.raises(QueueFull):
        enter(gate, 1)  # the middle level
    enter(gate, 1, priority=1)
    with pytest.raises(QueueFull):
        enter(gate, 1, priority=1)


def test_more_than_can_be_answered_is_refused_with_the_time_to_come_back() -> None:
    gate = admission(node(pace=0.01, run=0.02))
    for _ in range(50):
        enter(gate, 1)
    with pytest.raises(
        Overloaded,
        match=r"^more comes than can be answered: 50 rows are inside, about 500 ms of work; "
        r"50 rows can be answered within 0\.5 s \(max_wait\)$",
    ) as caught:
        enter(gate, 1)
    assert caught.value.retry_after in (1, 2)
    assert gate.refused == {"queue_full": 0, "overloaded": 1}


@pytest.mark.parametrize(("max_wait", "rows"), [(0.2, 20), ("0.2", 20), ("none", 100)])
def test_max_wait(max_wait: Any, rows: int) -> None:
    gate = admission(node(pace=0.01, run=0.02), max_wait=max_wait)
    for _ in range(rows):
        enter(gate, 1)
    with pytest.raises(Overloaded if rows < 100 else QueueFull):
        enter(gate, 1)


def test_a_request_that_would_wait_past_its_deadline_is_refused() -> None:
    gate = admission(node(ahead=8))
    fill(gate, 8)
    enter(gate, 1, 0.91)  # 8 × 0.1 + its own run: 0.1
    with pytest.raises(
        Overloaded,
        match=r"about 900 ms \(8 rows ahead at node 'node'\), the deadline is in 890 ms",
    ) as caught:
        enter(gate, 1, 0.89)
    assert caught.value.retry_after is not None
    assert (gate.door.rows, gate.refused["overloaded"]) == (9, 1)


def test_an_estimate_never_refuses_what_would_not_queue() -> None:
    gate = admission(node(pace=1000, run=1000, queues=False))
    enter(gate, 1, 0.001)


def test_before_the_first_batch_all_are_admitted() -> None:
    gate = admission(node(run=0, ahead=50))
    fill(gate, 50)
    enter(gate, 1, 0.001)
    enter(gate, 1)


def test_the_slowest_node_decides_and_nodes_after_it_do_not_count() -> None:
    gate = admission(
        node("a", pace=0.01, run=0.1, ahead=2, queues=False),
        node("b", ahead=3),
        node("c", pace=0.01, run=0.1, ahead=90),
    )
    fill(gate, 95)
    assert gate.run_time == pytest.approx(0.3)
    enter(gate, 1, 0.81)  # (2 + 3) × 0.1 + 0.3
    with pytest.raises(Overloaded, match="5 rows ahead at node 'b'"):
        enter(gate, 1, 0.79)


def test_a_request_with_priority_does_not_wait_for_the_others() -> None:
    gate = admission(node(ahead=50), levels=2)
    fill(gate, 50)
    enter(gate, 1, 0.5, 1)
    with pytest.raises(Overloaded):
        enter(gate, 1, 0.5, 2)


def test_a_patient_request_waits_for_the_late_ones_too() -> None:
    gate = admission(node(ahead=8))
    fill(gate, 8)
    gate.door.late = 8
    gate.pressure.on = True
    gate.pressure.spell = 1
    enter(gate, 1, 0.2)
    gate.rates.target = 0.1
    with pytest.raises(Overloaded):
        enter(gate, 1, 0.3)


async def test_wait_empty() -> None:
    gate = admission(node(run=0))
    enter(gate, 1)
    enter(gate, 1)
    empty = gate.wait_empty()
    assert gate.wait_empty() is empty  # two may wait
    gate.leave(1)
    assert not empty.done()
    gate.leave(1)
    assert empty.done()
    enter(gate, 1)
    assert not gate.wait_empty().done()


def test_the_counters_of_a_node() -> None:
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
    for _ in range(32):
        observe(statistics, 4, 2.0)
    assert statistics.estimate.per_row == pytest.approx(0.5)
    assert statistics.estimate.recent == pytest.approx(2.0, rel=0.01)
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
    gate = admission(node(pace=0.01, run=0.01, ahead=2, parts=10.0))
    fill(gate, 5)
    with pytest.raises(Overloaded, match="about 610 ms \\(5 rows ahead"):
        enter(gate, 1, 0.6)
    enter(gate, 1, 0.7)
