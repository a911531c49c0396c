"""The bodies of predict requests, by the inputs that a pipeline declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.pipelines.config.definition import PipelineConfig, Port

from .json_schemas import PortSchemas
from .kinds import BASE64, described, schema_of
from .schema import Schema, array_of, object_of, reference, sentence

BINARY: Schema = {"type": "string", "format": "binary"}

OCTETS = "application/octet-stream"
FORM = "multipart/form-data"
JSON = "application/json"

REQUEST_BODIES: Mapping[str, Schema] = {
    "ImageForm": {"type": "object", "required": ["image"], "properties": {"image": BINARY}},
    "ImageBase64": {"type": "object", "required": ["image"], "properties": {"image": BASE64}},
    "ImagesForm": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": BINARY, "minItems": 1}},
    },
    "ImagesBase64": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": BASE64, "minItems": 1}},
    },
}
"""Request bodies, the same for every pipeline.

They are named because generators invent a name per operation for a schema that has none.
"""

URL_BODIES: Mapping[str, Schema] = {
    "ImageURL": {
        "type": "object",
        "required": ["url"],
        "properties": {"url": {"type": "string", "format": "uri", "maxLength": 2048}},
    },
}
"""The request body that names an image by URL, for servers whose operator allows it."""

FILE_KINDS = frozenset({"image", "bytes"})
FIELD_KINDS = FILE_KINDS | {"text"}
"""Kinds whose only input is likely to be sent as a field of a form."""


def takes_image(config: PipelineConfig) -> bool:
    """Return whether one image is all that a request brings."""
    return len(config.inputs) == 1 and config.inputs[0].kind == "image"


def body_schemas(config: PipelineConfig, key: str) -> dict[str, Schema]:
    """Return the schemas of request bodies that are a pipeline's own, by name.

    `key`: what the names end with. An image alone has those of `REQUEST_BODIES`.
    """
    ports = config.inputs
    if takes_image(config) or not ports:
        return {}
    required = [port.name for port in ports if not port.optional]
    carried = PortSchemas(config, key)
    schemas: dict[str, Schema] = {}
    if len(ports) > 1:
        members = {port.name: {**schema_of(port, carried), **described(port)} for port in ports}
        schemas[f"Inputs_{key}"] = object_of(required, **members)
    if _has_form(ports):
        fields = {port.name: {**_field(port, carried), **described(port)} for port in ports}
        schemas[f"Form_{key}"] = object_of(required, **fields)
        columns = {port.name: {**array_of(_field(port, carried)), "minItems": 1} for port in ports}
        schemas[f"Forms_{key}"] = object_of(required, **columns)
    return schemas


def body_of_one(config: PipelineConfig, key: str, by_url: bool) -> dict[str, Any]:
    """Return the request body of one item. `by_url`: an image may be named by its URL."""
    if takes_image(config):
        return _one_image(config.inputs[0], by_url)
    ports = config.inputs
    content: dict[str, Any] = {}
    if len(ports) == 1:
        (port,) = ports
        for media_type in _raw_types(port):
            schema = BINARY if port.kind in FILE_KINDS else {"type": "string"}
            content[media_type] = {"schema": {**schema, **described(port)}}
    if _has_form(ports):
        content[FORM] = {"schema": reference(f"Form_{key}")}
    if config.stream_input is None:
        content[JSON] = {"schema": _json_of(config, key)}
    text = " ".join(sentence(f"`{port.name}` ({port.kind}):", port.description) for port in ports)
    shown = text if any(port.description for port in ports) else _listed(ports)
    return {"required": True, "description": shown, "content": content}


def body_of_many(config: PipelineConfig, key: str) -> dict[str, Any]:
    """Return the request body of several items."""
    if takes_image(config):
        form, items = reference("ImagesForm"), reference("ImagesBase64")
        description = "Form fields `images`, or JSON with base64."
        content = {FORM: {"schema": form}, JSON: {"schema": items}}
        return {"required": True, "description": description, "content": content}
    ports = config.inputs
    content = {FORM: {"schema": reference(f"Forms_{key}")}} if _has_form(ports) else {}
    content[JSON] = {"schema": {**array_of(_json_of(config, key)), "minItems": 1}}
    description = f"An item for each element: {_listed(ports)}."
    return {"required": True, "description": description, "content": content}


def _one_image(port: Port, by_url: bool) -> dict[str, Any]:
    """Return the request body of one image.

    A raw image is listed as octet-stream, because generators do not know image/*, which the server
    takes as well. So are media types of the file's own.
    """
    base64 = reference("ImageBase64")
    raw = {"schema": {**BINARY, **described(port)}}
    content = {
        OCTETS: raw,
        **dict.fromkeys(port.media_types, raw),
        FORM: {"schema": reference("ImageForm")},
        JSON: {"schema": {"oneOf": [base64, reference("ImageURL")]} if by_url else base64},
    }
    types = ", ".join(port.media_types) or "any image/* type"
    ways = (
        f"The image itself ({types} is taken too), the form field `image`, or JSON with "
        f"base64{' or a URL' if by_url else ''}."
    )
    return {
        "required": True,
        "description": sentence(port.description, ways),
        "content": content,
    }


def _raw_types(port: Port) -> tuple[str, ...]:
    """Return the media types of a body that is the value itself, for the document."""
    if port.kind in FILE_KINDS:
        return (OCTETS, *port.media_types)
    if port.kind == "text":
        return port.media_types or ("text/plain",)
    return ()


def _has_form(ports: tuple[Port, ...]) -> bool:
    """Return whether forms are worth a schema: for several inputs, and for files and texts.

    A stream is the whole body, so it can't be a field of one.
    """
    if any(port.stream for port in ports):
        return False
    items = [port.items if port.items is not None else port for port in ports]
    return len(ports) > 1 or any(port.kind in FIELD_KINDS for port in items)


def _field(port: Port, schemas: PortSchemas) -> Schema:
    """Return the schema of a form's field."""
    if port.kind in FILE_KINDS:
        return BINARY
    if port.kind == "list" and port.items is not None:
        return array_of(_field(port.items, schemas))
    return schema_of(port, schemas)


def _json_of(config: PipelineConfig, key: str) -> Schema:
    ports = config.inputs
    if not ports:
        return {"type": "object"}
    if len(ports) != 1:
        return reference(f"Inputs_{key}")
    return {**schema_of(ports[0], PortSchemas(config, key)), **described(ports[0])}


def _listed(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"`{port.name}` ({port.kind})" for port in ports)
