"""Answers of pipelines as tensors, and tensors in the protocol's encodings: bytes and JSON.

Bytes are little-endian. `tensors.py` reads both encodings.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import orjson

from penstock.backends.errors import BackendError, InvalidRequest
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation

from ..http.body import Pieces
from ..http.inputs.datatypes import (
    CONVERTED_AT_ONCE_ELEMENTS,
    DATATYPES,
    Array,
    Datatype,
    datatype_of,
)
from ..http.render import PIECE_BYTES, array_size, to_json
from .tensors import (
    STRING_BYTES,
)

BYTES_LIKE = (bytes, bytearray, memoryview)
TEXTS_AT_ONCE = 512
TEXT_AT_ONCE = 1 << 15
"""So many texts, and so many characters or bytes of a long one, become JSON together."""


def as_tensor(value: Any, declared: Datatype | None, name: str) -> tuple[Datatype, Array]:
    """Make a tensor of what a pipeline answered as output `name`.

    Arrays, numbers, texts, bytes and lists of them become tensors of their own; anything else
    becomes its JSON text. `declared` is the datatype that the output is declared to have. Raises
    `BackendError` for a value that this datatype can't hold.
    """
    if (
        type(value) is np.ndarray
        and declared is not None
        and value.dtype == declared.dtype
        and value.ndim
        and declared.size
    ):
        return declared, value
    datatype, array = _tensor_of(value, name)
    if declared is None or datatype is declared:
        return datatype, array
    if not declared.size:
        return declared, _objects([_json_text(value)])
    if datatype.size and np.can_cast(array.dtype, declared.dtype, "same_kind"):
        with np.errstate(over="ignore"):
            narrow = array.astype(declared.dtype)
        if declared.kind == "f" or (narrow == array).all():
            return declared, narrow
    raise BackendError(
        f"output '{name}' is {datatype.name}, but it is declared as {declared.name}, "
        "which can't hold it"
    )


def as_rows(values: Sequence[Any]) -> Array:
    """Make a tensor of BYTES with an element for each row: a text or bytes as it is, anything else
    as its JSON text.
    """
    return _objects([value if isinstance(value, bytes) else _json_text(value) for value in values])


def _tensor_of(value: Any, name: str) -> tuple[Datatype, Array]:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return DATATYPES["BYTES"], _objects([value])
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            return DATATYPES["BF16"], np.atleast_1d(value.float().numpy())
        value = value.numpy()
    elif isinstance(value, (list, tuple)):
        if all(isinstance(member, (str, bytes)) for member in value):
            return DATATYPES["BYTES"], _objects(value)
        try:
            value = np.asarray(value)
        except ValueError:  # lists of several lengths
            return DATATYPES["BYTES"], _objects([_json_text(value)])
        if value.dtype.kind not in "biuf":
            return DATATYPES["BYTES"], _objects([_json_text(value.tolist())])
    elif not isinstance(value, (bool, int, float)) and not hasattr(value, "__array__"):
        return DATATYPES["BYTES"], _objects([_json_text(value)])
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.name == "bfloat16":  # a dtype of ml_dtypes
        return DATATYPES["BF16"], array.astype(np.float32)
    if array.dtype.kind in "USOT":
        return DATATYPES["BYTES"], array.astype(np.object_)
    datatype = datatype_of(array.dtype.name)
    if datatype is None:
        raise BackendError(
            f"output '{name}' has dtype {array.dtype}, which the protocol does not have"
        )
    return datatype, array


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def written_bytes(datatype: Datatype, array: Array, *, binary: bool) -> int:
    """Return about the most memory that writing a tensor takes: its encoding, and the answer that
    this is joined to.
    """
    if not datatype.size:
        # Each text as bytes, all of them joined, and the answer. As JSON without the first.
        return (3 if binary else 2) * text_bytes(array) + STRING_BYTES * array.size
    if binary:
        return (8 if datatype.name == "BF16" else 2) * array.nbytes
    return 2 * array_size(array)


def text_bytes(array: Array) -> int:
    """Return the most bytes that the texts of a tensor take as UTF-8."""
    texts = [value for value in array.reshape(-1) if isinstance(value, (str, bytes))]
    return sum(
        [
            4 * len(text) if isinstance(text, str) and not text.isascii() else len(text)
            for text in texts
        ]
    )


def to_bytes(datatype: Datatype, array: Array) -> Any:
    """Return the tensor's bytes: an array whose memory they are, or `bytes`.

    Both are buffers; before Python 3.12 there is no type for that.
    """
    if datatype.size == 0:
        return b"".join([_with_lengths(piece) for piece in _pieces(array.reshape(-1))])
    if datatype.name == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        halves = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
        # Rounding could turn a NaN into infinity.
        return np.where(np.isnan(array), (bits >> 16) | 0x40, halves).astype("<u2")
    return np.ascontiguousarray(array, datatype.dtype)


def lasting(blob: Any) -> bytes | memoryview:
    """Return bytes that `to_bytes` made, as a buffer to be sent without a copy.

    A part of something larger, such as one row of a batch, is copied: a client that reads slowly
    would keep the whole in memory. So is what is not NumPy's own memory.
    """
    if isinstance(blob, bytes):
        return blob
    owner = blob
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    held = 0
    if isinstance(owner, np.ndarray):
        held = owner.nbytes
    elif isinstance(owner, bytearray):
        held = len(owner)
    if blob.nbytes <= held <= 2 * blob.nbytes:
        view: memoryview = blob.reshape(-1).view(np.uint8).data
        return view
    copy: bytes = blob.tobytes()
    return copy


def _pieces(flat: Array) -> Iterator[Array]:
    step = CONVERTED_AT_ONCE_ELEMENTS
    return (flat[start : start + step] for start in range(0, flat.size, step))


def _with_lengths(values: Array) -> bytes:
    pieces: list[bytes] = []
    for value in values:
        text = _encoded(value)
        pieces += (len(text).to_bytes(4, "little"), text)
    return b"".join(pieces)


def _encoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return _json_text(value).encode("utf-8", "surrogateescape")


_NAMES = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def to_flat_json(datatype: Datatype, array: Array, name: str, memory: Reservation) -> bytes:
    """Return the elements of output `name` as one flat JSON list, with bare NaN and Infinity.

    `memory` has `written_bytes`; it is grown by what texts take more because of their escapes.
    Raises `InvalidRequest` for bytes that are not UTF-8, and `MemoryFull`.
    """
    if datatype.size == 0:
        try:
            return _texts_to_json(array, memory)
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output '{name}' holds bytes that are not valid UTF-8: ask for binary data"
            ) from None
    if array.dtype == datatype.dtype and array.dtype.isnative and array.flags.c_contiguous:
        flat = array.reshape(-1)
    else:
        flat = np.ascontiguousarray(array, datatype.dtype.newbyteorder("=")).reshape(-1)
    named = datatype.kind == "f" and not np.isfinite(flat).all()
    if flat.size <= CONVERTED_AT_ONCE_ELEMENTS and not named:
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"[%b]" % b",".join([_elements(piece, named) for piece in _pieces(flat)])


def _texts_to_json(array: Array, memory: Reservation) -> bytes:
    held = memory.size - 2 * text_bytes(array)
    content = Pieces()
    for piece in _text_pieces(array.reshape(-1)):
        content.write(piece)
        # The list, and the answer that it is joined to.
        memory.cover(held + 2 * content.size, "an answer")
    return content.join(memory)


def _text_pieces(values: Array) -> Iterator[bytes]:
    """Yield a JSON list of texts piece by piece.

    A long text is never decoded as a whole: one character beyond ASCII would make it take four
    times its bytes.
    """
    yield b"["
    for start in range(0, values.size, TEXTS_AT_ONCE):
        if start:
            yield b","
        some = [
            value if isinstance(value, BYTES_LIKE) else _json_text(value)
            for value in values[start : start + TEXTS_AT_ONCE]
        ]
        if sum(map(len, some)) <= PIECE_BYTES:
            yield orjson.dumps([_encoded(value).decode() for value in some])[1:-1]
            continue
        for index, value in enumerate(some):
            yield b',"' if index else b'"'
            decoder = getincrementaldecoder("utf-8")()
            for first in range(0, len(value), TEXT_AT_ONCE):
                piece = _encoded(value[first : first + TEXT_AT_ONCE])
                yield orjson.dumps(decoder.decode(piece))[1:-1]
            decoder.decode(b"", final=True)
            yield b'"'
    yield b"]"


def _elements(numbers: Array, named: bool) -> bytes:
    """Return numbers as elements of a JSON list, without its brackets.

    `named` says that there may be NaN and infinities, for which orjson writes null.
    """
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    if not named:
        return text
    if not np.isinf(numbers).any():
        return text.replace(b"null", b"NaN")
    names = [_NAMES[str(number)] for number in numbers[~np.isfinite(numbers)].tolist()]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*names, b""], strict=True)))
