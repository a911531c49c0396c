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
from .cores import anywhere
from .onnx import OnnxTensor
from .openvino.backend import OpenvinoTensor
from .sharing import shared

LARGEST_BATCH = 8
"""Rows of the batch that is timed, at most: larger ones take long, and their order is the same."""
LEAST_RUNS, MOST_RUNS = 3, 10
"""Timed runs of each engine, in turns. The least time counts, so that what else the process does
must disturb all of them to decide.
"""
SECONDS = 1.0
"""No further run than the least is begun after so long, by the clock."""
MOST_SECONDS = 0.5
"""A batch that takes the processors longer is made smaller."""
LEAST_SECONDS = 0.001
"""A model whose batch takes less of the processors stays with ONNX Runtime: what surrounds a run
costs as much.
"""
FASTER = 0.95
"""OpenVINO is chosen if it takes less than this share of ONNX Runtime's time: the rest is noise."""
MAX_DIFFERENCES = {"bf16": 0.1, "fp16": 0.1, "int8": 0.3}
"""`precision` -> how far OpenVINO's answers may be from ONNX Runtime's in fp32, as a share of the
largest value. What is further is not a rounded answer but another one.
"""
MAX_DIFFERENCE = 1e-2
"""The same of fp32, where rounding alone is far less."""


WIDE_INTEGERS = frozenset(map(np.dtype, (np.int64, np.uint64, np.uint32)))
"""A model that takes these stays with ONNX Runtime. OpenVINO narrows them to int32, and gives zeros
for an index beyond its table, where ONNX Runtime refuses the item.
"""


class Comparison:
    """Says whether OpenVINO runs a node's model, and how the two engines compare."""

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


class Sampled(NamedTuple):
    rows: list[Sequence[NDArray[Any]]]
    """The values of each item of a batch."""
    results: list[list[Any]]
    seconds: float


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
    with anywhere():
        comparison: Comparison = shared(key, lambda: _compare(params, context, kept))
    return Tried(comparison, kept[0] if kept else None)


def _compare(params: Any, context: Context, kept: list[OpenvinoTensor]) -> Comparison:
    # Only the first instance of a node logs, and nothing is opened here for good.
    quiet = replace(context, instance=max(1, context.instance), device="cpu")
    usual, other = OnnxTensor(), OpenvinoTensor()
    try:
        usual.init(params, quiet)
        if wide := [port.name for port in usual.model.inputs if port.dtype in WIDE_INTEGERS]:
            why = f"OpenVINO computes whole numbers in 32 bits, and {wide[0]} may have larger ones"
            return Comparison(False, why)
        example = usual.example()
        if example is None:
            why = 'OpenVINO is not tried, because the shapes are not known (max = "8x3x224x224")'
            return Comparison(False, why)
        rows, reference, seconds = _sample(usual, example, params)
        if seconds < LEAST_SECONDS:
            why = f"OpenVINO is not tried, because a batch of {len(rows)} takes less than 1 ms"
            return Comparison(False, why)
        other.init(params, quiet)
        comparison = _measure(usual, other, rows, reference, params)
        if comparison.faster:
            kept.append(other)
        return comparison
    except Exception as error:  # libraries, and models in them, raise all kinds of errors
        return Comparison(False, f"it can't be compared with OpenVINO: {message_of(error)}")
    finally:
        usual.close()
        if not kept:
            other.close()


def _sample(engine: OnnxTensor, example: Sequence[NDArray[Any]], params: Any) -> Sampled:
    """Run values of a batch that the model takes. The time is the least of two runs."""
    count = min(engine.max, LARGEST_BATCH)
    rows: list[Sequence[NDArray[Any]]] = [example] * count
    if not isinstance(params.warm_up, str):
        columns = [sample_inputs([(array.shape, array.dtype)], count)[0] for array in example]
        rows = [[column[place] for column in columns] for place in range(count)]
    try:
        results, seconds = _run(engine, rows)
    except Exception:  # the model may refuse random values
        rows = [example] * count
        results, seconds = _run(engine, rows)
    seconds = min(seconds, _run(engine, rows)[1])  # the first run also takes memory
    count = max(1, min(count, int(count * MOST_SECONDS / max(seconds, LEAST_SECONDS))))
    return Sampled(rows[:count], results[:count], seconds)


def _measure(
    usual: OnnxTensor, other: OpenvinoTensor, rows: Any, reference: Any, params: Any
) -> Comparison:
    if usual.model.optional_inputs or usual.signature != other.signature:
        return Comparison(False, "OpenVINO takes or gives other tensors")
    found, _ = _run(other, rows)
    most = MAX_DIFFERENCES.get(params.precision, MAX_DIFFERENCE)
    if wrong := _difference(reference, found, most):
        return Comparison(False, f"OpenVINO gives other answers: {wrong}")
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    for done in range(MOST_RUNS):
        if done >= LEAST_RUNS and time.perf_counter() > end:
            break
        for engine, taken in zip((usual, other), times, strict=True):
            taken.append(_run(engine, rows)[1])
    before, after = map(min, times)
    return Comparison(
        after < FASTER * before,
        f"a batch of {len(rows)} takes OpenVINO {after * 1000:.2f} ms of processor time, and ONNX "
        f"Runtime {before * 1000:.2f} ms",
    )


def _difference(
    reference: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]], most: float
) -> str:
    """Return how the items' results differ, "" if they agree.

    Classes and other plain values may differ in half of the items: two scores may be nearly equal.
    """
    others = 0
    for one, other in zip(reference, found, strict=True):
        pairs = list(zip(one, other, strict=True))
        arrays = [pair for pair in pairs if isinstance(pair[0], np.ndarray)]
        if any(np.shape(before) != np.shape(after) for before, after in arrays):
            return "outputs of other shapes"
        accuracy = compare([before for before, _ in arrays], [after for _, after in arrays], 1)
        if accuracy is not None and not accuracy.relative <= most:
            return str(accuracy)
        others += any(
            before != after for before, after in pairs if not isinstance(before, np.ndarray)
        )
    return f"in {others} of {len(found)} items" if 2 * others > len(found) else ""


def _run(
    engine: OnnxTensor, rows: Sequence[Sequence[NDArray[Any]]]
) -> tuple[list[list[Any]], float]:
    """Run items of these values in one batch. Return each item's outputs, and the seconds of
    processor time of all threads. Unlike those of a clock, they do not count what other processes
    do; they do count what this one does beside it, such as other requests.

    Raises whatever the engine raises.
    """
    names = [port.name for port in engine.inputs]
    batch: list[Item] = [{"data": dict(zip(names, row, strict=True))} for row in rows]
    start = time.process_time()
    engine.forward(batch)
    seconds = time.process_time() - start
    for item in batch:
        if "error" in item:
            raise item["error"]
    results = [item["result"] for item in batch]
    return [result if isinstance(result, list) else [result] for result in results], seconds
