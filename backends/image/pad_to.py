"""Padding to a size that the image itself or its batch decides, also with a value that is given as
the model sees it, after its normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from ..allocation import empty_array
from ..base import Backend, Context, Params
from ..engines.onnx_ports import to_numpy
from ..engines.shapes import shape_text
from ..errors import InvalidInput
from ..item import Item
from ..params import Numbers, as_numbers
from .pad import PAD_VALUE, PadValue
from .pixels import MAX_SIDE, ImageBackend

Normalised = Annotated[tuple[FiniteFloat, ...], BeforeValidator(as_numbers), Field(min_length=1)]


class PadToParams(Params):
    pad_value: PadValue | None = Field(None, description=PAD_VALUE)
    pad_normalised: Normalised | None = Field(
        None,
        description="value of the padding as the model sees it, after the node's mean and std: one "
        "number, or one per channel; default: 0, unless there is pad_value",
    )
    mean: Numbers | None = Field(None, description="the mean that the engine subtracts")
    std: Numbers | None = Field(None, description="the std by which the engine divides")

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if self.pad_value is not None and self.pad_normalised is not None:
            raise ValueError(
                "pad_value (in the units of data) and pad_normalised (after mean and std) are two "
                "ways to say one thing: keep one of them"
            )
        counts = {len(each) for each in (self.pad_normalised, self.mean, self.std) if each} - {1}
        if len(counts) > 1 and self.pad_value is None:
            raise ValueError(
                "pad_normalised, mean and std must have one number each, or one per channel: found "
                f"{' and '.join(map(str, sorted(counts)))} numbers"
            )
        return self


class Padding:
    """The value of a padding, in the units of the data."""

    __slots__ = ("_backend", "_exact", "_values")

    def __init__(self, params: PadToParams, backend: str) -> None:
        self._backend = backend
        self._exact = params.pad_value is None
        if params.pad_value is not None:
            self._values = np.array(params.pad_value)
            return
        mean, std = params.mean or (0.0,), params.std or (1.0,)
        values = [params.pad_normalised or (0.0,), std, mean]
        count = max(map(len, values))
        normalised, factor, shift = (
            np.array(each if len(each) == count else each * count) for each in values
        )
        # The engines subtract the mean in float32: padding by 0 is exactly 0 then.
        self._values = (normalised * factor + shift).astype(np.float32)

    def pad(
        self, array: NDArray[Any], shape: Sequence[int], channel_axes: Sequence[int]
    ) -> NDArray[Any]:
        """Return a new array of this shape: `array`, and padding behind it on each axis.

        Values per channel are along the first of `channel_axes` that has as many. The result has
        the dtype of `array`, or float32 if that is of whole numbers and the padding is none. Raises
        InvalidInput if there are other numbers of values and channels.
        """
        values, count = self._values, len(self._values)
        if count > 1:
            axis = next((axis for axis in channel_axes if shape[axis] == count), None)
            if axis is None:
                raise InvalidInput(
                    f"{self._backend}: the padding has {count} values (of pad_value, "
                    "pad_normalised, mean or std), but data of shape "
                    f"{shape_text(array.shape)} do not have as many channels"
                )
            values = values.reshape([count if axis == each else 1 for each in range(array.ndim)])
        dtype = array.dtype
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            rounded = np.clip(np.rint(values), limits.min, limits.max)
            if self._exact and not np.array_equal(rounded, values):
                dtype = np.dtype(np.float32)
            else:
                values = rounded
        result = empty_array(tuple(shape), dtype)
        inside = [slice(size) for size in array.shape]
        result[tuple(inside)] = array
        for axis, size in enumerate(array.shape):
            if size < shape[axis]:
                # Beside the array on this axis; whole on those that come after.
                behind = (*inside[:axis], slice(size, None))
                result[behind] = values if count > 1 else values[0]
        return result


class PadToMultipleMatParams(PadToParams):
    multiple: int = Field(
        32, ge=1, le=MAX_SIDE, description="height and width become multiples of this, in pixels"
    )


class PadToMultipleMat(ImageBackend):
    """An image padded below and at the right, so that both sides are multiples of `multiple`.

    Its pixels stay where they are, and so do boxes. `data`: H×W×C, uint8, uint16 or float32.
    `result`: of the same dtype, or float32 if the padding is 0 after `mean` and `std` of the node
    and that is no whole number before: the mean itself.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = PadToMultipleMatParams
    multiple: int
    padding: Padding

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: PadToMultipleMatParams, context: Context) -> None:
        self.multiple = params.multiple
        self.padding = Padding(params, "PadToMultipleMat")

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        height, width, channels = image.shape
        shape = multiple_of(height, self.multiple), multiple_of(width, self.multiple), channels
        return self.padding.pad(image, shape, channel_axes=[2])


class PadToWidestTensorParams(PadToParams):
    axis: int = Field(
        -1,
        description="the axis to pad, counted with the batch dimension: -1 is the last, the width "
        "of 1xCxHxW",
    )
    multiple: int = Field(1, ge=1, le=MAX_SIDE, description="the size becomes a multiple of this")
    least: int = Field(1, ge=1, le=MAX_SIDE, description="the smallest size")


class PadToWidestTensor(Backend):
    """Arrays padded at the end of one axis to the widest of their batch, so that they share a run.

    For models with an open width (text recognition) or length (sound), before the engine in one
    node. Which items share a batch is not decided here: the node's `max` and `batching_timeout` do.

    `data`: an array with the batch dimension first, as Mat2Tensor gives it, of numbers, from NumPy
    or from torch on any device. `result`: a NumPy array of the same dtype, or float32 if the
    padding is no whole number (see PadToMultipleMat). Only arrays that are equal on all other axes
    are padded to one size. Values per channel are along the second axis, or along the last if only
    that has as many.

    Raises InvalidInput for other data, and if there is no such axis.
    """

    parameters: ClassVar[type[Params] | None] = PadToWidestTensorParams
    takes = gives = "array"
    blocks = "its time grows with the arrays"
    params: PadToWidestTensorParams
    padding: Padding

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: PadToWidestTensorParams, context: Context) -> None:
        self.params = params
        self.padding = Padding(params, "PadToWidestTensor")

    def forward(self, batch: list[Item]) -> None:
        groups: dict[tuple[int, ...], list[tuple[Item, NDArray[Any], int]]] = {}
        for item in batch:
            try:
                array, axis = self._read(item["data"])
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
                continue
            others = (*array.shape[:axis], -1, *array.shape[axis + 1 :])
            groups.setdefault(others, []).append((item, array, axis))
        for members in groups.values():
            widest = max(array.shape[axis] for _, array, axis in members)
            size = multiple_of(max(widest, self.params.least), self.params.multiple)
            for item, array, axis in members:
                shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
                channel_axes = [each for each in (1, array.ndim - 1) if each != axis]
                try:
                    item["result"] = self.padding.pad(array, shape, channel_axes)
                except InvalidInput as error:
                    if len(batch) == 1:
                        raise
                    item["error"] = error

    def _read(self, data: Any) -> tuple[NDArray[Any], int]:
        """Return an array, and the axis to pad, counted from 0."""
        if not hasattr(data, "__array__"):
            raise InvalidInput(f"PadToWidestTensor: expected an array, found {type(data).__name__}")
        array = to_numpy(data)
        axis = self.params.axis + (array.ndim if self.params.axis < 0 else 0)
        if array.dtype.kind not in "fiu" or not 1 <= axis < array.ndim:
            raise InvalidInput(
                "PadToWidestTensor: expected numbers with the batch dimension first and an axis "
                f"{self.params.axis} behind it, found {array.dtype} of shape "
                f"{shape_text(array.shape)}"
            )
        return array, axis


def multiple_of(size: int, multiple: int) -> int:
    """Return the next multiple that is at least `size`."""
    return -(-size // multiple) * multiple
