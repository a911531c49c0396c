"""Completes a ModelConfig from the model itself, as Triton does for one that is partial."""

from __future__ import annotations

from pathlib import Path

from penstock.backends.engines.onnx_gpu.providers import why_not
from penstock.backends.gpu.ipc import gpu_count

from ..folders import own_name
from ..messages import ModelConfig, new_config
from . import onnx, openvino, python
from .normalise import set_backend, set_defaults

ON_GPU = frozenset({"pytorch", "tensorrt", "python", "onnxruntime"})
"""The backends whose instances are on every GPU, if the configuration does not say where."""


def why_not_on_gpus(backend: str) -> str:
    """Return why models of a backend can't run on the GPUs of this machine; "" if they can.

    Of the other backends of `ON_GPU` the engine says so.
    """
    if backend not in ON_GPU:
        return "Penstock runs models of this backend on the CPU"
    if backend != "onnxruntime":
        return ""
    if not gpu_count():
        return "there is no GPU here"
    return why_not("cuda")[0]


def complete(written: ModelConfig, folder: Path, version: str) -> ModelConfig:
    """Return the configuration with all that the file leaves out.

    Raises `ConfigError` if the model can't be read, or does not fit what the file says.
    """
    config = new_config()
    config.CopyFrom(written)
    set_backend(config, own_name(folder), folder / version)
    gpus = () if why_not_on_gpus(config.backend) else tuple(range(gpu_count()))
    if config.backend == "onnxruntime":
        onnx.complete(config, folder / version)
    elif config.backend == "openvino":
        openvino.complete(config, folder / version)
    elif config.backend == "python":
        set_defaults(config, gpus)  # the model may look at all of it
        python.complete(config, folder / version)
    set_defaults(config, gpus)
    return config
