"""Building blocks of JSON Schema that the document's parts share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
UNSIGNED: Schema = {"type": "integer", "minimum": 0}


def object_of(
    required: Iterable[str] = (), description: str = "", /, **properties: Schema
) -> Schema:
    """Return the schema of an object with these properties."""
    schema: Schema = {"type": "object", "properties": properties}
    if required := list(required):
        schema["required"] = required
    return {**schema, "description": description} if description else schema


def array_of(items: Schema) -> Schema:
    """Return the schema of an array of `items`."""
    return {"type": "array", "items": items}


def reference(name: str) -> Schema:
    """Return a reference to the document's schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_response(description: str, schema: str) -> Schema:
    """Return a response whose body is JSON, described by the document's schema of that name."""
    return {
        "description": description,
        "content": {"application/json": {"schema": reference(schema)}},
    }


def path_parameter(name: str, description: str) -> Schema:
    """Return a required parameter in the path, a string."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": TEXT,
    }


def sentence(*parts: str) -> str:
    """Join the parts of a description that are not empty."""
    return " ".join(part for part in parts if part)
