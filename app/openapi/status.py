"""The operation `GET /status` in the OpenAPI document, and the schemas of its answer."""

from __future__ import annotations

from typing import Any

from ..http.events import EVENTS_MEDIA_TYPE
from .schema import FLAG, TEXT, UNSIGNED, Schema, array_of, json_response, object_of, reference

NUMBER: Schema = {"type": "number"}
UNKNOWN_OR_NUMBER: Schema = {"type": ["number", "null"]}
UNKNOWN_OR_TEXT: Schema = {"type": ["string", "null"]}
COUNTS: Schema = {"type": "object", "additionalProperties": UNSIGNED}


def _all_of(description: str = "", /, **properties: Schema) -> Schema:
    """Return an object that always has all of its members."""
    return object_of(properties, description, **properties)


STATUS_SCHEMAS: dict[str, Schema] = {
    "ServerStatus": _all_of(
        "Units are in the names. Counters only grow. null: not known.",
        time_s=NUMBER,
        uptime_s=NUMBER,
        version=TEXT,
        generation=UNSIGNED,
        ready=FLAG,
        reason=TEXT,
        request_history=UNSIGNED,
        interval_s=NUMBER,
        memory=reference("MemoryStatus"),
        cache=reference("CachesStatus"),
        processes=array_of(reference("ProcessStatus")),
        pipelines=array_of(reference("PipelineStatus")),
    ),
    "ProcessStatus": _all_of(
        "A process of a server that has several. `cpu` is the number of processors that it used "
        "since the last event.",
        name={"type": "string", "description": "parent, models, front 1, front 2, …"},
        pid=UNSIGNED,
        state={"type": "string", "enum": ["up", "starting", "not answering"]},
        connections={"type": ["integer", "null"]},
        cpu_s=UNKNOWN_OR_NUMBER,
        cpu=UNKNOWN_OR_NUMBER,
        rss_bytes={"type": ["integer", "null"]},
        restarts=UNSIGNED,
    ),
    "MemoryStatus": _all_of(used_bytes=UNSIGNED, limit_bytes=UNSIGNED, refused=UNSIGNED),
    "CachesStatus": _all_of(
        "The answers that pipelines keep, of all of them together.",
        used_bytes=UNSIGNED,
        limit_bytes=UNSIGNED,
        evicted=UNSIGNED,
        redis={"anyOf": [reference("RedisStatus"), {"type": "null"}]},
    ),
    "RedisStatus": _all_of(
        "The second level of the caches. `up` is false while it is left alone.",
        up=FLAG,
        hits=UNSIGNED,
        misses=UNSIGNED,
        failures=UNSIGNED,
        late=UNSIGNED,
        dropped=UNSIGNED,
    ),
    "CacheStatus": _all_of(
        "The answers that a pipeline keeps. `joined` are those hits that waited for an equal "
        "request; `uncached` requests could not be looked up.",
        hits=UNSIGNED,
        joined=UNSIGNED,
        misses=UNSIGNED,
        uncached=UNSIGNED,
        answers=UNSIGNED,
        bytes=UNSIGNED,
    ),
    "PipelineStatus": {
        **object_of(
            [
                "name",
                "version",
                "state",
                "reason",
                "loading",
                "mood",
                "in_flight",
                "succeeded",
                "failed",
                "refused",
                "nodes",
            ],
            name=TEXT,
            version=TEXT,
            state={
                "type": "string",
                "description": "ready, loading, not ready, failed, unloading or unloaded",
            },
            reason=TEXT,
            loading=array_of(reference("LoadingNode")),
            mood={
                "type": "string",
                "enum": ["idle", "calm", "busy", "refusing", "loading", "down"],
            },
            in_flight=UNSIGNED,
            max_requests={"type": ["integer", "null"]},
            succeeded=UNSIGNED,
            failed=COUNTS,
            refused=COUNTS,
            cache={"anyOf": [reference("CacheStatus"), {"type": "null"}]},
            succeeded_per_s=UNKNOWN_OR_NUMBER,
            failed_per_s=UNKNOWN_OR_NUMBER,
            refused_per_s=UNKNOWN_OR_NUMBER,
            latency_ms=reference("LatencyStatus"),
            sequences={"anyOf": [reference("SequencesStatus"), {"type": "null"}]},
            nodes=array_of(reference("NodeStatus")),
            versions=array_of(TEXT),
            description=TEXT,
            stream_input=UNKNOWN_OR_TEXT,
            streams=FLAG,
            priority_levels=UNSIGNED,
            timeout_s=NUMBER,
            inputs=array_of(reference("PortStatus")),
            outputs=array_of(reference("PortStatus")),
            graph=reference("GraphStatus"),
        )
    },
    "LatencyStatus": _all_of(
        p50=UNKNOWN_OR_NUMBER, p90=UNKNOWN_OR_NUMBER, p99=UNKNOWN_OR_NUMBER, requests=UNSIGNED
    ),
    "SequencesStatus": _all_of(
        "Those that have a place, those that wait for one, and why others ended.",
        live=UNSIGNED,
        waiting=UNSIGNED,
        max_sequences=UNSIGNED,
        max_waiting=UNSIGNED,
        ended=COUNTS,
    ),
    "LoadingNode": _all_of(node=TEXT, text=TEXT),
    "NodeStatus": _all_of(
        name=TEXT,
        queued=UNSIGNED,
        items=UNSIGNED,
        batches=UNSIGNED,
        items_per_s=UNKNOWN_OR_NUMBER,
        batches_per_s=UNKNOWN_OR_NUMBER,
        batch_size=UNKNOWN_OR_NUMBER,
        queue_ms=UNKNOWN_OR_NUMBER,
        run_ms=UNKNOWN_OR_NUMBER,
        executors=array_of(reference("ExecutorStatus")),
    ),
    "ExecutorStatus": _all_of(
        name=TEXT,
        state={"type": "string", "enum": ["idle", "running", "loading", "restarting", "stuck"]},
        ms={**UNKNOWN_OR_NUMBER, "description": "How long its batch has run."},
        device=TEXT,
    ),
    "PortStatus": object_of(
        ["name", "kind"],
        "An input or output: what the file declares, or its engines know.",
        name=TEXT,
        kind=TEXT,
        description=TEXT,
        media_types=array_of(TEXT),
        optional=FLAG,
        stream=FLAG,
        dtype=UNKNOWN_OR_TEXT,
        shape={"type": ["array", "null"], "items": {"type": "integer"}},
        items={"description": "Of a list: the port that describes each of its items."},
        schema={"description": "What the JSON must look like, as JSON Schema."},
        example={"description": "A value that fits the schema."},
        labels=array_of(TEXT),
    ),
    "GraphStatus": _all_of(
        nodes=array_of(reference("GraphNode")), edges=array_of(reference("GraphEdge"))
    ),
    "GraphNode": _all_of(
        name=TEXT,
        kind={"type": "string", "enum": ["executor", "shared", "composite", "logic"]},
        shares=UNKNOWN_OR_TEXT,
        backend=TEXT,
        expression=TEXT,
        max={"type": ["integer", "null"]},
        min={"type": ["integer", "null"]},
        instances=UNSIGNED,
        batching_timeout_ms=UNKNOWN_OR_NUMBER,
        executor=UNKNOWN_OR_TEXT,
        exposed=FLAG,
    ),
    "GraphEdge": object_of(
        ["from", "to", "kind", "filter", "label"],
        **{
            "from": TEXT,
            "to": TEXT,
            "kind": {"type": "string", "enum": ["next", "map", "calls", "restart"]},
            "filter": UNKNOWN_OR_TEXT,
            "label": TEXT,
        },
    ),
}


def status_operation(refused: dict[str, Any]) -> dict[str, Any]:
    """Return the operation. `refused`: the responses to those who may not see it, or too many."""
    answer = json_response("What is served and how it goes.", "ServerStatus")
    answer["content"][EVENTS_MEDIA_TYPE] = {
        "schema": {
            "type": "string",
            "description": "Server-Sent Events `status`, one at once and then one a second. The "
            "data of each is a ServerStatus without what does not change of a pipeline.",
        }
    }
    return {
        "operationId": "status",
        "summary": "What is served and how it goes, once or each second",
        "tags": ["health"],
        "responses": {"200": answer, **refused},
    }
