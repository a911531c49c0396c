"""The OpenAPI document: every loaded pipeline has typed operations of its own, so that clients can be generated from it.

Names in it are stable: a pipeline's operations are `predict_<name>`, `put_<name>` and `batch_<name>`, its schemas `Prediction_<name>` and
`Batch_<name>`. No other pipeline's name can change or collide with them, so that loading one breaks no client. Every schema of a request
or an answer has a name, and every content type is one that the usual generators take (docs/how-to/clients.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from penstock.pipelines.config.load import PipelineConfig, Port
from penstock.pipelines.repository import Repository
from penstock.pipelines.runs.plan import Plan

from ..http.errors import MEDIA_TYPE, STATUSES
from ..http.events import MEDIA_TYPE as EVENTS
from ..settings import Settings
from .extensions import EXTENSION_SCHEMAS, extension_paths
from .protocol import SCHEMAS as PROTOCOL_SCHEMAS
from .protocol import protocol_paths
from .server import SERVER_SCHEMAS, server_paths

Schema = dict[str, Any]

IMAGE_BYTES: Schema = {"type": "string", "format": "binary"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}

PROBLEM: Schema = {
    "type": "object",
    "description": "What went wrong (RFC 9457). Branch on `code`: it never changes.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "description": "Always about:blank."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer"},
        "detail": {
            "type": "string",
            "description": "For people: what was found, where, and what was expected.",
        },
        "code": {"type": "string", "description": f"One of {', '.join(STATUSES)}."},
        "request_id": {"type": "string", "description": "The request's id, as in X-Request-Id."},
    },
}

BODIES: Mapping[str, Schema] = {
    "ImageForm": {"type": "object", "required": ["image"], "properties": {"image": IMAGE_BYTES}},
    "ImageBase64": {"type": "object", "required": ["image"], "properties": {"image": BASE64}},
    "ImagesForm": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": IMAGE_BYTES, "minItems": 1}},
    },
    "ImagesBase64": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": BASE64, "minItems": 1}},
    },
}
"""What may be sent, the same for every pipeline. With names: generators make up one for each operation else."""

BY_URL: Mapping[str, Schema] = {
    "ImageURL": {
        "type": "object",
        "required": ["url"],
        "properties": {"url": {"type": "string", "format": "uri", "maxLength": 2048}},
    },
}
"""And this, where the operator allows it."""

KINDS: Mapping[str, Schema] = {
    "image": {**BASE64, "contentMediaType": "image/*"},
    "bytes": BASE64,
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "json": {},
}
"""Kind of a declared output -> its schema. A tensor's follows from its dtype and shape."""

REQUEST_CODES = ("invalid_request", "not_found", "too_large", "unsupported_media")
ANSWER_CODES = (
    "queue_full",
    "overloaded",
    "backend_error",
    "internal",
    "not_ready",
    "deadline_exceeded",
)

REQUEST_ID_HEADER: Schema = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Names the request in logs and in the answer: 1 to 128 visible ASCII characters, else it is replaced.",
    "schema": {"type": "string", "maxLength": 128},
}
DEADLINE_HEADER: Schema = {
    "name": "Penstock-Deadline-Ms",
    "in": "header",
    "description": "The answer is of use for this long, in milliseconds. No more than the pipeline's own timeout counts.",
    "schema": {"type": "integer", "minimum": 1},
}
TRACE_HEADER: Schema = {
    "name": "Penstock-Trace",
    "in": "header",
    "description": "1, with the admin token: the answer, or the problem, has a member `trace`, the steps of the request.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}
ANSWER_HEADERS: Schema = {
    "X-Request-Id": {"description": "The request's id.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds that the item queued and ran at each node.",
        "schema": {"type": "string"},
    },
}


class OpenAPI:
    """`app.openapi`: the document, built when first asked for and again when the repository's generation has changed."""

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
        """What FastAPI knows (routes that the user added), and ours."""
        app = self._app
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description or None,
            routes=app.routes,
        )
        configs = [pipeline.config for _, pipeline in sorted(self._repository.pipelines.items())]
        protected = self._settings.api_key is not None
        administrable = (
            self._settings.admin_token is not None and self._settings.allow_model_control
        )
        traced = self._settings.admin_token is not None and self._settings.allow_trace
        by_url = self._settings.allow_url
        schemas = {
            "Problem": PROBLEM,
            **BODIES,
            **(BY_URL if by_url else {}),
            **SERVER_SCHEMAS,
            **PROTOCOL_SCHEMAS,
            **EXTENSION_SCHEMAS,
        }
        paths: dict[str, Any] = {}
        for config in configs:
            schemas |= schemas_of(config)
            paths |= paths_of(config, protected, by_url, traced)
        paths |= server_paths(protected, administrable, problems)
        paths |= protocol_paths(self._settings) | extension_paths(self._settings)
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **dict(sorted(schemas.items()))}
        schemes: dict[str, Any] = {}
        if protected:
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "The API key."}
        if (
            administrable
            or traced
            or (self._settings.admin_token is not None and self._settings.allow_shared_memory)
        ):
            schemes["admin"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "The admin token.",
            }
        if schemes:
            components["securitySchemes"] = {**components.get("securitySchemes", {}), **schemes}
        document["paths"] = {**paths, **document.get("paths", {})}
        return document


def schemas_of(config: PipelineConfig) -> dict[str, Schema]:
    """What a pipeline answers: to one image, and to many; of one that streams, in each event and in all."""
    declared = {port.name: port for port in config.outputs}
    result = declared.pop("result", None)
    nothing = "null where the pipeline ends without a result."
    properties: dict[str, Schema] = {"result": {"description": nothing}}
    if result is not None:
        properties["result"] = {
            "anyOf": [schema_of(result), {"type": "null"}],
            "description": _sentence(result.description, nothing),
        }
    properties |= {name: {**schema_of(port), **_described(port)} for name, port in declared.items()}
    prediction = {"type": "object", "required": ["result"], "properties": properties}
    results = {
        "type": "array",
        "description": "One for each image, in their order: what the pipeline answers, or why it could not.",
        "items": {"oneOf": [_reference(f"Prediction_{config.name}"), _reference("Problem")]},
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
            f"Part_{config.name}": prediction,
            f"Prediction_{config.name}": whole,
            f"Batch_{config.name}": batch,
        }
    return {f"Prediction_{config.name}": prediction, f"Batch_{config.name}": batch}


def streams(config: PipelineConfig) -> bool:
    """Whether a pipeline answers in parts."""
    default = Plan(config.nodes, config.entry).default
    return default is not None and default.stream is not None


def paths_of(
    config: PipelineConfig, protected: bool, by_url: bool = False, traced: bool = False
) -> dict[str, Any]:
    """A pipeline's operations by path and method."""
    name = config.name
    security: list[Schema] = [{"key": []}] if protected else []
    common: dict[str, Any] = {"tags": [name], **({"security": security} if protected else {})}
    if config.description:
        common["description"] = config.description
    parameters = [REQUEST_ID_HEADER, DEADLINE_HEADER, *_priority_header(config)]
    codes = [*(["unauthorized"] if protected else []), *REQUEST_CODES, *ANSWER_CODES]
    answer = _answer(f"Prediction_{name}", "The pipeline's answer.")
    if streams(config):
        events = f"Server-Sent Events: Part_{name} as each one's data, at last `event: end`, or `event: error` with a Problem."
        answer["content"][EVENTS] = {"schema": {"type": "string", "description": events}}
    single = {
        **common,
        "parameters": [*parameters, *([TRACE_HEADER] if traced else [])],
        "requestBody": _single_image(config, by_url),
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
        "requestBody": _many_images(),
        "responses": {
            "200": _answer(f"Batch_{name}", "An answer or a problem for each image."),
            **problems(codes),
        },
    }
    return {
        f"/predict/{name}": {
            "post": {
                "operationId": f"predict_{name}",
                "summary": f"Run {name} on one image",
                **single,
            },
            "put": {
                "operationId": f"put_{name}",
                "summary": f"Run {name} on one image, as curl -T sends it",
                **single,
            },
        },
        f"/predict/{name}/batch": {
            "post": {
                "operationId": f"batch_{name}",
                "summary": f"Run {name} on several images",
                **batch,
            }
        },
    }


def schema_of(port: Port) -> Schema:
    """How a declared output is written in JSON."""
    if port.kind != "tensor":
        return dict(KINDS[port.kind])
    dtype = (port.dtype or "").lower()
    schema: Schema = {}
    if dtype.startswith(("int", "uint")):
        schema = {"type": "integer"}
    elif dtype.startswith(("float", "fp", "bf")):
        schema = {"type": ["number", "null"]}  # JSON has no NaN
    elif dtype == "bool":
        schema = {"type": "boolean"}
    elif dtype:
        schema = {"type": "string"}
    if port.shape is None:
        return {"type": "array", "items": {}}
    for size in reversed(port.shape):
        schema = {
            "type": "array",
            "items": schema,
            **({"minItems": size, "maxItems": size} if size >= 0 else {}),
        }
    return schema


def problems(codes: Iterable[str]) -> dict[str, Any]:
    """Responses by status for errors of these codes, with an example of each."""
    found: dict[str, Any] = {}
    for code in sorted(codes, key=lambda each: (STATUSES[each].http, each)):
        status = STATUSES[code]
        response = found.setdefault(
            str(status.http),
            {"description": "", "content": {MEDIA_TYPE: {"schema": _reference("Problem")}}},
        )
        response["description"] = f"{response['description']}, {code}".removeprefix(", ")
        response["headers"] = {"X-Request-Id": ANSWER_HEADERS["X-Request-Id"]}
        if status.retry_after:
            response["headers"]["Retry-After"] = {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer"},
            }
        example = {
            "type": "about:blank",
            "title": status.title,
            "status": status.http,
            "detail": status.example,
            "code": code,
        }
        response["content"][MEDIA_TYPE].setdefault("examples", {})[code] = {
            "value": {**example, "request_id": "4be09a1c-7"}
        }
    return found


def inlined(found: Any, schemas: Mapping[str, Schema]) -> Any:
    """The same without references, as new objects."""
    if isinstance(found, dict):
        if "$ref" in found:
            return inlined(schemas[found["$ref"].rpartition("/")[2]], schemas)
        return {key: inlined(value, schemas) for key, value in found.items()}
    return [inlined(each, schemas) for each in found] if isinstance(found, list) else found


def operations_of(config: PipelineConfig, protected: bool, by_url: bool = False) -> dict[str, Any]:
    """`paths_of` without references, for operations that are merged into a host's document, which has not our schemas."""
    found: dict[str, Any] = inlined(
        paths_of(config, protected, by_url),
        {"Problem": PROBLEM, **BODIES, **BY_URL, **schemas_of(config)},
    )
    return found


def _single_image(config: PipelineConfig, by_url: bool) -> dict[str, Any]:
    """The media type of a raw image is written as octet-stream only: image/* is taken as well, but generators know no such type."""
    expected = next((port.description for port in config.inputs if port.name == "data"), "")
    image = {**IMAGE_BYTES, **({"description": expected} if expected else {})}
    base64 = _reference("ImageBase64")
    content = {
        "application/octet-stream": {"schema": image},
        "multipart/form-data": {"schema": _reference("ImageForm")},
        "application/json": {
            "schema": {"oneOf": [base64, _reference("ImageURL")]} if by_url else base64
        },
    }
    ways = f"As it is (of any image type, too), as the form field image, or as base64 {'or URL ' if by_url else ''}in JSON."
    return {"required": True, "description": _sentence(expected, ways), "content": content}


def _many_images() -> dict[str, Any]:
    content = {
        "multipart/form-data": {"schema": _reference("ImagesForm")},
        "application/json": {"schema": _reference("ImagesBase64")},
    }
    return {
        "required": True,
        "description": "As form fields images, or as base64 in JSON.",
        "content": content,
    }


def _answer(schema: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": ANSWER_HEADERS,
        "content": {"application/json": {"schema": _reference(schema)}},
    }


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _priority_header(config: PipelineConfig) -> list[Schema]:
    """Only where it means something: a pipeline without priorities refuses it."""
    entry = next(iter(config.nodes.values()))
    if not entry.priority_levels:
        return []
    description = f"1 is the highest; {entry.default_priority} unless given."
    schema = {"type": "integer", "minimum": 1, "maximum": entry.priority_levels}
    return [
        {"name": "Penstock-Priority", "in": "header", "description": description, "schema": schema}
    ]


def _described(port: Port) -> Schema:
    return {"description": port.description} if port.description else {}


def _sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part)
