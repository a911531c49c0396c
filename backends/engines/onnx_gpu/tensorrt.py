"""The options of ONNX Runtime's TensorRT provider: precision, profiles, and where engines are kept.

Written against the names in its library, and never run (see docs/reference/operators.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...base import UNBOUNDED, Context
from ...errors import BackendError
from ...gpu.device import buckets
from ..onnx_params import OnnxParams
from ..onnx_session import config_error, load_model, read_source
from ..shapes import UNBOUNDED_WARM_UP_BATCH
from ..tensorrt.cache import default_directory
from ..tensorrt.profiles import Input, Profile, ProfileError, make_profiles

PRECISION_OPTIONS = {
    "fp32": (),
    "fp16": ("trt_fp16_enable",),
    "bf16": ("trt_bf16_enable",),
    "int8": ("trt_int8_enable",),
    "best": ("trt_fp16_enable", "trt_int8_enable"),
}
"""`precision` -> the options that allow it. int8 takes a model with QuantizeLinear nodes."""


def tensorrt_options(params: OnnxParams, context: Context, path: Path) -> dict[str, Any]:
    """Return the options of a node. Raises BackendError and ConfigError."""
    precision = params.precision or "fp32"
    if precision not in PRECISION_OPTIONS:
        message = (
            f"{precision} is not one that ONNX Runtime's TensorRT provider has: expected one of "
            f"{', '.join(PRECISION_OPTIONS)}"
        )
        raise config_error(context, "precision", message)
    if params.precision_fp32:
        message = "ONNX Runtime's TensorRT provider chooses layers itself: use TensorrtTensor"
        raise config_error(context, "precision::fp32", message)
    options: dict[str, Any] = dict.fromkeys(PRECISION_OPTIONS[precision], 1)
    folder = default_directory() / "onnxruntime"
    if params.cache is not None:
        folder = context.resolve(params.cache)
        if folder.is_file() or (folder.suffix and not folder.is_dir()):
            message = f"is {folder}, but ONNX Runtime keeps engines in a folder: name one"
            raise config_error(context, "model::cache", message)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackendError(
            f"OnnxTensor: the folder {folder} of model::cache can't be made: {error.strerror}"
        ) from error
    options |= {"trt_engine_cache_enable": 1, "trt_engine_cache_path": str(folder)}
    if params.timing_cache is not None:
        options |= {
            "trt_timing_cache_enable": 1,
            "trt_timing_cache_path": str(context.resolve(params.timing_cache)),
        }
    if params.max_workspace_size is not None:
        options["trt_max_workspace_size"] = params.max_workspace_size * 2**20
    return options | _profiles(params, context, path)


def _profiles(params: OnnxParams, context: Context, path: Path) -> dict[str, str]:
    """Return the profiles that `min` and `max` give; none where the file does not give the shapes.
    TensorRT then builds again at each new shape.
    """
    source = read_source(path, params, context)
    inputs = _free_inputs(load_model(source).graph, params)
    largest = min(params.size_range(inputs[0].axis if inputs else 0).max, context.max or UNBOUNDED)
    sizes = buckets(UNBOUNDED_WARM_UP_BATCH if largest == UNBOUNDED else largest)
    try:
        profiles = make_profiles(inputs, params.min, params.max, sizes) if inputs else []
    except ProfileError as error:
        if params.max is None or "x" not in params.max:
            return {}
        raise config_error(context, error.key, str(error)) from error
    return profile_options(profiles)


def _free_inputs(graph: Any, params: OnnxParams) -> list[Input]:
    weights = {tensor.name for tensor in graph.initializer}
    return [
        Input(
            value.name,
            tuple(
                dim.dim_value if dim.HasField("dim_value") else -1
                for dim in value.type.tensor_type.shape.dim
            ),
            params.batch_axis.get(value.name, 0),
        )
        for value in graph.input
        if value.name not in weights
    ]


def profile_options(profiles: Sequence[Profile]) -> dict[str, str]:
    """Write profiles as ONNX Runtime reads them: `x:1x3x32x32`, one after another with commas."""
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, getattr(shapes, kind)))}"
            for profile in profiles
            for name, shapes in profile.items()
        )
        for kind in ("min", "opt", "max")
        if profiles
    }
