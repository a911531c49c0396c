"""Completes the configuration of an OpenVINO model from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.engines.openvino.library import core
from penstock.backends.errors import BackendError, ConfigError, Problem

from ..messages import ModelConfig
from .tensors import KnownTensor, complete_tensors

TYPES = {
    "boolean": "BOOL",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
    "bf16": "BF16",
    "string": "STRING",
    **{f"i{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}
"""OpenVINO's types -> Triton's."""


def complete(config: ModelConfig, version: Path) -> None:
    """Fill in what the configuration leaves out, unless it has inputs and outputs.

    Without OpenVINO it stays as it is: the engine says what is missing. Raises `ConfigError`.
    """
    if config.input and config.output:
        return
    try:
        library = core()
    except BackendError:
        return
    file = version / config.default_model_filename
    try:
        model = library.read_model(str(file))
    except Exception as error:
        message = f"OpenVINO can't read this model: {error}"
        raise ConfigError([Problem(message, str(file))]) from error
    inputs, outputs = ([_known(port) for port in ports] for ports in (model.inputs, model.outputs))
    complete_tensors(config, inputs, outputs, file)


def _known(port: Any) -> KnownTensor:
    sizes = [-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    return KnownTensor(port.get_any_name(), TYPES.get(kind), sizes)
