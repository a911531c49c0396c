"""Inputs as users give them, as what torch engines run: tensors and texts, without a copy where there need be none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ...errors import InvalidInput

WHOLE = (torch.int32, torch.int64, torch.uint32, torch.uint64)
"""Whole numbers that floating point loses digits of."""


def as_texts(value: Any, label: str) -> list[str]:
    """An input of text: a list of str, or an array of such. Raises InvalidInput."""
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
        raise InvalidInput(f"{label}: expected a list of texts, got {kind_of(value)}")
    try:
        return [text if isinstance(text, str) else text.decode() for text in texts]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{label}: expected texts in UTF-8: {error}") from None


def as_tensor(value: Any, label: str) -> torch.Tensor:
    """The value as a tensor, without a copy. Raises InvalidInput for what is none."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        # Arrays that can't be shared with torch are copied: other byte order, negative strides, not writable (torch would warn).
        if (
            not value.dtype.isnative
            or any(stride < 0 for stride in value.strides)
            or not value.flags.writeable
        ):
            value = np.array(value, value.dtype.newbyteorder("="))
        with suppress(TypeError):  # torch has no such dtype, as for long doubles
            return torch.from_numpy(value)
    raise InvalidInput(f"{label}: expected a tensor or an array of numbers, got {kind_of(value)}")


def kind_of(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def widens(found: torch.dtype, expected: torch.dtype) -> bool:
    """Whether a dtype can stand for another without loss. Doubles may become float32: NumPy makes them wherever nobody says otherwise."""
    if found == expected or (found, expected) == (torch.float64, torch.float32):
        return True
    if found in WHOLE and expected.is_floating_point:
        return False
    try:
        return torch.promote_types(found, expected) == expected
    except RuntimeError:  # torch has no rule for some of the unsigned
        return False


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def indices(text: str | None) -> list[int] | None:
    """`"1,0"` as [1, 0]; None where it is not given, or no order."""
    found = [int(part) if part.strip().isdecimal() else -1 for part in (text or "").split(",")]
    return found if sorted(found) == list(range(len(found))) else None


def shapes_in(text: str | None) -> list[tuple[int, ...]]:
    """The shapes in `max` (last profile), by input; a bare batch size is a shape of one number."""
    if text is None:
        return []
    return [
        tuple(int(size) for size in shape.split("x")) for shape in text.split(";")[-1].split(",")
    ]
