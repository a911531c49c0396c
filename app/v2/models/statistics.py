"""Statistics of models, in Triton's shape.

The pipelines count (`pipelines/node/statistics.py`), for every request: those of the protocol,
predict requests and calls from Python.

Durations. `success` and `fail` are of whole requests. For a successful request, `compute_infer` is
the time that it spent on executors and `queue` the time that it waited for them, over all nodes; if
several nodes work for it at the same time, that time counts once. Each item of a batch counts the
batch's time, until its own answer. `compute_input` and `compute_output` are the reading and writing
of the protocol's tensors.

Caches. `cache_hit` counts requests that were answered without a run of their own: from a kept
answer, or because an equal request was under way. They are in `success` and in `queue`, and neither
in `compute_…` nor in the counts of inferences and executions.

Executions. A pipeline of one node counts its batches. One of several nodes is what Triton calls an
ensemble: each request is an execution of it, and the batches of its nodes are in our own metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from ..call import ProtocolCall, Route
from .model import Models


def statistics_routes(repository: Repository, models: Models) -> tuple[Route, ...]:
    """Return the routes of statistics.

    They must come before the routes that describe models: `/v2/models/stats` is not a model.
    """

    async def all_models(call: ProtocolCall) -> Any:
        await repository.others.refresh()
        pipelines = [
            pipeline
            for _, versions in sorted(repository.versions.items())
            for pipeline in versions.values()
            if not pipeline.not_ready
        ]
        return {"model_stats": [statistics_of(pipeline) for pipeline in pipelines]}

    async def one_model(call: ProtocolCall) -> Any:
        await repository.others.refresh()
        model, version = (
            models.get(call.names["model"], call.names["version"]),
            call.names["version"],
        )
        pipelines = [model.pipeline] if version else models.versions(model.name)
        return {"model_stats": [statistics_of(pipeline) for pipeline in pipelines]}

    return (
        Route("GET", "/v2/models/stats", "statistics", all_models),
        Route("GET", "/v2/models/{model}[/versions/{version}]/stats", "statistics", one_model),
    )


class Totals:
    """The sums of a pipeline that Triton has names for. Times are in seconds."""

    __slots__ = ("failed", "pipeline", "queued", "refused", "requests", "seconds")

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        requests = self.requests = pipeline.statistics
        waited = requests.joined_seconds
        self.queued = requests.queued + waited
        own = requests.reading + requests.seconds + requests.writing
        self.seconds = own + requests.hit_seconds + waited
        self.refused = sum(pipeline.refused.values())
        self.failed = sum(requests.failures.values()) + self.refused

    @property
    def node(self) -> Node | None:
        """The only node; None if there are several."""
        nodes = self.pipeline.nodes
        return nodes[0] if len(nodes) == 1 and not self.pipeline.composites else None

    @property
    def executions(self) -> int:
        node = self.node
        return self.requests.succeeded if node is None else node.statistics.batches


def statistics_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the statistics of a pipeline in the form of the statistics extension."""
    totals = Totals(pipeline)
    requests = totals.requests
    computed = requests.succeeded  # without those from the cache
    return {
        "name": pipeline.name,
        "version": pipeline.config.version,
        "last_inference": _last(pipeline),
        "inference_count": requests.rows,
        "execution_count": totals.executions,
        "inference_stats": {
            "success": _duration(requests.answered, totals.seconds),
            "fail": _duration(totals.failed, requests.failed_seconds),
            "queue": _duration(requests.answered, totals.queued),
            "compute_input": _duration(computed, requests.reading),
            "compute_infer": _duration(computed, requests.computed),
            "compute_output": _duration(computed, requests.writing),
            "cache_hit": _duration(requests.hits, requests.hit_seconds),
            "cache_miss": _duration(requests.misses, requests.miss_seconds),
        },
        "response_stats": {},
        "batch_stats": list(_batches(totals.node)),
        "memory_usage": [],
    }


def _batches(node: Node | None) -> Iterator[dict[str, Any]]:
    for size, (count, seconds) in sorted(node.statistics.sizes.items()) if node is not None else ():
        yield {
            "batch_size": size,
            "compute_input": _duration(int(count), 0.0),
            "compute_infer": _duration(int(count), seconds),
            "compute_output": _duration(int(count), 0.0),
        }


def _last(pipeline: Pipeline) -> int:
    """Return when a batch last ended, in milliseconds since the epoch; 0 before the first."""
    nodes: tuple[Node | CompositeNode, ...] = (*pipeline.nodes, *pipeline.composites)
    ended = max(
        (node.statistics.last for node in nodes if node.statistics.last is not None), default=None
    )
    return (
        0 if ended is None else round((time.time() - (pipeline.statistics.clock() - ended)) * 1000)
    )


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
