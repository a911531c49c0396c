"""The item that a pipeline takes, from the JSON and the bytes of an infer request.

Everything is checked in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import (
    NO_FACTS,
    SEQUENCE_END,
    SEQUENCE_START,
    Item,
    RequestFacts,
    may_come_from_network,
)
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation
from penstock.pipelines.config.ensembles import steps_of
from penstock.pipelines.sequences.step import Step

from ...http.inputs.datatypes import DATATYPES, Array, Datatype
from ...http.inputs.declared import ONE_VALUE, Tensor, set_values
from ...http.inputs.text import decode, decoded_bytes
from ...http.inputs.values import SLOT_BYTES, Reading, value_of_json
from ...http.json_text import (
    UINT64_MAX,
    JsonLimits,
    check_boolean,
    check_unsigned,
    kind_of,
    parse_json,
    parsed_bytes,
)
from ..cuda_memory import tensor_of
from ..models.model import Model
from ..shared_memory import SharedMemory, Slice, region_of
from ..tensors import (
    check_size,
    copied_bytes,
    from_bytes,
    from_json,
    shape_text,
)
from .wanted import Wanted, read_outputs

SEQUENCE_FLAGS = frozenset({"sequence_start", "sequence_end"})

RESERVED_PARAMETERS = frozenset({"data", "result", "error", "context", "headers"})
"""Names that no parameter may have: keys of an item, and those that Triton's clients reserve."""

PARAMETER_TYPES = frozenset({str, int, float, bool})

MAX_PARAMETERS = 1024
"""The most parameters of a request. Each is a key of the item, which is copied at every node."""

MAX_INPUT_JSON_DEPTH = 100
"""The most levels of an input that is a JSON text itself."""


class InferRequest:
    """An infer request as it was read.

    `timeout` is in seconds; None for the pipeline's own. `outputs` is None for all outputs.
    `binary` asks for the bytes of those outputs that do not say. `leases` are the parts of shared
    memory that outputs go to: release them when the request has been answered. `memory` is what the
    request holds. `json_limits` bounds inputs that are JSON texts. `step` says of which sequence
    the request is a step, if its pipeline has sequences. `is_shared`: an input is used where it is
    in the memory of the client, which may change it. `response_parameters`: those of the answer.
    """

    __slots__ = (
        "binary",
        "id",
        "is_shared",
        "item",
        "json_limits",
        "leases",
        "memory",
        "outputs",
        "priority",
        "response_parameters",
        "rows",
        "step",
        "timeout",
    )

    def __init__(self, memory: Reservation, json_limits: JsonLimits) -> None:
        self.memory = memory
        self.json_limits = json_limits
        self.id: str | None = None
        self.item: Item = {}
        self.rows = 1
        self.timeout: float | None = None
        self.priority: int | None = None
        self.outputs: Sequence[Wanted] | None = None
        self.binary = False
        self.step: Step | None = None
        self.is_shared = False
        self.leases: list[Slice] = []
        self.response_parameters: Mapping[str, Any] | None = None

    def release(self) -> None:
        """Let go of the shared memory."""
        for lease in self.leases:
            lease.release()
        self.leases.clear()

    def reserve(self, size: int, what: str) -> None:
        """Hold `size` bytes more. Raises `MemoryFull`, `TooLarge`."""
        self.memory.resize(self.memory.size + size, what)


def parse(
    request: InferRequest,
    document: Any,
    blobs: memoryview,
    model: Model,
    regions: SharedMemory,
) -> None:
    """Fill `request` from its JSON, `document`, and from `blobs`, the bytes after the JSON.

    Raises `InvalidRequest`, `MemoryFull`, and `NotFound` for an unknown region of shared memory.
    """
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
    facts = NO_FACTS
    if parameters:
        facts = _read_parameters(request, parameters, model)
    elif parameters is not None and type(parameters) is not dict:
        raise InvalidRequest("Unable to parse 'parameters': expected an object")
    _read_inputs(request, document.get("inputs"), blobs, model, regions)
    outputs = document.get("outputs")
    if outputs is not None:
        request.outputs = read_outputs(outputs, request.binary, model, regions, request.leases)
    if model.takes_request_facts:
        if request.outputs is not None:
            names = tuple([wanted.name for wanted in request.outputs])
            if set(names) != model.outputs_by_name.keys():
                facts = facts._replace(requested_outputs=names)
        if facts != NO_FACTS:
            request.item["request_facts"] = facts


def parse_raw(request: InferRequest, body: memoryview, model: Model) -> None:
    """Fill `request` from a body that has no JSON and is the model's only input.

    Raises `InvalidRequest`.
    """
    required = [tensor for tensor in model.inputs if not tensor.optional] or model.inputs
    if len(required) != 1:
        raise InvalidRequest(
            f"raw input is only supported for models with one input, model '{model.name}' has "
            f"{len(required)}: send a JSON header"
        )
    expected = required[0]
    datatype, shape = expected.datatype, expected.shape
    if datatype is None or shape is None:
        raise InvalidRequest(
            f"raw input needs the datatype and shape of input '{expected.name}', which model "
            f"'{model.name}' does not declare"
        )
    inner = shape[1:] if model.max_batch_size else shape
    if not datatype.size:
        if prod(inner) not in {1, -1}:
            raise InvalidRequest(
                f"raw input of datatype BYTES must have shape [1], input '{expected.name}' has "
                f"{list(inner)}"
            )
        sizes = [1] * len(inner)
        view = memoryview(len(body).to_bytes(4, "little") + bytes(body))
    else:
        if inner.count(-1) > 1:
            raise InvalidRequest(
                "raw input can have one dimension of variable size at most, input "
                f"'{expected.name}' has {list(inner)}"
            )
        row = prod(size for size in inner if size != -1) * datatype.size
        sizes = [(len(body) // row if row else 0) if size == -1 else size for size in inner]
        view = body
    whole = [1, *sizes] if model.max_batch_size else sizes
    request.reserve(copied_bytes(datatype, len(view), whole, _dtype(expected)), "tensors")
    array = from_bytes(view, datatype, whole, expected.name, model.name)
    request.binary = True
    set_values(request.item, {expected.name: value_of(request, expected, array)}, model.inputs)


# parameters


def _read_parameters(request: InferRequest, parameters: Any, model: Model) -> RequestFacts:
    """Read them into `request`, and return those that a backend may ask for."""
    if type(parameters) is not dict:
        raise InvalidRequest(
            f"Unable to parse 'parameters': expected an object, got a JSON {kind_of(parameters)}"
        )
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest(
            f"the request has {len(parameters)} parameters, at most {MAX_PARAMETERS} are accepted"
        )
    identity: int | str = 0
    timeout_us = 0
    flags: dict[str, bool] = {}
    for key, value in parameters.items():
        if type(value) not in PARAMETER_TYPES:
            raise InvalidRequest(
                f"parameter '{key}' has invalid type: it is a JSON {kind_of(value)}, expected a "
                "string, a number or a boolean"
            )
        if key == "binary_data_output":
            request.binary = check_boolean(value, "parameter 'binary_data_output'")
        elif key == "timeout":
            timeout_us = check_unsigned(value, "parameter 'timeout'")
            request.timeout = timeout_us / 1e6 if timeout_us else None
        elif key == "priority":
            level = check_unsigned(value, "parameter 'priority'")
            entry_point = model.pipeline.plan.default
            root = None if entry_point is None else entry_point.root.config
            levels = 0 if root is None else root.priority_levels
            # As in Triton, any other level stands for the model's default. An ensemble passes it
            # on to models that may have it.
            known = level <= levels or (root is not None and bool(steps_of(root)))
            request.priority = level if level and known else None
        elif key == "sequence_id":
            identity = _sequence_id(value)
        elif key in SEQUENCE_FLAGS:
            flags[key] = check_boolean(value, f"parameter '{key}'")
        elif (
            key in RESERVED_PARAMETERS
            or _is_tensor(key, model)
            or key.startswith("triton_")
            or not may_come_from_network(key)
        ):
            raise InvalidRequest(f"parameter '{key}' is reserved: it can't be set by a request")
        else:
            request.item[key] = value
    # As in Triton, a model without sequences ignores them, and 0 and "" stand for no id.
    if identity and model.pipeline.takes_sequences:
        request.step = Step(
            identity,
            flags.get("sequence_start", False),
            flags.get("sequence_end", False),
            strict=True,
        )
    bits = flags.get("sequence_start", False) * SEQUENCE_START
    bits |= flags.get("sequence_end", False) * SEQUENCE_END
    return RequestFacts(identity, bits, timeout_us)


def _sequence_id(value: Any) -> int | str:
    if type(value) is str:
        return value
    if type(value) is int and 0 <= value <= UINT64_MAX:
        return value
    raise InvalidRequest(
        f"Unable to parse 'sequence_id': expected a whole number from 0 to {UINT64_MAX} or a "
        f"string, got {str(value)[:40]}"
    )


def _is_tensor(key: str, model: Model) -> bool:
    """Return whether a parameter of this name would be taken for a tensor."""
    if model.pipeline.config.positional:
        return False
    return key in model.inputs_by_name or key in model.outputs_by_name


# inputs


def _read_inputs(
    request: InferRequest,
    inputs: Any,
    blobs: memoryview,
    model: Model,
    regions: SharedMemory,
) -> None:
    if type(inputs) is not list:
        raise InvalidRequest("Unable to parse 'inputs': the request must have an array 'inputs'")
    position = 0
    rows = 0
    values: dict[str, Any] = {}
    for tensor in inputs:
        if type(tensor) is not dict:
            raise InvalidRequest(
                f"Unable to parse 'inputs': expected objects, got a JSON {kind_of(tensor)}"
            )
        name = tensor.get("name")
        if type(name) is not str:
            raise InvalidRequest("Unable to parse 'name': every input has one, a string")
        if name in values:
            raise InvalidRequest(f"input '{name}' already exists in request")
        expected = model.inputs_by_name.get(name)
        if expected is None:
            if not _least_inputs(model) <= len(inputs) <= len(model.inputs):
                raise _wrong_count(inputs, model)
            raise InvalidRequest(f"unexpected inference input '{name}' for model '{model.name}'")
        datatype = expected.datatype
        if datatype is None or tensor.get("datatype") != datatype.name:
            datatype = _datatype(tensor.get("datatype"), expected, model)
        shape: Any = tensor.get("shape")
        encoded = expected.decoder is not None and not datatype.size
        first = _check_shape(shape, expected, model, encoded=encoded)
        if model.max_batch_size or name in model.batch_axes:
            if rows not in {0, first}:
                raise InvalidRequest(
                    f"input '{name}' batch size does not match other inputs for '{model.name}'"
                )
            rows = first
        parameters = tensor.get("parameters")
        if parameters is None:
            parameters = {}
        elif type(parameters) is not dict:
            raise InvalidRequest(
                f"Unable to parse 'parameters' of input '{name}': expected an object"
            )
        # KServe's client sends null with a size of 0 for a tensor without elements.
        data = tensor.get("data")
        size = parameters.get("binary_data_size")
        if size is not None:
            if data is not None or "shared_memory_region" in parameters:
                raise _several_sources()
            end = position + check_unsigned(size, f"'binary_data_size' of input '{name}'")
            if end > len(blobs):
                missing = end - len(blobs)
                raise InvalidRequest(
                    f"unexpected size for input '{name}', expecting {missing} additional bytes for "
                    f"model '{model.name}'"
                )
            request.reserve(
                copied_bytes(datatype, end - position, shape, _dtype(expected), position), "tensors"
            )
            array = from_bytes(blobs[position:end], datatype, shape, name, model.name)
            position = end
        elif "shared_memory_region" in parameters:
            if data is not None:
                raise _several_sources()
            borrowed = regions.borrow(*region_of(parameters))
            request.is_shared |= not borrowed.copied
            check_size(borrowed.size, datatype, shape, name, model.name)  # before the copy
            copied = copied_bytes(datatype, borrowed.size, shape, _dtype(expected))
            request.reserve(borrowed.copied + copied, "tensors")
            on_gpu = None
            if datatype.in_place:
                on_gpu = tensor_of(borrowed, expected, model, datatype.dtype, shape)
            if on_gpu is not None:
                values[name] = on_gpu
                continue
            array = from_bytes(borrowed.read(), datatype, shape, name, model.name)
        elif data is not None:
            array = from_json(data, datatype, shape, name)
        else:
            raise _several_sources()
        values[name] = value_of(request, expected, array)
    if position != len(blobs):
        raise InvalidRequest(f"unexpected additional input data for model '{model.name}'")
    if len(values) != len(model.inputs) and not all(
        tensor.optional or tensor.name in values for tensor in model.inputs
    ):
        raise _wrong_count(inputs, model)
    if rows > 1:
        request.rows = rows
        request.item["request_size"] = rows
    set_values(request.item, values, model.inputs)


def _datatype(name: Any, expected: Tensor, model: Model) -> Datatype:
    datatype: Datatype | None = DATATYPES.get(name) if type(name) is str else None
    if datatype is None:
        raise InvalidRequest(
            f"invalid datatype for input '{expected.name}': expected one of {', '.join(DATATYPES)}"
        )
    if expected.decoder is not None and name == "BYTES":
        return datatype
    if expected.datatype is not None and not (
        name == "UINT8" and expected.kind == "tensor" and expected.datatype.kind == "f"
    ):
        raise InvalidRequest(
            f"inference input '{expected.name}' data-type is '{name}', but model '{model.name}' "
            f"expects '{expected.datatype.name}'"
        )
    return datatype


def _check_shape(shape: Any, expected: Tensor, model: Model, *, encoded: bool) -> int:
    """Check the shape of an input, and return its rows: 1 if the model has no batch. `encoded`: it
    has images as files, [N] or [N, 1].
    """
    if type(shape) is not list:
        raise InvalidRequest(
            f"Unable to parse 'shape': input '{expected.name}' must have one, an array of "
            "non-negative integers"
        )
    for size in shape:
        if type(size) is not int or not 0 <= size <= UINT64_MAX:
            raise InvalidRequest(
                "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as "
                "unsigned-integer"
            )
    wanted = expected.shape
    if encoded and wanted is not None:
        wanted = (*wanted[: len(wanted) - 3], *(1,) * (len(shape) > len(wanted) - 3)) or (1,)
    if (
        wanted is not None
        and not _fits(shape, wanted)
        and (expected.kind == "tensor" or shape.count(1) != len(shape))
    ):
        batch = ". The first size is that of the batch" if model.max_batch_size else ""
        raise InvalidRequest(
            f"unexpected shape for input '{expected.name}' for model '{model.name}'. "
            f"Expected {shape_text(wanted)}, got {shape_text(shape)}{batch}"
        )
    largest = model.max_batch_size
    if not largest:
        if expected.name not in model.batch_axes:
            return 1
        largest = model.max_rows
    rows: int = shape[model.batch_axes[expected.name] if model.batch_axes else 0]
    if not 1 <= rows <= largest:
        if rows < 1:
            raise InvalidRequest(f"inference request batch-size must be >= 1 for '{model.name}'")
        raise InvalidRequest(
            f"inference request batch-size must be <= {largest} for '{model.name}'"
        )
    return rows


def _fits(shape: list[int], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    # A loop, because a generator costs more than it saves on such short sequences
    for size, wanted_size in zip(shape, wanted):  # noqa: B905, SIM110
        if size != wanted_size != -1:
            return False
    return True


def _least_inputs(model: Model) -> int:
    return sum(not tensor.optional for tensor in model.inputs)


def _wrong_count(inputs: list[Any], model: Model) -> InvalidRequest:
    given = [
        tensor["name"]
        for tensor in inputs
        if isinstance(tensor, dict) and isinstance(tensor.get("name"), str)
    ]
    missing = [
        tensor.name for tensor in model.inputs if not tensor.optional and tensor.name not in given
    ]
    least, most = _least_inputs(model), len(model.inputs)
    count = f"{most} inputs" if least == most else f"number of inputs between {least} and {most}"
    message = (
        f"expected {count} but got {len(inputs)} inputs for model "
        f"'{model.name}'. Got input(s) {_names(given)}"
    )
    if missing:
        message += (
            f", but missing required input(s) {_names(missing)}. "
            "Please provide all required input(s)."
        )
    return InvalidRequest(message)


def _names(names: Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _several_sources() -> InvalidRequest:
    return InvalidRequest(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in "
        "'parameters', 'shared_memory_region' in 'parameters'. But no field is set, or more than "
        "one."
    )


def _dtype(expected: Tensor) -> np.dtype[Any] | None:
    return None if expected.datatype is None else expected.datatype.dtype


def held_bytes(item: Item) -> int:
    """Count the bytes of the arrays of an item, and of those in its list of inputs."""
    parts = item.get("data")
    arrays = [*item.values(), *(parts if type(parts) is list else ())]
    return sum([getattr(array, "nbytes", 0) for array in arrays])


def value_of(request: InferRequest, expected: Tensor, array: Array) -> Any:
    """Return what the item holds for an input: an array, or the value of other kinds."""
    if expected.kind == "tensor":
        if expected.decoder is not None and array.dtype == object:
            assert expected.datatype is not None and expected.shape is not None
            batched = len(expected.shape) > 3
            return expected.decoder.tensor(array, expected.datatype, expected.name, batched=batched)
        if expected.text:
            texts = array.reshape(-1)
            request.reserve(sum(map(decoded_bytes, texts)), "texts")
            texts[:] = [decode(text, expected.name) for text in texts]
        elif array.dtype == "uint8" and expected.datatype is not None:
            return array.astype(expected.datatype.dtype, copy=False)  # pixels for floats
        return array
    if expected.kind == "list":
        items = expected.items
        assert items is not None
        if expected.shape == ONE_VALUE:  # its JSON text
            document = _document(request, expected.name, array.item())
            return value_of_json(
                expected, document, expected.name, Reading(request.memory, request.json_limits)
            )
        request.reserve(SLOT_BYTES * array.size, "a list")
        flat = array.reshape(-1)  # one item may come as [1, 1] or [], as single values may
        return [_one_value(request, items, value, expected.name) for value in flat.tolist()]
    return _one_value(request, expected, array.item() if array.size == 1 else None, expected.name)


def _one_value(request: InferRequest, expected: Tensor, value: Any, name: str) -> Any:
    match expected.kind:
        case "text":
            request.reserve(decoded_bytes(value), "texts")
            return decode(value, name)
        case "json":
            document = _document(request, name, value)
            if expected.schema is None:
                return document
            request.reserve(parsed_bytes(value), "a checked input")
            return expected.schema.check(document, name)
        case _:
            return value


def _document(request: InferRequest, name: str, text: bytes) -> Any:
    try:
        limits = request.json_limits._replace(depth=MAX_INPUT_JSON_DEPTH)
        return parse_json(text, limits, request.memory)
    except InvalidRequest as error:
        raise InvalidRequest(f"input '{name}' is not valid JSON: {error}") from None
