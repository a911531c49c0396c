"""What a trace at the level TENSORS holds of a request, and what all of them hold together."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.app.http.inputs.declared import Tensor
from penstock.app.trace.trace_settings import Sampler, Values
from penstock.app.trace.tracing import MAX_TENSOR_BYTES, Traced, tensor_budget
from penstock.app.v2.infer.traced_tensors import QUEUE_INPUT, note_tensors

TEXT = Tensor("text", None, None)


def traced(*values: Any) -> Traced:
    trace = Traced(Sampler(Values()), 1, None)
    note_tensors(trace, QUEUE_INPUT, [(TEXT, value) for value in values])
    return trace


def test_texts_count_with_their_bytes() -> None:
    small, large = "x" * (MAX_TENSOR_BYTES // 2), "x" * (MAX_TENSOR_BYTES + 1)
    numbers = np.zeros(3)
    assert [array.size for *_, array in traced(large, small, numbers, [large, "y"]).tensors] == [
        1,
        3,
    ]


def test_tensors_of_all_traces_are_bounded() -> None:
    half = b"x" * (MAX_TENSOR_BYTES // 2)
    waiting = [traced(*[half] * 64) for _ in range(8)]
    held = sum(len(trace.tensors) for trace in waiting) * len(half)
    assert tensor_budget.limit * 0.9 < held <= tensor_budget.limit
    assert traced(half).tensors == []
    del waiting
    assert len(traced(half).tensors) == 1
