"""The values of inputs from a body of JSON: of one item, or of several."""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import InvalidRequest

from ..json_text import kind_of
from .declared import Tensor
from .names import Names
from .values import Reading, value_of_json

URL = "url"

SHOWN_CHARACTERS = 64
"""The most characters of a client's name that an error shows."""


class Link(str):
    """The URL of an image, in place of the image."""

    __slots__ = ()


def one_item(document: Any, names: Names, reading: Reading) -> dict[str, Any]:
    """Return the values in the JSON of one item, by the names of the inputs.

    The only input may be the whole document, and is if its kind is json. In place of an image there
    may be a `Link`. Raises `InvalidRequest`.
    """
    only = names.only
    if names.is_image and type(document) is dict and len(document) == 1 and URL in document:
        assert only is not None
        if URL not in names.by_name:
            return {only.name: _link(document[URL], reading)}
    return _item(document, names, reading, "")


def several_items(
    document: Any, names: Names, reading: Reading, limit: int
) -> list[dict[str, Any]]:
    """Return the values of each item in the JSON of 1 to `limit` items.

    Raises `InvalidRequest`, and `TooLarge` for more items.
    """
    elements = document
    if names.only is not None and names.only.kind != "json" and type(document) is dict:
        unknown = [key for key in document if key not in names.many_by_name]
        if unknown:
            raise _unknown_key(unknown[0], names.many)
        if len(document) != 1:
            raise InvalidRequest(f"the body has no {names.shown_many!r}, expected {names.many}")
        ((key, elements),) = document.items()
        if type(elements) is not list:
            raise InvalidRequest(f"{key!r} is a JSON {kind_of(elements)}, expected {names.many}")
    elif type(document) is not list:
        raise InvalidRequest(f"the body is a JSON {kind_of(document)}, expected {names.many}")
    names.check_count(len(elements), limit)
    return [_item(element, names, reading, f"[{index}]") for index, element in enumerate(elements)]


def _item(document: Any, names: Names, reading: Reading, place: str) -> dict[str, Any]:
    """Return the values of one item. `place`: which one of several, such as `[3]`."""
    only = names.only
    if only is not None:
        if only.kind == "json":
            shown = f"{names.shown}{place}"
            return {only.name: value_of_json(only, document, shown, reading)}
        if type(document) is not dict:
            if only.kind == "image" and not place and type(document) is not str:
                raise InvalidRequest(
                    f"the body is a JSON {kind_of(document)}, expected {names.one}"
                )
            shown = f"{names.shown_many if place else names.shown}{place}"
            return {only.name: value_of_json(only, document, shown, reading)}
    subject = f"item {place}" if place else "the body"
    if type(document) is not dict:
        raise InvalidRequest(f"{subject} is a JSON {kind_of(document)}, expected {names.one}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        tensor: Tensor | None = names.by_name.get(key)
        if tensor is None:
            raise _unknown_key(key, names.one, subject)
        if tensor.name in values:
            raise InvalidRequest(f"{subject} has input {tensor.name!r} under two names")
        if value is None and tensor.optional and tensor.kind != "json":
            continue
        values[tensor.name] = value_of_json(tensor, value, f"{key}{place}", reading)
    names.check_complete(tuple(values), subject)
    return values


def _unknown_key(key: str, expected: str, subject: str = "the body") -> InvalidRequest:
    return InvalidRequest(
        f"{subject} has the unknown key {key[:SHOWN_CHARACTERS]!r}, expected {expected}"
    )


def _link(url: Any, reading: Reading) -> Link:
    if type(url) is not str:
        raise InvalidRequest(f"'url' is a JSON {kind_of(url)}, expected a string")
    if url in reading.taken:
        raise InvalidRequest(f"'url' has {len(reading.taken[url])} bytes, which no URL has")
    return Link(url)
