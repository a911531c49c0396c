"""The OpenAPI document: typed operations for every loaded pipeline, to generate clients from.

Names in it are stable. A pipeline's operations are `predict_<name>`, `put_<name>` and
`batch_<name>`; its schemas are `Prediction_<name>` and `Batch_<name>`, and `Inputs_<name>`,
`Form_<name>` and `Forms_<name>` for requests. No other pipeline's name can change them or collide
with them, so loading a pipeline breaks no client. Objects have a name, because generators invent
one for a schema that has none, and each operation takes a content type that the usual generators
understand (docs/how-to/clients.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.repository import VERSION_SEPARATOR, Repository
from penstock.pipelines.runs.plan import Plan

from ..http.errors import PROBLEM_MEDIA_TYPE, STATUSES
from ..http.events import EVENTS_MEDIA_TYPE
from ..settings import Settings
from .bodies import (
    REQUEST_BODIES,
    URL_BODIES,
    body_of_many,
    body_of_one,
    body_schemas,
    takes_image,
)
from .json_schemas import PortSchemas
from .kinds import described, schema_of
from .protocol import PROTOCOL_SCHEMAS, SERVER_NOT_READY, protocol_paths
from .requests import REQUEST_SCHEMAS, request_paths
from .schema import (
    FLAG,
    TEXT,
    Schema,
    array_of,
    json_response,
    path_parameter,
    reference,
    sentence,
)
from .status import STATUS_SCHEMAS, status_operation

PROBLEM: Schema = {
    "type": "object",
    "description": "What went wrong (RFC 9457). Branch on `code`: it never changes.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "description": "Always about:blank."},
        "title": {"type": "string", "description": "The phrase of the HTTP status."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {
            "type": "string",
            "description": "A message for people: what was found, where, and what was expected.",
        },
        "code": {
            "type": "string",
            "description": f"One of {', '.join(STATUSES)}, or one of the pipeline's own.",
        },
        "request_id": {
            "type": "string",
            "description": "The id of the request, as in the header X-Request-Id.",
        },
    },
}

STREAM = (
    "The body is read as it arrives, while the pipeline works on it. A WebSocket at the same path "
    "with `/stream` after it takes each chunk as a message and sends each part as one."
)

REQUEST_CODES = ("invalid_request", "not_found", "too_large", "unsupported_media")
ANSWER_CODES = (
    "queue_full",
    "overloaded",
    "memory_full",
    "backend_error",
    "internal",
    "not_ready",
    "deadline_exceeded",
)

REQUEST_ID_PARAMETER: Schema = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "An id for the request, which logs and the answer repeat: 1 to 128 visible "
    "ASCII characters. The server replaces any other value.",
    "schema": {"type": "string", "maxLength": 128},
}
DEADLINE_PARAMETER: Schema = {
    "name": "Penstock-Deadline-Ms",
    "in": "header",
    "description": "How long the answer is of use, in milliseconds from the first byte of the "
    "request. The pipeline's own timeout holds if it is shorter.",
    "schema": {"type": "integer", "minimum": 1},
}
TRACE_PARAMETER: Schema = {
    "name": "Penstock-Trace",
    "in": "header",
    "description": "1 adds a member `trace` to the answer or the problem: the steps of the "
    "request. Requires the admin token.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}
SEQUENCE_PARAMETERS: tuple[Schema, ...] = (
    {
        "name": "sequence",
        "in": "query",
        "required": True,
        "description": "The sequence of which the request is a step: a camera, a call, a session. "
        "1 to 128 characters. An id of digits is the same as that integer at /v2; it is from 1 to "
        "2^64 - 1.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    {
        "name": "sequence_start",
        "in": "query",
        "description": "Begin anew, and end the sequence of this id if there is one. A step of an "
        "id that is not known begins a sequence anyway.",
        "schema": {"type": "boolean", "default": False},
    },
    {
        "name": "sequence_end",
        "in": "query",
        "description": "This is the last step of the sequence.",
        "schema": {"type": "boolean", "default": False},
    },
)
ANSWER_HEADERS: Schema = {
    "X-Request-Id": {"description": "The id of the request.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds that the item queued and ran at each node.",
        "schema": {"type": "string"},
    },
}


class OpenAPI:
    """The callable that becomes `app.openapi`.

    It builds the document on the first call, and again after the repository's generation or the
    app's routes have changed.
    """

    def __init__(self, app: FastAPI, repository: Repository, settings: Settings) -> None:
        self._app = app
        self._repository = repository
        self._settings = settings
        self._built_for: tuple[int, int] | None = None
        self._document: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        current = self._repository.generation, len(self._app.routes)
        if self._built_for != current:
            self._document = self._build()
            self._built_for = current
        return self._document

    def _build(self) -> dict[str, Any]:
        """Add our operations to those that FastAPI knows: the routes that the user added."""
        app, settings = self._app, self._settings
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description or None,
            routes=app.routes,
        )
        protected = settings.api_key is not None
        with_admin = settings.admin_token is not None
        administrable = with_admin and settings.allow_model_control
        traced = with_admin and settings.allow_trace
        by_url = settings.allow_url
        schemas = {
            "Problem": PROBLEM,
            **REQUEST_BODIES,
            **(URL_BODIES if by_url else {}),
            **SERVER_SCHEMAS,
            **STATUS_SCHEMAS,
            **(REQUEST_SCHEMAS if settings.request_history else {}),
            **PROTOCOL_SCHEMAS,
        }
        paths: dict[str, Any] = {}
        for name, pipeline in sorted(self._repository.pipelines.items()):
            schemas |= schemas_of(pipeline.config)
            paths |= paths_of(pipeline.config, protected, by_url, traced)
            versions = self._repository.versions[name]
            for version, one in versions.items() if len(versions) > 1 else ():
                schemas |= schemas_of(one.config, version)
                paths |= paths_of(one.config, protected, by_url, traced, version)
        paths |= server_paths(protected, administrable)
        if settings.request_history:
            paths |= request_paths(problems, protected)
        paths |= protocol_paths(settings)
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **dict(sorted(schemas.items()))}
        components["responses"] = {**components.get("responses", {}), **share_problems(paths)}
        schemes: dict[str, Any] = {}
        if protected:
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "The API key."}
        changes = (
            settings.allow_shared_memory
            or settings.allow_log_settings
            or settings.allow_trace_settings
        )
        if administrable or traced or (with_admin and changes):
            schemes["admin"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "The admin token.",
            }
        if schemes:
            components["securitySchemes"] = {**components.get("securitySchemes", {}), **schemes}
        document["paths"] = {**paths, **document.get("paths", {})}
        return document


# pipelines


def key_of(name: str, version: str) -> str:
    """Return what the names of a pipeline's schemas and operations end with.

    `version`: "" for those of the pipeline's name alone, which are of its newest version.
    """
    return f"{name}_version_{version}" if version else name


def schemas_of(config: PipelineConfig, version: str = "") -> dict[str, Schema]:
    """Return the schemas of a pipeline's requests, and of its answers to one item and to many.

    For a pipeline that streams, also the schema of each event. `version` is as in `key_of`.
    """
    key = key_of(config.name, version)
    carried = PortSchemas(config, key)
    bodies = body_schemas(config, key) | carried.components
    noun = _noun(config)
    declared = {port.name: port for port in config.key_ports}
    result = config.result_port
    without_result = "null if the pipeline ends without a result."
    properties: dict[str, Schema] = {"result": {"description": without_result}}
    if result is not None:
        properties["result"] = {
            "anyOf": [schema_of(result, carried, answered=True), {"type": "null"}],
            "description": sentence(result.description, without_result),
        }
    properties |= {
        name: {**schema_of(port, carried, answered=True), **described(port)}
        for name, port in declared.items()
    }
    prediction = {"type": "object", "required": ["result"], "properties": properties}
    results = {
        "type": "array",
        "description": f"One element for each {noun}, in the order of the request: the pipeline's "
        f"answer, or the problem of that {noun}.",
        "items": {"oneOf": [reference(f"Prediction_{key}"), reference("Problem")]},
    }
    batch = {"type": "object", "required": ["results"], "properties": {"results": results}}
    if streams(config):
        parts = {
            "type": "array",
            "description": "The result of each part, in order.",
            "items": properties["result"],
        }
        whole = {"type": "object", "required": ["result"], "properties": {"result": parts}}
        return {
            **bodies,
            f"Part_{key}": prediction,
            f"Prediction_{key}": whole,
            f"Batch_{key}": batch,
        }
    return {**bodies, f"Prediction_{key}": prediction, f"Batch_{key}": batch}


def _noun(config: PipelineConfig) -> str:
    return "image" if takes_image(config) else "item"


def streams(config: PipelineConfig) -> bool:
    """Return whether a pipeline answers in parts."""
    default = Plan(config.nodes, config.entry).default
    return default is not None and default.stream is not None


def paths_of(
    config: PipelineConfig,
    protected: bool,
    by_url: bool = False,
    traced: bool = False,
    version: str = "",
) -> dict[str, Any]:
    """Return a pipeline's operations by path and method. `version` is as in `key_of`."""
    name, key = config.name, key_of(config.name, version)
    path = f"/predict/{name}{VERSION_SEPARATOR}{version}" if version else f"/predict/{name}"
    shown = f"version {version} of {name}" if version else name
    noun = _noun(config)
    security: list[Schema] = [{"key": []}] if protected else []
    common: dict[str, Any] = {"tags": [name], **({"security": security} if protected else {})}
    text = sentence(config.description, STREAM if config.stream_input is not None else "")
    if text:
        common["description"] = text
    parameters = [REQUEST_ID_PARAMETER, DEADLINE_PARAMETER, *_priority_header(config)]
    if config.takes_sequences:
        parameters += SEQUENCE_PARAMETERS
    codes = [*(["unauthorized"] if protected else []), *REQUEST_CODES, *ANSWER_CODES]
    answer = _answer("The pipeline's answer.", f"Prediction_{key}")
    if streams(config):
        events = (
            f"Server-Sent Events. The data of each is a Part_{key}; the last is `event: end`, "
            "or `event: error` with a Problem."
        )
        answer["content"][EVENTS_MEDIA_TYPE] = {"schema": {"type": "string", "description": events}}
    single = {
        **common,
        "parameters": [*parameters, *([TRACE_PARAMETER] if traced else [])],
        "requestBody": body_of_one(config, key, by_url),
        "responses": {
            "200": answer,
            **problems(
                {*codes, "invalid_input", *(("unauthorized", "forbidden") if traced else ())}
            ),
        },
    }
    if traced:  # the admin token is as good as the key
        single["security"] = [*(security or [{}]), {"admin": []}]
    batch = {
        **common,
        "parameters": parameters,
        "requestBody": body_of_many(config, key),
        "responses": {
            "200": _answer(f"An answer or a problem for each {noun}.", f"Batch_{key}"),
            **problems(codes),
        },
    }
    paths = {
        path: {
            "post": {
                "operationId": f"predict_{key}",
                "summary": f"Run {shown} on one {noun}",
                **single,
            },
            "put": {
                "operationId": f"put_{key}",
                "summary": f"Run {shown} on one {noun}, as curl -T sends it",
                **single,
            },
        },
    }
    if config.stream_input is None:
        paths[f"{path}/batch"] = {
            "post": {
                "operationId": f"batch_{key}",
                "summary": f"Run {shown} on several {noun}s",
                **batch,
            }
        }
    return paths


def problems(codes: Iterable[str]) -> dict[str, Any]:
    """Return the responses for errors of these codes by status, with an example of each code."""
    responses: dict[str, Any] = {}
    for code in sorted(codes, key=lambda code: (STATUSES[code].http, code)):
        status = STATUSES[code]
        response = responses.setdefault(
            str(status.http),
            {"description": "", "content": {PROBLEM_MEDIA_TYPE: {"schema": reference("Problem")}}},
        )
        response["description"] = f"{response['description']}, {code}".removeprefix(", ")
        response["headers"] = {"X-Request-Id": ANSWER_HEADERS["X-Request-Id"]}
        if status.retry_after:
            response["headers"]["Retry-After"] = {
                "description": "Seconds to wait before the next attempt, 1 to 30.",
                "schema": {"type": "integer"},
            }
        example = {
            "type": "about:blank",
            "title": status.title,
            "status": status.http,
            "detail": status.example,
            "code": code,
        }
        response["content"][PROBLEM_MEDIA_TYPE].setdefault("examples", {})[code] = {
            "value": {**example, "request_id": "4be09a1c-7"}
        }
    return responses


def share_problems(paths: dict[str, Any]) -> dict[str, Any]:
    """Replace each response of `problems` in operations by a reference, and return the components.

    Without that, they are two thirds of the document. Generated clients stay the same.
    """
    shared: dict[str, Any] = {}
    for operations in paths.values():
        for operation in operations.values():
            responses = operation["responses"]
            for status, response in responses.items():
                if PROBLEM_MEDIA_TYPE in response.get("content", {}):
                    name = f"Problem_{response['description'].replace(', ', '_or_')}"
                    shared[name] = response
                    responses[status] = {"$ref": f"#/components/responses/{name}"}
    return shared


def inlined(value: Any, schemas: Mapping[str, Schema], inside: tuple[str, ...] = ()) -> Any:
    """Return a copy of a part of the document, every reference replaced by its schema.

    `inside`: what it is part of. A schema within itself becomes one that allows anything.
    """
    if isinstance(value, dict):
        name = str(value.get("$ref", "")).rpartition("/")[2]
        if name in inside:
            return {}
        if name in schemas:
            beside = {key: member for key, member in value.items() if key != "$ref"}
            return inlined(schemas[name], schemas, (*inside, name)) | beside
        return {key: inlined(member, schemas, inside) for key, member in value.items()}
    if isinstance(value, list):
        return [inlined(member, schemas, inside) for member in value]
    return value


def operations_of(config: PipelineConfig, protected: bool, by_url: bool = False) -> dict[str, Any]:
    """Return `paths_of` without references, to be merged into the document of a host app.

    The host's document does not have our schemas.
    """
    operations: dict[str, Any] = inlined(
        paths_of(config, protected, by_url),
        {"Problem": PROBLEM, **REQUEST_BODIES, **URL_BODIES, **schemas_of(config)},
    )
    return operations


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {**json_response(description, schema), "headers": ANSWER_HEADERS}


def _priority_header(config: PipelineConfig) -> list[Schema]:
    """Return the header for pipelines that have priorities; the others ignore it."""
    entry_point = Plan(config.nodes, config.entry).default
    entry = entry_point.root.config if entry_point is not None else None
    if entry is None or not entry.priority_levels:
        return []
    description = f"1 is the highest. Default: {entry.default_priority}."
    schema = {"type": "integer", "minimum": 1, "maximum": entry.priority_levels}
    return [
        {"name": "Penstock-Priority", "in": "header", "description": description, "schema": schema}
    ]


# the server: health, metrics, loading

SERVER_SCHEMAS: dict[str, Schema] = {
    "Live": {"type": "object", "required": ["live"], "properties": {"live": FLAG}},
    "Ready": {
        "type": "object",
        "required": ["ready"],
        "properties": {
            "ready": FLAG,
            "reason": {"type": "string", "description": "Why the server is not ready."},
            "pressure": {
                "type": "object",
                "description": "The pipelines that get more requests than they can answer, with "
                "the number of requests that each has refused, by code.",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": {"type": "integer"},
                },
            },
        },
    },
    "PipelineState": {
        "type": "object",
        "required": ["name", "state"],
        "properties": {
            "name": TEXT,
            "state": {
                "type": "string",
                "description": (
                    "ready, not ready, loading, reloading, unloading, unloaded or failed"
                ),
            },
            "version": TEXT,
            "description": TEXT,
            "reason": {"type": "string", "description": "Why the pipeline is not ready."},
            "versions": {
                **array_of(reference("VersionState")),
                "description": "Each version, if there are several, the oldest first.",
            },
        },
    },
    "VersionState": {
        "type": "object",
        "required": ["state", "version"],
        "properties": {
            "state": TEXT,
            "version": TEXT,
            "description": TEXT,
            "reason": {"type": "string", "description": "Why the version is not ready."},
        },
    },
    "PipelineList": {
        "type": "object",
        "required": ["pipelines"],
        "properties": {"pipelines": array_of(reference("PipelineState"))},
    },
}


def server_paths(protected: bool, administrable: bool) -> dict[str, Any]:
    """Return the operations of the server itself by path and method.

    Loading and unloading are among them if `administrable`.
    """
    key: dict[str, Any] = {"security": [{"key": []}]} if protected else {}
    refused = problems(["unauthorized"]) if protected else {}
    metrics = {
        "200": {"description": "Prometheus text.", "content": {"text/plain": {"schema": TEXT}}}
    }
    paths: dict[str, Any] = {
        "/health/live": {
            "get": _operation(
                "health_live",
                "Check that the process answers",
                "health",
                {"200": json_response("The process answers.", "Live")},
            )
        },
        "/health/ready": {
            "get": _operation(
                "health_ready",
                "Check that the server is ready for requests",
                "health",
                {
                    "200": json_response("The server is ready.", "Ready"),
                    "503": json_response(SERVER_NOT_READY, "Ready"),
                },
            )
        },
        "/metrics": {
            "get": _operation("metrics", "Prometheus metrics", "health", {**metrics, **refused})
            | key
        },
        "/status": {
            "get": status_operation(
                problems([*(["unauthorized"] if protected else []), "too_many_watchers"])
            )
            | key
        },
        "/pipelines": {
            "get": _operation(
                "list_pipelines",
                "List the pipelines and their states",
                "pipelines",
                {"200": json_response("All known pipelines.", "PipelineList"), **refused},
            )
            | key
        },
    }
    if administrable:
        errors = ["unauthorized", "forbidden", "not_found", "not_ready"]
        name = path_parameter("name", "The pipeline's name.")
        for verb, summary, more in (
            (
                "load",
                "Load a pipeline, or read its file again and replace it",
                ["config", "load_failed"],
            ),
            ("unload", "Unload a pipeline after its requests have ended", []),
        ):
            responses = {
                "200": json_response("The pipeline's new state.", "PipelineState"),
                **problems([*errors, *more]),
            }
            operation = _operation(f"{verb}_pipeline", summary, "pipelines", responses)
            paths[f"/pipelines/{{name}}/{verb}"] = {
                "post": {**operation, "parameters": [name], "security": [{"admin": []}]}
            }
    return paths


def _operation(
    identifier: str, summary: str, tag: str, responses: dict[str, Any]
) -> dict[str, Any]:
    return {"operationId": identifier, "summary": summary, "tags": [tag], "responses": responses}
