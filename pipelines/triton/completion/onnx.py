"""Completes the configuration of an ONNX model from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...config.classifier import read_graph
from ..messages import ModelConfig
from .tensors import KnownTensor, complete_tensors

TYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "BFLOAT16": "BF16",
    "STRING": "STRING",
}
"""ONNX's types -> Triton's."""


def complete(config: ModelConfig, version: Path) -> None:
    """Fill in what the configuration leaves out, unless it has inputs and outputs, as in Triton.

    Raises `ConfigError`.
    """
    if (config.input or config.batch_input) and config.output:
        return
    file = version / config.default_model_filename
    graph = read_graph(file / "model.onnx" if file.is_dir() else file)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_known(value) for value in graph.input if value.name not in weights]
    complete_tensors(config, inputs, [_known(value) for value in graph.output], file)


def _known(value: Any) -> KnownTensor:
    from onnx import TensorProto

    kind = str(TensorProto.DataType.Name(value.type.tensor_type.elem_type))
    return KnownTensor(value.name, TYPES.get(kind), dims_of(value))


def dims_of(value: Any) -> list[int]:
    """Return the sizes of a tensor of the graph, with -1 for one that is not fixed."""
    return [
        size.dim_value if size.HasField("dim_value") else -1
        for size in value.type.tensor_type.shape.dim
    ]
