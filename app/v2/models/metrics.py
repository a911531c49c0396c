"""Metrics under Triton's names, beside our own, so that dashboards go on working. Made at scrape, of what pipelines count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .statistics import Totals

COUNTERS = {
    "nv_inference_request_success": "Requests that have been answered.",
    "nv_inference_request_failure": "Requests that have failed, by reason.",
    "nv_inference_count": "Rows of requests that have been answered.",
    "nv_inference_exec_count": "Batches that have run; of a pipeline of several nodes, requests.",
    "nv_inference_request_duration_us": "Time that requests took from the reading of their tensors to their answer, microseconds.",
    "nv_inference_queue_duration_us": "Time of it in which they waited for executors, microseconds.",
    "nv_inference_compute_input_duration_us": "Time of it that was spent on reading their tensors, microseconds.",
    "nv_inference_compute_infer_duration_us": "Time of it that they spent on executors, microseconds.",
    "nv_inference_compute_output_duration_us": "Time of it that was spent on writing their tensors, microseconds.",
}
PENDING = "nv_inference_pending_request_count"

REASONS = {
    "soft": "OTHER",
    "failed": "BACKEND",
    "expired": "REJECTED",
    "cancelled": "CANCELED",
    "unready": "OTHER",
    "unwritten": "OTHER",
}
"""How requests fail, in Triton's words; what is refused at the entry is REJECTED too."""


class TritonCollector(Collector):
    """Reads a repository. Must be collected on its event loop's thread, where nothing changes meanwhile."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        # A success is taken back where its answer turns out to be none that can be written; a scrape may have come in between.
        self._shown: WeakKeyDictionary[Pipeline, dict[str, int]] = WeakKeyDictionary()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        # Prometheus's client ends a counter's name with _total, which Triton's have not; the values are what counters have.
        families = {name: Metric(name, text, "unknown") for name, text in COUNTERS.items()}
        pending = Metric(PENDING, "Requests that wait in queues.", "gauge")
        for name, pipeline in sorted(self._repository.models.items()):
            labels = {"model": name, "version": pipeline.config.version}
            totals = Totals(pipeline)
            requests = totals.requests
            values = (
                ("nv_inference_request_success", requests.succeeded),
                ("nv_inference_count", requests.rows),
                ("nv_inference_exec_count", totals.executions),
                ("nv_inference_request_duration_us", totals.seconds * 1e6),
                ("nv_inference_queue_duration_us", requests.queued * 1e6),
                ("nv_inference_compute_input_duration_us", requests.reading * 1e6),
                ("nv_inference_compute_infer_duration_us", requests.computed * 1e6),
                ("nv_inference_compute_output_duration_us", requests.writing * 1e6),
            )
            shown = self._shown.setdefault(pipeline, {})
            for family, value in values:
                shown[family] = max(round(value), shown.get(family, 0))  # counters never go down
                families[family].add_sample(family, labels, shown[family])
            failures: dict[str, int] = dict.fromkeys(
                ("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0
            )
            failures["REJECTED"] = totals.refused
            for how, count in requests.failures.items():
                failures[REASONS[how]] += count
            for reason, count in failures.items():
                name_of = "nv_inference_request_failure"
                families[name_of].add_sample(
                    name_of, {"model": name, "reason": reason, "version": labels["version"]}, count
                )
            waiting = sum(
                len(bucket) for node in pipeline.nodes for bucket in node.scheduler.buckets.values()
            )
            pending.add_sample(PENDING, labels, waiting)
        yield from families.values()
        yield pending
