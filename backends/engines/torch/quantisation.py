"""Quantisation of an nn.Module's linear layers with torchao: the key `quantize` of PythonTensor."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...errors import BackendError
from .module import reason_of

CONFIGURATIONS = {
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8-weight-only": "Float8WeightOnlyConfig",
    "fp8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
"""`quantize` -> torchao's class."""


def quantise(module: torch.nn.Module, scheme: str, prefix: str) -> None:
    """Replace the weights of the module's linear layers by quantised ones.

    `prefix` begins the messages: node and engine. Raises BackendError if torchao is missing, if the
    module has no linear layers, and if torchao refuses the device or the precision.
    """
    if not any(isinstance(part, torch.nn.Linear) for part in module.modules()):
        raise BackendError(
            f"{prefix}: quantize = {scheme} is for linear layers, and the model has none: remove "
            "the key"
        )
    try:
        torchao: Any = import_module("torchao.quantization")
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{prefix}: quantize needs extra torchao, which is not installed here: "
            "pip install 'penstock-serve[torchao]'"
        ) from error
    try:
        torchao.quantize_(module, getattr(torchao, CONFIGURATIONS[scheme])())
    except Exception as error:  # torchao asserts what a scheme needs of the device
        raise BackendError(
            f"{prefix}: torchao can't quantize the model by {scheme}: {reason_of(error)}"
        ) from error
