"""The protocol's datatypes, and tensors from its two encodings: little-endian bytes, and JSON. `encoding.py` has the way back.

BF16 is NumPy's float32 in here, which holds each of its values; on the wire it is a float32's upper half.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.backends.errors import InvalidRequest

Array = NDArray[Any]

LARGEST = 2**64 - 1
"""Elements, bytes: what a uint64 counts."""

PART = 1 << 16
"""Elements that are converted at once; in between the interpreter is free for others."""

HUGE = 1 << 24
"""Bytes that take milliseconds to be copied, and to be given memory: not on the event loop."""

SHOWN = 32
"""Dimensions of a shape that an error tells; arrays have 64 at most."""


class Datatype(NamedTuple):
    """`size`: bytes of an element on the wire; 0 for BYTES, which are as long as they are. `kind`: NumPy's letter, `s` for BYTES."""

    name: str
    dtype: np.dtype[Any]
    size: int
    kind: str
    low: int = 0
    high: int = 0
    """Least and largest, of integers."""
    in_place: bool = True
    """Arrays hold its elements as they are on the wire, whatever these are."""


def _datatypes() -> dict[str, Datatype]:
    plain = {
        "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8", "INT16": "int16",
        "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    }  # fmt: skip
    found = {}
    for name, numpy_name in plain.items():
        dtype = np.dtype(numpy_name).newbyteorder("<")
        bounds = (
            (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) if dtype.kind in "iu" else (0, 0)
        )
        found[name] = Datatype(
            name, dtype, dtype.itemsize, dtype.kind, *bounds, in_place=name != "BOOL"
        )
    found["BF16"] = Datatype("BF16", np.dtype("<f4"), 2, "f", in_place=False)
    found["BYTES"] = Datatype("BYTES", np.dtype(np.object_), 0, "s", in_place=False)
    return found


DATATYPES = _datatypes()

_BY_DTYPE = {each.dtype.name: each for each in DATATYPES.values() if each.size and each.name != "BF16"} | {
    "bfloat16": DATATYPES["BF16"], "object": DATATYPES["BYTES"], "string": DATATYPES["BYTES"], "str": DATATYPES["BYTES"],
}  # fmt: skip


def datatype_of(name: str) -> Datatype | None:
    """By its name in the protocol or NumPy's (as a pipeline's file may write it); None for one that the protocol has not."""
    return DATATYPES.get(name) or _BY_DTYPE.get(name)


def element_count(name: str, shape: Sequence[int], size: int) -> int:
    """Of a shape. Raises `InvalidRequest` for one whose elements or bytes no uint64 counts."""
    count = 1
    for each in shape:
        count *= each
        if count > LARGEST:
            raise InvalidRequest(
                f"shape {shape_text(shape)} of input '{name}' causes total element count to exceed maximum size of {LARGEST}"
            )
    if count * size > LARGEST:
        raise InvalidRequest(f"byte size overflow for input '{name}'")
    return count


def shape_text(shape: Sequence[int]) -> str:
    """As errors tell it; of many dimensions the first."""
    return f"[{','.join(map(str, shape[:SHOWN]))}{',…' if len(shape) > SHOWN else ''}]"


def check_size(size: int, datatype: Datatype, shape: Sequence[int], name: str, model: str) -> int:
    """The elements of a shape, which must be `size` bytes (BYTES: any). Raises `InvalidRequest`."""
    count = element_count(name, shape, datatype.size)
    if datatype.size and count * datatype.size != size:
        raise InvalidRequest(
            f"input byte size mismatch for input '{name}' for model '{model}'. Expected {count * datatype.size}, got {size}"
        )
    return count


def from_bytes(
    view: memoryview, datatype: Datatype, shape: Sequence[int], name: str, model: str
) -> Array:
    """A tensor of all the bytes of `view`, in that memory itself where it is aligned. Raises `InvalidRequest`."""
    count = check_size(len(view), datatype, shape, name, model)
    if datatype.size == 0:
        return _strings(view, count, shape, name)
    if datatype.kind == "b":
        return _shaped(
            np.frombuffer(view, np.uint8) != 0, shape, name
        )  # a bool of another byte than 0 and 1 breaks NumPy
    if datatype.name == "BF16":
        halves = np.frombuffer(view, np.dtype("<u2")).astype(np.uint32)
        return _shaped((halves << 16).view(np.float32), shape, name)
    array = np.frombuffer(view, datatype.dtype)
    if not array.flags.aligned:
        array = array.copy()
    return _shaped(array, shape, name)


_LENGTH = struct.Struct("<I").unpack_from


def _strings(view: memoryview, count: int, shape: Sequence[int], name: str) -> Array:
    if count * 4 > len(view):
        raise _wrong_strings(name, count)
    array = np.empty(count, np.object_)
    position, end = 0, len(view)
    for index in range(count):
        start = position + 4
        if start > end:
            raise _wrong_strings(name, count)
        position = start + _LENGTH(view, position)[0]
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
    """A tensor from JSON's nested or flat lists. Raises `InvalidRequest`."""
    if datatype.kind == "f" and datatype.size == 2:
        raise InvalidRequest(
            f"receiving {datatype.name} data via JSON is not supported. Please use the binary data format for input '{name}'"
        )
    if type(data) is not list:
        raise InvalidRequest(f"Unable to parse 'data': expected an array for input '{name}'")
    count = element_count(name, shape, datatype.size)
    flat: list[Any] = data
    while flat and type(flat[0]) is list:
        if not all(type(each) is list for each in flat):
            raise InvalidRequest(
                "Unable to parse 'data': Shape does not match true shape of 'data' field"
            )
        flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise InvalidRequest(
            "Unable to parse 'data': Shape does not match true shape of 'data' field"
        )
    read = _READERS[datatype.kind]
    if count <= PART:
        return _shaped(read(flat, datatype, name), shape, name)
    return _shaped(
        np.concatenate(
            [read(flat[start : start + PART], datatype, name) for start in range(0, count, PART)]
        ),
        shape,
        name,
    )


def _shaped(array: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return array.reshape(shape)
    except (
        ValueError,
        OverflowError,
    ):  # more dimensions than NumPy has; or no elements, and sizes that no memory holds
        raise InvalidRequest(
            f"shape {shape_text(shape)} of input '{name}' is beyond what an array can have"
        ) from None


def _check_types(flat: list[Any], allowed: set[type], datatype: Datatype, name: str) -> None:
    wrong = set(map(type, flat)) - allowed
    if wrong:
        raise InvalidRequest(
            f"Unable to parse 'data': input '{name}' has datatype {datatype.name}, and its data holds a {wrong.pop().__name__}"
        )


def _read_bools(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {bool}, datatype, name)
    return np.array(flat, np.bool_)


def _read_integers(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {int}, datatype, name)
    if flat and not (datatype.low <= min(flat) and max(flat) <= datatype.high):
        wrong = min(flat) if min(flat) < datatype.low else max(flat)
        raise InvalidRequest(
            f"Unable to parse 'data': input '{name}' has datatype {datatype.name}, whose values are {datatype.low} to {datatype.high}, "
            f"and its data holds {str(wrong)[:40]}"
        )
    return np.array(flat, datatype.dtype)


def _read_floats(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {int, float}, datatype, name)
    try:
        array = np.array(flat, np.float64)
    except OverflowError:
        array = None
    with np.errstate(over="ignore"):
        narrow = array if array is None or datatype.size == 8 else array.astype(datatype.dtype)
    if (
        array is None
        or narrow is None
        or (narrow is not array and np.isinf(narrow).sum() != np.isinf(array).sum())
    ):
        raise InvalidRequest(
            f"Unable to parse 'data': input '{name}' has a number beyond the range of {datatype.name}"
        )
    return narrow


def _read_strings(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {str}, datatype, name)
    array = np.empty(len(flat), np.object_)
    try:
        array[:] = [text.encode() for text in flat]
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"Unable to parse 'data': a string of input '{name}' is no Unicode"
        ) from None
    return array


_READERS: dict[str, Callable[[list[Any], Datatype, str], Array]] = {
    "b": _read_bools, "i": _read_integers, "u": _read_integers, "f": _read_floats, "s": _read_strings,
}  # fmt: skip
