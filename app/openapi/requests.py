"""The operations that tell why a request was slow: `/requests` and `/requests/{id}`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .schema import (
    TEXT,
    UNSIGNED,
    Schema,
    array_of,
    json_response,
    object_of,
    path_parameter,
    reference,
)

_MS: Schema = {"type": "number", "minimum": 0, "description": "Milliseconds."}
_OR_NULL: Schema = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}
_AT: Schema = {"type": "number", "description": "Milliseconds from the request's first byte."}
_AT_OR_NULL: Schema = {
    "anyOf": [{"type": "number"}, {"type": "null"}],
    "description": "Milliseconds from the request's first byte; null: it came to an end before.",
}
_WORDS: Schema = {"type": "string", "minLength": 1, "description": "The same in words."}

_HEAD: dict[str, Schema] = {
    "id": {"type": "string", "description": "Its X-Request-Id."},
    "pipeline": {"type": "string", "description": "Empty if there is none of the asked name."},
    "version": TEXT,
    "door": {
        "type": "string",
        "enum": ["predict", "batch", "v2", "grpc", "generate", "stream", "socket"],
        "description": "The route by which it came.",
    },
    "status": {"type": "integer", "description": "The status of the answer; 499: the client left."},
    "outcome": {
        "type": "string",
        "enum": ["ok", "failed", "refused", "expired", "left", "bad input"],
    },
    "code": {"type": "string", "description": "The code of its problem; empty if it has none."},
    "detail": {"type": "string", "description": "The text of its problem, cut."},
    "time": {"type": "string", "format": "date-time", "description": "When its first byte came."},
    "ms": {**_MS, "description": "Milliseconds from its first byte to the end of its answer."},
    "slow": {
        "type": "boolean",
        "description": "It took more than 3 times as long as the requests of its pipeline lately.",
    },
    "usual_ms": {
        **_OR_NULL,
        "description": "What the requests of its pipeline took lately, milliseconds (mean).",
    },
    "rows": UNSIGNED,
    "answered_from": {
        "type": "string",
        "enum": ["", "cache", "redis", "joined"],
        "description": "What answered it in place of its nodes, if anything did.",
    },
    "joined": {
        "type": "string",
        "description": "The X-Request-Id of the equal request for which it waited, if it did.",
    },
    "summary": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "minItems": 1,
        "description": "Why it took so long, the longest cause first.",
    },
}

_VISIT = (
    *("node", "item", "part_of", "queued_at_ms", "started_at_ms", "ended_at_ms", "waited_ms"),
    *("ran_ms", "instance", "device", "batch", "waits", "pieces", "words"),
)

REQUEST_SCHEMAS: dict[str, Schema] = {
    "RequestList": object_of(
        ("requests", "remembered", "request_history"),
        requests=array_of(reference("RequestHead")),
        remembered={**UNSIGNED, "description": "How many requests are remembered now."},
        request_history={**UNSIGNED, "description": "How many are remembered at most."},
    ),
    "RequestHead": object_of(_HEAD, "One of the last requests, without its nodes.", **_HEAD),
    "RequestStory": object_of(
        (*_HEAD, "spans", "nodes"),
        "One of the last requests: where its time went.",
        **_HEAD,
        spans=array_of(reference("RequestSpan")),
        nodes=array_of(reference("RequestVisit")),
    ),
    "RequestSpan": object_of(
        ("name", "start_ms", "end_ms", "words"),
        "Time outside of nodes.",
        name=TEXT,
        start_ms=_AT,
        end_ms=_AT,
        words=_WORDS,
    ),
    "RequestVisit": object_of(
        _VISIT,
        "One item at one node.",
        node=TEXT,
        item={**UNSIGNED, "description": "Which of the request's items, or of the parts of one."},
        part_of={
            "anyOf": [UNSIGNED, {"type": "null"}],
            "description": "The index in `nodes` of the visit that it is a part of.",
        },
        queued_at_ms=_AT,
        started_at_ms=_AT_OR_NULL,
        ended_at_ms=_AT_OR_NULL,
        waited_ms=_MS,
        ran_ms=_MS,
        instance={"type": "string", "description": "The instance that ran it, as digits/net#1."},
        device=TEXT,
        batch={"anyOf": [reference("RequestBatch"), {"type": "null"}]},
        waits=array_of(reference("RequestWait")),
        pieces=array_of(object_of(("name", "ms"), "A part of the run.", name=TEXT, ms=_MS)),
        words=_WORDS,
    ),
    "RequestBatch": object_of(
        ("rows", "max", "rule", "rule_words", "mates", "more_mates", "left_queued"),
        "The batch that an item ran in.",
        rows=UNSIGNED,
        max=UNSIGNED,
        rule={"type": "string", "description": "The rule that started it."},
        rule_words=TEXT,
        mates={**array_of(TEXT), "description": "Ids of the other requests in it, at most 16."},
        more_mates={**UNSIGNED, "description": "How many others are not listed."},
        left_queued={**UNSIGNED, "description": "Rows that were still queued when it started."},
    ),
    "RequestWait": object_of(
        ("why", "ms", "words"),
        "A cause for which an item waited. Those of a visit add up to its `waited_ms`.",
        why={
            "type": "string",
            "enum": ["instance", "order", "batching", "downstream", "loop"],
        },
        ms=_MS,
        words=_WORDS,
    ),
}


def request_paths(
    problems: Callable[[Iterable[str]], dict[str, Any]], protected: bool
) -> dict[str, Any]:
    """Return the operations by path and method.

    `problems`: makes the responses for codes of errors. `protected`: they need the API key.
    """
    key: dict[str, Any] = {"security": [{"key": []}]} if protected else {}
    unauthorized = ["unauthorized"] if protected else []
    return {
        "/requests": {
            "get": {
                "operationId": "list_requests",
                "summary": "List the last slow and failed requests",
                "tags": ["requests"],
                "parameters": [
                    _query("pipeline", "Only those of this pipeline.", TEXT),
                    _query(
                        "kind",
                        "slow, failed, or recent: all. Without it, those that were slow or failed.",
                        {"type": "string", "enum": ["slow", "failed", "recent"]},
                    ),
                    _query(
                        "limit",
                        "At most so many.",
                        {"type": "integer", "minimum": 1, "default": 50},
                    ),
                ],
                "responses": {
                    "200": json_response("The newest first.", "RequestList"),
                    **problems([*unauthorized, "invalid_request"]),
                },
                **key,
            }
        },
        "/requests/{id}": {
            "get": {
                "operationId": "explain_request",
                "summary": "Say why a request was slow or failed",
                "tags": ["requests"],
                "parameters": [path_parameter("id", "The X-Request-Id of the request.")],
                "responses": {
                    "200": json_response("Where its time went.", "RequestStory"),
                    **problems([*unauthorized, "unknown_request"]),
                },
                **key,
            }
        },
    }


def _query(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}
