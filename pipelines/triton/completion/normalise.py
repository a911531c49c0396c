"""Fills in what a ModelConfig leaves out, as Triton does when it loads a model.

The rules are those of Triton's `model_config_utils.cc`, on a machine whose GPUs are `gpus`.
"""

from __future__ import annotations

from pathlib import Path

from ..folders import DEFAULT_FILES
from ..messages import ModelConfig

PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "torch_aoti": "pytorch",
    "libtorch": "pytorch",
    "pytorch_libtorch": "pytorch",
    "ensemble": "ensemble",
}
"""Triton's platforms -> the backends that run them."""

_FILES = {backend: file for file, backend in DEFAULT_FILES.items()}
_PLATFORM_OF = {backend: platform for platform, backend in PLATFORMS.items()}
_NO_PLATFORM = frozenset({"openvino", "python", "ensemble"})

DEFAULT_IDLE_MICROSECONDS = 1_000_000
CPU_INSTANCES = {"onnxruntime": 2}
"""The instances of a model on the CPU that sets no count, where it isn't one."""


def set_backend(config: ModelConfig, name: str, version: Path) -> None:
    """Set the name, the backend and the model's file, from what is there and from the folder of
    the version.
    """
    if not config.name:
        config.name = name
    if config.HasField("ensemble_scheduling") and not config.platform:
        config.platform = "ensemble"
    if not config.backend:
        if config.platform in PLATFORMS:
            if config.platform != "ensemble":
                config.backend = PLATFORMS[config.platform]
        elif not config.platform:
            files = [config.default_model_filename] if config.default_model_filename else []
            files = files or [file for file in DEFAULT_FILES if (version / file).exists()]
            config.backend = next(
                (DEFAULT_FILES[file] for file in files if file in DEFAULT_FILES), ""
            )
    if config.backend and config.backend in _FILES:
        if not config.platform and config.backend not in _NO_PLATFORM:
            config.platform = _PLATFORM_OF[config.backend]
        if not config.default_model_filename:
            is_package = config.platform == "torch_aoti"
            config.default_model_filename = "model.pt2" if is_package else _FILES[config.backend]


def set_defaults(config: ModelConfig, gpus: tuple[int, ...] = ()) -> None:
    """Set the fields whose defaults are not those of protobuf."""
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    most = config.max_batch_size
    if config.HasField("dynamic_batching"):
        preferred = config.dynamic_batching.preferred_batch_size
        if not preferred and most > 0:
            preferred.append(most)
    if config.HasField("sequence_batching"):
        sequences = config.sequence_batching
        if not sequences.max_sequence_idle_microseconds:
            sequences.max_sequence_idle_microseconds = DEFAULT_IDLE_MICROSECONDS
        if sequences.HasField("oldest"):
            preferred = sequences.oldest.preferred_batch_size
            if not preferred and most > 0:
                preferred.append(most)
    if config.HasField("ensemble_scheduling"):
        if not config.HasField("model_transaction_policy"):
            config.model_transaction_policy.SetInParent()
        return
    optimization = config.optimization
    for pinned in ("input_pinned_memory", "output_pinned_memory"):
        if not optimization.HasField(pinned):
            getattr(optimization, pinned).enable = True
    _set_instances(config, gpus)


def _set_instances(config: ModelConfig, gpus: tuple[int, ...]) -> None:
    if not config.instance_group:
        config.instance_group.add().name = config.name
    for index, group in enumerate(config.instance_group):
        if not group.name:
            group.name = f"{config.name}_{index}"
        if group.kind == group.KIND_AUTO:
            here = gpus and all(gpu in gpus for gpu in group.gpus)
            group.kind = group.KIND_GPU if here else group.KIND_CPU
        if group.count < 1:
            on_cpu = group.kind == group.KIND_CPU
            group.count = CPU_INSTANCES.get(config.backend, 1) if on_cpu else 1
        if group.kind == group.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)
