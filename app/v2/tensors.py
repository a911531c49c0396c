"""The protocol's datatypes, and tensors to and from its two encodings: little-endian bytes, and JSON.

BF16 is NumPy's float32 in here, which holds each of its values; on the wire it is a float32's upper half.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from penstock.backends.errors import BackendError, InvalidRequest

from ..render import to_json

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
        bounds = (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) if dtype.kind in "iu" else (0, 0)
        found[name] = Datatype(name, dtype, dtype.itemsize, dtype.kind, *bounds, in_place=name != "BOOL")
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


# from the wire


def check_size(size: int, datatype: Datatype, shape: Sequence[int], name: str, model: str) -> int:
    """The elements of a shape, which must be `size` bytes (BYTES: any). Raises `InvalidRequest`."""
    count = element_count(name, shape, datatype.size)
    if datatype.size and count * datatype.size != size:
        raise InvalidRequest(
            f"input byte size mismatch for input '{name}' for model '{model}'. Expected {count * datatype.size}, got {size}"
        )
    return count


def from_bytes(view: memoryview, datatype: Datatype, shape: Sequence[int], name: str, model: str) -> Array:
    """A tensor of all the bytes of `view`, in that memory itself where it is aligned. Raises `InvalidRequest`."""
    count = check_size(len(view), datatype, shape, name, model)
    if datatype.size == 0:
        return _strings(view, count, shape, name)
    if datatype.kind == "b":
        return _shaped(np.frombuffer(view, np.uint8) != 0, shape, name)  # a bool of another byte than 0 and 1 breaks NumPy
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
    return InvalidRequest(f"unexpected number of string elements for inference input '{name}', expecting {count}")


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
            raise InvalidRequest("Unable to parse 'data': Shape does not match true shape of 'data' field")
        flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise InvalidRequest("Unable to parse 'data': Shape does not match true shape of 'data' field")
    read = _READERS[datatype.kind]
    if count <= PART:
        return _shaped(read(flat, datatype, name), shape, name)
    return _shaped(np.concatenate([read(flat[start : start + PART], datatype, name) for start in range(0, count, PART)]), shape, name)


def _shaped(array: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):  # more dimensions than NumPy has; or no elements, and sizes that no memory holds
        raise InvalidRequest(f"shape {shape_text(shape)} of input '{name}' is beyond what an array can have") from None


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
    if array is None or narrow is None or (narrow is not array and np.isinf(narrow).sum() != np.isinf(array).sum()):
        raise InvalidRequest(f"Unable to parse 'data': input '{name}' has a number beyond the range of {datatype.name}")
    return narrow


def _read_strings(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {str}, datatype, name)
    array = np.empty(len(flat), np.object_)
    try:
        array[:] = [text.encode() for text in flat]
    except UnicodeEncodeError:
        raise InvalidRequest(f"Unable to parse 'data': a string of input '{name}' is no Unicode") from None
    return array


_READERS: dict[str, Callable[[list[Any], Datatype, str], Array]] = {
    "b": _read_bools, "i": _read_integers, "u": _read_integers, "f": _read_floats, "s": _read_strings,
}  # fmt: skip


# to the wire


def as_tensor(value: Any, wanted: Datatype | None, name: str) -> tuple[Datatype, Array]:
    """What a pipeline answered, as a tensor: arrays, numbers, texts, bytes, lists of them; anything else as its JSON text.

    `wanted`: the datatype that the output is declared to have. Raises `BackendError` for values that it can't hold.
    """
    if type(value) is np.ndarray and wanted is not None and value.dtype == wanted.dtype and value.ndim and wanted.size:
        return wanted, value
    found, array = _tensor_of(value, name)
    if wanted is None or found is wanted:
        return found, array
    if not wanted.size:
        return wanted, _objects([_json_text(value)])
    if found.size and np.can_cast(array.dtype, wanted.dtype, "same_kind"):
        with np.errstate(over="ignore"):
            narrow = array.astype(wanted.dtype)
        if wanted.kind == "f" or (narrow == array).all():
            return wanted, narrow
    raise BackendError(f"output '{name}' is {found.name}, and declared to be {wanted.name}, which can't hold it")


def _tensor_of(value: Any, name: str) -> tuple[Datatype, Array]:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return DATATYPES["BYTES"], _objects([value])
    if hasattr(value, "detach"):  # torch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            return DATATYPES["BF16"], np.atleast_1d(value.float().numpy())
        value = value.numpy()
    elif isinstance(value, (list, tuple)) and not all(isinstance(each, (str, bytes)) for each in value):
        try:
            value = np.asarray(value)
        except ValueError:  # lists of several lengths
            return DATATYPES["BYTES"], _objects([_json_text(value)])
        if value.dtype.kind not in "biuf":
            return DATATYPES["BYTES"], _objects([_json_text(value.tolist())])
    elif isinstance(value, (list, tuple)):
        return DATATYPES["BYTES"], _objects(value)
    elif not isinstance(value, (bool, int, float)) and not hasattr(value, "__array__"):
        return DATATYPES["BYTES"], _objects([_json_text(value)])
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return DATATYPES["BF16"], array.astype(np.float32)
    if array.dtype.kind in "USOT":
        return DATATYPES["BYTES"], array.astype(np.object_)
    datatype = _BY_DTYPE.get(array.dtype.name)
    if datatype is None:
        raise BackendError(f"output '{name}' has dtype {array.dtype}, which the protocol has not")
    return datatype, array


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def to_bytes(datatype: Datatype, array: Array) -> Any:
    """The tensor's bytes: an array whose memory they are, or `bytes`."""
    if datatype.size == 0:
        return b"".join([_with_lengths(part) for part in _parts(array.reshape(-1))])
    if datatype.name == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        halves = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
        return np.where(np.isnan(array), (bits >> 16) | 0x40, halves).astype("<u2")  # rounding could make an infinity of a NaN
    return np.ascontiguousarray(array, datatype.dtype)


def _parts(flat: Array) -> Iterator[Array]:
    return (flat[start : start + PART] for start in range(0, flat.size, PART))


def _with_lengths(values: Array) -> bytes:
    pieces: list[bytes] = []
    for each in values:
        text = _encoded(each)
        pieces += (len(text).to_bytes(4, "little"), text)
    return b"".join(pieces)


def _encoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return _json_text(value).encode("utf-8", "surrogateescape")


_NAMES = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def to_flat_json(datatype: Datatype, array: Array, name: str) -> orjson.Fragment:
    """The tensor's elements as one flat JSON list, with bare NaN and Infinity. Raises `InvalidRequest` for bytes that are no text."""
    if datatype.size == 0:
        try:
            return orjson.Fragment(orjson.dumps([_encoded(each).decode() for each in array.reshape(-1)]))
        except UnicodeDecodeError:
            raise InvalidRequest(f"output '{name}' holds bytes that are no UTF-8: ask for binary data") from None
    flat = np.ascontiguousarray(array, datatype.dtype.newbyteorder("=")).reshape(-1)
    named = datatype.kind == "f" and not np.isfinite(flat).all()
    if flat.size <= PART and not named:
        return orjson.Fragment(orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY))
    return orjson.Fragment(b"[" + b",".join([_elements(part, named) for part in _parts(flat)]) + b"]")


def _elements(numbers: Array, named: bool) -> bytes:
    """JSON's elements, without brackets. `named`: there may be floats that are not finite, for which orjson writes null."""
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    if not named:
        return text
    if not np.isinf(numbers).any():
        return text.replace(b"null", b"NaN")
    names = [_NAMES[str(each)] for each in numbers[~np.isfinite(numbers)].tolist()]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*names, b""], strict=True)))
