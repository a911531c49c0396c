"""Tests of ModelTensor that need a GPU. scripts/gpu_check runs them; pytest does not collect a file
of this name by itself. Named on a machine without a GPU, those run that need none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.engines.onnx_gpu.providers import why_not
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of y = 3x + 1, N×4, so that a swapped answer shows."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "a"], ["ax"]), helper.make_node("Add", ["ax", "b"], ["y"])],
        "graph",
        ports[:1],
        ports[1:],
        [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("a", 3), ("b", 1))
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


async def answers(model: Path, **keys: Any) -> list[Any]:
    node = {"backend": "ModelTensor", "model": str(model), "max": "8x4", "instance_num": 2}
    async with Pipeline(load({"net": {**node, **keys}})) as pipeline:
        rows = [np.full((1, 4), value, np.float32) for value in range(200)]
        results = await asyncio.gather(*(pipeline({"data": row}) for row in rows))
    return [np.asarray(result["result"]) for result in results]


@pytest.mark.parametrize("device", ["", "cuda:0", "cpu"])
def test_an_onnx_file_runs_where_the_file_says(
    model: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU without a TensorRT for it, it is ONNX Runtime's CUDA provider."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device.startswith("cuda") and not on_gpu:
        pytest.skip("torch sees no GPU")
    if on_gpu and (reason := why_not("cuda", device)[0]):
        pytest.skip(reason)
    caplog.set_level("INFO", "penstock.model")
    keys = {"device": device} if device else {}
    for value, result in enumerate(asyncio.run(answers(model, **keys))):
        assert result.tolist() == [[3 * value + 1] * 4]
    (chosen,) = [
        record.getMessage() for record in caplog.records if record.name == "penstock.model"
    ]
    print(chosen)
    assert (f" on {'cuda:0' if on_gpu else 'cpu'}: ") in chosen
