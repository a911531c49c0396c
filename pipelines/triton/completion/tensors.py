"""Completes a configuration with the tensors that a model's file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.backends.errors import ConfigError, Problem

from ..messages import ModelConfig, model_config_pb2

DEFAULT_MAX_BATCH_SIZE = 4
"""Triton's `default-max-batch-size`."""


class KnownTensor(NamedTuple):
    """A tensor of a model. `type`: as in `TYPE_FP32`, None if Triton has no such type. `dims`: all
    of them, with -1 for any size."""

    name: str
    type: str | None
    dims: list[int]


def complete_tensors(
    config: ModelConfig, inputs: Sequence[KnownTensor], outputs: Sequence[KnownTensor], file: Path
) -> None:
    """Fill in `max_batch_size`, `dynamic_batching`, and `input` and `output` where they are empty.

    What the server keeps for sequences is no input, and no output if there are others. Raises
    `ConfigError`.
    """
    _complete_batch(config, [*inputs, *outputs], file)
    batching = config.sequence_batching
    hidden = {tensor.name for tensor in batching.control_input}
    hidden |= {state.input_name for state in batching.state}
    kept = {state.output_name for state in batching.state}
    if not config.input and not config.batch_input:
        for tensor in inputs:
            if tensor.name not in hidden:
                _add(config.input, tensor, config.max_batch_size > 0, file)
    if not config.output:
        for tensor in [each for each in outputs if each.name not in kept] or outputs:
            _add(config.output, tensor, config.max_batch_size > 0, file)


def _complete_batch(config: ModelConfig, tensors: Sequence[KnownTensor], file: Path) -> None:
    if all(tensor.dims[:1] == [-1] for tensor in tensors):
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


def _add(tensors: Any, known: KnownTensor, batched: bool, file: Path) -> None:
    if known.type is None:
        message = f"tensor {known.name!r} has a type that Triton's ModelConfig can't say"
        raise ConfigError([Problem(message, str(file))])
    tensor = tensors.add()
    tensor.name = known.name
    tensor.data_type = model_config_pb2().DataType.Value(f"TYPE_{known.type}")
    dims = known.dims[batched:]
    tensor.dims.extend(dims or [1])
    if not dims and batched:
        tensor.reshape.SetInParent()
