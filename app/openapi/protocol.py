"""The protocol's operations in the OpenAPI document: the same ones for every model, which says itself what it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..http.errors import STATUSES
from ..http.restriction import restriction_of
from ..settings import Settings
from ..v2.tensors import DATATYPES

Schema = dict[str, Any]


def object_of(
    required: Iterable[str] = (), description: str = "", /, **properties: Schema
) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    if required := list(required):
        found["required"] = required
    return {**found, "description": description} if description else found


def array_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
UNSIGNED: Schema = {"type": "integer", "minimum": 0}
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_SHAPE = array_of(UNSIGNED)
_DATA: Schema = {
    "type": "array",
    "items": {},
    "description": "Elements in row-major order, flat or nested.",
}

SCHEMAS: dict[str, Schema] = {
    "ProtocolError": object_of(["error"], "What went wrong, for people.", error=TEXT),
    "ServerMetadata": object_of(
        ["name", "version", "extensions"], name=TEXT, version=TEXT, extensions=array_of(TEXT)
    ),
    "ServerLive": object_of(["live"], live=FLAG),
    "ServerReady": object_of(["ready"], ready=FLAG, error=TEXT),
    "ModelReady": object_of(["name", "ready"], name=TEXT, ready=FLAG),
    "TensorMetadata": object_of(
        ["name", "datatype", "shape"],
        "-1 in the shape: any size.",
        name=TEXT,
        datatype=_DATATYPE,
        shape=array_of({"type": "integer"}),
    ),
    "ModelMetadata": object_of(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=TEXT,
        versions=array_of(TEXT),
        platform=TEXT,
        inputs=array_of(reference("TensorMetadata")),
        outputs=array_of(reference("TensorMetadata")),
    ),
    "ModelConfig": {
        "type": "object",
        "additionalProperties": True,
        "description": "In the shape of Triton's ModelConfig.",
    },
    "TensorParameters": {
        **object_of(
            (),
            "Where the tensor's bytes are, or are to go, if not in `data`.",
            binary_data_size=UNSIGNED,
            binary_data=FLAG,
            classification={"type": "integer", "minimum": 1},
            shared_memory_region=TEXT,
            shared_memory_byte_size=UNSIGNED,
            shared_memory_offset=UNSIGNED,
        ),
        "additionalProperties": True,
    },
    "InferParameters": {
        **object_of(
            (),
            "Others become keys of the item.",
            priority=UNSIGNED,
            timeout={**UNSIGNED, "description": "Microseconds."},
            binary_data_output=FLAG,
        ),
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    },
    "InferInput": object_of(
        ["name", "datatype", "shape"],
        name=TEXT,
        datatype=_DATATYPE,
        shape=_SHAPE,
        data=_DATA,
        parameters=reference("TensorParameters"),
    ),
    "RequestedOutput": object_of(["name"], name=TEXT, parameters=reference("TensorParameters")),
    "InferRequest": object_of(
        ["inputs"],
        id=TEXT,
        parameters=reference("InferParameters"),
        inputs=array_of(reference("InferInput")),
        outputs=array_of(reference("RequestedOutput")),
    ),
    "InferOutput": object_of(
        ["name", "datatype", "shape"],
        name=TEXT,
        datatype=_DATATYPE,
        shape=_SHAPE,
        data=_DATA,
        parameters=reference("TensorParameters"),
    ),
    "InferResponse": object_of(
        ["model_name", "model_version", "outputs"],
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        outputs=array_of(reference("InferOutput")),
    ),
}

_BINARY: Schema = {
    "type": "string",
    "format": "binary",
    "description": "JSON, and behind it the tensors' bytes.",
}
_LENGTH: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of JSON in front of the tensors' bytes; 0: all of the body is the one input.",
    "schema": {"type": "integer", "minimum": 0},
}
_INFER_CODES = (
    "invalid_request", "not_found", "unsupported_media", "queue_full", "overloaded", "backend_error", "internal", "not_ready",
    "deadline_exceeded",
)  # fmt: skip


def refusals_of(settings: Settings, group: str) -> list[str]:
    """Codes of the errors that whoever may not use an API's operations gets."""
    unauthorized = ["unauthorized"] if settings.api_key is not None else []
    return (
        [*unauthorized, "forbidden"]
        if group in restriction_of(settings.restricted_api)
        else unauthorized
    )


def protocol_paths(settings: Settings) -> dict[str, Any]:
    """Operations by path and method."""
    key: Schema = {"security": [{"key": []}]} if settings.api_key is not None else {}
    metadata, config, health, inference = (
        refusals_of(settings, each) for each in ("metadata", "model-config", "health", "inference")
    )
    anybody = [code for code in health if code != "unauthorized"]
    described = ("invalid_request", "not_ready")
    paths: dict[str, Any] = {
        "/v2": {
            "get": {
                **operation_of(
                    "server_metadata",
                    "Name, version and extensions of the server",
                    "ServerMetadata",
                    metadata,
                ),
                **key,
            }
        },
        "/v2/health/live": {
            "get": operation_of(
                "server_live", "Whether the server answers at all", "ServerLive", anybody
            )
        },
        "/v2/health/ready": {"get": _ready(anybody)},
    }
    for version, suffix in (("", ""), ("/versions/{version}", "_version")):
        parameters = [
            path_parameter("model", "The pipeline's name."),
            *([path_parameter("version", "Its version.")] if version else []),
        ]
        common: Schema = {"parameters": parameters, **key}
        of = " of a version" if version else ""
        root = f"/v2/models/{{model}}{version}"
        paths[root] = {
            "get": {
                **operation_of(
                    f"model_metadata{suffix}",
                    f"What a model{of} takes and gives",
                    "ModelMetadata",
                    [*described, *metadata],
                ),
                **common,
            }
        }
        paths[f"{root}/config"] = {
            "get": {
                **operation_of(
                    f"model_config{suffix}",
                    f"A model's configuration{of}",
                    "ModelConfig",
                    [*described, *config],
                ),
                **common,
            }
        }
        paths[f"{root}/ready"] = {
            "get": {
                **operation_of(
                    f"model_ready{suffix}",
                    f"Whether a model{of} is ready",
                    "ModelReady",
                    ["invalid_request", *health],
                ),
                **common,
            }
        }
        infer = operation_of(
            f"infer{suffix}", f"Run a model{of}", "InferResponse", [*_INFER_CODES, *inference]
        )
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": _BINARY}
        infer["responses"]["501"] = answer_of(
            "The body's Content-Encoding is neither gzip nor deflate.", "ProtocolError"
        )
        infer["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": reference("InferRequest")},
                "application/octet-stream": {"schema": _BINARY},
            },
        }
        paths[f"{root}/infer"] = {"post": {**infer, **common, "parameters": [*parameters, _LENGTH]}}
    return paths


def _ready(codes: Iterable[str]) -> Schema:
    operation = operation_of(
        "server_ready", "Whether requests should come here now", "ServerReady", codes
    )
    operation["responses"]["503"] = answer_of(
        "Loading, draining, or a node is without executors.", "ServerReady"
    )
    return operation


def operation_of(identifier: str, summary: str, schema: str, codes: Iterable[str]) -> Schema:
    responses = {"200": answer_of("The answer.", schema)}
    for code in sorted(codes, key=lambda each: (STATUSES[each].protocol, each)):
        status = str(STATUSES[code].protocol)
        before = responses[status]["description"] if status in responses else ""
        responses[status] = answer_of(f"{before}, {code}".removeprefix(", "), "ProtocolError")
    return {
        "operationId": f"v2_{identifier}",
        "summary": summary,
        "tags": ["Open Inference Protocol"],
        "responses": responses,
    }


def answer_of(description: str, schema: str) -> Schema:
    return {
        "description": description,
        "content": {"application/json": {"schema": reference(schema)}},
    }


def path_parameter(name: str, description: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }
