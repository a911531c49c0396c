"""The digest of an item: of all that its answer may depend on.

Two items have the same digest if and only if they have the same keys, and under each the same value
of the same type: 1, 1.0, True and "1" differ, and so do arrays of the same bytes with another dtype
or shape. Each value is written with its type and its length, so that no two items make the same
text. SHA-256, because a client that finds two items with one digest could answer for another; it
is also the quickest of hashlib where the processor has instructions for it (1.8 GB/s).
"""

from __future__ import annotations

import hashlib
import marshal
from typing import Any

import numpy as np
from pydantic import BaseModel

from penstock.backends.item import Item, RequestFacts

ON_LOOP_BYTES = 1 << 18
"""An item of more bytes is hashed on a helper thread: more than 0.2 ms."""

MOST_LEVELS = 100
"""The most levels of lists and dicts in an item that can be hashed."""

ARRAY_KINDS = frozenset("biufcSUmM")
"""The kinds of dtypes whose bytes are the values."""

VALUE_BYTES = 9
"""About what a number in a list adds."""

_SCALARS = frozenset({int, float, bool, type(None), complex})
_MARSHAL_VERSION = 2
"""The last one in which equal values always have equal texts: later ones note what is shared."""

WHOLE_BYTES = 1 << 12
"""A value of more bytes is known by samples of it, in a sketch."""

SAMPLE_BYTES = 256
SAMPLES = 8


class UnhashableItemError(Exception):
    """Raised for an item with a value of which it is not known what it consists of."""


class LargeItemError(Exception):
    """Raised for an item that should be hashed elsewhere, before anything is hashed."""


def sketch_of(item: Item) -> int | None:
    """Return a number that is the same for equal items, and hardly ever for others.

    Takes a microsecond or two, also for large arrays, of which it reads samples. So it tells that
    an item has not been here before; if it may have, `digest_of` decides. None for an item with
    many values, of which no samples are taken. Raises `UnhashableItemError`.
    """
    if len(item) == 1 and type(data := item.get("data")) is bytes and len(data) <= WHOLE_BYTES:
        return hash(("data", bytes, len(data), data))  # as below: this is what most items have
    parts: list[Any] = []
    for key in _sorted(item) if len(item) > 1 else item:
        value = item[key]
        kind = type(value)
        if kind is bytes or kind is str:
            size = len(value)
            parts += (key, kind, size, value if size <= WHOLE_BYTES else _samples(value, size))
        elif kind is np.ndarray and value.dtype.kind in ARRAY_KINDS and value.flags.c_contiguous:
            content = value.reshape(-1).view(np.uint8).data
            size = len(content)
            whole = bytes(content) if size <= WHOLE_BYTES else _samples(content, size)
            parts += (key, value.dtype, value.shape, whole)
        else:
            pieces: list[Any] = []
            try:
                _add(value, pieces, WHOLE_BYTES, MOST_LEVELS, key)
            except LargeItemError:
                return None
            parts += (key, b"".join(pieces))
    return hash(tuple(parts))


def _sorted(item: Item) -> list[str]:
    try:
        return sorted(item)
    except TypeError:
        raise UnhashableItemError("its keys are not all texts") from None


def _samples(content: Any, size: int) -> tuple[Any, ...]:
    last = size - SAMPLE_BYTES
    starts = [last * number // (SAMPLES - 1) for number in range(SAMPLES)]
    samples = [content[at : at + SAMPLE_BYTES] for at in starts]
    return tuple(map(bytes, samples) if type(content) is memoryview else samples)


def digest_of(item: Item, salt: bytes, most: int | None = None) -> bytes:
    """Return the digest of an item, in 32 bytes. `salt`: what else must be equal.

    Raises `UnhashableItemError`, and `LargeItemError` for an item of more than `most` bytes.
    """
    parts = [salt]
    room = most
    for key in _sorted(item) if len(item) > 1 else item:
        if type(key) is not str:
            raise UnhashableItemError(f"a key is a {type(key).__name__}")
        value = item[key]
        if type(value) is bytes:  # no call: this is what most items have
            size = len(value)
            parts += (
                b"k%d:%b=B%d:" % (len(key), key.encode("utf-8", "surrogatepass"), size),
                value,
            )
            if room is not None:
                room -= size
        else:
            parts.append(b"k%d:%b=" % (len(key), key.encode("utf-8", "surrogatepass")))
            room = _add(value, parts, room, MOST_LEVELS, key)
        if room is not None and room < 0:
            raise LargeItemError
    if most is not None and len(parts) < 64:  # not large: one call costs less than several
        return hashlib.sha256(b"".join(parts)).digest()
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _add(value: Any, parts: list[Any], room: int | None, levels: int, key: str) -> int | None:
    """Add a value to the parts. Return the bytes that are left in `room`.

    Raises as soon as they are too many, so that no long list is read here.
    """
    kind = type(value)
    if kind in _SCALARS:
        text = marshal.dumps(value, _MARSHAL_VERSION)
        parts.append(b"v%d:%b" % (len(text), text))
        return _less(room, len(text))
    if kind is str:
        text = value.encode("utf-8", "surrogatepass")
        parts += (b"s%d:" % len(text), text)
        return _less(room, len(text))
    if kind is bytes or kind is bytearray:
        parts += (b"%b%d:" % (b"B" if kind is bytes else b"Y", len(value)), value)
        return _less(room, len(value))
    if kind is np.ndarray or isinstance(value, np.generic):
        return _add_array(value, parts, room, levels, key)
    if not levels:
        raise UnhashableItemError(f"{key!r} nests too deep")
    if kind is list or kind is tuple:
        room = _less(room, VALUE_BYTES * len(value))
        parts.append(b"%b%d:" % (b"l" if kind is list else b"t", len(value)))
        kinds = set(map(type, value))
        if kinds <= _SCALARS:
            text = marshal.dumps(value, _MARSHAL_VERSION)
            parts += (b"%d:" % len(text), text)
            return room
        for member in value:
            room = _add(member, parts, room, levels - 1, key)
        return room
    if kind is dict:
        room = _less(room, 2 * VALUE_BYTES * len(value))
        parts.append(b"d%d:" % len(value))
        for name, member in value.items():  # in their order, which code may depend on
            room = _add(name, parts, room, levels - 1, key)
            room = _add(member, parts, room, levels - 1, key)
        return room
    if kind is RequestFacts:
        parts.append(b"r:")
        return _add(tuple(value._replace(request_id="")), parts, room, levels - 1, key)
    if isinstance(value, BaseModel):
        name = f"{kind.__module__}.{kind.__qualname__}".encode()
        parts.append(b"m%d:%b" % (len(name), name))
        fields = {**vars(value), **(value.__pydantic_extra__ or {})}
        return _add(fields, parts, room, levels - 1, key)
    if kind.__module__ == "torch" and kind.__name__ == "Tensor" and value.is_cpu:
        import torch

        name = f"{value.dtype}{tuple(value.shape)}".encode()
        parts.append(b"T%d:%b" % (len(name), name))
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        parts.append(content)
        return _less(room, content.nbytes)
    raise UnhashableItemError(f"{key!r} is a {kind.__module__}.{kind.__qualname__}")


def _add_array(value: Any, parts: list[Any], room: int | None, levels: int, key: str) -> int | None:
    dtype = value.dtype
    name = f"{dtype.name}{dtype.str}{value.shape}".encode()
    array = type(value) is np.ndarray
    parts.append(b"%b%d:%b" % (b"a" if array else b"g", len(name), name))
    if dtype.kind == "O" and array:
        return _add(value.tolist(), parts, room, levels - 1, key)
    if dtype.kind not in ARRAY_KINDS and not (dtype.kind == "V" and dtype.isbuiltin == 2):
        raise UnhashableItemError(f"{key!r} is an array of {dtype.name}")
    room = _less(room, value.nbytes)
    parts.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return room


def _less(room: int | None, size: int) -> int | None:
    if room is None:
        return None
    if size > room:
        raise LargeItemError
    return room - size
