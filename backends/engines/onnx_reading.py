"""Read an item's arrays and check them against the inputs of an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..item import Item
from ..text import repr_of
from .onnx_model import OnnxModel, moved
from .onnx_ports import OnnxTensorInfo, dtype_fits, narrows, to_numpy
from .shapes import shape_text, wrong_rows


class BatchMember(NamedTuple):
    """An item of a batch, with its inputs read and checked."""

    item: Item
    arrays: list[NDArray[Any]]
    """In the model's order, the batch axis first."""
    optional: dict[str, NDArray[Any]]
    """Those of the optional inputs that it gives."""


def read(item: Item, model: OnnxModel, batched: bool, most: int) -> BatchMember:
    """Return the item's arrays, checked against the model's inputs. Raises InvalidInput.

    `batched`: it has `request_size` rows, at most `most`.
    """
    values = values_of(item["data"], model)
    size = item.get("request_size", 1)
    arrays = []
    for port, axis, value in zip(model.inputs, model.input_axes, values, strict=False):
        array = _array(model, port, value, axis if batched else None)
        if batched and array.shape[axis] != size:
            raise wrong_rows(f"{model.engine}: input {port.name}", item, array.shape, axis)
        if batched and size > most:
            raise InvalidInput(
                f"{model.engine}: input {port.name}: expected at most {most} rows (max), found "
                f"shape {shape_text(array.shape)}"
            )
        arrays.append(np.moveaxis(array, axis, 0) if axis and batched else array)
    optional = {
        port.name: moved(_array(model, port, value, None), 0, port.dtype)
        for port, value in zip(model.optional_inputs, values[len(arrays) :], strict=False)
        if value is not None
    }
    return BatchMember(item, arrays, optional)


def values_of(data: Any, model: OnnxModel) -> Sequence[Any]:
    """Return the values of `data` in the order of the inputs, the optional ones last and None for
    one that is left out. Raises InvalidInput.
    """
    least, most = len(model.inputs), len(model.inputs) + len(model.optional_inputs)
    if isinstance(data, dict):
        ports = (*model.inputs, *model.optional_inputs)
        unknown = data.keys() - {port.name for port in ports}
        if not unknown:
            return [data.get(port.name) for port in ports]
        problem = f"input {min(map(repr_of, unknown))} is unknown"
    else:
        values = data if isinstance(data, list | tuple) else [data]
        if least <= len(values) <= most:
            if not model.mixed_order:
                return values
            names = [port.name for port in model.data_order]
            return values_of(dict(zip(names, values, strict=False)), model)
        problem = f"data holds {len(values)}"
    listed = ", ".join(port.name for port in model.inputs)
    if model.optional_inputs:
        listed += f"; optional: {', '.join(port.name for port in model.optional_inputs)}"
    raise InvalidInput(f"{model.engine}: the model has {least} inputs ({listed}), but {problem}")


def _array(
    model: OnnxModel, port: OnnxTensorInfo, value: Any, batch_axis: int | None
) -> NDArray[Any]:
    """Return a value as an array that fits an input. Raises InvalidInput.

    On `batch_axis` it may have any size, though the model fixes one.
    """
    if value is None:
        raise InvalidInput(f"{model.engine}: input {port.name} is missing: expected {port}")
    if not hasattr(value, "__array__"):
        raise InvalidInput(
            f"{model.engine}: input {port.name}: expected {port}, found {type(value).__name__}"
        )
    array = to_numpy(value)
    if port.name in model.reshaped_names:
        label = f"{model.engine}: input {port.name}"
        array = array.reshape(model.reshape.input_shape(port.name, array.shape, label))
    if not dtype_fits(array.dtype, port.dtype) or not _shape_fits(array.shape, port, batch_axis):
        raise InvalidInput(
            f"{model.engine}: input {port.name}: expected {port}, "
            f"found {array.dtype} of shape {shape_text(array.shape)}"
        )
    if narrows(array.dtype, port.dtype):
        with np.errstate(over="ignore"):  # infinite, without a warning for each request
            return array.astype(np.float32)
    return array


def _shape_fits(shape: tuple[int, ...], port: OnnxTensorInfo, batch_axis: int | None) -> bool:
    return len(shape) == len(port.shape) and all(
        fixed is None or fixed == size or axis == batch_axis
        for axis, (fixed, size) in enumerate(zip(port.shape, shape, strict=True))
    )
