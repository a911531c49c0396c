"""Tensors from the protocol's two encodings: little-endian bytes, and JSON.

`encoding.py` writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np

from ..http.inputs.datatypes import Array, Datatype, flat_array
from ..http.json_text import UINT64_MAX

COPY_OFF_LOOP_BYTES = 1 << 24
"""Allocating and copying this much takes milliseconds, so it does not happen on the event loop."""

SHOWN_DIMENSIONS = 32
"""The most dimensions of a shape that an error shows; an array has 64 at most."""


def element_count(name: str, shape: Sequence[int], size: int) -> int:
    """Count the elements of input `name` with this shape, of `size` bytes each.

    Raises `InvalidRequest` if a uint64 can't count the elements or their bytes.
    """
    count = 1
    for dimension in shape:
        count *= dimension
        if count > UINT64_MAX:
            raise InvalidRequest(
                f"shape {shape_text(shape)} of input '{name}' causes total element count to exceed "
                f"maximum size of {UINT64_MAX}"
            )
    if count * size > UINT64_MAX:
        raise InvalidRequest(f"byte size overflow for input '{name}'")
    return count


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape for an error; of a shape with many dimensions, the first of them."""
    shown = ",".join(map(str, shape[:SHOWN_DIMENSIONS]))
    return f"[{shown}{',…' if len(shape) > SHOWN_DIMENSIONS else ''}]"


def check_size(size: int, datatype: Datatype, shape: Sequence[int], name: str, model: str) -> int:
    """Count the elements of an input that takes `size` bytes.

    Raises `InvalidRequest` if the shape takes another number of bytes; BYTES may take any number.
    """
    count = element_count(name, shape, datatype.size)
    if datatype.size and count * datatype.size != size:
        raise InvalidRequest(
            f"input byte size mismatch for input '{name}' for model '{model}'. "
            f"Expected {count * datatype.size}, got {size}"
        )
    return count


STRING_BYTES = 72
"""The bytes that a short string takes, and its place in an array of objects."""


def copied_bytes(
    datatype: Datatype, size: int, shape: Sequence[int], cast: np.dtype[Any] | None, start: int = 0
) -> int:
    """Return the most memory that making a tensor of `size` bytes takes besides these bytes.

    They begin `start` bytes after an aligned address. `cast` is the dtype that pixels become.
    """
    if not datatype.size:  # the strings
        return size + STRING_BYTES * min(prod(shape), size // 4)
    if datatype.name == "BF16":
        return 6 * size
    copied = 0 if datatype.in_place and start % datatype.size == 0 else size
    return copied if cast is None or datatype.name != "UINT8" else copied + size * cast.itemsize


def from_bytes(
    view: memoryview, datatype: Datatype, shape: Sequence[int], name: str, model: str
) -> Array:
    """Make a tensor of all the bytes of `view`.

    The tensor uses the memory of `view` itself if that is aligned and the datatype allows it.
    Raises `InvalidRequest` for a wrong size and for a shape that no array can have.
    """
    count = check_size(len(view), datatype, shape, name, model)
    if datatype.size == 0:
        return _strings(view, count, shape, name)
    if datatype.kind == "b":
        # A bool stored as a byte other than 0 and 1 breaks NumPy.
        return _shaped(np.frombuffer(view, np.uint8) != 0, shape, name)
    if datatype.name == "BF16":
        halves = np.frombuffer(view, np.dtype("<u2")).astype(np.uint32)
        return _shaped((halves << 16).view(np.float32), shape, name)
    try:
        array: Array = np.ndarray(shape, datatype.dtype, view)
    except (ValueError, OverflowError):
        raise _impossible(shape, name) from None
    if array.flags.aligned:
        return array
    return _shaped(np.frombuffer(view, datatype.dtype).copy(), shape, name)


_unpack_length = struct.Struct("<I").unpack_from


def _strings(view: memoryview, count: int, shape: Sequence[int], name: str) -> Array:
    if count * 4 > len(view):
        raise _wrong_strings(name, count)
    array = np.empty(count, np.object_)
    position, end = 0, len(view)
    for index in range(count):
        start = position + 4
        if start > end:
            raise _wrong_strings(name, count)
        position = start + _unpack_length(view, position)[0]
        if position > end:
            raise _wrong_strings(name, count)
        array[index] = bytes(view[start:position])
    if position != end:
        raise _wrong_strings(name, count)
    return _shaped(array, shape, name)


def _wrong_strings(name: str, count: int) -> InvalidRequest:
    return InvalidRequest(
        f"unexpected number of string elements for inference input '{name}', expecting {count}"
    )


def from_json(data: Any, datatype: Datatype, shape: Sequence[int], name: str) -> Array:
    """Make a tensor of JSON's nested or flat lists.

    Raises `InvalidRequest` for data that does not have this datatype and shape.
    """
    if datatype.kind == "f" and datatype.size == 2:
        raise InvalidRequest(
            f"receiving {datatype.name} data via JSON is not supported. "
            f"Please use the binary data format for input '{name}'"
        )
    if type(data) is not list:
        raise InvalidRequest(f"Unable to parse 'data': expected an array for input '{name}'")
    count = element_count(name, shape, datatype.size)
    flat: list[Any] = data
    while flat and type(flat[0]) is list:
        if not all(type(member) is list for member in flat):
            raise _wrong_data_shape()
        flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise _wrong_data_shape()
    try:
        array = flat_array(flat, datatype, name)
    except ValueError as error:
        raise InvalidRequest(f"Unable to parse 'data': {error}") from None
    return _shaped(array, shape, name)


def _wrong_data_shape() -> InvalidRequest:
    return InvalidRequest("Unable to parse 'data': Shape does not match true shape of 'data' field")


def _shaped(array: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise _impossible(shape, name) from None


def _impossible(shape: Sequence[int], name: str) -> InvalidRequest:
    """Return the error for a shape that passed the check of its size and yet fits no array.

    It has more dimensions than NumPy allows, or it has no elements and other sizes that no memory
    could hold.
    """
    return InvalidRequest(
        f"shape {shape_text(shape)} of input '{name}' is beyond what an array can have"
    )
