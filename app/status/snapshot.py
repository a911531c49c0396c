"""A snapshot of all pipelines: their states, counters, and what happened since the last snapshot.

It is made on the event loop, of counters that are kept anyway. Nothing here runs for a request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import penstock
from penstock.backends.memory import budget
from penstock.backends.text import encodable
from penstock.pipelines.cache.responses import ResponseCache
from penstock.pipelines.node.statistics import RequestStatistics
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository
from penstock.pipelines.runs.pace import Pace

from ..history.ring import History
from ..settings import Settings
from .description import describe
from .nodes import node_activity, rate
from .totals import NodeTotals, PipelineTotals, Totals, nodes_of, totals_of

Mood = Literal["idle", "calm", "busy", "refusing", "loading", "down"]

INTERVAL_SECONDS = 1.0
"""How often watchers get a snapshot."""

BUSY_SHARE = 0.9
"""The share of an interval that all executors of a node must have run for it to be busy."""

MAX_TEXT_CHARACTERS = 500
"""The most characters of a reason, or of a load's progress, that are shown."""

NOT_LOADED = "it could not be loaded: the server's log has the reason"
"""The reason of a failed pipeline. The true one names files and code: it is for the operator."""

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Snapshots:
    """Makes the snapshots of one server."""

    def __init__(
        self, repository: Repository, settings: Settings, history: History | None = None
    ) -> None:
        self._repository = repository
        self._history = history
        self._ready_when: Literal["all", "any"] = settings.ready_when
        self._began = time.monotonic()
        # What does not change, by name and version of those that were served at a generation.
        self._described: dict[tuple[str, str], dict[str, Any]] = {}
        self._generation = -1

    def whole(self) -> dict[str, Any]:
        """Return a snapshot with the descriptions of the pipelines."""
        snapshot, _ = self.take(None, 0.0)
        if self._generation != self._repository.generation:
            self._generation = self._repository.generation
            self._described.clear()
        for shown in snapshot["pipelines"]:
            shown.update(self._description(shown["name"], shown["version"]))
        return snapshot

    def take(self, since: Totals | None, at: float) -> tuple[dict[str, Any], Totals]:
        """Return a snapshot, and the totals that the next one begins with.

        `at`: the time on the caller's clock, in seconds. Without `since` rates are null, and means
        are those of the whole life.
        """
        repository = self._repository
        others = repository.others
        reason = repository.why_not_ready(self._ready_when)
        served = {(one.name, one.config.version): one for one in repository.served}
        loading = repository.loading
        seconds = 0.0 if since is None else at - since.at
        monotonic = time.monotonic()
        times: Mapping[Pace, list[float]] = {}
        if self._history is not None:
            times = self._history.seconds_since(0.0 if since is None else since.monotonic)
        totals: dict[Pipeline, PipelineTotals] = {}
        pipelines: list[dict[str, Any]] = []
        for name, states in repository.version_states().items():
            for version, text in states.items():
                key = name, version
                coming = loading.get(key)
                pipeline = served.get(key, coming)
                state, why = _state(text)
                shown: dict[str, Any] = {
                    "name": name,
                    "version": version,
                    "state": state,
                    "reason": _cut(why),
                    "loading": [] if coming is None else _progress(coming),
                }
                doors = () if pipeline is None else (pipeline, *pipeline.exposed)
                took = [one for door in doors for one in times.get(door.pace, ())]
                shown["latency_ms"] = _latency(took)
                if pipeline is None:
                    shown |= _nothing()
                else:
                    before = None if since is None else since.pipelines.get(pipeline)
                    totals[pipeline] = now = totals_of(pipeline, others)
                    shown |= _activity(pipeline, state, now, before or PipelineTotals(), seconds)
                pipelines.append(shown)
        processes, memory = others.described(), others.memory()
        for process in processes:
            cpu = process["cpu_s"]
            ran = None if since is None else since.processes.get(process["pid"])
            process["cpu"] = None if ran is None or cpu is None else rate(cpu - ran, seconds)
        snapshot = {
            "time_s": round(time.time(), 3),
            "uptime_s": round(monotonic - self._began, 3),
            "version": penstock.__version__,
            "generation": repository.generation,
            "ready": not reason,
            "reason": _cut(reason),
            "request_history": 0 if self._history is None else self._history.size,
            "interval_s": INTERVAL_SECONDS,
            "memory": {
                "used_bytes": budget.used + memory.used,
                "limit_bytes": budget.limit + memory.limit,
                "refused": budget.refusals + memory.refused,
            },
            "cache": _responses(repository.responses),
            "processes": processes,
            "pipelines": pipelines,
        }
        ran_until_now = {one["pid"]: one["cpu_s"] for one in processes if one["cpu_s"] is not None}
        return snapshot, Totals(at, monotonic, totals, ran_until_now)

    def _description(self, name: str, version: str) -> dict[str, Any]:
        """Return what does not change of a version; little if its file was never read."""
        key = name, version
        known = self._described.get(key)
        if known is not None:
            return known
        versions = self._repository.versions.get(name, {})
        served, coming = versions.get(version), self._repository.loading.get(key)
        config = self._repository.config_of(name, version)
        if config is None and coming is not None:
            config = coming.config
        description: dict[str, Any] = {"versions": list(versions)}
        if config is not None:
            description |= describe(config, served)
        if served is not None:
            self._described[key] = description
        return description


def _responses(responses: ResponseCache) -> dict[str, Any]:
    """Return what the caches of all pipelines hold together."""
    second = responses.second
    return {
        "used_bytes": responses.bytes,
        "limit_bytes": responses.max_bytes,
        "evicted": responses.evicted,
        "redis": None if second is None else second.status(),
    }


def _state(text: str) -> tuple[str, str]:
    """Split a state of the repository into what is shown of it, and its reason."""
    state, _, reason = text.partition(": ")
    if state == "reloading":  # the old one serves meanwhile
        return "ready", ""
    if state == "failed":
        return state, NOT_LOADED
    return state, reason


def _progress(pipeline: Pipeline) -> list[dict[str, str]]:
    """Say for each node of a pipeline that loads what it is at; not for those that are loaded."""
    return [
        {
            "node": node.name,
            "text": _cut(next((text for one in waiting if (text := one.progress)), "loading")),
        }
        for node in pipeline.nodes
        if (waiting := [executor for executor in node.executors if not executor.loaded])
    ]


def _nothing() -> dict[str, Any]:
    """Return the activity of a version that neither serves nor loads."""
    return {
        "mood": "down",
        "in_flight": 0,
        "max_requests": None,
        "succeeded": 0,
        "failed": RequestStatistics().failures,
        "refused": {"queue_full": 0, "overloaded": 0},
        "cache": None,
        "succeeded_per_s": None,
        "failed_per_s": None,
        "refused_per_s": None,
        "sequences": None,
        "nodes": [],
    }


def _activity(
    pipeline: Pipeline, state: str, now: PipelineTotals, before: PipelineTotals, seconds: float
) -> dict[str, Any]:
    """Return what a pipeline does, and what it did in the last `seconds` (0: unknown)."""
    doors = (pipeline, *pipeline.exposed)
    return {
        "mood": _mood(pipeline, state, now, before, seconds),
        "in_flight": now.in_flight,
        "max_requests": pipeline.config.max_requests,
        "succeeded": now.succeeded,
        "failed": _sums([door.statistics.failures for door in doors]),
        "refused": _sums([door.refused for door in doors]),
        "cache": _cache(doors),
        "succeeded_per_s": rate(now.succeeded - before.succeeded, seconds),
        "failed_per_s": rate(now.failed - before.failed, seconds),
        "refused_per_s": rate(now.refused - before.refused, seconds),
        "sequences": _sequences(pipeline),
        "nodes": [
            node_activity(
                node,
                pipeline,
                now.nodes[node.name],
                before.nodes.get(node.name, NodeTotals()),
                seconds,
            )
            for node in nodes_of(pipeline)
        ],
    }


def _sequences(pipeline: Pipeline) -> dict[str, Any] | None:
    """Return how many sequences there are, and how they ended; None if it has none."""
    sequencer = pipeline.sequences
    if sequencer is None:
        return None
    return {
        "live": sequencer.live,
        "waiting": sequencer.waiting,
        "max_sequences": sequencer.capacity,
        "max_waiting": sequencer.max_waiting,
        "ended": dict(sequencer.ended),
    }


def _cache(doors: tuple[Pipeline, ...]) -> dict[str, int] | None:
    """Return what the caches of a pipeline and its exposed nodes did; None if there are none."""
    caches = [door.cache for door in doors if door.cache is not None]
    if not caches:
        return None
    requests = [door.statistics for door in doors]
    return {
        "hits": sum(one.hits for one in requests),
        "joined": sum(one.joined for one in requests),
        "misses": sum(one.misses for one in requests),
        "uncached": sum(one.uncached for one in requests),
        "answers": sum(cache.size[0] for cache in caches),
        "bytes": sum(cache.size[1] for cache in caches),
    }


def _mood(
    pipeline: Pipeline, state: str, now: PipelineTotals, before: PipelineTotals, seconds: float
) -> Mood:
    """Say in a word how a pipeline feels."""
    if state == "loading":
        return "loading"
    if state != "ready":
        return "down"
    if pipeline.pressure or (seconds and now.refused > before.refused):
        return "refusing"
    if any(
        now.nodes[node.name].queued > node.scheduler.max
        or _was_busy(now.nodes[node.name], before.nodes.get(node.name, NodeTotals()), seconds)
        for node in pipeline.nodes
    ):
        return "busy"
    ended = seconds and (now.succeeded, now.failed) != (before.succeeded, before.failed)
    return "calm" if now.in_flight or ended else "idle"


def _was_busy(now: NodeTotals, before: NodeTotals, seconds: float) -> bool:
    """Return whether no executor of a node was idle in the last `seconds` (0: unknown)."""
    share = BUSY_SHARE * seconds * now.executors
    return 0 < share <= now.busy_seconds - before.busy_seconds


def _sums(counts: list[dict[str, int]]) -> dict[str, int]:
    """Add counters by their keys, which are the same in all."""
    return {key: sum(one[key] for one in counts) for key in counts[0]}


def _latency(seconds: list[float]) -> dict[str, float | int | None]:
    """Return percentiles of what requests took, and of how many they are."""
    seconds.sort()
    count = len(seconds)
    shown: dict[str, float | int | None] = {
        name: round(1000 * seconds[math.ceil(share * count) - 1], 3) if count else None
        for name, share in PERCENTILES.items()
    }
    return {**shown, "requests": count}


def _cut(text: str) -> str:
    text = encodable(text)
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}…"
