"""The datatypes of tensors, and arrays of them from flat lists of JSON's values.

They have the Open Inference Protocol's names. BF16 tensors are NumPy's float32 in here, which can
hold each of their values; on the wire an element is the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from penstock.backends.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

CONVERTED_AT_ONCE_ELEMENTS = 1 << 16
"""Tensors are converted in pieces of this size; other threads may run between two pieces."""


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
DATATYPES: dict[str, Datatype] = {
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


def flat_array(values: list[Any], datatype: Datatype, name: str) -> Array:
    """Make an array of one dimension of a flat list of JSON's values, for input `name`.

    Raises ValueError for a value that this datatype can't hold.
    """
    read = _READERS[datatype.kind]
    step = CONVERTED_AT_ONCE_ELEMENTS
    if len(values) <= step:
        return read(values, datatype, name)
    return np.concatenate(
        [
            read(values[start : start + step], datatype, name)
            for start in range(0, len(values), step)
        ]
    )


def _check_types(flat: list[Any], allowed: set[type], datatype: Datatype, name: str) -> None:
    wrong = set(map(type, flat)) - allowed
    if wrong:
        raise ValueError(
            f"input '{name}' has datatype {datatype.name}, "
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
        raise ValueError(
            f"input '{name}' has datatype {datatype.name}, whose values "
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


def _out_of_range(datatype: Datatype, name: str) -> ValueError:
    return ValueError(f"input '{name}' has a number beyond the range of {datatype.name}")


def _read_strings(flat: list[Any], datatype: Datatype, name: str) -> Array:
    _check_types(flat, {str}, datatype, name)
    array = np.empty(len(flat), np.object_)
    try:
        array[:] = [text.encode() for text in flat]
    except UnicodeEncodeError:
        raise ValueError(f"a string of input '{name}' is not valid Unicode") from None
    return array


_READERS: dict[str, Callable[[list[Any], Datatype, str], Array]] = {
    "b": _read_bools,
    "i": _read_integers,
    "u": _read_integers,
    "f": _read_floats,
    "s": _read_strings,
}
