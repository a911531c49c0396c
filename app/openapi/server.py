"""The operations in the OpenAPI document that do not depend on pipelines: health, metrics, loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

SERVER_SCHEMAS: dict[str, Any] = {
    "Live": {"type": "object", "required": ["live"], "properties": {"live": {"type": "boolean"}}},
    "Ready": {
        "type": "object",
        "required": ["ready"],
        "properties": {
            "ready": {"type": "boolean"},
            "reason": {"type": "string", "description": "Why it is not."},
        },
    },
    "PipelineState": {
        "type": "object",
        "required": ["name", "state"],
        "properties": {
            "name": {"type": "string"},
            "state": {
                "type": "string",
                "description": "ready, not ready, loading, reloading, unloading, unloaded or failed",
            },
            "version": {"type": "string"},
            "description": {"type": "string"},
            "reason": {"type": "string", "description": "Why it is not ready."},
        },
    },
    "PipelineList": {
        "type": "object",
        "required": ["pipelines"],
        "properties": {
            "pipelines": {"type": "array", "items": {"$ref": "#/components/schemas/PipelineState"}}
        },
    },
}

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The pipeline's name.",
    "schema": {"type": "string"},
}


def server_paths(
    protected: bool, administrable: bool, problems: Callable[[Iterable[str]], dict[str, Any]]
) -> dict[str, Any]:
    """Operations by path and method; loading and unloading only where they are allowed at all."""
    key: dict[str, Any] = {"security": [{"key": []}]} if protected else {}
    refused = problems(["unauthorized"]) if protected else {}
    metrics = {
        "200": {
            "description": "Prometheus text.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
    paths: dict[str, Any] = {
        "/health/live": {
            "get": _operation(
                "health_live",
                "Whether the process answers at all",
                "health",
                {"200": _json("Live", "It does.")},
            )
        },
        "/health/ready": {
            "get": _operation(
                "health_ready",
                "Whether requests should come here now",
                "health",
                {
                    "200": _json("Ready", "They should."),
                    "503": _json("Ready", "Loading, draining, or a node is without executors."),
                },
            )
        },
        "/metrics": {
            "get": _operation("metrics", "Prometheus metrics", "health", {**metrics, **refused})
            | key
        },
        "/pipelines": {
            "get": _operation(
                "list_pipelines",
                "The pipelines and their states",
                "pipelines",
                {"200": _json("PipelineList", "All of them."), **refused},
            )
            | key
        },
    }
    if administrable:
        errors = ["unauthorized", "forbidden", "not_found", "not_ready"]
        for verb, summary, more in (
            (
                "load",
                "Load a pipeline, or read its file again and replace it",
                ["config", "load_failed"],
            ),
            ("unload", "Take a pipeline away; what is inside it ends first", []),
        ):
            responses = {
                "200": _json("PipelineState", "Its state now."),
                **problems([*errors, *more]),
            }
            operation = _operation(f"{verb}_pipeline", summary, "pipelines", responses)
            paths[f"/pipelines/{{name}}/{verb}"] = {
                "post": {**operation, "parameters": [_NAME], "security": [{"admin": []}]}
            }
    return paths


def _operation(
    identifier: str, summary: str, tag: str, responses: dict[str, Any]
) -> dict[str, Any]:
    return {"operationId": identifier, "summary": summary, "tags": [tag], "responses": responses}


def _json(schema: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
