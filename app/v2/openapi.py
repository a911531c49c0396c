"""The protocol's operations in the OpenAPI document: the same ones for every model, which says itself what it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import STATUSES
from .tensors import DATATYPES

Schema = dict[str, Any]


def _object(required: Iterable[str] = (), description: str = "", **properties: Schema) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    if required := list(required):
        found["required"] = required
    return {**found, "description": description} if description else found


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_UNSIGNED: Schema = {"type": "integer", "minimum": 0}
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_SHAPE = _array(_UNSIGNED)
_DATA: Schema = {"type": "array", "items": {}, "description": "Elements in row-major order, flat or nested."}

SCHEMAS: dict[str, Schema] = {
    "ProtocolError": _object(["error"], "What went wrong, for people.", error=_TEXT),
    "ServerMetadata": _object(["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_array(_TEXT)),
    "ServerLive": _object(["live"], live=_FLAG),
    "ServerReady": _object(["ready"], ready=_FLAG, reason=_TEXT),
    "ModelReady": _object(["name", "ready"], name=_TEXT, ready=_FLAG),
    "TensorMetadata": _object(
        ["name", "datatype", "shape"], "-1 in the shape: any size.", name=_TEXT, datatype=_DATATYPE, shape=_array({"type": "integer"})
    ),
    "ModelMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions=_array(_TEXT),
        platform=_TEXT,
        inputs=_array(_reference("TensorMetadata")),
        outputs=_array(_reference("TensorMetadata")),
    ),
    "ModelConfig": {"type": "object", "additionalProperties": True, "description": "In the shape of Triton's ModelConfig."},
    "TensorParameters": {
        **_object(
            description="Where the tensor's bytes are, or are to go, if not in `data`.",
            binary_data_size=_UNSIGNED,
            binary_data=_FLAG,
            classification={"type": "integer", "minimum": 1},
            shared_memory_region=_TEXT,
            shared_memory_byte_size=_UNSIGNED,
            shared_memory_offset=_UNSIGNED,
        ),
        "additionalProperties": True,
    },
    "InferParameters": {
        **_object(
            description="Others become keys of the item.",
            priority=_UNSIGNED,
            timeout={**_UNSIGNED, "description": "Microseconds."},
            binary_data_output=_FLAG,
        ),
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    },
    "InferInput": _object(
        ["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, data=_DATA, parameters=_reference("TensorParameters")
    ),
    "RequestedOutput": _object(["name"], name=_TEXT, parameters=_reference("TensorParameters")),
    "InferRequest": _object(
        ["inputs"],
        id=_TEXT,
        parameters=_reference("InferParameters"),
        inputs=_array(_reference("InferInput")),
        outputs=_array(_reference("RequestedOutput")),
    ),
    "InferOutput": _object(
        ["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, data=_DATA, parameters=_reference("TensorParameters")
    ),
    "InferResponse": _object(
        ["model_name", "model_version", "outputs"],
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        outputs=_array(_reference("InferOutput")),
    ),
}

_BINARY: Schema = {"type": "string", "format": "binary", "description": "JSON, and behind it the tensors' bytes."}
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


def protocol_paths(protected: bool) -> dict[str, Any]:
    """Operations by path and method."""
    codes = ["unauthorized"] if protected else []
    key: Schema = {"security": [{"key": []}]} if protected else {}
    described = ["invalid_request", "not_ready", *codes]
    paths: dict[str, Any] = {
        "/v2": {"get": {**_operation("server_metadata", "Name, version and extensions of the server", "ServerMetadata", codes), **key}},
        "/v2/health/live": {"get": _operation("server_live", "Whether the server answers at all", "ServerLive", [])},
        "/v2/health/ready": {"get": _ready()},
    }
    for version, suffix in (("", ""), ("/versions/{version}", "_version")):
        parameters = [_path("model", "The pipeline's name."), *([_path("version", "Its version.")] if version else [])]
        common: Schema = {"parameters": parameters, **key}
        of = " of a version" if version else ""
        root = f"/v2/models/{{model}}{version}"
        paths[root] = {
            "get": {**_operation(f"model_metadata{suffix}", f"What a model{of} takes and gives", "ModelMetadata", described), **common}
        }
        paths[f"{root}/config"] = {
            "get": {**_operation(f"model_config{suffix}", f"A model's configuration{of}", "ModelConfig", described), **common}
        }
        paths[f"{root}/ready"] = {
            "get": {
                **_operation(f"model_ready{suffix}", f"Whether a model{of} is ready", "ModelReady", ["invalid_request", *codes]),
                **common,
            }
        }
        infer = _operation(f"infer{suffix}", f"Run a model{of}", "InferResponse", [*_INFER_CODES, *codes])
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": _BINARY}
        infer["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference("InferRequest")}, "application/octet-stream": {"schema": _BINARY}},
        }
        paths[f"{root}/infer"] = {"post": {**infer, **common, "parameters": [*parameters, _LENGTH]}}
    return paths


def _ready() -> Schema:
    operation = _operation("server_ready", "Whether requests should come here now", "ServerReady", [])
    operation["responses"]["503"] = _answer("Loading, draining, or a node is without executors.", "ServerReady")
    return operation


def _operation(identifier: str, summary: str, schema: str, codes: Iterable[str]) -> Schema:
    responses = {"200": _answer("The answer.", schema)}
    for code in sorted(codes, key=lambda each: (STATUSES[each].protocol, each)):
        status = str(STATUSES[code].protocol)
        before = responses[status]["description"] if status in responses else ""
        responses[status] = _answer(f"{before}, {code}".removeprefix(", "), "ProtocolError")
    return {"operationId": f"v2_{identifier}", "summary": summary, "tags": ["Open Inference Protocol"], "responses": responses}


def _answer(description: str, schema: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": _reference(schema)}}}


def _path(name: str, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
