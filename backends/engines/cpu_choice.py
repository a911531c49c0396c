"""Which engine runs an .onnx file faster on this CPU, OpenVINO or ONNX Runtime: both are tried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import Context
from ..item import Item
from ..text import message_of
from .accuracy import compare, sample_inputs
from .onnx import OnnxTensor
from .openvino.backend import OpenvinoTensor
from .sharing import shared

LARGEST_BATCH = 8
"""Rows of the batch that is timed, at most: larger ones take long, and their order is the same."""
LEAST_RUNS, MOST_RUNS = 1, 10
"""Timed runs of each engine."""
SECONDS = 1.0
"""No further run is begun after so long, by the clock."""
FASTER = 0.95
"""OpenVINO is chosen if it takes less than this share of ONNX Runtime's time: the rest is noise."""
MAX_DIFFERENCE = 1e-2
"""Relative. In fp32 two engines differ by rounding, which is far less; more is another answer."""


class Comparison:
    """What was found out about a node's model."""

    __slots__ = ("__weakref__", "faster", "why")

    def __init__(self, faster: bool, why: str) -> None:
        self.faster = faster
        """True if OpenVINO runs the model, and faster."""
        self.why = why


class Tried(NamedTuple):
    """The comparison, and what an instance may use of it."""

    comparison: Comparison
    engine: OpenvinoTensor | None
    """OpenVINO's compiled model, kept for the instance that is about to open it."""


def try_openvino(params: Any, context: Context) -> Tried:
    """Try both engines on a node's model, or return what an instance of the node found before.

    Raises nothing for a model or a key that is wrong: the engine that opens it says so.
    """
    if context.opens_only:
        return Tried(Comparison(False, "OpenVINO is not tried where a model is only opened"), None)
    if context.alone and context.instances > 1:
        why = "OpenVINO is not tried where each instance is a process, since they could differ"
        return Tried(Comparison(False, why), None)
    path = context.resolve(params.model)
    if not path.is_file():
        return Tried(Comparison(False, "there is no such file"), None)
    changed = path.stat().st_mtime_ns
    kept: list[OpenvinoTensor] = []
    key = ("cpu choice", path, changed, params.model_dump_json(), context.instances, context.max)
    comparison: Comparison = shared(key, lambda: _compare(params, context, kept))
    return Tried(comparison, kept[0] if kept else None)


def _compare(params: Any, context: Context, kept: list[OpenvinoTensor]) -> Comparison:
    # Only the first instance of a node logs, and nothing is opened here for good.
    quiet = replace(context, instance=max(1, context.instance), device="cpu")
    usual, other = OnnxTensor(), OpenvinoTensor()
    try:
        usual.init(params, quiet)
        other.init(params, quiet)
        comparison = _measure(usual, other, params)
        if comparison.faster:
            kept.append(other)
        return comparison
    except Exception as error:  # libraries, and models in them, raise all kinds of errors
        return Comparison(False, f"it can't be compared with OpenVINO: {message_of(error)}")
    finally:
        usual.close()
        if not kept:
            other.close()


def _measure(usual: OnnxTensor, other: OpenvinoTensor, params: Any) -> Comparison:
    if usual.model.optional_inputs or usual.signature != other.signature:
        return Comparison(False, "OpenVINO takes or gives other tensors")
    example = usual.example()
    if example is None:
        why = 'OpenVINO is not tried, because the shapes are not known (max = "8x3x224x224")'
        return Comparison(False, why)
    count = min(usual.max, LARGEST_BATCH)
    values = example
    if not isinstance(params.warm_up, str):
        values = [sample_inputs([(array.shape, array.dtype)], 1)[0][0] for array in example]
    try:
        reference, _ = _run(usual, values, count)
    except Exception:  # the model may refuse random values
        values = example
        reference, _ = _run(usual, values, count)
    found, _ = _run(other, values, count)
    accuracy = compare(reference, found, count) if len(reference) == len(found) else None
    if accuracy and params.precision in (None, "fp32") and accuracy.relative > MAX_DIFFERENCE:
        return Comparison(False, f"OpenVINO gives other answers: {accuracy}")
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    for done in range(MOST_RUNS):
        if done >= LEAST_RUNS and time.perf_counter() > end:
            break
        for engine, taken in zip((usual, other), times, strict=True):
            taken.append(_run(engine, values, count)[1])
    before, after = map(min, times)
    return Comparison(
        after < FASTER * before,
        f"a batch of {count} takes OpenVINO {after * 1000:.2f} ms of processor time, and ONNX "
        f"Runtime {before * 1000:.2f} ms",
    )


def _run(
    engine: OnnxTensor, values: Sequence[NDArray[Any]], count: int
) -> tuple[list[NDArray[Any]], float]:
    """Run so many equal items in one batch. Return the arrays in an item's result, and the seconds
    of processor time, of all threads: unlike those of a clock, they hardly depend on other load.

    Raises whatever the engine raises.
    """
    data = {port.name: array for port, array in zip(engine.inputs, values, strict=True)}
    batch: list[Item] = [{"data": data} for _ in range(count)]
    start = time.process_time()
    engine.forward(batch)
    seconds = time.process_time() - start
    for item in batch:
        if "error" in item:
            raise item["error"]
    result = batch[0]["result"]
    outputs = result if isinstance(result, list) else [result]
    return [output for output in outputs if isinstance(output, np.ndarray)], seconds
