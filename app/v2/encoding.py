"""What pipelines answer, as tensors, and tensors to the protocol's two encodings: little-endian bytes, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from penstock.backends.errors import BackendError, InvalidRequest

from ..http.render import to_json
from .tensors import DATATYPES, PART, Array, Datatype, datatype_of


def as_tensor(value: Any, wanted: Datatype | None, name: str) -> tuple[Datatype, Array]:
    """What a pipeline answered, as a tensor: arrays, numbers, texts, bytes, lists of them; anything else as its JSON text.

    `wanted`: the datatype that the output is declared to have. Raises `BackendError` for values that it can't hold.
    """
    if (
        type(value) is np.ndarray
        and wanted is not None
        and value.dtype == wanted.dtype
        and value.ndim
        and wanted.size
    ):
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
    raise BackendError(
        f"output '{name}' is {found.name}, and declared to be {wanted.name}, which can't hold it"
    )


def _tensor_of(value: Any, name: str) -> tuple[Datatype, Array]:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return DATATYPES["BYTES"], _objects([value])
    if hasattr(value, "detach"):  # torch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            return DATATYPES["BF16"], np.atleast_1d(value.float().numpy())
        value = value.numpy()
    elif isinstance(value, (list, tuple)) and not all(
        isinstance(each, (str, bytes)) for each in value
    ):
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
    datatype = datatype_of(array.dtype.name)
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
        return np.where(np.isnan(array), (bits >> 16) | 0x40, halves).astype(
            "<u2"
        )  # rounding could make an infinity of a NaN
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
            return orjson.Fragment(
                orjson.dumps([_encoded(each).decode() for each in array.reshape(-1)])
            )
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output '{name}' holds bytes that are no UTF-8: ask for binary data"
            ) from None
    flat = np.ascontiguousarray(array, datatype.dtype.newbyteorder("=")).reshape(-1)
    named = datatype.kind == "f" and not np.isfinite(flat).all()
    if flat.size <= PART and not named:
        return orjson.Fragment(orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY))
    return orjson.Fragment(
        b"[" + b",".join([_elements(part, named) for part in _parts(flat)]) + b"]"
    )


def _elements(numbers: Array, named: bool) -> bytes:
    """JSON's elements, without brackets. `named`: there may be floats that are not finite, for which orjson writes null."""
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    if not named:
        return text
    if not np.isinf(numbers).any():
        return text.replace(b"null", b"NaN")
    names = [_NAMES[str(each)] for each in numbers[~np.isfinite(numbers)].tolist()]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*names, b""], strict=True)))
