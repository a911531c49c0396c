"""The front process's side: it reports what it has counted, and follows the log settings."""

from __future__ import annotations

import marshal
import os
import time
from collections.abc import Callable, Iterable

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

from penstock.backends.memory import budget
from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.node import Node
from penstock.pipelines.other_processes import MemoryUse, NodeGauges
from penstock.pipelines.pipeline import Pipeline

from ...log_settings import log_settings
from ...metrics import memory_metrics
from ...server.connections import Connections
from ...server.logs import Log
from ...server.metrics import ConnectionCollector
from ...status.nodes import executors_of
from ...status.totals import nodes_of
from ...v2.models.metrics import ModelMetricsCollector
from .families import Family, packed
from .report import LOG, NodeReport, PipelineReport, Report, counts_of, write

FrontPipelines = Callable[[], Iterable[tuple[str, Pipeline]]]
"""Returns the pipelines of front nodes that run here, each with the token of the loaded pipeline
that it is a part of.
"""


class FrontReports:
    """Answers the model process's questions about this front process, on its event loop."""

    def __init__(
        self,
        name: str,
        connections: Connections,
        log: Log,
        pipelines: FrontPipelines = lambda: (),
    ) -> None:
        """`name`: that of this process, such as `front 1`."""
        self._name = name
        self._connections = connections
        self._pipelines = pipelines
        self._collectors: tuple[Collector, ...] = (
            ConnectionCollector(connections),
            log,
            ModelMetricsCollector(),
            ProcessCollector(registry=None),
        )

    def answer(self, question: bytes) -> bytes:
        """Answer a question, or follow an order."""
        kind, *rest = marshal.loads(question)
        if kind == LOG:
            log_settings.take(*rest)
            return b""
        return write(self.report())

    def report(self) -> Report:
        """Return what this process has counted until now."""
        pipelines = [
            PipelineReport(
                token,
                pipeline.in_flight,
                [
                    NodeReport(node.name, counts_of(node.statistics), self._gauges(node, pipeline))
                    for node in nodes_of(pipeline)
                ],
            )
            for token, pipeline in self._pipelines()
        ]
        memory = MemoryUse(budget.used, budget.limit, budget.refusals)
        return Report(os.getpid(), len(self._connections.open), memory, self._families(), pipelines)

    def _families(self) -> list[Family]:
        families = packed(memory_metrics())
        for collector in self._collectors:
            families += packed(collector.collect())
        return families

    def _gauges(self, node: Node | CompositeNode, pipeline: Pipeline) -> NodeGauges:
        if not isinstance(node, Node):
            return NodeGauges()
        scheduler, now = node.scheduler, time.monotonic()
        return NodeGauges(
            scheduler.queued,
            node.outflow.bytes,
            len(scheduler.running) + len(scheduler.idle),
            len(scheduler.running),
            sum(max(0.0, now - batch.started) for batch in scheduler.running.values()),
            [
                {**one, "name": f"{self._name} {one['name']}"}
                for one in executors_of(node, pipeline)
            ],
        )
