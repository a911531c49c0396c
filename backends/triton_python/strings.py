"""Tensors of strings: their bytes on the wire, each element after its length."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<I")


def as_text(value: Any, what: str) -> str:
    """Return a text that a model gives: bytes are taken for UTF-8, as Triton's bindings take them.

    Raises TypeError for anything else.
    """
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a str, found {type(value).__name__}")
    return value


def element_bytes(value: Any) -> bytes:
    """Return an element of a tensor of strings as bytes: UTF-8 of its text, unless it is bytes."""
    return value if type(value) is bytes else str(value).encode()


def serialize_byte_tensor(input_tensor: np.ndarray) -> bytes | tuple[()] | None:
    """Return the elements in C order, each after its length in 4 bytes, little-endian.

    `()` for an array without elements and None for one that does not hold strings, as in Triton.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype != np.object_ and input_tensor.dtype.type != np.bytes_:
        return None
    pieces: list[bytes] = []
    for value in input_tensor.ravel().tolist():
        content = element_bytes(value)
        pieces += (_LENGTH.pack(len(content)), content)
    return b"".join(pieces)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> np.ndarray:
    """Return the elements that `serialize_byte_tensor` wrote, as an array of one dimension."""
    elements: list[bytes] = []
    view = memoryview(encoded_tensor)
    position = 0
    while position < len(view):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(view, position)[0]
        if position > len(view):
            raise struct.error("a string is longer than the rest of the tensor")
        elements.append(bytes(view[start:position]))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array
