"""ONNX models for the tests of OnnxTensor on GPUs, and a way to run them on any provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write(path: Path, nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> Path:
    """Save a model of `nodes`. Inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def net(folder: Path, width: int = 64) -> Path:
    """A small convolutional net, N×3×H×W to N×10, whose answer depends on every pixel."""
    return write(
        folder / f"net{width}.onnx",
        [
            ("Conv", ["x", "w1", "b1"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], ["r"]),
            ("Conv", ["r", "w2"], ["d"], {"strides": [2, 2]}),
            ("GlobalAveragePool", ["d"], ["g"]),
            ("Flatten", ["g"], ["f"]),
            ("Gemm", ["f", "w3"], ["scores"]),
        ],
        [("x", FLOAT, ["n", 3, "h", "w"])],
        [("scores", FLOAT, ["n", 10])],
        [
            ("w1", floats(width, 3, 3, 3) / 5),
            ("b1", floats(width, seed=1)),
            ("w2", floats(width, width, 3, 3, seed=2) / 10),
            ("w3", floats(width, 10, seed=3)),
        ],
    )


def linear(folder: Path, width: int) -> Path:
    """y = xW, N×width."""
    return write(
        folder / f"linear{width}.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", width])],
        [("y", FLOAT, ["n", width])],
        [("w", floats(width, width) / width**0.5)],
    )


def tag(folder: Path) -> Path:
    """y = 3x + 1, N×4: a swapped answer shows."""
    return write(
        folder / "tag.onnx",
        [("Mul", ["x", "three"], ["t"]), ("Add", ["t", "one"], ["y"])],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4])],
        [("three", np.float32(3)), ("one", np.float32(1))],
    )


def pair(folder: Path) -> Path:
    """Two inputs, two outputs, and an optional input `scale`."""
    path = write(
        folder / "pair.onnx",
        [
            ("Add", ["a", "b"], ["s"]),
            ("Mul", ["s", "scale"], ["sum"]),
            ("Sub", ["a", "b"], ["difference"]),
        ],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])],
        [("sum", FLOAT, ["n", 2]), ("difference", FLOAT, ["n", 2])],
        [("scale", np.ones(2, np.float32))],
    )
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("scale", FLOAT, [2]))
    onnx.save(model, path)
    return path


def places(folder: Path) -> Path:
    """The places in x, N×1, that are not 0: K×2. Rows do not stay apart."""
    return write(
        folder / "places.onnx",
        [("NonZero", ["x"], ["found"]), ("Transpose", ["found"], ["places"])],
        [("x", FLOAT, ["n", 1])],
        [("places", INT64, ["k", 2])],
    )


def fixed(folder: Path) -> Path:
    """y = 2x, for batches of 4 only."""
    return write(
        folder / "fixed.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, [4, 3])],
        [("y", FLOAT, [4, 3])],
    )


def steps(folder: Path) -> Path:
    """A cell whose state has its batch on axis 1."""
    return write(
        folder / "steps.onnx",
        [("Transpose", ["h"], ["t"], {"perm": [1, 0, 2]}), ("Add", ["t", "x"], ["s"]),
         ("Transpose", ["s"], ["next"], {"perm": [1, 0, 2]})],
        [("x", FLOAT, ["n", 2, 3]), ("h", FLOAT, [2, "n", 3])],
        [("next", FLOAT, [2, "n", 3])],
    )  # fmt: skip


def texts(folder: Path) -> Path:
    return write(
        folder / "texts.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n", 1])],
        [("y", TensorProto.STRING, ["n", 1])],
    )


def make(path: Path, instance: int = 0, instances: int = 1, device: str = "", **keys: Any) -> Any:
    """Make an OnnxTensor as a node would."""
    backend = OnnxTensor()
    backend.init(
        OnnxParams.model_validate({"model": str(path), **keys}),
        Context(node="node", instance=instance, instances=instances, device=device),
    )
    return backend


def run(backend: Any, *data: Any, **keys: Any) -> list[Any]:
    batch = [{"data": value, **keys} for value in data]
    backend.forward(batch)
    return [item.get("result", item.get("error")) for item in batch]
