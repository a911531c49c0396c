"""Turn inputs as users give them into the tensors and texts that torch engines run.

They are copied only if they must be.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInput

Input: TypeAlias = torch.Tensor | list[str]

WIDE_INTEGERS = (torch.int32, torch.int64, torch.uint32, torch.uint64)
"""Integer dtypes whose large values lose digits in floating point."""


def as_texts(value: Any, label: str) -> list[str]:
    """Return an input of text as a list of str.

    It may be a str, bytes in UTF-8, a list of those, or an array of them. Raises InvalidInput.
    """
    texts = (
        value.reshape(-1).tolist()
        if isinstance(value, np.ndarray)
        else [value]
        if isinstance(value, str | bytes)
        else value
    )
    if not isinstance(texts, list | tuple) or not all(
        isinstance(text, str | bytes) for text in texts
    ):
        raise InvalidInput(f"{label}: expected a list of texts, found {kind_of(value)}")
    try:
        return [text if isinstance(text, str) else text.decode() for text in texts]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{label}: expected texts in UTF-8: {error}") from None


def as_tensor(value: Any, label: str) -> torch.Tensor:
    """Return a tensor, or an array of numbers as a tensor on its memory.

    Raises InvalidInput for anything else.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        # torch can't share arrays of another byte order or with negative strides, and it warns of
        # arrays that are not writable. All these are copied.
        if (
            not value.dtype.isnative
            or not value.flags.writeable
            or min(value.strides, default=0) < 0
        ):
            value = np.array(value, value.dtype.newbyteorder("="))
        with suppress(TypeError):  # torch lacks the dtype, such as long double
            return torch.from_numpy(value)
    raise InvalidInput(f"{label}: expected a tensor or an array of numbers, found {kind_of(value)}")


def kind_of(value: Any) -> str:
    """Say in a message what a value is."""
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def widens(dtype: torch.dtype, expected: torch.dtype) -> bool:
    """Return whether a dtype converts to another without loss.

    Doubles may become float32 all the same, because float64 is NumPy's default.
    """
    if dtype == expected or (dtype, expected) == (torch.float64, torch.float32):
        return True
    if dtype in WIDE_INTEGERS and expected.is_floating_point:
        return False
    try:
        return torch.promote_types(dtype, expected) == expected
    except RuntimeError:  # torch has no rule for some unsigned dtypes
        return False


def dtype_text(dtype: torch.dtype) -> str:
    """Write a dtype as NumPy does: `float32`."""
    return str(dtype).removeprefix("torch.")


def to_arrays(inputs: Sequence[Input]) -> list[NDArray[Any]]:
    """Return a row's inputs as arrays."""
    return [
        to_array(value) if isinstance(value, torch.Tensor) else np.array(value, object)
        for value in inputs
    ]


def to_inputs(row: Sequence[NDArray[Any]], like: Sequence[Input]) -> list[Input]:
    """Return the arrays of a row as inputs of the kinds and dtypes of `like`."""
    return [
        torch.from_numpy(part.copy()).to(given.dtype)
        if isinstance(given, torch.Tensor)
        else part.tolist()
        for part, given in zip(row, like, strict=True)
    ]


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array, bfloat16 (which NumPy lacks) and its like as float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array
