"""Makes the dict of fields that a handler gets for a request, decoded by their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..item import Item

WHOLE_BODY = "body"
"""The field that holds a body which is not a form."""


def fields_of(item: Item) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a request, and the media type of each.

    `item` has the body as `data`, with `headers` and `form` where a predict request brought them.
    A form has its fields, everything else is the field `body`. JSON is parsed and text decoded, or
    both left as bytes if they can't be. A value that is not bytes stays as it is.
    """
    form: Mapping[str, tuple[str, bytes]] = item.get("form") or {}
    if form:
        return (
            {name: _decoded(value, media_type) for name, (media_type, value) in form.items()},
            {name: media_type for name, (media_type, _) in form.items()},
        )
    data, headers = item["data"], item.get("headers") or {}
    media_type = headers.get("content-type", "")
    if isinstance(data, bytes | bytearray | memoryview):
        data = _decoded(bytes(data), media_type)
    return {WHOLE_BODY: data}, {WHOLE_BODY: media_type}


def _decoded(value: bytes, media_type: str) -> Any:
    try:
        if media_type.partition(";")[0].strip().lower() == "application/json":
            return orjson.loads(value)
        if media_type.startswith("text"):
            return value.decode()
    except ValueError:
        pass  # the handler gets the bytes, as from TorchServe
    return bytearray(value)
