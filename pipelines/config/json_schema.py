"""The schema that a port of kind `json` may carry: a JSON Schema, or a pydantic model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from inspect import isroutine
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from penstock.backends.base import Context
from penstock.backends.errors import ConfigError, InvalidRequest, Problem
from penstock.backends.text import message_of
from penstock.backends.user_code import load

SHOWN_ERRORS = 3
"""The most errors of one value that are named."""

SHOWN_CHARACTERS = 60
"""The most characters of a value, or of what was expected, that an error shows."""

MOST_LEVELS_OF_EXAMPLES = 16

Mode = Literal["validation", "serialization"]
"""What a pydantic model's schema describes: what it reads, or what it writes."""


class JsonSchema:
    """A schema that has been read.

    `document`: the JSON Schema, with its definitions below `$defs` or `definitions`.
    `check(value, name)`: returns the value that the item gets, or raises `InvalidRequest`; `name`
    stands for the value in errors. `file` is what it was read from, as the pipeline's file names
    it; "" if it has no file of its own.
    """

    __slots__ = ("check", "document", "file")

    def __init__(
        self, document: dict[str, Any], check: Callable[[Any, str], Any], file: str = ""
    ) -> None:
        self.document = document
        self.check = check
        self.file = file

    def example(self) -> Any:
        """Return a value that fits, as far as one can be made of the document; None otherwise."""
        try:
            value = _example(self.document, self.document, MOST_LEVELS_OF_EXAMPLES)
            self.check(value, "")
        except (InvalidRequest, LookupError, TypeError):
            return None
        return value


def _example(schema: Mapping[str, Any], document: Mapping[str, Any], levels: int) -> Any:
    """Make a value of what a schema says. Raises LookupError where it says too little."""
    if not levels:
        raise LookupError("it nests too deep")
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "$ref" in schema:
        target: Any = document
        for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[step] if step else target
        return _example(target, document, levels - 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _example(schema[key][0], document, levels - 1)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {
                name: _example(properties[name], document, levels - 1)
                for name in schema.get("required", ())
            }
        case "array":
            count = max(1, schema.get("minItems", 1))
            return [_example(schema.get("items", {"type": "null"}), document, levels - 1)] * count
        case "string":
            return "hello".ljust(schema.get("minLength", 0), "o")
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    raise LookupError("it has no type")


def read_schema(source: object, directory: Path, mode: Mode) -> JsonSchema:
    """Read a port's `schema`: a table, a file (`page.schema.json`) or a pydantic model
    (`file.py:Page`, `module:Page`), beside the pipeline's file or in the working directory.

    Raises ConfigError.
    """
    if isinstance(source, dict):
        return _of_document(source, "the table", mode)
    if isinstance(source, str) and source.endswith(".json"):
        path = Context(directory=directory).resolve(source)
        try:
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise _wrong(f"{path} can't be read: {error.strerror}") from None
        except ValueError as error:
            raise _wrong(f"{path} is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise _wrong(f"{path} is not a JSON Schema: expected an object")
        schema = _of_document(document, str(path), mode)
        schema.file = source
        return schema
    if not isinstance(source, str) or ":" not in source:
        raise _wrong(
            f"found {source!r}: expected a table, a JSON Schema file such as 'page.schema.json', "
            "or a pydantic model such as 'models.py:Page'"
        )
    return _of_type(load(source, directory), source, mode)


def _wrong(message: str) -> ConfigError:
    return ConfigError([Problem(message)])


def _of_type(kind: Any, source: str, mode: Mode) -> JsonSchema:
    """Make the schema of a pydantic model, or of any type that pydantic validates."""
    if isroutine(kind):  # pydantic would validate its arguments
        raise _wrong(f"{source} is not a pydantic model: it is a function")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        document = adapter.json_schema(mode=mode)
    except (PydanticUserError, PydanticSchemaGenerationError) as error:
        first = message_of(error).partition("\n")[0]
        raise _wrong(f"{source} is not a pydantic model: {first}") from None

    def check(value: Any, name: str) -> Any:
        try:
            return adapter.dump_python(adapter.validate_python(value), mode="json")
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            raise _does_not_fit(
                name,
                (
                    f"{_path(name, each['loc'])}: found {_shown(each['input'])}: "
                    f"{each['msg'].removeprefix('Value error, ')[: SHOWN_CHARACTERS * 3]}"
                    for each in details
                ),
                len(details),
            ) from None

    place = source.rpartition(":")[0]
    return JsonSchema(document, check, place if place.endswith(".py") else "")


def _of_document(document: dict[str, Any], source: str, mode: Mode) -> JsonSchema:
    if mode == "serialization":  # it only describes the answer
        return JsonSchema(document, lambda value, _: value)
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise _wrong(
            "inputs with a JSON Schema need the package jsonschema: "
            "pip install 'penstock-serve[schema]', or name a pydantic model"
        ) from None
    validator_class = validator_for(document, default=Draft202012Validator)
    try:
        validator_class.check_schema(document)
    except SchemaError as error:
        raise _wrong(f"{source} is not a JSON Schema: {error.message}") from None
    # An empty registry: nothing is fetched for a reference.
    validator = validator_class(document, registry=Registry())

    def check(value: Any, name: str) -> Any:
        try:
            errors = list(islice(validator.iter_errors(value), SHOWN_ERRORS + 1))
        except RecursionError:
            raise InvalidRequest(f"{name!r} nests too deep for its schema") from None
        except Unresolvable as error:
            raise _wrong(f"{source} refers to what is not in it: {error}") from None
        if errors:
            texts = (
                f"{_path(name, each.absolute_path)}: found {_shown(each.instance)}, expected "
                f"{_cut(f'{each.validator} = {json.dumps(each.validator_value)}')}"
                for each in errors
            )
            raise _does_not_fit(name, texts, len(errors))
        return value

    return JsonSchema(document, check)


def _does_not_fit(name: str, texts: Iterable[str], count: int) -> InvalidRequest:
    more = "; and more" if count > SHOWN_ERRORS else ""
    return InvalidRequest(
        f"{name!r} does not fit its schema: {'; '.join(islice(texts, SHOWN_ERRORS))}{more}"
    )


def _path(name: str, steps: Iterable[str | int]) -> str:
    """Return the place of a value as one writes it: `page.lines[0].text`."""
    return name + "".join(
        f"[{step}]" if isinstance(step, int) else f".{_cut(str(step))}" for step in steps
    )


def _shown(value: Any) -> str:
    """Return a value as an error shows it. A client may have sent megabytes."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return _cut(json.dumps(value[:SHOWN_CHARACTERS] if isinstance(value, str) else value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
