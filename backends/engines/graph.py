"""What an ONNX file says of its own graph: how its scores end, and what its pixels should be.

Weights that lie in files beside the model are not read.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SAME_VALUES = frozenset(
    {"Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Pad"}
    | {"Resize", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators that leave values as they are, or nearly so."""

LEAST_RESPONSE = 0.4
"""The least sum of a filter's weights, without their signs, of a model for normalised pixels.

With pixels of 0 to 255 such a filter would answer 50 and more. Models that were trained on raw
pixels have weights a hundred times smaller: 0.02 to 0.1.
"""


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False).graph


def graph_of(path: Path) -> Any:
    """Return the graph of a model (`onnx.GraphProto`); None if it is not one that can be read."""
    if path.suffix != ".onnx":
        return None
    try:
        return _read(path, path.stat().st_mtime_ns)
    except Exception:  # its engine says what is wrong with it
        return None


def ends_in_softmax(path: Path) -> bool:
    """Return whether the model's one output comes from a Softmax."""
    graph = graph_of(path)
    return graph is not None and len(graph.output) == 1 and softmax_is_last(graph)


def softmax_is_last(graph: Any) -> bool:
    """Return whether the first output of a graph comes from a Softmax."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in {"Cast", "Identity"}:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def looks_normalised(path: Path) -> bool:
    """Return whether a model seems to have been trained on normalised pixels, not on 0 to 255.

    It seems so if its first layer takes the input as it is, and its weights are too large for raw
    pixels. False if it normalises them itself, or if nothing can be said.
    """
    graph = graph_of(path)
    return graph is not None and looks_normalised_graph(graph)


def looks_normalised_graph(graph: Any) -> bool:
    """Return what `looks_normalised` does, of a graph that was read."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    if not inputs:
        return False
    weights |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    name = inputs[0]
    for node in graph.node:  # in topological order
        if name not in node.input:
            continue
        if node.op_type in SAME_VALUES and node.input[0] == name:
            name = node.output[0]
            continue
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[0] == name:
            return _answers_strongly(node, weights.get(node.input[1]))
        return False
    return False


def _answers_strongly(node: Any, tensor: Any) -> bool:
    """Return whether the filters of a layer would answer raw pixels with very large values."""
    from onnx import TensorProto, numpy_helper

    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return False
    weights = np.abs(numpy_helper.to_array(tensor).astype(np.float64))
    if node.op_type == "Conv":
        responses = weights.reshape(len(weights), -1).sum(axis=1)
    else:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        responses = weights.sum(axis=1 if transposed else 0)
    return bool(np.median(responses) >= LEAST_RESPONSE)
