"""Rendering: a final item becomes JSON, with `result` and the declared outputs."""

from __future__ import annotations

import base64
import logging
from typing import Any

import orjson

from penstock.backends.errors import BackendError
from penstock.backends.item import Item
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
    item: Item, run: Submission, pipeline: Pipeline, trace: Trace | None = None
) -> bytes:
    """Write the final item of `run`, or of one of its parts, as JSON.

    Raises `BackendError` for a value that has no JSON form. The request has failed then, even if
    the pipeline has counted it as a success: it is counted as `unwritten`, and logged.
    """
    fields = fields_of(item, pipeline.answer_keys)
    if trace is not None:
        fields["trace"] = trace.steps
    try:
        return to_json(fields)
    except BackendError as error:
        error.logged = True  # below
        future = run.future
        if not future.done():  # a stream, of which this is a part
            run.leave("unwritten")
        elif not future.cancelled() and future.exception() is None:
            pipeline.statistics.take_back(1)
        logger.error(
            "request %s: %s",
            run.request_id,
            error,
            extra={"request_id": run.request_id, "pipeline": pipeline.name},
        )
        raise


def _default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    tolist = getattr(value, "tolist", None)  # torch tensors, arrays of other strides or dtypes
    if tolist is not None:
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
