"""Large arrays, counted in the budget of all requests until the last view of them is gone."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .errors import MemoryFull
from .lazy_numpy import np
from .memory import Reservation, budget

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

UNCOUNTED_BYTES = 1 << 16
"""Arrays up to this size are not counted: that would take longer than to fill them."""


def empty_array(shape: tuple[int, ...], dtype: DTypeLike, what: str = "an image") -> NDArray[Any]:
    """Return an array with arbitrary values; `what` says what it is.

    Raises `MemoryFull`, `TooLarge`.
    """
    memory = Reservation(budget)
    size = prod(shape) * np.dtype(dtype).itemsize
    if size > UNCOUNTED_BYTES:
        memory.resize(size, what)
    try:
        array = np.empty(shape, dtype)
    except MemoryError:
        raise no_memory(size, what) from None
    if size > UNCOUNTED_BYTES:
        memory.hand_over(array)
    return array


def counted(array: NDArray[Any], what: str = "an image") -> NDArray[Any]:
    """Return an array that a library has made, counted from now on.

    Raises `MemoryFull`, `TooLarge`.
    """
    owner = array if array.base is None else array.base
    if array.nbytes > UNCOUNTED_BYTES:
        budget.hold(owner, array.nbytes, what)
    return array


def no_memory(size: int, what: str = "an image") -> MemoryFull:
    """Return the error for an allocation that the operating system refused."""
    return MemoryFull(f"{what} needs {size} bytes, and the operating system gives no more memory")
