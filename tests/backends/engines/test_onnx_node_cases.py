"""OnnxTensor against ONNX Runtime itself, on the models that ONNX ships to test operators.

ONNX's package makes about 1,900 models, each with inputs. Those that ONNX Runtime refuses to load,
or to run, count for nothing.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from penstock.backends.errors import BackendError
from penstock.pipelines.pipeline import Pipeline

AT_ONCE = 16
"""Pipelines that run at the same time."""

REFUSALS = (
    r"input \w+ is (seq|optional)\(.*: OnnxTensor takes tensors",
    r"(input|output) \w+ is tensor\((bfloat16|float8\w+|u?int[24])\), and NumPy lacks \w+: export",
)
"""What OnnxTensor may refuse at load, and how it says so."""


class Case(NamedTuple):
    name: str
    path: Path
    session: Any
    requests: list[list[Any]]
    """The inputs of each."""


def plain(value: Any) -> Any:
    """Return an input as a request has it: an array, or a list of arrays."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return [plain(member) for member in value] if isinstance(value, list) else np.asarray(value)


def zeros_of_a_pool(
    padded: Any, x_shape: Any, kernel: Any, strides: Any, out_shape: Any, *_: Any, **__: Any
) -> Any:
    return np.zeros([x_shape[0], x_shape[1], *out_shape], padded.dtype)


def cases(folder: Path) -> Iterator[Case]:
    """Save the models that ONNX Runtime loads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with (
        warnings.catch_warnings(),
        # Its answers are not read, and pooling in Python takes long. Nor are its examples for docs.
        mock.patch("onnx.reference.ops.op_pool_common.pool", zeros_of_a_pool),
        mock.patch("onnx.backend.test.case.base.process_snippet", lambda *_: ("", "")),
    ):
        warnings.simplefilter("ignore")  # NumPy's, of the arithmetic with which ONNX makes inputs
        made = load_model_tests(kind="node")
    for case in made:
        assert case.model is not None and case.data_sets is not None
        content = case.model.SerializeToString()
        try:
            session = onnxruntime.InferenceSession(content, options)
        except Exception:  # its exceptions share no base class
            continue
        path = folder / f"{case.name}.onnx"
        path.write_bytes(content)
        requests = [[plain(value) for value in values] for values, _ in case.data_sets]
        yield Case(case.name, path, session, requests)


def answer_of(session: Any, request: list[Any]) -> Any:
    """Return what ONNX Runtime answers, as `result` has it; None if it refuses the request."""
    names = [port.name for port in session.get_inputs()]
    try:
        outputs = session.run(None, dict(zip(names, request, strict=False)))
    except Exception:  # its exceptions share no base class
        return None
    return outputs[0] if len(outputs) == 1 else outputs


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bool(
        np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    )


def item_of(request: list[Any], batched: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"data": request[0] if len(request) == 1 else request}
    return {**item, "request_size": len(request[0])} if batched else item


async def run(case: Case, found: Counter[str], wrong: list[str]) -> None:
    """Run each request together with a second one, whose rows are those of the first backwards."""
    node = {"backend": "OnnxTensor", "model": str(case.path), "threads": 1}
    try:
        async with Pipeline.load({"node": node}) as pipeline:
            signature = pipeline.nodes[0].signature
            assert signature is not None
            for request in case.requests:
                pair = [request]
                if signature.batched:
                    pair.append([array[::-1] for array in request])
                expected = [answer_of(case.session, one) for one in pair]
                if any(answer is None for answer in expected):
                    found["refused by ONNX Runtime"] += 1
                    continue
                answers = await pipeline([item_of(one, signature.batched) for one in pair])
                found["in company" if signature.batched else "alone"] += 1
                for answer, right in zip(answers, expected, strict=True):
                    if not same(answer.get("result"), right):
                        wrong.append(f"{case.name}: {answer.get('error', answer.get('result'))}")
    except BackendError as error:
        refusal = next((text for text in REFUSALS if re.search(text, str(error))), None)
        if refusal is None:
            wrong.append(f"{case.name}: {error}")
        found["refused at load"] += 1


@pytest.mark.timeout(300)  # seconds; it takes 12 of one processor
async def test_no_model_of_onnx_differs_from_onnx_runtime(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    wrong: list[str] = []
    places = asyncio.Semaphore(AT_ONCE)

    async def run_one(case: Case) -> None:
        async with places:
            await run(case, found, wrong)

    async with asyncio.TaskGroup() as tasks:
        for case in cases(tmp_path):
            tasks.create_task(run_one(case))
    assert not wrong, "\n".join(wrong)
    assert found["alone"] > 500 and found["in company"] > 500, found
