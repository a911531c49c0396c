"""Maps the JSON objects of the generate extension to an infer request, and outputs to one of them.

A key that names an input is that input. All others are parameters of the request, and so are those
in the object `parameters`. An output of one element is that element, not a list.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import orjson
from pydantic import BaseModel

from penstock.backends.errors import InvalidRequest

from ...http.inputs.arrays import datatype_of_values, flattened
from ...http.inputs.declared import ONE_VALUE, Tensor
from ...http.json_text import kind_of
from ...http.render import json_size, to_json
from ..infer.infer_call import READ_OFF_LOOP_BYTES
from ..infer.request import InferRequest
from ..infer.response import Chosen, encode
from ..models.model import Model

PARAMETERS = "parameters"

_JSON_TYPES: dict[str, tuple[set[type], str]] = {
    "s": ({str}, "string"),
    "b": ({bool}, "boolean"),
    "i": ({int}, "signed-integer"),
    "u": ({int}, "unsigned-integer"),
    "f": ({int, float}, "number"),
}
"""The types of JSON's values for each kind of datatype, and their name in Triton's errors."""


def infer_document(document: Any, model: Model) -> dict[str, Any]:
    """Turn the JSON of a generate request into that of an infer request.

    Raises `InvalidRequest` for values that can't be the model's inputs. What reads the result
    checks the rest.
    """
    if type(document) is not dict:
        raise InvalidRequest(f"the request is a JSON {kind_of(document)}, expected an object")
    inputs: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {}
    for key, value in _members(document, model):
        expected = model.inputs_by_name.get(key)
        if expected is None:
            parameters[key] = value
        else:
            inputs.append(_input(expected, value))
    return {"id": document.get("id"), "inputs": inputs, PARAMETERS: parameters}


def _members(document: dict[str, Any], model: Model) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a request and of its `parameters`, without its `id`."""
    for key, value in document.items():
        if key in model.inputs_by_name:
            yield key, value
        elif key == PARAMETERS:
            if value is not None and type(value) is not dict:
                raise InvalidRequest(
                    f"Expected JSON object for keyword: '{PARAMETERS}', got a JSON {kind_of(value)}"
                )
            yield from (value or {}).items()
        elif key != "id":
            yield key, value


def _input(expected: Tensor, value: Any) -> dict[str, Any]:
    """Make an input of an infer request of a JSON value."""
    name = expected.name
    if _is_one_json(expected):
        value = _json_text(value)
    elif type(value) is list and _is_list_of_json(expected):
        value = [_json_text(item) for item in value]
    flat, nested = flattened(value, name) if type(value) is list else ([value], [1])
    if expected.datatype is not None:
        types, word = _JSON_TYPES[expected.datatype.kind]
        if not types.issuperset(map(type, flat)):
            raise InvalidRequest(
                f"Unable to parse '{name}': attempt to access JSON non-{word} as {word}"
            )
    datatype = expected.datatype or datatype_of_values(flat, name)
    wanted = expected.shape
    if wanted is None or 1 < len(nested) == len(wanted):
        shape = nested
    else:
        shape = shape_of(len(flat), wanted, name)
    return {"name": name, "datatype": datatype.name, "shape": shape, "data": flat}


def _is_one_json(tensor: Tensor) -> bool:
    """Return whether a tensor is one JSON text."""
    return tensor.kind == "json" or (tensor.kind == "list" and tensor.shape == ONE_VALUE)


def _is_list_of_json(tensor: Tensor) -> bool:
    """Return whether a tensor has a JSON text for each item of a list."""
    return tensor.items is not None and tensor.items.kind == "json"


def _json_text(value: Any) -> str:
    return json.dumps(value)  # orjson would write NaN as null


def shape_of(count: int, wanted: Sequence[int], name: str) -> list[int]:
    """Return the shape of input `name`, which is given as so many elements without one.

    `wanted` is the declared shape. Its last open size (-1) takes what the fixed ones leave, and the
    other open ones are 1. Raises `InvalidRequest` if the elements fill no such shape.
    """
    fixed = prod(size for size in wanted if size != -1)
    rest, odd = divmod(count, fixed) if fixed else (1, count)
    shape: list[int] = []
    for size in reversed(wanted):
        if size == -1:
            shape.append(rest)
            rest = 1
        else:
            shape.append(size)
    if odd or rest != 1:
        raise InvalidRequest(
            f"The schema can not convert input '{name}' to tensor with proper shape: {count} "
            f"elements do not fill {list(wanted)} (-1: any size)"
        )
    return shape[::-1]


def check_repeated(text: bytes, model: Model) -> None:
    """Raise `InvalidRequest` for a JSON text that names an input twice.

    The parser takes the last one. A text that is too long for the event loop is not looked at.
    """
    if len(text) >= READ_OFF_LOOP_BYTES or not any(
        text.count(orjson.dumps(name)) > 1 for name in model.inputs_by_name
    ):
        return
    pairs: list[tuple[str, Any]] = []

    def note(members: list[tuple[str, Any]]) -> None:
        pairs[:] = members  # the outermost object comes last

    json.loads(text, object_pairs_hook=note)
    for name, count in Counter(key for key, _ in pairs).items():
        if count > 1 and name in model.inputs_by_name:
            raise InvalidRequest(f"input '{name}' already exists in request")


def write_object(request: InferRequest, model: Model, chosen: Chosen) -> bytes:
    """Return the JSON object of an answer, or of one of its parts.

    Raises what `encode` raises.
    """
    documents = {tensor.name: value for tensor, value, _ in chosen if _is_document(tensor, value)}
    tensors = [one for one in chosen if one[0].name not in documents]
    described, contents = encode(request, model, tensors)
    fields: dict[str, Any] = dict(request.response_parameters or {})
    for output, content in zip(described, contents, strict=True):
        single = prod(output["shape"]) == 1
        fields[output["name"]] = orjson.Fragment(content[1:-1] if single else content)
    for name, value in documents.items():
        request.reserve(2 * json_size(value), "an answer")
        fields[name] = orjson.Fragment(to_json(value))
    if request.id:
        fields["id"] = request.id
    return orjson.dumps({**fields, "model_name": model.name, "model_version": model.version})


def _is_document(tensor: Tensor, value: Any) -> bool:
    """Return whether an output is JSON that a tensor holds as a text only."""
    if _is_one_json(tensor) or _is_list_of_json(tensor):
        return True
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (dict, BaseModel))
