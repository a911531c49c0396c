"""Reports of front processes: what a node has counted since the last one is added."""

from __future__ import annotations

from penstock.app.processes.merge.report import (
    NOTHING,
    Counts,
    NodeReport,
    PipelineReport,
    Report,
    add_news,
    counts_of,
    read,
    sum_of_gauges,
    write,
)
from penstock.pipelines.node.statistics import NodeStatistics
from penstock.pipelines.other_processes import MemoryUse, NodeGauges


def counted(rows: int, seconds: float, last: float) -> NodeStatistics:
    """Return the statistics of a node that ran one batch of so many rows."""
    statistics = NodeStatistics()
    run(statistics, rows, seconds, last)
    return statistics


def run(statistics: NodeStatistics, rows: int, seconds: float, last: float) -> None:
    statistics.outcomes["ok"] += rows
    statistics.queue_seconds.add(seconds / 2, rows)
    statistics.batch_seconds.observe(seconds)
    total = statistics.sizes.setdefault(rows, [0, 0.0])
    total[0] += 1
    total[1] += seconds
    statistics.last = last


def test_only_news_are_added() -> None:
    here, there = counted(2, 0.02, 5.0), counted(4, 0.3, 7.0)
    first = counts_of(there)
    add_news(here, first, NOTHING)
    assert counts_of(here) == Counts(
        {"ok": 6, "soft": 0, "failed": 0, "expired": 0, "cancelled": 0},
        [a + b for a, b in zip(counts_of(counted(2, 0.02, 5.0)).queue, first.queue, strict=True)],
        2 * 0.01 + 4 * 0.15,
        [a + b for a, b in zip(counts_of(counted(2, 0.02, 5.0)).run, first.run, strict=True)],
        0.32,
        {2: [1, 0.02], 4: [1, 0.3]},
        7.0,
        0,
    )
    run(there, 4, 0.1, 6.5)
    there.restarts = 1
    add_news(here, counts_of(there), first)
    assert here.outcomes["ok"] == 10 and here.batches == 3 and here.restarts == 1
    assert here.sizes[4] == [2, 0.4] and here.last == 7.0
    add_news(here, counts_of(there), counts_of(there))
    assert here.outcomes["ok"] == 10 and here.batches == 3 and here.restarts == 1


def test_a_report_is_read_as_it_was_written() -> None:
    gauges = NodeGauges(3, 1024, 2, 1, 0.5, [{"name": "front 1 it/n#0", "state": "idle"}])
    node = NodeReport("n", counts_of(counted(2, 0.02, 5.0)), gauges)
    families = [("things", "Things.", "counter", [("things_total", {"kind": "a"}, 1.0)])]
    told = Report(12, 3, MemoryUse(5, 6, 7), families, [PipelineReport("token", 4, [node])])
    assert read(write(told)) == told


def test_gauges_of_several_processes_are_added_up() -> None:
    one = NodeGauges(3, 1024, 2, 1, 0.5, [{"name": "front 1 it/n#0"}])
    two = NodeGauges(1, 0, 2, 0, 0.0, [{"name": "front 2 it/n#0"}])
    both = NodeGauges(4, 1024, 4, 1, 0.5, [{"name": "front 1 it/n#0"}, {"name": "front 2 it/n#0"}])
    assert sum_of_gauges([one, two]) == both
