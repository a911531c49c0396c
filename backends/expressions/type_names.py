"""Types of parameters in words, as `penstock backends NAME` and the documentation print them."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def type_name(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return a type in words: `int, 1 to 32767`, `nchw | nhwc`, `numbers`, `str | None`.

    `metadata` is what pydantic took out of an `Annotated`.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], (*arguments[1:], *metadata))
    if origin is Literal:
        name = " | ".join(map(str, arguments))
    elif origin in (Union, UnionType):
        name = " | ".join(type_name(member) for member in arguments)
    elif origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        inner = type_name(arguments[0])
        name = {"float": "numbers", "int": "whole numbers", "str": "names"}.get(
            inner, f"list of {inner}"
        )
    elif origin is dict:
        name = f"{type_name(arguments[1])} by name"
    elif annotation is NoneType:
        name = "None"
    else:
        name = (
            annotation.__name__
            if isinstance(annotation, type)
            else str(annotation).replace("typing.", "")
        )
    return name + _bounds(metadata)


def value_name(value: Any) -> str:
    """Return a default as in a file: `0`, `1, 2`, `true`; "" for None and for an empty tuple."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(value_name, value)) if isinstance(value, tuple) else str(value)


def _bounds(metadata: Iterable[Any]) -> str:
    """Return bounds in words: `, 1 to 8`.

    pydantic leaves them as objects of annotated_types, or as a Field in a nested Annotated.
    """
    constraints = [
        constraint
        for marker in metadata
        for constraint in (marker, *getattr(marker, "metadata", ()))
    ]
    bounds = {
        key: f"{value:g}"
        for key in _WORDS
        for constraint in constraints
        if (value := getattr(constraint, key, None)) is not None
    }
    if bounds.keys() >= {"ge", "le"}:
        return f", {bounds['ge']} to {bounds['le']}"
    return "".join(f", {_WORDS[key]} {value}" for key, value in bounds.items())
