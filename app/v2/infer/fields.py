"""What parameters of a request, an input or an output say: values of a known type, and parts of shared memory."""

from __future__ import annotations

from typing import Any

import orjson

from penstock.backends.errors import InvalidRequest

from ..json_text import kind_of
from ..tensors import LARGEST


def boolean(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise InvalidRequest(f"{what} is a JSON {kind_of(value)}, expected a boolean")
    return value


def unsigned(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise InvalidRequest(
            f"{what} must be a non-negative integer below 2^64, got {orjson.dumps(str(value)[:40]).decode()}"
        )
    return value


def region_of(parameters: dict[str, Any]) -> tuple[str, int, int]:
    name = parameters["shared_memory_region"]
    if type(name) is not str or not name:
        raise InvalidRequest("'shared_memory_region' is the name of a region, a string")
    offset = unsigned(parameters.get("shared_memory_offset", 0), "'shared_memory_offset'")
    return (
        name,
        offset,
        unsigned(parameters.get("shared_memory_byte_size"), "'shared_memory_byte_size'"),
    )
