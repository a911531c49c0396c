"""Parameters of requests and responses: a dict, which models also see as JSON."""

from __future__ import annotations

import json
from typing import Any

from .error import TritonModelException


def checked(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy. Raises TritonModelException if it is no dict, a key no text, or a value no
    text, boolean or number that fits into 64 bits.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise TritonModelException(f"Expect dict, got {type(parameters)}")  # Triton's words
    return {_key(key): _value(key, value) for key, value in parameters.items()}


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TritonModelException(
            f"Expect parameters keys to have type str, found type {type(key)}"
        )
    return str(key)


def _value(key: object, value: object) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise TritonModelException(f"parameter '{key}' is {value}: expected 64 bits at most")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    # Triton's words: it takes no float, which goes to clients here all the same.
    raise TritonModelException(
        f"Expect parameters values to have type bool/int/str, found type {type(value)}"
    )


def as_json(parameters: dict[str, Any]) -> str:
    """Return what a model sees of them."""
    return json.dumps(parameters)
