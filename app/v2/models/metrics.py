"""Metrics under Triton's names, beside our own, so that existing dashboards keep working.

They are made at each scrape from what pipelines count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from weakref import WeakKeyDictionary

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from penstock.backends.model_metrics import Series, model_metrics
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .statistics import Totals

COUNTERS = {
    "nv_inference_request_success": "Requests that have been answered.",
    "nv_inference_request_failure": "Requests that have failed, by reason.",
    "nv_inference_count": "Rows of requests that have been answered.",
    "nv_inference_exec_count": (
        "Batches that have run; for a pipeline of several nodes, requests."
    ),
    "nv_inference_request_duration_us": (
        "Microseconds from reading the tensors of requests to their answers."
    ),
    "nv_inference_queue_duration_us": "Microseconds that requests waited for executors.",
    "nv_inference_compute_input_duration_us": "Microseconds spent on reading tensors.",
    "nv_inference_compute_infer_duration_us": "Microseconds that requests spent on executors.",
    "nv_inference_compute_output_duration_us": "Microseconds spent on writing tensors.",
    "nv_cache_num_hits_per_model": "Requests that were answered from the cache.",
    "nv_cache_num_misses_per_model": "Requests that were looked up in the cache and ran.",
    "nv_cache_hit_duration_per_model": "Microseconds that requests took which the cache answered.",
    "nv_cache_miss_duration_per_model": (
        "Microseconds of looking up and keeping the answers of requests that ran."
    ),
}
PENDING_GAUGE = "nv_inference_pending_request_count"

FAILURE_REASONS = {
    "soft": "OTHER",
    "failed": "BACKEND",
    "expired": "REJECTED",
    "cancelled": "CANCELED",
    "unready": "OTHER",
    "unwritten": "OTHER",
}
"""Triton's words for how requests fail. Requests that admission refuses are REJECTED too."""


class TritonCollector(Collector):
    """Collects from a repository.

    Must run on the thread of its event loop, where nothing changes meanwhile.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        # A success is taken back if its answer can't be written, and a scrape may come in between.
        # So the last shown values are kept: a counter must never go down.
        self._shown: WeakKeyDictionary[Pipeline, dict[str, int]] = WeakKeyDictionary()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        # As counters they would get names that end with _total, which Triton's do not.
        families = {name: Metric(name, text, "unknown") for name, text in COUNTERS.items()}
        pending = Metric(PENDING_GAUGE, "Requests that wait in queues.", "gauge")
        models = [
            (name, pipeline)
            for name, versions in sorted(self._repository.versions.items())
            for pipeline in versions.values()
        ]
        for name, pipeline in models:
            labels = {"model": name, "version": pipeline.config.version}
            totals = Totals(pipeline)
            requests = totals.requests
            values = (
                ("nv_inference_request_success", requests.answered),
                ("nv_inference_count", requests.rows),
                ("nv_inference_exec_count", totals.executions),
                ("nv_inference_request_duration_us", totals.seconds * 1e6),
                ("nv_inference_queue_duration_us", totals.queued * 1e6),
                ("nv_inference_compute_input_duration_us", requests.reading * 1e6),
                ("nv_inference_compute_infer_duration_us", requests.computed * 1e6),
                ("nv_inference_compute_output_duration_us", requests.writing * 1e6),
                *_of_cache(pipeline),
            )
            shown = self._shown.setdefault(pipeline, {})
            for family, value in values:
                shown[family] = max(round(value), shown.get(family, 0))
                families[family].add_sample(family, labels, shown[family])
            failures = {"REJECTED": totals.refused, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
            for how, count in requests.failures.items():
                failures[FAILURE_REASONS[how]] += count
            family = "nv_inference_request_failure"
            for reason, count in failures.items():
                sample = {"model": name, "reason": reason, "version": labels["version"]}
                families[family].add_sample(family, sample, count)
            waiting = sum(
                sum(map(len, node.scheduler.buckets.values()))
                + self._repository.others.gauges(pipeline, node.name).queued
                for node in pipeline.nodes
            )
            pending.add_sample(PENDING_GAUGE, labels, waiting)
        yield from (family for family in families.values() if family.samples or not models)
        yield pending


def with_counters(content: bytes) -> bytes:
    """Call counters of models counters, in Prometheus's text: a collector can't under their names,
    which have no `_total`.
    """
    for shown in model_metrics.shown():
        if shown.kind == "counter":
            line = b"# TYPE %b " % shown.name.encode()
            content = content.replace(line + b"untyped\n", line + b"counter\n")
    return content


class ModelMetricsCollector(Collector):
    """Collects the metrics that Triton Python models keep themselves."""

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        for shown in model_metrics.shown():
            # As a counter it would get a name that ends with _total, which Triton's does not.
            kind = "unknown" if shown.kind == "counter" else shown.kind
            family = Metric(shown.name, shown.description, kind)
            for labels, series in shown.series:
                _add_samples(family, dict(labels), series)
            if family.samples:
                yield family


def _add_samples(family: Metric, labels: dict[str, str], series: Series) -> None:
    if family.type != "histogram":
        family.add_sample(family.name, labels, series.value)
        return
    counts = list(accumulate(series.counts))
    # Whole numbers without their .0, as Triton's library writes them: they are parts of names.
    bounds = [*(repr(bound).removesuffix(".0") for bound in series.bounds), "+Inf"]
    for bound, count in zip(bounds, counts, strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{family.name}_count", labels, counts[-1])
    family.add_sample(f"{family.name}_sum", labels, series.value)


def _of_cache(pipeline: Pipeline) -> Iterator[tuple[str, float]]:
    """Yield the counters of a pipeline's cache, if it has one."""
    if pipeline.cache is not None:
        requests = pipeline.statistics
        yield "nv_cache_num_hits_per_model", requests.hits
        yield "nv_cache_num_misses_per_model", requests.misses
        yield "nv_cache_hit_duration_per_model", requests.hit_seconds * 1e6
        yield "nv_cache_miss_duration_per_model", requests.miss_seconds * 1e6
