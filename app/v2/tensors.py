"""The protocol's datatypes, and tensors from its two encodings: little-endian bytes, and JSON.

`encoding.py` writes them. BF16 tensors are NumPy's float32 in here, which can hold each of their
values; on the wire an element is the upper half of a float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np

from ..http.json_text import UINT64_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

CONVERTED_AT_ONCE_ELEMENTS = 1 << 16
"""Tensors are converted in pieces of this size; other threads may run between two pieces."""

COPY_OFF_LOOP_BYTES = 1 << 24
"""Allocating and copying this much takes milliseconds, so it does not happen on the event loop."""

SHOWN_DIMENSIONS = 32
"""The most dimensions of a shape that an error shows; an array has 64 at most."""


@dataclass(frozen=True, eq=False)
class Datatype:
    """A datatype of the protocol.

    `size` is the bytes of an element on the wire; 0 for BYTES, whose elements carry their lengths.
    `kind` is NumPy's letter for the dtype's kind, or `s` for BYTES. `low` and `high` bound an
    integer. `in_place` says that an array holds the elements just as they are on the wire.
    """

    name: str
    dtype_name: str
    size: int
    kind: str
    low: int = 0
    high: int = 0
    in_place: bool = True

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the arrays, little-endian."""
        return np.dtype(self.dtype_name).newbyteorder("<")


def _integers(bits: int) -> tuple[Datatype, Datatype]:
    """Return the datatypes of signed and unsigned integers of so many bits."""
    size, half = bits // 8, 1 << (bits - 1)
    return (
        Datatype(f"INT{bits}", f"int{bits}", size, "i", -half, half - 1),
        Datatype(f"UINT{bits}", f"uint{bits}", size, "u", 0, 2 * half - 1),
    )


_SIGNED, _UNSIGNED = zip(*map(_integers, (8, 16, 32, 64)), strict=True)
DATATYPES = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", "bool", 1, "b", in_place=False),
        *_UNSIGNED,
        *_SIGNED,
        Datatype("FP16", "float16", 2, "f"),
        Datatype("FP32", "float32", 4, "f"),
        Datatype("FP64", "float64", 8, "f"),
        Datatype("BF16", "float32", 2, "f", in_place=False),
        Datatype("BYTES", "object", 0, "s", in_place=False),
    )
}

_BY_DTYPE = {
    **{
        datatype.dtype_name: datatype
        for datatype in DATATYPES.values()
        if datatype.name not in {"BF16", "BYTES"}
    },
    "bfloat16": DATATYPES["BF16"],
    "object": DATATYPES["BYTES"],
    "string": DATATYPES["BYTES"],
    "str": DATATYPES["BYTES"],
}


def datatype_of(name: str) -> Datatype | None:
    """Look up a datatype by its name in the protocol, or by NumPy's as in a pipeline's file.

    Returns None for a dtype that the protocol does not have.
    """
    return DATATYPES.get(name) or _BY_DTYPE.get(name)


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
    read = _READERS[datatype.kind]
    step = CONVERTED_AT_ONCE_ELEMENTS
    if count <= step:
        return _shaped(read(flat, datatype, name), shape, name)
    pieces = [read(flat[start : start + step], datatype, name) for start in range(0, count, step)]
    return _shaped(np.concatenate(pieces), shape, name)


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


def _check_types(flat: list[Any], allowed: set[type], datatype: Datatype, name: str) -> None:
    wrong = set(map(type, flat)) - allowed
    if wrong:
        raise InvalidRequest(
            f"Unable to parse 'data': input '{name}' has datatype {datatype.name}, "
            f"and its data holds a {wrong.pop().__name__}"
        )


def _read_bools(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {bool}, datatype, name)
    return np.array(flat, np.bool_)


def _read_integers(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {int}, datatype, name)
    try:
        return np.array(flat, datatype.dtype)
    except OverflowError:
        wrong = min(flat) if min(flat) < datatype.low else max(flat)
        raise InvalidRequest(
            f"Unable to parse 'data': input '{name}' has datatype {datatype.name}, whose values "
            f"are {datatype.low} to {datatype.high}, and its data holds {str(wrong)[:40]}"
        ) from None


def _read_floats(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {int, float}, datatype, name)
    try:
        array = np.array(flat, np.float64)
    except OverflowError:
        raise _out_of_range(datatype, name) from None
    if datatype.size == 8:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(datatype.dtype)
    if np.isinf(narrow).sum() != np.isinf(array).sum():
        raise _out_of_range(datatype, name)
    return narrow


def _out_of_range(datatype: Datatype, name: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unable to parse 'data': input '{name}' has a number beyond the range of {datatype.name}"
    )


def _read_strings(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {str}, datatype, name)
    array = np.empty(len(flat), np.object_)
    try:
        array[:] = [text.encode() for text in flat]
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"Unable to parse 'data': a string of input '{name}' is not valid Unicode"
        ) from None
    return array


_READERS: dict[str, Callable[[list[Any], Datatype, str], Array]] = {
    "b": _read_bools,
    "i": _read_integers,
    "u": _read_integers,
    "f": _read_floats,
    "s": _read_strings,
}
