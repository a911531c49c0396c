"""Small ONNX models and Triton repositories of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


def linear_model(factor: float, batch: int | None = None, name: str = "COUNTS") -> Any:
    """Return a model SCORES (n, 3) = COUNTS (n, 4) @ W, all of W being `factor`."""
    weights = helper.make_tensor(
        "W", TensorProto.FLOAT, [4, 3], np.full(12, factor, dtype=np.float32)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "W"], ["SCORES"])],
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("SCORES", TensorProto.FLOAT, [batch, 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


LINEAR = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "COUNTS" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""


def _write_linear(
    repository: Path,
    name: str = "linear",
    config: str | None = LINEAR,
    versions: tuple[int, ...] = (1,),
) -> Path:
    """Write a model whose factor is its version. Return its folder."""
    folder = repository / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        onnx.save(linear_model(version), folder / str(version) / "model.onnx")
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(name="write_linear")
def write_linear_fixture() -> Any:
    """Return the function that writes a linear model into a repository."""
    return _write_linear
