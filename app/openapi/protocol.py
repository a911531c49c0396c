"""The operations of the Open Inference Protocol in the OpenAPI document.

They are the same for every model: `GET /v2/models/{model}` says what a model takes. Operations that
require the admin token are listed if the settings allow them at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..http.errors import STATUSES
from ..http.events import EVENTS_MEDIA_TYPE
from ..http.inputs.datatypes import DATATYPES
from ..http.restriction import restriction_of
from ..log_settings import FORMATS, INT32_MAX
from ..settings import Settings
from .schema import (
    FLAG,
    TEXT,
    UNSIGNED,
    Schema,
    array_of,
    json_response,
    object_of,
    path_parameter,
    reference,
)

_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_SHAPE = array_of(UNSIGNED)
_DATA: Schema = {
    **array_of({}),
    "description": "The elements in row-major order, flat or nested.",
}
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
_BATCH_DURATIONS = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
_LOG_SETTINGS: dict[str, Schema] = {
    "log_file": {**TEXT, "description": "Empty: the log goes to standard error."},
    "log_info": {**FLAG, "description": "Whether information is logged."},
    "log_warning": {**FLAG, "description": "Whether warnings are logged."},
    "log_error": {**FLAG, "description": "Whether errors are logged."},
    "log_verbose_level": {
        "type": "integer",
        "minimum": 0,
        "maximum": INT32_MAX,
        "description": "Whether messages for debugging are logged: 0, or any other number.",
    },
    "log_format": {
        **TEXT,
        "enum": list(FORMATS),
        "description": "Times are those of ISO 8601 with both.",
    },
}

_TRACE_SETTINGS: dict[str, Schema] = {
    "trace_level": {
        "type": "array",
        "anyOf": [
            {**array_of({"enum": ["OFF"]}), "minItems": 1, "maxItems": 1},
            {**array_of({"enum": ["TIMESTAMPS", "TENSORS"]}), "minItems": 1},
        ],
        "description": "OFF alone, or what is traced.",
    },
    "trace_rate": {
        **TEXT,
        "pattern": "^[1-9][0-9]{0,8}$",
        "description": "One of so many requests is traced.",
    },
    "trace_count": {
        **TEXT,
        "pattern": "^(-1|[0-9]{1,9})$",
        "description": "How many more are traced; -1: any number.",
    },
    "log_frequency": {
        **TEXT,
        "pattern": "^[0-9]{1,9}$",
        "description": "So many traces go into each numbered file; 0: all go into one.",
    },
}

PROTOCOL_SCHEMAS: dict[str, Schema] = {
    "ProtocolError": object_of(["error"], "What went wrong, in words for people.", error=TEXT),
    "ServerMetadata": object_of(
        ["name", "version", "extensions"], name=TEXT, version=TEXT, extensions=array_of(TEXT)
    ),
    "ServerLive": object_of(["live"], live=FLAG),
    "ServerReady": object_of(["ready"], ready=FLAG, error=TEXT),
    "ModelReady": object_of(["name", "ready"], name=TEXT, ready=FLAG),
    "TensorMetadata": object_of(
        ["name", "datatype", "shape"],
        "-1 in the shape stands for any size. A request may leave an optional input out.",
        name=TEXT,
        datatype=_DATATYPE,
        shape=array_of({"type": "integer"}),
        optional=FLAG,
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
        "description": "The configuration in the shape of Triton's ModelConfig.",
    },
    "TensorParameters": {
        **object_of(
            (),
            "Where the tensor's bytes are, or where to write them, if they are not in `data`.",
            binary_data_size={
                **UNSIGNED,
                "description": "Of an input or an answered output: its bytes after the JSON.",
            },
            binary_data={
                **FLAG,
                "description": "Of a requested output: true for bytes after the JSON, false for "
                "`data`.",
            },
            classification={
                "type": "integer",
                "minimum": 1,
                "description": "Of a requested output: the number of best classes to return "
                "instead of the tensor.",
            },
            shared_memory_region={**TEXT, "description": "The name of a registered region."},
            shared_memory_byte_size={
                **UNSIGNED,
                "description": "Bytes of the region that belong to the tensor.",
            },
            shared_memory_offset={
                **UNSIGNED,
                "description": "Bytes from the beginning of the region to the tensor.",
            },
        ),
        "additionalProperties": True,
    },
    "InferParameters": {
        **object_of(
            (),
            "Parameters that are not listed here become keys of the item.",
            priority={
                **UNSIGNED,
                "description": "1 is the highest. 0, or a level that the model does not have, "
                "stands for the model's default.",
            },
            timeout={
                **UNSIGNED,
                "description": "How long the answer is of use, in microseconds. 0, the default, "
                "stands for the model's own timeout, which holds if it is shorter.",
            },
            binary_data_output={
                **FLAG,
                "description": "true: outputs that do not set `binary_data` come as bytes after "
                "the JSON.",
            },
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
        id={**TEXT, "description": "An id for the request, which the answer repeats."},
        parameters=reference("InferParameters"),
        inputs=array_of(reference("InferInput")),
        outputs={
            **array_of(reference("RequestedOutput")),
            "description": "The outputs to return; all of them if this is missing or empty.",
        },
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
    "GenerateRequest": {
        **object_of(
            (),
            "A key that names an input is that input: a value, or its elements in a flat list. All "
            "others are parameters.",
            id={**TEXT, "description": "An id for the request, which the answers repeat."},
            parameters=reference("InferParameters"),
        ),
        "additionalProperties": True,
        "example": {"text_input": "hello", "parameters": {"max_tokens": 16}},
    },
    "GenerateResponse": {
        **object_of(
            ["model_name", "model_version"],
            "Each output by its name: one element by itself, several as a flat list.",
            id=TEXT,
            model_name=TEXT,
            model_version=TEXT,
        ),
        "additionalProperties": True,
    },
    "StatisticDuration": object_of(
        ["count", "ns"],
        count=UNSIGNED,
        ns={**UNSIGNED, "description": "The sum in nanoseconds."},
    ),
    "ModelStatistics": object_of(
        [
            "name",
            "version",
            "last_inference",
            "inference_count",
            "execution_count",
            "inference_stats",
            "batch_stats",
        ],
        name=TEXT,
        version=TEXT,
        last_inference={
            **UNSIGNED,
            "description": "When a batch last ended, in milliseconds since the epoch; 0 before "
            "the first.",
        },
        inference_count={**UNSIGNED, "description": "Rows that have been answered."},
        execution_count={
            **UNSIGNED,
            "description": "Batches that have run; for a pipeline of several nodes, requests.",
        },
        inference_stats=object_of(_DURATIONS, **dict.fromkeys(_DURATIONS, _DURATION)),
        response_stats={"type": "object"},
        batch_stats=array_of(
            object_of(["batch_size", *_BATCH_DURATIONS], batch_size=UNSIGNED, **_BATCH_DURATIONS)
        ),
        memory_usage=array_of({"type": "object"}),
    ),
    "StatisticsResponse": object_of(
        ["model_stats"], model_stats=array_of(reference("ModelStatistics"))
    ),
    "RepositoryIndexRequest": object_of(
        ready={**FLAG, "description": "true lists only the models that are ready."}
    ),
    "RepositoryIndex": array_of(
        object_of(
            ["name"],
            name=TEXT,
            version=TEXT,
            state={**TEXT, "description": "READY, LOADING, UNLOADING or UNAVAILABLE."},
            reason={**TEXT, "description": "Why the model is in that state, if it is not READY."},
        )
    ),
    "RepositoryLoadRequest": object_of(
        parameters={
            **object_of(
                config={
                    **TEXT,
                    "description": "A JSON text in the shape of ModelConfig, which overrides the "
                    "model's configuration until the next load.",
                }
            ),
            "additionalProperties": {
                "type": "string",
                "description": "file:<version>/<name>: a file of an ONNX model, in base64.",
                "format": "byte",
            },
            "type": ["object", "null"],
        }
    ),
    "RepositoryUnloadRequest": object_of(
        parameters={**object_of(unload_dependents=FLAG), "type": ["object", "null"]}
    ),
    "SharedMemoryRegion": object_of(
        ["name", "key", "offset", "byte_size"],
        name=TEXT,
        key=TEXT,
        offset=UNSIGNED,
        byte_size=UNSIGNED,
    ),
    "SharedMemoryStatus": array_of(reference("SharedMemoryRegion")),
    "SharedMemoryRegisterRequest": object_of(
        ["key", "byte_size"],
        key={**TEXT, "description": "The name of the POSIX shared memory object."},
        offset={
            **UNSIGNED,
            "description": "Bytes from the beginning of the object to the region.",
        },
        byte_size={**UNSIGNED, "minimum": 1, "description": "Bytes of the region."},
    ),
    "CudaSharedMemoryRegion": object_of(
        ["name", "device_id", "byte_size"], name=TEXT, device_id=UNSIGNED, byte_size=UNSIGNED
    ),
    "CudaSharedMemoryStatus": array_of(reference("CudaSharedMemoryRegion")),
    "CudaSharedMemoryRegisterRequest": object_of(
        ["raw_handle", "device_id", "byte_size"],
        raw_handle=object_of(
            ["b64"],
            b64={
                "type": "string",
                "format": "byte",
                "description": "The base64 of a cudaIpcMemHandle_t, of 64 bytes.",
            },
        ),
        device_id={**UNSIGNED, "description": "The number of the GPU, as the server counts."},
        byte_size={**UNSIGNED, "minimum": 1, "description": "Bytes of the region."},
    ),
    "TraceSetting": object_of(
        ["trace_level", "trace_rate", "trace_count", "trace_mode"],
        **_TRACE_SETTINGS,
        trace_file={**TEXT, "description": "Empty: there is none."},
        trace_mode={"enum": ["triton", "opentelemetry"]},
    ),
    "TraceSettingRequest": {
        **object_of(
            **{
                name: {"anyOf": [schema, {"type": "null"}]}
                for name, schema in _TRACE_SETTINGS.items()
            }
        ),
        "additionalProperties": False,
        "description": "The settings to change; the others stay. null: what holds without one.",
    },
    "LogSettings": object_of(list(_LOG_SETTINGS), **_LOG_SETTINGS),
    "LogSettingsRequest": {
        **object_of(
            **{
                name: {"anyOf": [schema, {"type": "null"}]}
                for name, schema in _LOG_SETTINGS.items()
                if name != "log_file"
            }
        ),
        "additionalProperties": False,
        "description": "The settings to change; the others stay.",
    },
}

_BINARY: Schema = {
    "type": "string",
    "format": "binary",
    "description": "JSON, followed by the bytes of the tensors.",
}
_JSON_LENGTH_PARAMETER: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of JSON at the beginning of the body; the bytes of the tensors follow. "
    "0: the body has no JSON and is the model's only input.",
    "schema": UNSIGNED,
}
_INFER_CODES = (
    "invalid_request",
    "not_found",
    "unsupported_media",
    "queue_full",
    "overloaded",
    "memory_full",
    "backend_error",
    "internal",
    "not_ready",
    "deadline_exceeded",
)
SERVER_NOT_READY = "The server is loading or draining, or a node has no executor that works."

_MODEL_PARAMETER = path_parameter("model", "The pipeline's name.")
_VERSION_PARAMETER = path_parameter("version", "The pipeline's version.")
_REGION_PARAMETER = path_parameter("region", "The region's name.")
_VERSIONS: tuple[tuple[str, str, list[Schema]], ...] = (
    ("", "", [_MODEL_PARAMETER]),
    ("/versions/{version}", "_version", [_MODEL_PARAMETER, _VERSION_PARAMETER]),
)
"""The two forms of a model's path: its end, the end of its operations' ids, and its parameters."""


def protocol_paths(settings: Settings) -> dict[str, Any]:
    """Return the operations of the protocol and its extensions by path and method."""
    return {
        **_server_paths(settings),
        **_model_paths(settings),
        **_statistics_paths(settings),
        **_repository_paths(settings),
        **_shared_memory_paths(settings),
        **_trace_paths(settings),
        **_logging_paths(settings),
    }


def _server_paths(settings: Settings) -> dict[str, Any]:
    metadata, health = _refusals(settings, "metadata"), _refusals(settings, "health")
    open_to_all = [code for code in health if code != "unauthorized"]
    ready = _operation(
        "server_ready", "Check that the server is ready for requests", "ServerReady", open_to_all
    )
    ready["responses"]["503"] = json_response(SERVER_NOT_READY, "ServerReady")
    return {
        "/v2": {
            "get": {
                **_operation(
                    "server_metadata",
                    "Get the name, version and extensions of the server",
                    "ServerMetadata",
                    metadata,
                ),
                **_key(settings),
            }
        },
        "/v2/health/live": {
            "get": _operation(
                "server_live", "Check that the server answers", "ServerLive", open_to_all
            )
        },
        "/v2/health/ready": {"get": ready},
    }


def _model_paths(settings: Settings) -> dict[str, Any]:
    key = _key(settings)
    metadata, config, health, inference = (
        _refusals(settings, group) for group in ("metadata", "model-config", "health", "inference")
    )
    described = ("invalid_request", "not_ready")
    paths: dict[str, Any] = {}
    for version, suffix, parameters in _VERSIONS:
        of = " of a version" if version else ""
        root = f"/v2/models/{{model}}{version}"
        for end, identifier, summary, schema, codes in (
            (
                "",
                "model_metadata",
                f"Get the inputs and outputs{of} of a model",
                "ModelMetadata",
                [*described, *metadata],
            ),
            (
                "/config",
                "model_config",
                f"Get the configuration{of} of a model",
                "ModelConfig",
                [*described, *config],
            ),
            (
                "/ready",
                "model_ready",
                f"Check that {'a version of ' if version else ''}a model is ready",
                "ModelReady",
                ["invalid_request", *health],
            ),
        ):
            operation = _operation(f"{identifier}{suffix}", summary, schema, codes)
            paths[f"{root}{end}"] = {"get": {**operation, "parameters": parameters, **key}}
        infer = _operation(
            f"infer{suffix}",
            f"Run {'a version of ' if version else ''}a model",
            "InferResponse",
            [*_INFER_CODES, *inference],
        )
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": _BINARY}
        infer["responses"]["501"] = json_response(
            "The body has a Content-Encoding other than gzip and deflate.", "ProtocolError"
        )
        infer["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": reference("InferRequest")},
                "application/octet-stream": {"schema": _BINARY},
            },
        }
        paths[f"{root}/infer"] = {
            "post": {**infer, "parameters": [*parameters, _JSON_LENGTH_PARAMETER], **key}
        }
        which = "a version of a model" if version else "a model"
        for end, summary in (
            ("generate", f"Run {which} whose answer is one part"),
            ("generate_stream", f"Run {which}, and get each part of its answer as an event"),
        ):
            generate = _with_body(
                _operation(
                    f"{end}{suffix}", summary, "GenerateResponse", [*_INFER_CODES, *inference]
                ),
                "GenerateRequest",
                required=True,
            )
            generate["responses"]["501"] = infer["responses"]["501"]
            if end == "generate_stream":
                generate["responses"]["200"] = _events("GenerateResponse")
            paths[f"{root}/{end}"] = {"post": {**generate, "parameters": parameters, **key}}
    return paths


def _statistics_paths(settings: Settings) -> dict[str, Any]:
    key = _key(settings)
    codes = _refusals(settings, "statistics")
    every = _operation(
        "all_statistics", "Get the statistics of all models", "StatisticsResponse", codes
    )
    paths: dict[str, Any] = {"/v2/models/stats": {"get": {**every, **key}}}
    for version, suffix, parameters in _VERSIONS:
        operation = _operation(
            f"statistics{suffix}",
            f"Get the statistics of {'a version of ' if version else ''}a model",
            "StatisticsResponse",
            ["invalid_request", "not_ready", *codes],
        )
        paths[f"/v2/models/{{model}}{version}/stats"] = {
            "get": {**operation, "parameters": parameters, **key}
        }
    return paths


def _repository_paths(settings: Settings) -> dict[str, Any]:
    index = _with_body(
        _operation(
            "repository_index",
            "List the models and their states",
            "RepositoryIndex",
            ["invalid_request", *_refusals(settings, "model-repository")],
        ),
        "RepositoryIndexRequest",
    )
    paths: dict[str, Any] = {"/v2/repository/index": {"post": {**index, **_key(settings)}}}
    if settings.admin_token is not None and settings.allow_model_control:
        load = _with_body(
            _silent(
                "load",
                "Load a model, or read its file again and replace it",
                ["not_found", "load_failed", "not_ready"],
            ),
            "RepositoryLoadRequest",
        )
        unload = _with_body(
            _silent("unload", "Unload a model after its requests have ended", ["not_ready"]),
            "RepositoryUnloadRequest",
        )
        for verb, operation in (("load", load), ("unload", unload)):
            paths[f"/v2/repository/models/{{model}}/{verb}"] = {
                "post": {**operation, "parameters": [_MODEL_PARAMETER]}
            }
    return paths


def _shared_memory_paths(settings: Settings) -> dict[str, Any]:
    """Return the operations of system and of CUDA shared memory."""
    key = _key(settings)
    codes = _refusals(settings, "shared-memory")
    paths: dict[str, Any] = {}
    for root, suffix, kind in (
        ("/v2/systemsharedmemory", "", "SharedMemory"),
        ("/v2/cudasharedmemory", "_cuda", "CudaSharedMemory"),
    ):
        of = " on GPUs" if suffix else ""
        every = _operation(
            f"shared_memory{suffix}", f"List the registered regions{of}", f"{kind}Status", codes
        )
        one = _operation(
            f"shared_memory_region{suffix}",
            f"Get a registered region{of}",
            f"{kind}Status",
            ["not_found", *codes],
        )
        paths |= {
            f"{root}/status": {"get": {**every, **key}},
            f"{root}/region/{{region}}/status": {
                "get": {**one, "parameters": [_REGION_PARAMETER], **key}
            },
        }
        if settings.admin_token is None or not settings.allow_shared_memory:
            continue
        register = _with_body(
            _silent(f"register_shared_memory{suffix}", f"Register a region{of}", []),
            f"{kind}RegisterRequest",
            required=True,
        )
        unregister = _silent(f"unregister_shared_memory{suffix}", f"Unregister a region{of}", [])
        unregister_all = _silent(
            f"unregister_all_shared_memory{suffix}", f"Unregister all regions{of}", []
        )
        paths |= {
            f"{root}/region/{{region}}/register": {
                "post": {**register, "parameters": [_REGION_PARAMETER]}
            },
            f"{root}/region/{{region}}/unregister": {
                "post": {**unregister, "parameters": [_REGION_PARAMETER]}
            },
            f"{root}/unregister": {"post": unregister_all},
        }
    return paths


def _trace_paths(settings: Settings) -> dict[str, Any]:
    codes = _refusals(settings, "trace")
    paths: dict[str, Any] = {}
    for path, end, parameters in (
        ("/v2/trace/setting", "", []),
        ("/v2/models/{model}/trace/setting", "_of_model", [_MODEL_PARAMETER]),
    ):
        unknown = ["invalid_request"] if parameters else []
        read = _operation(
            f"trace_setting{end}", "Get the trace settings", "TraceSetting", [*codes, *unknown]
        )
        methods = {"get": {**read, **_key(settings), "parameters": parameters}}
        if settings.admin_token is not None and settings.allow_trace_settings:
            update = _operation(
                f"update_trace_setting{end}",
                "Change some of the trace settings",
                "TraceSetting",
                ["invalid_request", "unauthorized", "forbidden"],
            )
            update["responses"]["501"] = json_response(
                "A setting that only the server's start sets.", "ProtocolError"
            )
            methods["post"] = {
                **_with_body(update, "TraceSettingRequest"),
                "parameters": parameters,
                "security": [{"admin": []}],
            }
        paths[path] = methods
    return paths


def _logging_paths(settings: Settings) -> dict[str, Any]:
    codes = _refusals(settings, "logging")
    read = _operation("log_settings", "Get the log settings", "LogSettings", codes)
    methods = {"get": {**read, **_key(settings)}}
    if settings.admin_token is not None and settings.allow_log_settings:
        update = _operation(
            "update_log_settings",
            "Change some of the log settings",
            "LogSettings",
            ["invalid_request", "unauthorized", "forbidden"],
        )
        methods["post"] = {
            **_with_body(update, "LogSettingsRequest"),
            "security": [{"admin": []}],
        }
    return {"/v2/logging": methods}


def _key(settings: Settings) -> Schema:
    """Return the requirement of the API key, empty if the server has none."""
    return {"security": [{"key": []}]} if settings.api_key is not None else {}


def _refusals(settings: Settings, group: str) -> list[str]:
    """Return the codes of the errors for clients that may not use the operations of `group`."""
    unauthorized = ["unauthorized"] if settings.api_key is not None else []
    restricted = group in restriction_of(settings.restricted_api)
    return [*unauthorized, "forbidden"] if restricted else unauthorized


def _operation(identifier: str, summary: str, schema: str, codes: Iterable[str]) -> Schema:
    """Return an operation that answers 200 with `schema`, and the statuses of these codes."""
    responses = {"200": json_response("The answer.", schema)}
    for code in sorted(codes, key=lambda code: (STATUSES[code].protocol, code)):
        status = str(STATUSES[code].protocol)
        before = responses[status]["description"] if status in responses else ""
        responses[status] = json_response(f"{before}, {code}".removeprefix(", "), "ProtocolError")
    return {
        "operationId": f"v2_{identifier}",
        "summary": summary,
        "tags": ["Open Inference Protocol"],
        "responses": responses,
    }


def _events(schema: str) -> Schema:
    """Return the response of a stream whose events hold `schema`."""
    # Without a type: to some tools the events are objects, to others they are one text.
    events = {
        "description": f"Server-Sent Events. The data of each is a {schema}; if the request fails, "
        "that of the last is a ProtocolError.",
    }
    content = {EVENTS_MEDIA_TYPE: {"schema": events}}
    return {"description": "A stream of answers.", "content": content}


def _silent(identifier: str, summary: str, codes: Iterable[str]) -> Schema:
    """Return an operation that requires the admin token and answers 200 without a body."""
    operation = _operation(
        identifier, summary, "", ["invalid_request", "unauthorized", "forbidden", *codes]
    )
    operation["responses"]["200"] = {"description": "Done. The body is empty."}
    return {**operation, "security": [{"admin": []}]}


def _with_body(operation: Schema, schema: str, required: bool = False) -> Schema:
    """Return the operation with a JSON request body."""
    content = {"application/json": {"schema": reference(schema)}}
    return {**operation, "requestBody": {"required": required, "content": content}}
