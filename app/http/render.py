"""Rendering: a final item becomes JSON, with `result` and the declared outputs."""

from __future__ import annotations

import base64
import logging
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import numpy as np
import orjson

from penstock.backends.errors import BackendError, PenstockError
from penstock.backends.item import Item
from penstock.backends.memory import Reservation
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.trace import Trace

logger = logging.getLogger("penstock.http")

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def fields_of(item: Item, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of an item that are answered: those of `keys` that it has.

    An item without a result is an answer too: its `result` is None.
    """
    fields = {key: item[key] for key in keys if key in item}
    return fields if "result" in fields else {"result": None, **fields}


def to_json(fields: Any) -> bytes:
    """Write `fields` as JSON: arrays as nested lists, bytes as base64, NaN as null.

    Raises `BackendError` for a value that has no JSON form.
    """
    try:
        return orjson.dumps(fields, default=_default, option=JSON_OPTIONS)
    except TypeError as error:
        raise BackendError(
            f"the answer can't be written as JSON: {error}; "
            "let the backend answer numbers, strings, lists or arrays"
        ) from None


def write_item(
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
    fields = fields_of(item, pipeline.answer_keys)
    if trace is not None:
        fields["trace"] = trace.steps
    before = memory.size
    try:
        memory.resize(before + json_size(fields), "an answer")
        text = to_json(fields)
        memory.resize(before + len(text), "an answer")
        return text
    except PenstockError as error:
        error.logged = True  # below
        future = run.future
        if not future.done():  # a stream, of which this is a part
            run.leave("unwritten")
        elif not future.cancelled() and future.exception() is None:
            pipeline.statistics.take_back(1)
        if isinstance(error, BackendError):
            logger.error(
                "request %s: %s",
                run.request_id,
                error,
                extra={"request_id": run.request_id, "pipeline": pipeline.name},
            )
        raise


_SCALARS = frozenset({int, float, bool, type(None)})
_CHARACTERS = {"b1": 6, "u1": 4, "i1": 5, "u2": 6, "i2": 7, "u4": 11, "i4": 12, "f2": 12, "f4": 16}
"""The most characters of a number and its comma, by its dtype."""

MOST_CHARACTERS = 26
"""The most characters of any number and its comma."""

LISTED_NUMBER_BYTES = 40
"""A number in a Python list, which tensors of torch become first."""


def json_size(value: Any, levels: int = 8) -> int:
    """Return about how many bytes a value takes as JSON, rather too many than too few.

    Takes no time for arrays. A list of numbers is judged by its first element. Looks at `levels`
    levels of lists and dicts.
    """
    kind = type(value)
    if kind in _SCALARS:
        return MOST_CHARACTERS
    if kind is str:
        return 2 * len(value)
    if kind is np.ndarray:
        return array_size(value)
    if not levels:
        return 0
    if kind is dict:
        return sum([64 + json_size(member, levels - 1) for member in value.values()])
    if kind is list or kind is tuple:
        if value and type(value[0]) in _SCALARS:
            return MOST_CHARACTERS * len(value)
        return sum([json_size(member, levels - 1) for member in value])
    if isinstance(value, (bytes, bytearray, memoryview)):
        return 3 * len(value)
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        count: int = prod(value.shape)
        return count * (MOST_CHARACTERS + LISTED_NUMBER_BYTES)
    return MOST_CHARACTERS


def array_size(array: np.ndarray[Any, Any]) -> int:
    """Return the most bytes that an array of numbers takes as JSON."""
    brackets: int = 3 * sum(accumulate(array.shape[:-1], mul))
    return array.size * _CHARACTERS.get(array.dtype.str[1:], MOST_CHARACTERS) + brackets


def _default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    tolist = getattr(value, "tolist", None)  # torch tensors, arrays of other strides or dtypes
    if tolist is not None:
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
