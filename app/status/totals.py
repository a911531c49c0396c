"""What pipelines have done since they were loaded: two of these give what they did in between."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.node import Node
from penstock.pipelines.other_processes import NodeGauges, OtherProcesses
from penstock.pipelines.pipeline import Pipeline


class NodeTotals(NamedTuple):
    """What a node has done. `busy_seconds` is the time that its executors ran, with what runs now.

    Of the moment are `executors`, how many there are, `queued`, the rows that wait, and
    `instances`, those of other processes.
    """

    items: int = 0
    batches: int = 0
    rows: int = 0
    waits: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    busy_seconds: float = 0.0
    executors: int = 0
    queued: int = 0
    instances: Sequence[Mapping[str, Any]] = ()


class PipelineTotals(NamedTuple):
    """What a pipeline and its exposed nodes have done, and how many requests are in flight."""

    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    nodes: Mapping[str, NodeTotals] = {}
    in_flight: int = 0


class Totals(NamedTuple):
    """The totals of all pipelines, taken at a time on the sampler's clock and on
    `time.monotonic`, in seconds. `processes`: the processor time of each process, by its id.
    """

    at: float
    monotonic: float
    pipelines: Mapping[Pipeline, PipelineTotals]
    processes: Mapping[int, float]


def totals_of(pipeline: Pipeline, others: OtherProcesses) -> PipelineTotals:
    """Return what a pipeline has done until now, in all processes."""
    succeeded = failed = refused = 0
    for door in (pipeline, *pipeline.exposed):
        succeeded += door.statistics.answered
        failed += sum(door.statistics.failures.values())
        refused += sum(door.refused.values())
    nodes = {
        node.name: _of_node(node, others.gauges(pipeline, node.name)) for node in nodes_of(pipeline)
    }
    in_flight = pipeline.in_flight + others.in_flight(pipeline)
    return PipelineTotals(succeeded, failed, refused, nodes, in_flight)


def nodes_of(pipeline: Pipeline) -> tuple[Node | CompositeNode, ...]:
    """Return the nodes that run: with executors, and those that wait for other nodes."""
    return (*pipeline.nodes, *pipeline.composites)


def _of_node(node: Node | CompositeNode, there: NodeGauges) -> NodeTotals:
    statistics = node.statistics
    batches = rows = 0
    for size, (count, _) in statistics.sizes.items():
        batches += int(count)
        rows += size * int(count)
    ran = busy = statistics.batch_seconds.sum
    executors, queued = 0, there.queued
    if isinstance(node, Node):
        queued += node.scheduler.queued
        # Where other processes run it, this one's own instances have little to do.
        now, executors = time.monotonic(), there.executors or node.executor_count
        busy += there.running_seconds
        for batch in node.scheduler.running.values():
            busy += max(0.0, now - batch.started)
    return NodeTotals(
        sum(statistics.outcomes.values()),
        batches,
        rows,
        statistics.queue_seconds.count,
        statistics.queue_seconds.sum,
        ran,
        busy,
        executors,
        queued,
        there.instances,
    )
