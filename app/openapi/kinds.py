"""Schemas of the values that ports declare, as JSON."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.pipelines.config.definition import Port

from .json_schemas import PortSchemas
from .schema import Schema, array_of

BASE64: Schema = {"type": "string", "contentEncoding": "base64"}

KIND_SCHEMAS: Mapping[str, Schema] = {
    "image": {**BASE64, "contentMediaType": "image/*"},
    "bytes": BASE64,
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "json": {},
}
"""Schemas of JSON by the kind of a port. Those of tensors and lists follow from the port."""


def schema_of(port: Port, schemas: PortSchemas | None = None, *, answered: bool = False) -> Schema:
    """Return the schema of a declared input's or output's JSON.

    `schemas`: those that ports carry. None: what they say is left out. `answered`: of an output,
    where null stands for NaN, which JSON does not have.
    """
    if port.kind == "list":
        items = port.items
        return array_of({} if items is None else schema_of(items, schemas, answered=answered))
    if port.kind != "tensor":
        own = None if schemas is None else schemas.of(port)
        return dict(KIND_SCHEMAS[port.kind]) if own is None else own
    dtype = (port.dtype or "").lower()
    schema: Schema = {}
    if dtype.startswith(("int", "uint")):
        schema = {"type": "integer"}
    elif dtype.startswith(("float", "fp", "bf")):
        schema = {"type": ["number", "null"] if answered else "number"}
    elif dtype == "bool":
        schema = {"type": "boolean"}
    elif dtype:
        schema = {"type": "string"}
    if port.shape is None:
        return array_of({})
    for size in reversed(port.shape):
        schema = {
            **array_of(schema),
            **({"minItems": size, "maxItems": size} if size >= 0 else {}),
        }
    return schema


def described(port: Port) -> Schema:
    """Return the part of a schema that describes a port; nothing if its file does not."""
    return {"description": port.description} if port.description else {}
