"""From a final item to JSON: `result` and the declared outputs."""

from __future__ import annotations

import base64
from typing import Any

import orjson

from penstock.backends.errors import BackendError
from penstock.backends.item import Item

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def fields_of(item: Item, keys: tuple[str, ...]) -> dict[str, Any]:
    """What is answered of an item. No result is an answer, too: `null`, with whatever declared outputs are there."""
    fields = {key: item[key] for key in keys if key in item}
    return fields if "result" in fields else {"result": None, **fields}


def to_json(fields: Any) -> bytes:
    """Arrays become nested lists, bytes base64, NaN null. Raises `BackendError` for what JSON has no form for."""
    try:
        return orjson.dumps(fields, default=_default, option=JSON_OPTIONS)
    except TypeError as error:
        reason = f"the answer can't be written as JSON: {error}; let the backend answer numbers, strings, lists or arrays"
        raise BackendError(reason) from None


def _default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    tolist = getattr(value, "tolist", None)  # torch tensors, arrays of other strides or dtypes
    if tolist is not None:
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
