"""Calls between pipelines by the names of tensors: an item of them, and them of a final item.

The names are those of a pipeline's declared inputs and outputs. docs/reference/composite.md has the
rules; below /v2 they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from penstock.backends.errors import BackendError, InvalidRequest
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import np

from .config.definition import PipelineConfig, Port
from .config.tables import numpy_type, protocol_type

OPEN = -1
"""A size of a declared shape that may be any."""


def is_batched(config: PipelineConfig) -> bool:
    """Return whether the first size of each input of a pipeline is the number of rows."""
    return config.batched and all(
        port.kind == "tensor" and port.shape is not None and port.shape[:1] == (OPEN,)
        for port in config.inputs
    )


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Return whether a shape is the declared one, where -1 may be any size."""
    return len(shape) == len(declared) and all(
        wanted in (size, OPEN) for size, wanted in zip(shape, declared, strict=True)
    )


def item_of(config: PipelineConfig, tensors: Mapping[str, Any]) -> Item:
    """Return an item with `data`, and `request_size` if there are several rows.

    `tensors`: arrays by the names of inputs; None for an optional one that is left out. Raises
    InvalidRequest, with Triton's words, for names, data types and shapes that the pipeline does not
    take.
    """
    ports = {port.name: port for port in config.inputs}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name in given:
        if name not in ports:
            raise InvalidRequest(f"unexpected inference input '{name}' for model '{config.name}'")
    missing = [port.name for port in config.inputs if not port.optional and port.name not in given]
    if missing:
        raise _missing(config, given, missing)
    for name, tensor in given.items():
        _check(config, ports[name], tensor)
    item: Item = {}
    if is_batched(config):
        sizes = {name: tensor.shape[0] for name, tensor in given.items()}
        rows = next(iter(sizes.values()), 1)
        for name, size in sizes.items():
            if size != rows:
                raise InvalidRequest(
                    f"input '{name}' batch size does not match other inputs for '{config.name}'"
                )
        if rows != 1:
            item["request_size"] = rows
    values = {name: _value(ports[name], tensor) for name, tensor in given.items()}
    if _is_keyed(config):
        item.setdefault("data", None)
        return item | values
    parts = [values.get(name) for name in ports]
    item["data"] = parts[0] if len(parts) == 1 else parts
    return item


def input_tensors(config: PipelineConfig, item: Item) -> dict[str, Any]:
    """Return the inputs of an item that has come to a pipeline, None for those that are left out.

    It is what `item_of` takes apart. Raises InvalidRequest if `data` is not what is declared.
    """
    ports = config.inputs
    if _is_keyed(config):
        return {port.name: item.get(port.name) for port in ports}
    data = item["data"]
    if len(ports) == 1 and not isinstance(data, (list, tuple, dict)):
        return {ports[0].name: data}
    if isinstance(data, dict):
        return {port.name: data.get(port.name) for port in ports}
    if not isinstance(data, (list, tuple)) or len(data) != len(ports):
        names = ", ".join(port.name for port in ports)
        raise InvalidRequest(
            f"pipeline {config.name!r}: 'data' is a {type(data).__name__}: expected a list of its "
            f"{len(ports)} inputs ({names})"
        )
    return {port.name: value for port, value in zip(ports, data, strict=True)}


def tensors_of(config: PipelineConfig, item: Item) -> dict[str, Any]:
    """Return the outputs of a final item by name. One that it does not have is left out.

    Raises BackendError if `result` is not the list of outputs that the pipeline declares.
    """
    result = item.get("result")
    keyed = not config.positional and any(port.name == "result" for port in config.outputs)
    parts = (
        [] if keyed else [port for port in config.outputs if config.positional or _is_tensor(port)]
    )
    found: dict[str, Any] = {}
    if not config.outputs:
        found["result"] = result
    elif isinstance(result, dict):
        found = {port.name: result.get(port.name) for port in parts}
    elif len(parts) == 1:
        found[parts[0].name] = result
    elif parts and result is not None:
        if not isinstance(result, (list, tuple)) or len(result) != len(parts):
            raise BackendError(
                f"the result of pipeline {config.name!r} is not the list of {len(parts)} outputs "
                "that it declares"
            )
        found = {port.name: value for port, value in zip(parts, result, strict=True)}
    if not config.positional:
        found |= {port.name: item[port.name] for port in config.outputs if port.name in item}
    return {name: _as_array(value) for name, value in found.items() if value is not None}


def _is_keyed(config: PipelineConfig) -> bool:
    """Return whether each input is a key of the item, not a part of its `data`."""
    return not config.positional and any(port.name == "data" for port in config.inputs)


def _is_tensor(port: Port) -> bool:
    return port.kind == "tensor" or (
        port.kind == "json" and (port.dtype is not None or port.shape is not None)
    )


def _check(config: PipelineConfig, port: Port, tensor: Any) -> None:
    declared = numpy_type(port.dtype)
    dtype = _name_of(tensor.dtype)
    # A BF16 tensor is float32 wherever it comes from a client.
    if declared not in {None, dtype} and (dtype, declared) != ("float32", "bfloat16"):
        raise InvalidRequest(
            f"inference input '{port.name}' data-type is '{protocol_type(dtype)}', but model "
            f"'{config.name}' expects '{protocol_type(declared)}'"
        )
    if port.shape is not None and _is_tensor(port) and not fits(tensor.shape, port.shape):
        batch = ". The first size is that of the batch" if is_batched(config) else ""
        raise InvalidRequest(
            f"unexpected shape for input '{port.name}' for model '{config.name}'. "
            f"Expected {_shown(port.shape)}, got {_shown(tensor.shape)}{batch}"
        )


@lru_cache(64)
def _name_of(dtype: Any) -> str:
    """Return the name of a data type, NumPy's or torch's. To ask for it takes microseconds."""
    name = str(dtype).removeprefix("torch.")
    return "string" if name == "object" or name[:2] in {"<U", "|S"} else name


def _value(port: Port, tensor: Any) -> Any:
    """Return the value of an input: the array, or one value if its kind is one."""
    if _is_tensor(port) or port.kind in {"json", "list"}:
        return tensor
    if tensor.size != 1:
        raise InvalidRequest(
            f"input '{port.name}' is one {port.kind}: expected one element, got shape "
            f"{_shown(tensor.shape)}"
        )
    value = tensor.reshape(-1)[0]
    value = value.item() if hasattr(value, "item") else value
    if port.kind == "text" and isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"input '{port.name}' is not valid UTF-8 (byte {error.start}): expected a text"
            ) from None
    return value


def _as_array(value: Any) -> Any:
    """Return an array; what is none becomes one."""
    if hasattr(value, "dtype"):
        return value
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _missing(
    config: PipelineConfig, given: Mapping[str, Any], missing: Sequence[str]
) -> InvalidRequest:
    most = len(config.inputs)
    least = sum(not port.optional for port in config.inputs)
    expected = f"{most}" if least == most else f"number of inputs between {least} and {most}"
    inputs = " inputs" if least == most else ""
    return InvalidRequest(
        f"expected {expected}{inputs} but got {len(given)} inputs for model '{config.name}'. Got "
        f"input(s) [{_quoted(given)}], but missing required input(s) [{_quoted(missing)}]. Please "
        "provide all required input(s)."
    )


def _quoted(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ",".join(f"'{name}'" for name in names)


def _shown(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
