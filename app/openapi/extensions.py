"""The operations of the protocol's extensions in the OpenAPI document: statistics, repository, shared memory. What takes the admin token is
there where it is allowed at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..settings import Settings
from .protocol import (
    FLAG,
    TEXT,
    UNSIGNED,
    Schema,
    array_of,
    object_of,
    operation_of,
    path_parameter,
    reference,
    refusals_of,
)

_DURATION = reference("StatisticDuration")
_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_BATCH = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)

EXTENSION_SCHEMAS: dict[str, Schema] = {
    "StatisticDuration": object_of(["count", "ns"], count=UNSIGNED, ns=UNSIGNED),
    "ModelStatistics": object_of(
        ["name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats"],
        name=TEXT,
        version=TEXT,
        last_inference={**UNSIGNED, "description": "Milliseconds since the epoch."},
        inference_count={**UNSIGNED, "description": "Rows."},
        execution_count={**UNSIGNED, "description": "Batches."},
        inference_stats=object_of(_DURATIONS, **dict.fromkeys(_DURATIONS, _DURATION)),
        response_stats={"type": "object"},
        batch_stats=array_of(object_of(["batch_size", *_BATCH], batch_size=UNSIGNED, **_BATCH)),
        memory_usage=array_of({"type": "object"}),
    ),
    "StatisticsResponse": object_of(["model_stats"], model_stats=array_of(reference("ModelStatistics"))),
    "RepositoryIndexRequest": object_of(ready={**FLAG, "description": "Only those that are ready."}),
    "RepositoryIndex": array_of(object_of(["name"], name=TEXT, version=TEXT, state=TEXT, reason=TEXT)),
    "RepositoryLoadRequest": object_of(
        parameters={
            **object_of(config={**TEXT, "description": "JSON in the shape of ModelConfig."}),
            "additionalProperties": {"type": "string", "description": "file:<version>/<name>: the file in base64.", "format": "byte"},
            "type": ["object", "null"],
        }
    ),
    "RepositoryUnloadRequest": object_of(parameters={**object_of(unload_dependents=FLAG), "type": ["object", "null"]}),
    "SharedMemoryRegion": object_of(
        ["name", "key", "offset", "byte_size"], name=TEXT, key=TEXT, offset=UNSIGNED, byte_size=UNSIGNED
    ),
    "SharedMemoryStatus": array_of(reference("SharedMemoryRegion")),
    "SharedMemoryRegisterRequest": object_of(
        ["key", "byte_size"], key={**TEXT, "description": "The POSIX object's name."}, offset=UNSIGNED, byte_size={**UNSIGNED, "minimum": 1}
    ),
}  # fmt: skip

_NAME = path_parameter("model", "The pipeline's name.")
_VERSION = path_parameter("version", "Its version.")
_REGION = path_parameter("region", "The region's name.")


def extension_paths(settings: Settings) -> dict[str, Any]:
    """Operations by path and method."""
    counted, listed, mapped = (
        refusals_of(settings, each) for each in ("statistics", "model-repository", "shared-memory")
    )
    key: Schema = {"security": [{"key": []}]} if settings.api_key is not None else {}
    admin: Schema = {"security": [{"admin": []}]}
    shared = "/v2/systemsharedmemory"
    statistics = operation_of(
        "all_statistics", "What all models have done", "StatisticsResponse", counted
    )
    index = _with_body(
        operation_of(
            "repository_index",
            "The models and their states",
            "RepositoryIndex",
            ["invalid_request", *listed],
        )
    )
    paths: dict[str, Any] = {
        "/v2/models/stats": {"get": {**statistics, **key}},
        "/v2/repository/index": {"post": {**index, **key}},
        f"{shared}/status": {
            "get": {
                **operation_of(
                    "shared_memory", "The registered regions", "SharedMemoryStatus", mapped
                ),
                **key,
            },
        },
        f"{shared}/region/{{region}}/status": {
            "get": {
                **operation_of(
                    "shared_memory_region",
                    "A registered region",
                    "SharedMemoryStatus",
                    ["not_found", *mapped],
                ),
                "parameters": [_REGION],
                **key,
            }
        },
    }
    for path, suffix, parameters in (
        ("", "", [_NAME]),
        ("/versions/{version}", "_version", [_NAME, _VERSION]),
    ):
        found = operation_of(
            f"statistics{suffix}",
            "What a model has done",
            "StatisticsResponse",
            ["invalid_request", "not_ready", *counted],
        )
        paths[f"/v2/models/{{model}}{path}/stats"] = {
            "get": {**found, "parameters": parameters, **key}
        }
    if settings.admin_token is not None and settings.allow_model_control:
        load = _silent(
            "load",
            "Load a model, or read its file again",
            ["not_found", "load_failed", "not_ready"],
            "RepositoryLoadRequest",
        )
        unload = _silent("unload", "Take a model away", ["not_ready"], "RepositoryUnloadRequest")
        for verb, operation in (("load", load), ("unload", unload)):
            paths[f"/v2/repository/models/{{model}}/{verb}"] = {
                "post": {**operation, "parameters": [_NAME], **admin}
            }
    if settings.admin_token is not None and settings.allow_shared_memory:
        register = _silent(
            "register_shared_memory",
            "Register a region",
            [],
            "SharedMemoryRegisterRequest",
            required=True,
        )
        paths[f"{shared}/region/{{region}}/register"] = {
            "post": {**register, "parameters": [_REGION], **admin}
        }
        region = _silent("unregister_shared_memory", "Forget a region", [])
        paths[f"{shared}/region/{{region}}/unregister"] = {
            "post": {**region, "parameters": [_REGION], **admin}
        }
        paths[f"{shared}/unregister"] = {
            "post": {**_silent("unregister_all_shared_memory", "Forget all regions", []), **admin}
        }
    return paths


def _silent(
    identifier: str, summary: str, codes: Iterable[str], body: str = "", required: bool = False
) -> Schema:
    """An operation for the admin token that answers 200 without a body."""
    operation = operation_of(
        identifier, summary, "ServerLive", ["invalid_request", "unauthorized", "forbidden", *codes]
    )
    operation["responses"]["200"] = {"description": "It is done."}
    return _with_body(operation, body, required) if body else operation


def _with_body(
    operation: Schema, schema: str = "RepositoryIndexRequest", required: bool = False
) -> Schema:
    operation["requestBody"] = {
        "required": required,
        "content": {"application/json": {"schema": reference(schema)}},
    }
    return operation
