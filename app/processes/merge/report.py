"""The report of a front process about itself, as `marshal` writes it for the model process."""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from typing import Any, NamedTuple

from penstock.pipelines.node.statistics import NodeStatistics
from penstock.pipelines.other_processes import MemoryUse, NodeGauges

from .families import Family

REPORT = "report"
"""The question for a `Report`."""

LOG = "log"
"""Not a question but an order, with the log settings to take."""


class Counts(NamedTuple):
    """The counters of a node, from `NodeStatistics`; a histogram is its counts and a sum."""

    outcomes: dict[str, int]
    queue: list[int]
    queue_seconds: float
    run: list[int]
    run_seconds: float
    sizes: dict[int, list[float]]
    last: float | None
    restarts: int


class NodeReport(NamedTuple):
    name: str
    counts: Counts
    gauges: NodeGauges


class PipelineReport(NamedTuple):
    """A front's part of a pipeline. `token` says which loaded pipeline it is."""

    token: str
    in_flight: int
    nodes: Sequence[NodeReport]


class Report(NamedTuple):
    """A front process. `connections` are those that are open."""

    pid: int
    connections: int
    memory: MemoryUse
    families: Sequence[Family]
    pipelines: Sequence[PipelineReport]


def write(report: Report) -> bytes:
    """Return a report as bytes. `marshal` takes plain tuples alone."""
    pipelines = [
        (
            pipeline.token,
            pipeline.in_flight,
            [(node.name, tuple(node.counts), tuple(node.gauges)) for node in pipeline.nodes],
        )
        for pipeline in report.pipelines
    ]
    content: Any = (*report[:2], tuple(report.memory), report.families, pipelines)
    return marshal.dumps(content)


def read(content: bytes) -> Report:
    """Return the report that `write` wrote in another process of this server."""
    pid, connections, memory, families, pipelines = marshal.loads(content)
    return Report(
        pid,
        connections,
        MemoryUse(*memory),
        families,
        [
            PipelineReport(
                token,
                in_flight,
                [
                    NodeReport(name, Counts(*counts), NodeGauges(*gauges))
                    for name, counts, gauges in nodes
                ],
            )
            for token, in_flight, nodes in pipelines
        ],
    )


def counts_of(statistics: NodeStatistics) -> Counts:
    """Return what a node has counted until now."""
    return Counts(
        dict(statistics.outcomes),
        list(statistics.queue_seconds.counts),
        statistics.queue_seconds.sum,
        list(statistics.batch_seconds.counts),
        statistics.batch_seconds.sum,
        {size: list(total) for size, total in statistics.sizes.items()},
        statistics.last,
        statistics.restarts,
    )


NOTHING = counts_of(NodeStatistics())


def add_news(statistics: NodeStatistics, now: Counts, before: Counts) -> None:
    """Add what another process's node has counted since `before`."""
    for outcome, count in now.outcomes.items():
        statistics.outcomes[outcome] += count - before.outcomes[outcome]
    for histogram, counts, counted in (
        (statistics.queue_seconds, now.queue, before.queue),
        (statistics.batch_seconds, now.run, before.run),
    ):
        for bucket, times in enumerate(counts):
            histogram.counts[bucket] += times - counted[bucket]
    statistics.queue_seconds.sum += now.queue_seconds - before.queue_seconds
    statistics.batch_seconds.sum += now.run_seconds - before.run_seconds
    for size, (batches, seconds) in now.sizes.items():
        known = before.sizes.get(size, (0, 0.0))
        total = statistics.sizes.setdefault(size, [0, 0.0])
        total[0] += batches - known[0]
        total[1] += seconds - known[1]
    ended = [last for last in (statistics.last, now.last) if last is not None]
    statistics.last = max(ended, default=None)
    statistics.restarts += now.restarts - before.restarts


def sum_of_gauges(gauges: Sequence[NodeGauges]) -> NodeGauges:
    """Return what a node holds and does in several processes together."""
    instances: list[Any] = [one for node in gauges for one in node.instances]
    return NodeGauges(
        sum(node.queued for node in gauges),
        sum(node.ahead_bytes for node in gauges),
        sum(node.executors for node in gauges),
        sum(node.busy for node in gauges),
        sum(node.running_seconds for node in gauges),
        instances,
    )
