"""What pipelines have done since they were loaded: two of these give what they did in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline


class NodeTotals(NamedTuple):
    """What a node has done. `busy_seconds` is the time that its executors ran, with what runs now,
    and `executors` how many there are.
    """

    items: int = 0
    batches: int = 0
    rows: int = 0
    waits: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    busy_seconds: float = 0.0
    executors: int = 0


class PipelineTotals(NamedTuple):
    """What a pipeline and its exposed nodes have done."""

    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    nodes: Mapping[str, NodeTotals] = {}


class Totals(NamedTuple):
    """The totals of all pipelines, taken at a time on the sampler's clock and on
    `time.monotonic`, in seconds.
    """

    at: float
    monotonic: float
    pipelines: Mapping[Pipeline, PipelineTotals]


def totals_of(pipeline: Pipeline) -> PipelineTotals:
    """Return what a pipeline has done until now."""
    succeeded = failed = refused = 0
    for door in (pipeline, *pipeline.exposed):
        succeeded += door.statistics.answered
        failed += sum(door.statistics.failures.values())
        refused += sum(door.refused.values())
    nodes = {node.name: _of_node(node) for node in nodes_of(pipeline)}
    return PipelineTotals(succeeded, failed, refused, nodes)


def nodes_of(pipeline: Pipeline) -> tuple[Node | CompositeNode, ...]:
    """Return the nodes that run: with executors, and those that wait for other nodes."""
    return (*pipeline.nodes, *pipeline.composites)


def _of_node(node: Node | CompositeNode) -> NodeTotals:
    statistics = node.statistics
    batches = rows = 0
    for size, (count, _) in statistics.sizes.items():
        batches += int(count)
        rows += size * int(count)
    ran = busy = statistics.batch_seconds.sum
    executors = 0
    if isinstance(node, Node):
        now, executors = time.monotonic(), node.executor_count
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
    )
