"""The values of inputs from a form (multipart/form-data): of one item, or of several."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from penstock.backends.errors import InvalidRequest, PenstockError, TooLarge, UnsupportedMedia
from penstock.backends.memory import Reservation

from .declared import Tensor
from .json_body import SHOWN_CHARACTERS
from .media import HTML_FORM, boundary_of, charset_of, check_part, is_json, type_of
from .multipart import Field, fields_of
from .names import Names
from .text import UTF_8
from .values import Reading, value_of_bytes, value_of_json

SPARE_FIELDS = 8
"""How many fields more than it may have a form is read for, so that an error can name one."""


def one_item(
    body: bytes, boundary: bytes, names: Names, reading: Reading, limit: int
) -> dict[str, Any]:
    """Return the values in a form of one item, by the names of the inputs.

    Each input is a field; a list is a field for each of its items, at most `limit`, or one field of
    type application/json. Raises `InvalidRequest`, `UnsupportedMedia`, `TooLarge`.
    """
    most = SPARE_FIELDS + len(names.tensors) - 1
    if any(tensor.kind == "list" for tensor in names.tensors):
        most += limit

    def too_many() -> PenstockError:
        expected = f"one field {names.shown!r}" if names.shown else f"fields {names.listed}"
        return InvalidRequest(f"the form has more than {most} parts, expected {expected}")

    reading.memory.resize(reading.memory.size + len(body), "a parsed body")
    by_input = _by_input(fields_of(body, boundary, most, too_many), names, names.by_name)
    values: dict[str, Any] = {}
    for tensor in names.tensors:
        fields = by_input[tensor.name]
        if not fields:
            continue
        shown = fields[0].name
        if tensor.kind == "list" and not (
            len(fields) == 1 and is_json(type_of(fields[0].content_type))
        ):
            assert tensor.items is not None
            values[tensor.name] = [
                _value(tensor.items, field, f"{shown}[{index}]", reading)
                for index, field in enumerate(fields)
            ]
            continue
        if len(fields) > 1:
            raise InvalidRequest(
                f"the form has {len(fields)} fields {shown!r}, expected one; "
                f"send several {names.noun}s to …/batch"
                + (f" as {names.shown_many!r}" if names.shown_many else "")
            )
        values[tensor.name] = _value(tensor, fields[0], shown, reading)
    _check_complete(names, values, names.shown)
    return values


def several_items(
    body: bytes, boundary: bytes, names: Names, reading: Reading, limit: int
) -> list[dict[str, Any]]:
    """Return the values of each item in a form of 1 to `limit` items.

    The first field of each input is the first item's, and so on. Raises as `one_item` does.
    """
    most = limit * len(names.tensors)

    def too_many() -> PenstockError:
        return TooLarge(f"the request has more than {most} parts (max_images)")

    reading.memory.resize(reading.memory.size + len(body), "a parsed body")
    by_input = _by_input(fields_of(body, boundary, most, too_many), names, names.many_by_name)
    counts = {name: len(fields) for name, fields in by_input.items() if fields}
    _check_complete(names, counts, names.shown_many)
    count = max(counts.values(), default=0)
    names.check_count(count, limit)
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{number} {name!r}" for name, number in counts.items())
        raise InvalidRequest(
            f"the form has {given}: expected as many fields of each input, one for each item"
        )
    return [
        {
            tensor.name: _value(tensor, fields[index], f"{fields[index].name}[{index}]", reading)
            for tensor in names.tensors
            if (fields := by_input[tensor.name])
        }
        for index in range(count)
    ]


def form_of(
    body: bytes, content_type: bytes | None, memory: Reservation, most: int
) -> dict[str, tuple[str, bytes]]:
    """Return the fields of a form by name: the media type and the bytes of each, the last of
    several; empty for a body that is no form.

    `memory` is grown by them. Raises `InvalidRequest`, and `TooLarge` for more than `most` fields.
    """
    media_type = type_of(content_type)
    if media_type not in {"multipart/form-data", HTML_FORM}:
        return {}

    def too_many() -> PenstockError:
        return TooLarge(f"the form has more than {most} fields (max_images)")

    memory.resize(memory.size + len(body), "a parsed body")
    if media_type == HTML_FORM:
        if b"=" not in body:
            return {}
        try:
            pairs = parse_qsl(body, keep_blank_values=True, max_num_fields=most)
        except ValueError:
            raise too_many() from None
        return {name.decode("utf-8", "replace"): ("", value) for name, value in pairs}
    return {
        field.name: ((field.content_type or b"").decode("latin-1"), field.data)
        for field in fields_of(body, boundary_of(content_type or b""), most, too_many)
    }


def _by_input(
    fields: list[Field], names: Names, by_name: dict[str, Tensor]
) -> dict[str, list[Field]]:
    by_input: dict[str, list[Field]] = {tensor.name: [] for tensor in names.tensors}
    unknown: list[str] = []
    for field in fields:
        tensor = by_name.get(field.name)
        if tensor is None:
            unknown.append(field.name)
        else:
            by_input[tensor.name].append(field)
    if unknown:
        shown = names.shown if by_name is names.by_name else names.shown_many
        expected = (
            f"images go into the field {shown!r}" if names.is_image else f"expected {names.listed}"
        )
        raise InvalidRequest(
            f"the form has the unknown field {min(unknown)[:SHOWN_CHARACTERS]!r}; {expected}"
        )
    return by_input


def _check_complete(names: Names, given: dict[str, Any], shown: str) -> None:
    for tensor in names.tensors:
        if not tensor.optional and tensor.name not in given:
            more = "" if names.is_image else f", expected {names.listed}"
            raise InvalidRequest(f"the form has no field {shown or tensor.name!r}{more}")


def _value(expected: Tensor, field: Field, name: str, reading: Reading) -> Any:
    """Return the value in a field.

    Files are taken as they are, whatever media type the client guesses by their names.
    """
    check_part(field.content_type, expected, name)
    if expected.kind == "text" and is_json(type_of(field.content_type)):
        document = reading.parse(field.data, repr(name), "a string")
        return value_of_json(expected, document, name, reading)
    try:
        charset = charset_of(field.content_type) if expected.kind == "text" else UTF_8
    except LookupError as error:
        raise UnsupportedMedia(
            f"the field {name!r} has the charset {str(error.args[0])[:SHOWN_CHARACTERS]!r}, which "
            "is not understood; send the text in UTF-8"
        ) from None
    return value_of_bytes(expected, field.data, name, reading, charset)
