"""Answers as bytes, for a second level. Nothing in them is code, and nothing is taken on trust.

Each value is a letter for its type, then its length or its bytes. What is read is checked: lengths
against what is left, dtypes against a list, levels against a bound. So the worst that bytes from
elsewhere can do is to be a wrong answer of plain values. Numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from struct import Struct, error
from typing import Any

import numpy as np

from penstock.backends.item import Item

MAGIC = b"penstock answer 1\n"
"""The beginning of an answer. The number is the version of the format."""

MOST_LEVELS = 64
MOST_DIMENSIONS = 32
MOST_DIGITS = 4096

DTYPES = frozenset(
    np.dtype(name).str
    for name in (
        "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16",
    )
)  # fmt: skip
"""The dtypes of arrays, in the byte order of this machine and as `numpy.dtype.str` has them."""

_SIZE = Struct("<Q")
_INT = Struct("<q")
_FLOAT = Struct("<d")
_COMPLEX = Struct("<dd")
_INTS = np.dtype("<i8")
_FLOATS = np.dtype("<f8")


class UnencodableAnswerError(Exception):
    """Raised for an answer that has no such form."""


class MalformedAnswerError(Exception):
    """Raised for bytes that are not an answer."""


def encode(item: Item, own: Iterable[str]) -> bytes:
    """Write the final item of a request. `own`: the keys of which each caller has the value.

    Raises `UnencodableAnswerError`.
    """
    parts: list[Any] = [MAGIC]
    own = tuple(own)
    _write({"own": list(own)}, parts, 3)
    _write({key: value for key, value in item.items() if key not in own}, parts, MOST_LEVELS)
    return b"".join(parts)


def decode(content: bytes) -> tuple[Item, list[str]]:
    """Read what `encode` wrote: the values by key, and the caller's own keys.

    Arrays are read-only views of `content`. Raises `MalformedAnswerError`.
    """
    if not content.startswith(MAGIC):
        raise MalformedAnswerError("it does not begin as an answer does")
    reader = _Reader(content, len(MAGIC))
    try:
        head, values = reader.value(3), reader.value(MOST_LEVELS)
    except (error, UnicodeDecodeError, ValueError, OverflowError) as wrong:
        raise MalformedAnswerError(f"{type(wrong).__name__}: {wrong}") from None
    if reader.at != len(content):
        raise MalformedAnswerError("there is more after its end")
    own = head.get("own") if type(head) is dict else None
    if (
        type(own) is not list
        or type(values) is not dict
        or not all(type(key) is str for key in (*own, *values))
        or "error" in values
        or "data" not in own
    ):
        raise MalformedAnswerError("it is not an item")
    return values, own


def _write(value: Any, parts: list[Any], levels: int) -> None:
    kind = type(value)
    if not levels:
        raise UnencodableAnswerError("it nests too deep")
    if value is None or kind is bool:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif kind is int:
        if -(1 << 63) <= value < 1 << 63:
            parts += (b"I", _INT.pack(value))
        else:
            digits = b"%d" % value if value.bit_length() < 3 * MOST_DIGITS else b""
            if not digits:
                raise UnencodableAnswerError("it has a number of thousands of digits")
            parts += (b"J", _SIZE.pack(len(digits)), digits)
    elif kind is float:
        parts += (b"D", _FLOAT.pack(value))
    elif kind is complex:
        parts += (b"C", _COMPLEX.pack(value.real, value.imag))
    elif kind is str:
        text = value.encode("utf-8", "surrogatepass")
        parts += (b"S", _SIZE.pack(len(text)), text)
    elif kind is bytes or kind is bytearray:
        parts += (b"B" if kind is bytes else b"Y", _SIZE.pack(len(value)), value)
    elif kind is list or kind is tuple:
        parts.append(b"L" if kind is list else b"U")
        _write_members(value, parts, levels)
    elif kind is dict:
        parts += (b"M", _SIZE.pack(len(value)))
        for key, member in value.items():
            _write(key, parts, levels - 1)
            _write(member, parts, levels - 1)
    elif (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.str in DTYPES:
        name = value.dtype.str.encode()
        parts += (
            b"A" if kind is np.ndarray else b"G",
            b"%c%b%c" % (len(name), name, value.ndim),
            *map(_SIZE.pack, value.shape),
            np.ascontiguousarray(value).tobytes(),
        )
    elif kind is np.ndarray and value.dtype.kind == "O":  # texts, as below /v2
        parts += (b"X", b"%c" % value.ndim, *map(_SIZE.pack, value.shape))
        _write_members(value.reshape(-1).tolist(), parts, levels)
    else:
        raise UnencodableAnswerError(f"it has a {kind.__module__}.{kind.__qualname__}")


def _write_members(members: list[Any] | tuple[Any, ...], parts: list[Any], levels: int) -> None:
    kinds = set(map(type, members))
    packed = b""
    if kinds == {float}:
        packed = b"d" + _SIZE.pack(len(members)) + np.array(members, _FLOATS).tobytes()
    elif kinds == {int} and min(members) >= -(1 << 63) and max(members) < 1 << 63:
        packed = b"q" + _SIZE.pack(len(members)) + np.array(members, _INTS).tobytes()
    if packed:
        parts.append(packed)
        return
    parts += (b"*", _SIZE.pack(len(members)))
    for member in members:
        _write(member, parts, levels - 1)


class _Reader:
    """Reads values from `at` on."""

    __slots__ = ("_content", "at")

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self.at = at

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._content):
            raise MalformedAnswerError("it ends too early")
        taken = self._content[self.at : end]
        self.at = end
        return taken

    def _size(self, least: int = 1) -> int:
        """Read a number of things of `least` bytes each, which must all be there."""
        size: int = _SIZE.unpack(self._take(8))[0]
        if size * least > len(self._content) - self.at:
            raise MalformedAnswerError("it ends too early")
        return size

    def value(self, levels: int) -> Any:
        if not levels:
            raise MalformedAnswerError("it nests too deep")
        match self._take(1):
            case b"N":
                return None
            case b"T":
                return True
            case b"F":
                return False
            case b"I":
                return _INT.unpack(self._take(8))[0]
            case b"J":
                digits = self._take(self._size())
                if len(digits) > MOST_DIGITS or not digits.removeprefix(b"-").isdigit():
                    raise MalformedAnswerError("it has a number that is none")
                return int(digits)
            case b"D":
                return _FLOAT.unpack(self._take(8))[0]
            case b"C":
                return complex(*_COMPLEX.unpack(self._take(16)))
            case b"S":
                return self._take(self._size()).decode("utf-8", "surrogatepass")
            case b"B":
                return self._take(self._size())
            case b"Y":
                return bytearray(self._take(self._size()))
            case b"L":
                return self._members(levels)
            case b"U":
                return tuple(self._members(levels))
            case b"M":
                return self._dict(levels)
            case b"A":
                return self._array()
            case b"G":
                array = self._array()
                if array.ndim:
                    raise MalformedAnswerError("it has a number with dimensions")
                return array[()]
            case b"X":
                shape = self._shape()
                members = self._members(levels)
                if prod(shape) != len(members):
                    raise MalformedAnswerError("it has an array of another shape")
                objects = np.empty(len(members), object)
                objects[:] = members
                return objects.reshape(shape)
            case other:
                raise MalformedAnswerError(f"it has a value of an unknown type {other!r}")

    def _members(self, levels: int) -> list[Any]:
        match self._take(1):
            case b"d":
                return np.frombuffer(self._take(8 * self._size(8)), _FLOATS).tolist()  # type: ignore[no-any-return]
            case b"q":
                return np.frombuffer(self._take(8 * self._size(8)), _INTS).tolist()  # type: ignore[no-any-return]
            case b"*":
                return [self.value(levels - 1) for _ in range(self._size())]
            case other:
                raise MalformedAnswerError(f"it has a list of an unknown type {other!r}")

    def _dict(self, levels: int) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for _ in range(self._size(2)):
            key = self.value(levels - 1)
            if type(key) not in (str, int, float, bool, bytes, type(None)):
                raise MalformedAnswerError(f"it has a key that is a {type(key).__name__}")
            made[key] = self.value(levels - 1)
        return made

    def _shape(self) -> tuple[int, ...]:
        dimensions = self._take(1)[0]
        if dimensions > MOST_DIMENSIONS:
            raise MalformedAnswerError("it has an array of too many dimensions")
        return tuple(_SIZE.unpack(self._take(8))[0] for _ in range(dimensions))

    def _array(self) -> np.ndarray[Any, Any]:
        name = self._take(self._take(1)[0]).decode("ascii", "replace")
        if name not in DTYPES:
            raise MalformedAnswerError("it has an array of an unknown dtype")
        dtype = np.dtype(name)
        shape = self._shape()
        content = self._take(prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape)
