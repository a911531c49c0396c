"""Completes the configuration of an ONNX model from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem

from ..config.classifier import read_graph
from .messages import ModelConfig, model_config_pb2

DEFAULT_MAX_BATCH_SIZE = 4
"""Triton's `default-max-batch-size` of this backend."""

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
    """Fill in `max_batch_size`, `input` and `output` if one of the lists is empty.

    Raises `ConfigError`.
    """
    if (config.input or config.batch_input) and config.output:
        return
    file = version / config.default_model_filename
    graph = read_graph(file / "model.onnx" if file.is_dir() else file)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    _complete_batch(config, [*inputs, *graph.output], file)
    batched = config.max_batch_size > 0
    given, kept = _of_sequences(config)
    if not config.input and not config.batch_input:
        for value in inputs:
            if value.name not in given:
                _add(config.input, value, batched, file)
    if not config.output:
        outputs = [value for value in graph.output if value.name not in kept]
        for value in outputs or graph.output:
            _add(config.output, value, batched, file)


def _of_sequences(config: ModelConfig) -> tuple[set[str], set[str]]:
    """Return the inputs that no client gives, and the outputs that are states of sequences."""
    batching = config.sequence_batching
    given = {tensor.name for tensor in batching.control_input}
    given |= {state.input_name for state in batching.state}
    return given, {state.output_name for state in batching.state}


def _complete_batch(config: ModelConfig, values: list[Any], file: Path) -> None:
    shapes = [dims_of(value) for value in values]
    if all(dims[:1] == [-1] for dims in shapes):
        if config.max_batch_size == 0:
            config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        if (
            config.max_batch_size > 1
            and not config.HasField("sequence_batching")
            and not config.HasField("dynamic_batching")
        ):
            config.dynamic_batching.SetInParent()
    elif config.max_batch_size:
        message = (
            f"max_batch_size is {config.max_batch_size}, but the first size of a tensor of the "
            "model is fixed: expected max_batch_size 0, or its input and output with their dims"
        )
        raise ConfigError([Problem(message, str(file), key="max_batch_size")])


def dims_of(value: Any) -> list[int]:
    return [
        size.dim_value if size.HasField("dim_value") else -1
        for size in value.type.tensor_type.shape.dim
    ]


def _add(tensors: Any, value: Any, batched: bool, file: Path) -> None:
    from onnx import TensorProto

    kind = str(TensorProto.DataType.Name(value.type.tensor_type.elem_type))
    if kind not in TYPES:
        message = f"tensor {value.name!r} is {kind.lower()}, which Triton's ModelConfig can't say"
        raise ConfigError([Problem(message, str(file))])
    tensor = tensors.add()
    tensor.name = value.name
    tensor.data_type = model_config_pb2().DataType.Value(f"TYPE_{TYPES[kind]}")
    dims = dims_of(value)[batched:]
    tensor.dims.extend(dims or [1])
    if not dims and batched:
        tensor.reshape.SetInParent()
