"""Parameters of requests and responses: a dict, which models also see as JSON."""

from __future__ import annotations

import json
from typing import Any

from .error import TritonModelException


def checked(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy. Raises TritonModelException if a key is no text, or a value no text, number
    or boolean.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters: expected a dict, found {type(parameters).__name__}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(
                f"Expect parameters keys to have type str, found type '{type(key)}'"
            )
        if not isinstance(value, bool | int | float | str):
            raise TritonModelException(
                "Expect parameters values to have type bool/int/float/str, found type "
                f"'{type(value)}'"
            )
    return dict(parameters)


def as_json(parameters: dict[str, Any]) -> str:
    """Return what a model sees of them."""
    return json.dumps(parameters)
