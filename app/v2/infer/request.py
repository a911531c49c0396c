"""From the JSON and the bytes of an infer request to the item that a pipeline takes. Everything is checked in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import Item, may_come_from_network

from ..json_text import kind_of, parse_json
from ..models.model import Model, Tensor
from ..shared_memory import Part, SharedMemory
from ..tensors import (
    DATATYPES,
    LARGEST,
    Array,
    Datatype,
    check_size,
    from_bytes,
    from_json,
    shape_text,
)
from .fields import boolean, region_of, unsigned
from .wanted import Wanted, read_outputs

SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})
"""Parameters of a request that are taken, and mean nothing: pipelines have no sequences."""

KEPT = frozenset({"data", "result", "error", "context", "headers"})
"""Names that no parameter may have: keys of an item, and one that Triton's clients keep."""

MOST_PARAMETERS = 1024
"""Of a request: each is a key of the item, and the item is copied at every node."""

DEPTH = 100
"""Levels of an input that is JSON itself."""


class InferRequest:
    """What a request says. `leases` are the parts of shared memory that its outputs go to; release them when it has been
    answered."""

    __slots__ = ("binary", "id", "item", "leases", "outputs", "priority", "rows", "timeout")

    def __init__(self) -> None:
        self.id: str | None = None
        self.item: Item = {}
        self.rows = 1
        self.timeout: float | None = None  # seconds
        self.priority: int | None = None
        self.outputs: Sequence[Wanted] | None = None  # None: all
        self.binary = False  # outputs that do not say come in binary
        self.leases: list[Part] = []

    def release(self) -> None:
        for lease in self.leases:
            lease.release()
        self.leases.clear()


def parse(
    request: InferRequest, document: Any, blobs: memoryview, model: Model, regions: SharedMemory
) -> None:
    """Fill `request` with what `document` says; `blobs` is what follows the JSON. Raises `InvalidRequest` and what regions raise."""
    if type(document) is not dict:
        raise InvalidRequest(f"the request is a JSON {kind_of(document)}, expected an object")
    identity = document.get("id")
    if identity is not None:
        if type(identity) is not str:
            raise InvalidRequest(
                f"Unable to parse 'id': expected a string, got a JSON {kind_of(identity)}"
            )
        request.id = identity
    parameters = document.get("parameters")
    if parameters:
        _read_parameters(request, parameters, model)
    elif parameters is not None and type(parameters) is not dict:
        raise InvalidRequest("Unable to parse 'parameters': expected an object")
    _read_inputs(request, document.get("inputs"), blobs, model, regions)
    outputs = document.get("outputs")
    if outputs is not None:
        request.outputs = read_outputs(outputs, request.binary, model, regions, request.leases)


def parse_raw(request: InferRequest, body: memoryview, model: Model) -> None:
    """A request whose body is its one input, without any JSON. Raises `InvalidRequest`."""
    if len(model.inputs) != 1:
        raise InvalidRequest(
            f"raw input is only supported for models with one input, model '{model.name}' has {len(model.inputs)}: send a JSON header"
        )
    expected = model.inputs[0]
    datatype, shape = expected.datatype, expected.shape
    if datatype is None or shape is None:
        raise InvalidRequest(
            f"raw input needs datatype and shape of input '{expected.name}', which model '{model.name}' does not declare"
        )
    inner = shape[1:] if model.max_batch_size else shape
    if not datatype.size:
        if prod(inner) not in {1, -1}:
            raise InvalidRequest(
                f"raw input of datatype BYTES must have shape [1], input '{expected.name}' has {list(inner)}"
            )
        found = [1] * len(inner)
        view = memoryview(len(body).to_bytes(4, "little") + bytes(body))
    else:
        if inner.count(-1) > 1:
            raise InvalidRequest(
                f"raw input can have one dimension of variable size at most, input '{expected.name}' has {list(inner)}"
            )
        row = prod(size for size in inner if size != -1) * datatype.size
        found = [(len(body) // row if row else 0) if size == -1 else size for size in inner]
        view = body
    dimensions = [1, *found] if model.max_batch_size else found
    array = from_bytes(view, datatype, dimensions, expected.name, model.name)
    request.binary = True
    _set_value(request.item, [], expected, _value(expected, array), model)


# parameters


def _read_parameters(request: InferRequest, parameters: Any, model: Model) -> None:
    if type(parameters) is not dict:
        raise InvalidRequest(
            f"Unable to parse 'parameters': expected an object, got a JSON {kind_of(parameters)}"
        )
    if len(parameters) > MOST_PARAMETERS:
        raise InvalidRequest(
            f"the request has {len(parameters)} parameters, at most {MOST_PARAMETERS} are taken"
        )
    for key, value in parameters.items():
        if type(value) not in {str, int, float, bool}:
            raise InvalidRequest(
                f"parameter '{key}' is a JSON {kind_of(value)}, expected a string, a number or a boolean"
            )
        if key == "binary_data_output":
            request.binary = boolean(value, "parameter 'binary_data_output'")
        elif key == "timeout":
            microseconds = unsigned(value, "parameter 'timeout'")
            request.timeout = microseconds / 1e6 if microseconds else None
        elif key == "priority":
            level = unsigned(value, "parameter 'priority'")
            entry_point = model.pipeline.plan.default
            levels = entry_point.root.config.priority_levels if entry_point is not None else 0
            request.priority = (
                level if 0 < level <= levels else None
            )  # as Triton does: any other is the model's default
        elif key in SEQUENCE:
            continue
        elif (
            key in KEPT
            or _is_a_tensor(key, model)
            or key.startswith("triton_")
            or not may_come_from_network(key)
        ):
            raise InvalidRequest(f"parameter '{key}' is reserved: it can't be set by a request")
        else:
            request.item[key] = value


def _is_a_tensor(key: str, model: Model) -> bool:
    return key in model.inputs_by_name or key in model.outputs_by_name


# inputs


def _read_inputs(
    request: InferRequest, inputs: Any, blobs: memoryview, model: Model, regions: SharedMemory
) -> None:
    if type(inputs) is not list:
        raise InvalidRequest("Unable to parse 'inputs': the request must have an array 'inputs'")
    position = 0
    rows = 0
    values: dict[str, Any] = {}
    for entry in inputs:
        if type(entry) is not dict:
            raise InvalidRequest(
                f"Unable to parse 'inputs': expected objects, got a JSON {kind_of(entry)}"
            )
        name = entry.get("name")
        if type(name) is not str:
            raise InvalidRequest("Unable to parse 'name': every input has one, a string")
        if name in values:
            raise InvalidRequest(f"input '{name}' already exists in request")
        expected = model.inputs_by_name.get(name)
        if expected is None:
            if len(inputs) != len(model.inputs):
                raise _wrong_count(inputs, model)
            raise InvalidRequest(f"unexpected inference input '{name}' for model '{model.name}'")
        datatype = expected.datatype
        if datatype is None or entry.get("datatype") != datatype.name:
            datatype = _datatype(entry.get("datatype"), expected, model)
        shape: Any = entry.get("shape")
        first = _check_shape(shape, expected, model)
        if model.max_batch_size:
            if rows not in {0, first}:
                raise InvalidRequest(
                    f"input '{name}' batch size does not match other inputs for '{model.name}'"
                )
            rows = first
        parameters = entry.get("parameters")
        if parameters is None:
            parameters = {}
        elif type(parameters) is not dict:
            raise InvalidRequest(
                f"Unable to parse 'parameters' of input '{name}': expected an object"
            )
        data = entry.get(
            "data"
        )  # null: nothing. KServe's client says so of tensors without elements, beside their size of 0
        size = parameters.get("binary_data_size")
        if size is not None:
            if data is not None or "shared_memory_region" in parameters:
                raise _several_sources()
            end = position + unsigned(size, f"'binary_data_size' of input '{name}'")
            if end > len(blobs):
                missing = end - len(blobs)
                raise InvalidRequest(
                    f"unexpected size for input '{name}', expecting {missing} additional bytes for model '{model.name}'"
                )
            array = from_bytes(blobs[position:end], datatype, shape, name, model.name)
            position = end
        elif "shared_memory_region" in parameters:
            if data is not None:
                raise _several_sources()
            lease = regions.borrow(*region_of(parameters))
            check_size(lease.size, datatype, shape, name, model.name)  # before so much is copied
            array = from_bytes(lease.read(), datatype, shape, name, model.name)
        elif data is not None:
            array = from_json(data, datatype, shape, name)
        else:
            raise _several_sources()
        values[name] = _value(expected, array)
    if position != len(blobs):
        raise InvalidRequest(f"unexpected additional input data for model '{model.name}'")
    if len(values) != len(model.inputs):
        raise _wrong_count(inputs, model)
    if rows > 1:
        request.rows = rows
        request.item["request_size"] = rows
    parts: list[Any] = []
    for expected in model.inputs:
        _set_value(request.item, parts, expected, values[expected.name], model)


def _set_value(item: Item, parts: list[Any], expected: Tensor, value: Any, model: Model) -> None:
    if expected.part is None:
        item[expected.name] = value
    elif len(model.inputs) == 1:
        item["data"] = value
    else:
        parts.append(value)
        item["data"] = parts


def _datatype(name: Any, expected: Tensor, model: Model) -> Datatype:
    datatype = DATATYPES.get(name) if type(name) is str else None
    if datatype is None:
        raise InvalidRequest(
            f"invalid datatype for input '{expected.name}': expected one of {', '.join(DATATYPES)}"
        )
    if expected.datatype is not None:
        raise InvalidRequest(
            f"inference input '{expected.name}' data-type is '{name}', but model '{model.name}' expects '{expected.datatype.name}'"
        )
    return datatype


def _check_shape(shape: Any, expected: Tensor, model: Model) -> int:
    """The first size of a shape that fits."""
    if type(shape) is not list:
        raise InvalidRequest(
            f"Unable to parse 'shape': input '{expected.name}' must have one, an array of non-negative integers"
        )
    for size in shape:
        if type(size) is not int or not 0 <= size <= LARGEST:
            raise InvalidRequest(
                "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer"
            )
    wanted = expected.shape
    if (
        wanted is not None
        and not _fits(shape, wanted)
        and (expected.kind == "tensor" or shape.count(1) != len(shape))
    ):
        batch = ". The first size is the batch's" if model.max_batch_size else ""
        raise InvalidRequest(
            f"unexpected shape for input '{expected.name}' for model '{model.name}'. "
            f"Expected {shape_text(wanted)}, got {shape_text(shape)}{batch}"
        )
    if not model.max_batch_size:
        return 1
    first: int = shape[0]
    if not 1 <= first <= model.max_batch_size:
        if first < 1:
            raise InvalidRequest(f"inference request batch-size must be >= 1 for '{model.name}'")
        raise InvalidRequest(
            f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'"
        )
    return first


def _fits(shape: list[int], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):  # noqa: SIM110  a generator costs more than it saves here
        if size != want != -1:
            return False
    return True


def _wrong_count(inputs: list[Any], model: Model) -> InvalidRequest:
    got = [
        each["name"]
        for each in inputs
        if isinstance(each, dict) and isinstance(each.get("name"), str)
    ]
    missing = [each.name for each in model.inputs if each.name not in got]
    found = f"expected {len(model.inputs)} inputs but got {len(inputs)} inputs for model '{model.name}'. Got input(s) {_names(got)}"
    if missing:
        found += f", but missing required input(s) {_names(missing)}. Please provide all required input(s)."
    return InvalidRequest(found)


def _names(names: Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _several_sources() -> InvalidRequest:
    return InvalidRequest(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in "
        "'parameters'. But no field is set, or more than one."
    )


def _value(expected: Tensor, array: Array) -> Any:
    """What the item holds: arrays; of one value, that value."""
    if expected.kind == "tensor":
        if expected.text:
            array.reshape(-1)[:] = [_decoded(each, expected) for each in array.reshape(-1)]
        return array
    value = array.item() if array.size == 1 else None
    match expected.kind:
        case "text":
            return _decoded(value, expected)
        case "json":
            try:
                return parse_json(array.item(), DEPTH)
            except InvalidRequest as error:
                raise InvalidRequest(f"input '{expected.name}' is no JSON: {error}") from None
        case _:
            return value


def _decoded(value: Any, expected: Tensor) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"input '{expected.name}' is no UTF-8") from None
