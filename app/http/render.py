"""Rendering: a final item becomes JSON, with `result` and the declared outputs."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import orjson
from pydantic import BaseModel

from penstock.backends.errors import BackendError, PenstockError
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import is_array, np
from penstock.backends.memory import Reservation, check_room
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.trace import Trace

from .body import Pieces
from .helper_thread import on_helper_thread

logger = logging.getLogger("penstock.http")

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def fields_of(item: Item, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of an item that are answered: those of `keys` that it has.

    `keys` starts with "result". An item without one is an answer too: its `result` is None.
    """
    if len(keys) == 1:
        return {"result": item.get("result")}
    fields = {key: item[key] for key in keys if key in item}
    return fields if "result" in fields else {"result": None, **fields}


PIECE_BYTES = 1 << 18
"""Answers of more bytes are written in pieces of about this size. orjson takes several times as
much memory as it writes, and the process ends if there is not so much; it also stops all other
threads until it is done.
"""

SMALL_BYTES = 1 << 14
UNCOUNTED_BYTES = 1 << 12
"""Smaller answers are not counted in `max_memory`. `max_requests` bounds them, and counting has a
price.
"""

WRITER_FACTOR = 16
"""orjson takes so many times the bytes of an answer at most."""

ELEMENTS_AT_ONCE = 512
"""So many elements of a long list are looked at together."""

MOST_LEVELS = 254
"""The most levels of lists and dicts in an answer, as in orjson."""


def to_json(fields: Any, size: int | None = None) -> bytes:
    """Write `fields` as JSON: arrays as nested lists, bytes as base64, NaN as null, pydantic models
    as they write themselves.

    `size` is their `json_size`, if that is known. Raises `BackendError` for a value that has no
    JSON form.
    """
    if (json_size(fields) if size is None else size) > SMALL_BYTES:
        return b"".join(json_pieces(fields))
    try:
        return orjson.dumps(fields, _default, JSON_OPTIONS)
    except TypeError as error:
        raise _without_form(error) from None


def json_pieces(value: Any) -> Iterator[bytes]:
    """Yield the JSON of a value piece by piece.

    Raises `BackendError` for a value that has no JSON form.
    """
    try:
        yield from _pieces(value, MOST_LEVELS)
    except TypeError as error:
        raise _without_form(error) from None


def _without_form(error: TypeError) -> BackendError:
    return BackendError(
        f"the answer can't be written as JSON: {error}; "
        "let the backend answer numbers, strings, lists or arrays"
    )


def _pieces(value: Any, levels: int) -> Iterator[bytes]:
    if not levels:
        raise TypeError("it nests too deep")
    size = json_size(value)
    if size <= PIECE_BYTES:
        if size > SMALL_BYTES:
            check_room(WRITER_FACTOR * size, "an answer")
        yield _dumps(value)
    elif isinstance(value, dict):
        opening = b"{"
        for key, member in value.items():
            yield opening + _dumps({key: None})[1 : -len("null}")]
            yield from _pieces(member, levels - 1)
            opening = b","
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        yield from _elements(value, levels - 1)
        yield b"]"
    elif is_array(value) and value.ndim:
        yield b"["
        yield from _rows(value, levels - 1)
        yield b"]"
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), PIECE_BYTES // 8):
            yield _dumps(value[start : start + PIECE_BYTES // 8])[1:-1]
        yield b'"'
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield b'"'
        content = bytes(value)
        step = PIECE_BYTES // 3 * 3  # so that no piece is padded but the last
        for start in range(0, len(content), step):
            yield base64.b64encode(content[start : start + step])
        yield b'"'
    elif hasattr(value, "tolist"):  # a tensor of torch
        yield from _pieces(value.tolist(), levels)
    elif isinstance(value, BaseModel):
        yield from _pieces(value.model_dump(mode="json"), levels)
    else:
        yield _dumps(value)


def _elements(values: list[Any] | tuple[Any, ...], levels: int) -> Iterator[bytes]:
    """Yield the elements of a list, with commas between them."""
    for start in range(0, len(values), ELEMENTS_AT_ONCE):
        if start:
            yield b","
        some = values[start : start + ELEMENTS_AT_ONCE]
        if _SCALARS.issuperset(map(type, some)) or sum(map(json_size, some)) <= PIECE_BYTES:
            yield _dumps(some)[1:-1]
            continue
        for index, element in enumerate(some):
            if index:
                yield b","
            yield from _pieces(element, levels)


def _rows(array: np.ndarray[Any, Any], levels: int) -> Iterator[bytes]:
    """Yield the elements along the first axis of an array, with commas between them."""
    step = PIECE_BYTES * len(array) // array_size(array)
    for start in range(0, len(array), step or 1):
        if start:
            yield b","
        if step:
            yield _dumps(array[start : start + step])[1:-1]
        else:
            yield from _pieces(array[start], levels)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=_default, option=JSON_OPTIONS)


async def write_item(
    item: Item,
    run: Submission,
    pipeline: Pipeline,
    memory: Reservation,
    trace: Trace | None = None,
) -> bytes:
    """Write the final item of `run`, or of one of its parts, as JSON. `memory` is grown by it.

    Raises `BackendError` for a value that has no JSON form, and `MemoryFull`. The request has
    failed then, even if the pipeline has counted it as a success: it is counted as `unwritten`, and
    logged.
    """
    small = write_small(item, run, pipeline, memory, trace)
    if small is not None:
        return small
    fields = _fields_of(item, pipeline, trace)
    before = memory.size
    try:
        memory.resize(before + json_size(fields), "an answer")
        text = await on_helper_thread(_write_large, fields, memory, before)
        memory.resize(before + len(text), "an answer")
        return text
    except PenstockError as error:
        _count_unwritten(error, run, pipeline)
        raise


def write_small(
    item: Item,
    run: Submission,
    pipeline: Pipeline,
    memory: Reservation,
    trace: Trace | None = None,
) -> bytes | None:
    """Do as `write_item` does, at once. Returns None for a large item, which that has to write."""
    if trace is None and len(pipeline.answer_keys) == 1:  # no call: this is the hot path
        fields = {"result": item.get("result")}
    else:
        fields = _fields_of(item, pipeline, trace)
    size = 0
    for value in fields.values():  # as `json_size` of the dict, without a call for a number
        size += MEMBER_CHARACTERS
        size += MOST_CHARACTERS if type(value) in _SCALARS else json_size(value, 7)
    if size > PIECE_BYTES:
        return None
    try:
        if size <= UNCOUNTED_BYTES:
            try:
                return orjson.dumps(fields, _default, JSON_OPTIONS)
            except TypeError as error:
                raise _without_form(error) from None
        before = memory.size
        memory.resize(before + size, "an answer")
        text = to_json(fields, size)
        memory.resize(before + len(text), "an answer")
        return text
    except PenstockError as error:
        _count_unwritten(error, run, pipeline)
        raise


def _fields_of(item: Item, pipeline: Pipeline, trace: Trace | None) -> dict[str, Any]:
    fields = fields_of(item, pipeline.answer_keys)
    if trace is not None:
        fields["trace"] = trace.steps
    return fields


def _count_unwritten(error: PenstockError, run: Submission, pipeline: Pipeline) -> None:
    """Count and log a request whose answer can't be written."""
    error.logged = True  # below
    future = run.future
    if not future.done():  # a stream, of which this is a part
        run.leave("unwritten")
    elif not future.cancelled() and future.exception() is None:
        pipeline.statistics.take_back(run.rows)
    if isinstance(error, BackendError):
        logger.error(
            "request %s: %s",
            run.request_id,
            error,
            extra={"request_id": run.request_id, "pipeline": pipeline.name},
        )


def _write_large(fields: dict[str, Any], memory: Reservation, before: int) -> bytes:
    """Write fields as JSON, and let `memory` cover `before` bytes and the text as it grows."""
    content = Pieces()
    for piece in json_pieces(fields):
        content.write(piece)
        memory.cover(before + content.size, "an answer")
    return content.join(memory)


_SCALARS = frozenset({int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_CHARACTERS = {"b1": 6, "u1": 4, "i1": 5, "u2": 6, "i2": 7, "u4": 11, "i4": 12, "f2": 12, "f4": 16}
"""The most characters of a number and its comma, by its dtype."""

MOST_CHARACTERS = 26
"""The most characters of any number and its comma."""

MEMBER_CHARACTERS = 64
"""A key, with what stands around it."""

LISTED_NUMBER_BYTES = 40
"""A number in a Python list, which tensors of torch become first."""


def json_size(value: Any, levels: int = 8) -> int:
    """Return about how many bytes a value takes as JSON, rather too many than too few.

    Takes no time for arrays. A list of numbers is judged by its first and last. Looks at `levels`
    levels of lists and dicts.
    """
    kind = type(value)
    if kind in _SCALARS:
        return MOST_CHARACTERS
    if kind is str:
        return 2 * len(value)
    if kind not in _CONTAINERS and is_array(value):
        return array_size(value)
    if not levels:
        return 0
    if kind is dict:
        size = MEMBER_CHARACTERS * len(value)
        for member in value.values():
            size += MOST_CHARACTERS if type(member) in _SCALARS else json_size(member, levels - 1)
        return size
    if kind is list or kind is tuple:
        if value and type(value[0]) in _SCALARS and type(value[-1]) in _SCALARS:
            return MOST_CHARACTERS * len(value)
        return sum([json_size(member, levels - 1) for member in value])
    if isinstance(value, str):
        return 2 * len(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return 3 * len(value)
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        count: int = prod(value.shape)
        return count * (MOST_CHARACTERS + LISTED_NUMBER_BYTES)
    if isinstance(value, BaseModel):
        return json_size(vars(value), levels)
    return MOST_CHARACTERS


def array_size(array: np.ndarray[Any, Any]) -> int:
    """Return the most bytes that an array of numbers takes as JSON."""
    brackets: int = 3 * sum(accumulate(array.shape[:-1], mul))
    return array.size * _CHARACTERS.get(array.dtype.str[1:], MOST_CHARACTERS) + brackets


def _default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    tolist = getattr(value, "tolist", None)  # torch tensors, arrays of other strides or dtypes
    if tolist is not None:
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
