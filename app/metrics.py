"""Prometheus metrics, made at scrape from the plain counters of the pipelines.

Nothing here runs for a request. Each app has a registry of its own, so that several apps in one
process, and the host's own metrics, do not collide. A pipeline that is unloaded or replaced takes
its series along: the counters of its successor start at 0, which Prometheus takes for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from penstock.backends.memory import budget
from penstock.pipelines.cache.responses import ResponseCache
from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.device_node import DeviceNode
from penstock.pipelines.node.node import Node
from penstock.pipelines.node.statistics import Histogram
from penstock.pipelines.other_processes import OtherProcesses
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .trace.tracing import Tracing
from .v2.models.metrics import ModelMetricsCollector, TritonCollector, with_counters

PIPELINE_LABELS = ("pipeline", "version")
NODE_LABELS = (*PIPELINE_LABELS, "node")


class PipelineCollector(Collector):
    """Collects from a repository.

    Call `collect` on the thread of its event loop, where nothing changes meanwhile.
    """

    def __init__(self, repository: Repository, ready_when: Literal["all", "any"] = "all") -> None:
        self._repository = repository
        self._ready_when: Literal["all", "any"] = ready_when

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        known = self._repository.version_states()
        pipelines = [
            # The version tells series apart, and is not shown where there is only one.
            ((name, version if len(known[name]) > 1 else ""), pipeline)
            for name in sorted(self._repository.pipelines)
            for version, pipeline in self._repository.versions[name].items()
        ]
        ready = GaugeMetricFamily("penstock_ready", "1 if the server is ready for requests.")
        ready.add_metric((), float(not self._repository.why_not_ready(self._ready_when)))
        yield ready
        yield from memory_metrics()
        others = self._repository.others
        for family in (
            *_pipeline_metrics(pipelines, others),
            *_sequence_metrics(pipelines),
            *_cache_metrics(pipelines, self._repository.responses),
            *_node_histograms(pipelines),
            *_node_metrics(pipelines, others),
            *_device_metrics(pipelines),
        ):
            for sample in family.samples:
                for label in ("version", "level"):  # shown where there are several
                    if not sample.labels.get(label, "shown"):
                        del sample.labels[label]
            yield family


def memory_metrics() -> Iterator[Metric]:
    """Return what the requests of this process hold in memory, and what was refused for that."""
    used = GaugeMetricFamily(
        "penstock_memory_bytes", "Memory that requests hold: bodies, tensors, pixels, answers."
    )
    limit = GaugeMetricFamily(
        "penstock_memory_limit_bytes", "Memory that requests may hold together (max_memory)."
    )
    refused = CounterMetricFamily(
        "penstock_memory_refused", "Refusals for want of memory, by its purpose.", labels=["reason"]
    )
    used.add_metric((), budget.used)
    limit.add_metric((), budget.limit)
    for what, count in budget.refused.copy().items():
        refused.add_metric([what.removeprefix("a ").removeprefix("an ")], count)
    return iter((used, limit, refused))


def _pipeline_metrics(
    pipelines: list[tuple[tuple[str, str], Pipeline]], others: OtherProcesses
) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "penstock_pipeline_ready", "1 if the pipeline is ready.", labels=PIPELINE_LABELS
    )
    in_flight = GaugeMetricFamily(
        "penstock_requests_in_flight",
        "Requests in flight: admitted, and not ended.",
        labels=PIPELINE_LABELS,
    )
    refused = CounterMetricFamily(
        "penstock_refused",
        "Requests refused at admission.",
        labels=[*PIPELINE_LABELS, "reason", "level"],
    )
    pressure = GaugeMetricFamily(
        "penstock_pressure",
        "1 while more requests come than can be answered in time.",
        labels=PIPELINE_LABELS,
    )
    for name, pipeline in pipelines:
        ready.add_metric(name, float(not pipeline.not_ready))
        in_flight.add_metric(name, pipeline.in_flight + others.in_flight(pipeline))
        pressure.add_metric(name, float(pipeline.pressure))
        for (reason, level), count in pipeline.refused_by_level.items():
            refused.add_metric([*name, reason, str(level or "")], count)
    return iter((ready, in_flight, refused, pressure))


def _sequence_metrics(pipelines: list[tuple[tuple[str, str], Pipeline]]) -> Iterator[Metric]:
    sequences = GaugeMetricFamily(
        "penstock_sequences",
        "Sequences that are live, and that wait to begin.",
        labels=[*PIPELINE_LABELS, "state"],
    )
    ended = CounterMetricFamily(
        "penstock_sequences_ended",
        "Sequences by why they ended.",
        labels=[*PIPELINE_LABELS, "reason"],
    )
    for name, pipeline in pipelines:
        if (sequencer := pipeline.sequences) is not None:
            sequences.add_metric([*name, "live"], sequencer.live)
            sequences.add_metric([*name, "waiting"], sequencer.waiting)
            for reason, count in sequencer.ended.items():
                ended.add_metric([*name, reason], count)
    return iter((sequences, ended))


def _cache_metrics(
    pipelines: list[tuple[tuple[str, str], Pipeline]], responses: ResponseCache
) -> Iterator[Metric]:
    used = GaugeMetricFamily("penstock_cache_bytes", "Memory that kept answers hold.")
    limit = GaugeMetricFamily(
        "penstock_cache_limit_bytes", "Memory that kept answers may hold together (cache_size)."
    )
    evicted = CounterMetricFamily(
        "penstock_cache_evicted", "Kept answers that had to go for want of room."
    )
    requests = CounterMetricFamily(
        "penstock_cache_requests",
        "Requests to pipelines with a cache, by what it did for them.",
        labels=[*PIPELINE_LABELS, "outcome"],
    )
    answers = GaugeMetricFamily(
        "penstock_cache_answers", "Answers that are kept.", labels=PIPELINE_LABELS
    )
    if not responses.is_open:
        return
    used.add_metric((), responses.bytes)
    limit.add_metric((), responses.max_bytes)
    evicted.add_metric((), responses.evicted)
    for name, pipeline in pipelines:
        if pipeline.cache is not None:
            answers.add_metric(name, pipeline.cache.size[0])
            counts = pipeline.statistics
            for outcome, count in (
                ("hit", counts.hits - counts.joined),
                ("joined", counts.joined),
                ("miss", counts.misses),
                ("uncached", counts.uncached),
            ):
                requests.add_metric([*name, outcome], count)
    yield from (used, limit, evicted, requests, answers)
    if responses.second is not None:
        yield from _redis_metrics(responses.second.status())


def _redis_metrics(status: dict[str, Any]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "penstock_cache_redis_up", "0 while Redis is not asked, because it failed."
    )
    up.add_metric((), float(status["up"]))
    yield up
    looks = CounterMetricFamily(
        "penstock_cache_redis",
        "Look-ups in Redis that hit, missed or came late, failures, and answers not written.",
        labels=["outcome"],
    )
    for outcome in ("hits", "misses", "late", "failures", "dropped"):
        looks.add_metric([outcome], status[outcome])
    yield looks


def _node_histograms(pipelines: list[tuple[tuple[str, str], Pipeline]]) -> Iterator[Metric]:
    queue = HistogramMetricFamily(
        "penstock_queue_seconds", "Time that an item waited in a node's queue.", labels=NODE_LABELS
    )
    run = HistogramMetricFamily(
        "penstock_run_seconds", "Time that a batch ran.", labels=NODE_LABELS
    )
    size = HistogramMetricFamily("penstock_batch_size", "Rows of a batch.", labels=NODE_LABELS)
    for name, pipeline in pipelines:
        for node in pipeline.nodes:
            statistics = node.statistics
            for family, histogram in (
                (queue, statistics.queue_seconds),
                (run, statistics.batch_seconds),
                (size, statistics.batch_size),
            ):
                family.add_metric([*name, node.name], _buckets(histogram), histogram.sum)
        for composite in pipeline.composites:  # it has no queue, and runs its items one by one
            waited = composite.statistics.batch_seconds
            run.add_metric([*name, composite.name], _buckets(waited), waited.sum)
    return iter((queue, run, size))


def _node_metrics(
    pipelines: list[tuple[tuple[str, str], Pipeline]], others: OtherProcesses
) -> Iterator[Metric]:
    items = CounterMetricFamily(
        "penstock_items", "Items by how they left a node.", labels=[*NODE_LABELS, "outcome"]
    )
    restarts = CounterMetricFamily(
        "penstock_executor_restarts",
        "Executor threads that died and were replaced.",
        labels=NODE_LABELS,
    )
    depth = GaugeMetricFamily("penstock_queue_depth", "Rows in a node's queue.", labels=NODE_LABELS)
    ahead = GaugeMetricFamily(
        "penstock_ahead_bytes",
        "Bytes of a node's results that the nodes after it have not finished.",
        labels=NODE_LABELS,
    )
    busy = GaugeMetricFamily(
        "penstock_executors_busy", "Executors that run a batch.", labels=NODE_LABELS
    )
    executors = GaugeMetricFamily(
        "penstock_executors", "Executors that are up.", labels=NODE_LABELS
    )
    for name, pipeline in pipelines:
        counted: tuple[Node | CompositeNode, ...] = (*pipeline.nodes, *pipeline.composites)
        for node_or_composite in counted:
            for outcome, count in node_or_composite.statistics.outcomes.items():
                items.add_metric([*name, node_or_composite.name, outcome], count)
        for node in pipeline.nodes:
            labels = [*name, node.name]
            scheduler, there = node.scheduler, others.gauges(pipeline, node.name)
            restarts.add_metric(labels, node.statistics.restarts)
            depth.add_metric(labels, scheduler.queued + there.queued)
            ahead.add_metric(labels, node.outflow.bytes + there.ahead_bytes)
            busy.add_metric(labels, len(scheduler.running) + there.busy)
            up = len(scheduler.running) + len(scheduler.idle)
            executors.add_metric(labels, up + there.executors)
    return iter((items, restarts, depth, ahead, busy, executors))


def _device_metrics(pipelines: list[tuple[tuple[str, str], Pipeline]]) -> Iterator[Metric]:
    in_use = GaugeMetricFamily(
        "penstock_device_in_use",
        "1 if all instances of a node on a device serve. Of nodes with several devices.",
        labels=[*NODE_LABELS, "device"],
    )
    moved = CounterMetricFamily(
        "penstock_items_moved",
        "Items that ran again on another device, because theirs failed.",
        labels=NODE_LABELS,
    )
    for name, pipeline in pipelines:
        for node in pipeline.nodes:
            if isinstance(node, DeviceNode):
                moved.add_metric([*name, node.name], node.moved)
                for device, serves in node.devices_in_use.items():
                    in_use.add_metric([*name, node.name, device], float(serves))
    return iter((in_use, moved))


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus wants them: cumulative, named by their upper bound."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


class TraceCollector(Collector):
    """Reads how many requests were traced."""

    def __init__(self, tracing: Tracing) -> None:
        self._handover = tracing.handover

    def collect(self) -> Iterator[Metric]:
        written = CounterMetricFamily(
            "penstock_traces", "Traced requests that were written or exported."
        )
        dropped = CounterMetricFamily(
            "penstock_traces_dropped", "Traced requests that could not be written or exported."
        )
        written.add_metric((), self._handover.sink.written)
        dropped.add_metric((), self._handover.dropped)
        return iter((written, dropped))


class _Collected(Collector):
    """Metrics that have been collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics:
    """The metrics of one app. Users may register their own collectors with `registry`."""

    def __init__(
        self,
        repository: Repository,
        ready_when: Literal["all", "any"] = "all",
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing`: None if no requests are traced."""
        self.registry = CollectorRegistry(auto_describe=False)
        if tracing is not None:
            self.registry.register(TraceCollector(tracing))
        self.registry.register(PipelineCollector(repository, ready_when))
        self.registry.register(TritonCollector(repository))
        self.registry.register(ModelMetricsCollector())
        ProcessCollector(registry=self.registry)
        self._repository = repository
        self.merge: Callable[[Iterable[Metric]], Iterable[Metric]] = lambda families: families
        """Adds what the other processes of the server have counted."""

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Do what `render` does, after asking the other processes of the server."""
        await self._repository.others.refresh()
        return self.render(accept)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its media type.

        `accept`, the header, decides: OpenMetrics if the client asks for it, else Prometheus's
        text.
        """
        encode, media_type = choose_encoder(accept)
        content = encode(_Collected(self.merge(self.registry.collect())))
        if media_type.startswith("text/plain"):
            content = with_counters(content)
        return content, media_type
