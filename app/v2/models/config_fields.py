"""Reads fields of a ModelConfig that a client sends. Each function raises `InvalidRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.backends.errors import InvalidRequest

from ...http.json_text import kind_of

MAX_MICROSECONDS = 2**53


def number_of(value: Any, key: str, most: int) -> int:
    if isinstance(value, str) and value.isdigit() and len(value) < 20:
        value = int(value)  # protobuf's JSON has int64 as strings
    if type(value) is not int or not 0 <= value <= most:
        raise invalid(f"'{key}' must be a whole number from 0 to {most}")
    return value


def number_in(table: Mapping[str, Any], key: str, most: int) -> int:
    """Return the number of a field, 0 if it is not given."""
    value = table.get(key)
    return 0 if value is None else number_of(value, key, most)


def list_of(value: Any, key: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"'{key}' is a JSON {kind_of(value)}, expected an array")
    return [table_of(member, key) for member in value]


def table_in(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object of a field, empty if it is not given."""
    value = table.get(key)
    return {} if value is None else table_of(value, key)


def table_of(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"'{key}' is a JSON {kind_of(value)}, expected an object")
    return value


def invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid config override: {problem}")
