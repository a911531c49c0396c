"""Find out what Penstock does with the fields that a Triton model configuration sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock.backends.errors import Problem

from ..completion.normalise import PLATFORMS
from .table import FIELDS
from .treatments import BACKENDS, Line, Treatment, refused

_UNLISTED = refused("Penstock does not know this field: remove it")
_OF_ANOTHER_BACKEND = refused("it belongs to a backend that Penstock does not have")


@dataclass(frozen=True, slots=True)
class Classified:
    """One field that a configuration sets, and what Penstock does with it."""

    path: str
    """Where it is: `input[0].dims`, `parameters.letters`."""
    field: str
    """Its path in the table: without indices, and with `*` for a key that has no line."""
    value: str
    """The value as text; empty for a message or a list."""
    line: Line

    @property
    def treatment(self) -> Treatment:
        return self.line.treatment

    @property
    def words(self) -> str:
        return self.line.words


def backend_of(config: Any) -> str:
    """Return the backend that a configuration names, by itself or by its platform, or "".

    An ensemble has the backend `ensemble`.
    """
    platform: str = config.platform
    return str(config.backend) or PLATFORMS.get(platform, platform)


def classify(config: Any, backend: str | None = None) -> list[Classified]:
    """Classify each field that is set, in the order of the message.

    A field that has its default value is as if absent, in Triton too. `backend`: the one that the
    model's files show, where the configuration names none.
    """
    return list(_classified(config, "", "", backend or backend_of(config)))


def refusals(classified: Iterable[Classified], file: str = "") -> list[Problem]:
    """Make a problem of each field that is refused."""
    return [
        Problem(f"{_shown(one.value)}{one.words}", file, key=one.path)
        for one in classified
        if one.treatment is Treatment.REFUSED
    ]


def _shown(value: str) -> str:
    return f"found {value[:100]!r}: " if value else ""


def _classified(message: Any, path: str, field: str, backend: str) -> Iterator[Classified]:
    for descriptor, value in message.ListFields():
        inner_path, inner_field = f"{path}{descriptor.name}", f"{field}{descriptor.name}"
        if is_map(descriptor):
            yield from _of_map(descriptor, value, inner_path, inner_field, backend)
        elif descriptor.message_type is not None:
            parts = value if descriptor.is_repeated else [value]
            for index, part in enumerate(parts):
                where = f"{inner_path}[{index}]" if descriptor.is_repeated else inner_path
                yield from _of_message(part, where, inner_field, f"{inner_field}.", backend)
        else:
            text = "" if descriptor.is_repeated else _text(descriptor, value)
            yield Classified(inner_path, inner_field, text, line_of(inner_field, backend, text))


def _of_message(
    message: Any, path: str, field: str, inside: str, backend: str
) -> Iterator[Classified]:
    """Classify what a message sets, or the message itself if it sets nothing or is refused.

    `inside`: what the paths of its fields in the table begin with.
    """
    line = line_of(field, backend)
    if line.treatment is Treatment.REFUSED or not message.ListFields():
        yield Classified(path, field, "", line)
    else:
        yield from _classified(message, f"{path}.", inside, backend)


def _of_map(
    descriptor: Any, entries: Any, path: str, field: str, backend: str
) -> Iterator[Classified]:
    """Classify the entries of a map: a parameter and a text as one field each, by its key; another
    message by what it sets.
    """
    of_messages = descriptor.message_type.fields_by_name["value"].message_type is not None
    for key in entries:
        value, where = entries[key], f"{path}.{key}"
        if of_messages and field != "parameters":
            yield from _of_message(value, where, field, f"{field}.*.", backend)
        else:
            text = value.string_value if of_messages else value
            paths = (f"{field}.{key}", f"{field}.*")
            found = next((path for path in paths if path in FIELDS), field)
            yield Classified(where, found, text, line_of(found, backend, text))


def line_of(field: str, backend: str, value: str = "") -> Line:
    """Return the line of the table for a field, by its path there."""
    if field.startswith("parameters.") and backend and backend not in BACKENDS:
        return _OF_ANOTHER_BACKEND
    lines = FIELDS.get(field, ())
    if field.startswith("parameters."):
        lines += FIELDS["parameters.*"]
    return next((line for line in lines if line.fits(backend, value)), _UNLISTED)


def is_map(descriptor: Any) -> bool:
    """Return whether a field is a map."""
    kind = descriptor.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _text(descriptor: Any, value: Any) -> str:
    """Write a value as `config.pbtxt` does, without quotes."""
    if descriptor.enum_type is not None:
        known = descriptor.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name
    return str(value).lower() if isinstance(value, bool) else str(value)
