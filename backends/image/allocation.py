"""Memory for pixels, counted in the budget of all requests until the last view of them is gone."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import MemoryFull
from ..memory import Reservation, budget

UNCOUNTED_BYTES = 1 << 16
"""Arrays up to this size are not counted: that would take longer than to fill them."""


def empty_image(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array with arbitrary values. Raises `MemoryFull`, `TooLarge`."""
    memory = Reservation(budget)
    size = prod(shape) * np.dtype(dtype).itemsize
    if size > UNCOUNTED_BYTES:
        memory.resize(size, "an image")
    try:
        array = np.empty(shape, dtype)
    except MemoryError:
        raise no_memory(size) from None
    if size > UNCOUNTED_BYTES:
        memory.hand_over(array)
    return array


def counted(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that a library has made, counted from now on.

    Raises `MemoryFull`, `TooLarge`.
    """
    owner = array if array.base is None else array.base
    if array.nbytes > UNCOUNTED_BYTES:
        budget.hold(owner, array.nbytes, "an image")
    return array


def no_memory(size: int) -> MemoryFull:
    """Return the error for an allocation that the operating system refused."""
    return MemoryFull(f"an image needs {size} bytes, and the operating system gives no more memory")
