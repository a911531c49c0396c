"""Completes a ModelConfig from the model itself, as Triton does for one that is partial."""

from __future__ import annotations

from pathlib import Path

from penstock.backends.gpu.ipc import gpu_count

from ..folders import own_name
from ..messages import ModelConfig, new_config
from . import onnx, openvino, python
from .normalise import set_backend, set_defaults

ON_GPU = frozenset({"pytorch", "tensorrt", "python"})
"""The backends whose instances are on every GPU, if the configuration does not say where."""


def complete(written: ModelConfig, folder: Path, version: str) -> ModelConfig:
    """Return the configuration with all that the file leaves out.

    Raises `ConfigError` if the model can't be read, or does not fit what the file says.
    """
    config = new_config()
    config.CopyFrom(written)
    set_backend(config, own_name(folder), folder / version)
    gpus = tuple(range(gpu_count())) if config.backend in ON_GPU else ()
    if config.backend == "onnxruntime":
        onnx.complete(config, folder / version)
    elif config.backend == "openvino":
        openvino.complete(config, folder / version)
    elif config.backend == "python":
        set_defaults(config, gpus)  # the model may look at all of it
        python.complete(config, folder / version)
    set_defaults(config, gpus)
    return config
