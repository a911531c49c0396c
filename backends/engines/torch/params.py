"""Parameters of the torch engines, declared without importing torch: a file that uses them can be checked anywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..params import EngineParams


def _table(value: Any) -> Any:
    """`"depth=18,width=0.5"`, or an object of JSON, as a table."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [piece.partition("=") for piece in value.split(",") if piece.strip()]
    return {key.strip(): _number(text.strip()) for key, _, text in pairs}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


class TorchParams(EngineParams):
    cuda_graphs: bool = Field(True, description="capture the work of each batch size at warm-up, on a GPU, where shapes are known")
    INFERENCE_MODE: bool = Field(True, description="run in torch's inference mode, else with gradients off")
    DISABLE_CUDNN: bool | None = Field(None, description="run without cuDNN; for the whole process")
    ENABLE_WEIGHT_SHARING: bool = Field(True, description="instances on one device share the weights")
    ENABLE_CACHE_CLEANING: bool = Field(False, description="give unused GPU memory back after every batch: slow")
    INTER_OP_THREAD_COUNT: int | None = Field(None, ge=1, description="threads between operators, on the CPU; for the whole process")
    INTRA_OP_THREAD_COUNT: int | None = Field(
        None, ge=1, description="threads within an operator, on the CPU; not given: the processors, shared among the instances"
    )

    @model_validator(mode="before")
    @classmethod
    def _upper(cls, values: Any) -> Any:
        """`inference_mode` is `INFERENCE_MODE`."""
        if not isinstance(values, dict):
            return values
        return {key.upper() if key.upper() in cls.model_fields else key: value for key, value in values.items()}


class TorchScriptParams(TorchParams):
    """Those of Triton's PyTorch backend, by its names; each in snake case too."""

    DISABLE_OPTIMIZED_EXECUTION: bool = Field(False, description="run TorchScript without its optimiser")
    ENABLE_JIT_EXECUTOR: bool | None = Field(None, description="TorchScript's profiling executor; for the whole process")
    ENABLE_JIT_PROFILING: bool | None = Field(None, description="TorchScript's profiling; for the whole process")
    ENABLE_TENSOR_FUSER: bool | None = Field(None, description="TorchScript's tensor expression fuser; for the whole process")
    ENABLE_NVFUSER: bool | None = Field(None, description="gone from torch: accepted, with a warning")


class PythonTensorParams(TorchParams):
    model: str = Field(description="what makes the module: package.module:Class or file.py:Class")
    state_dict: str | None = Field(None, description="its weights: a .safetensors file, or one that torch loads with weights_only")
    kwargs: Annotated[dict[str, Any], BeforeValidator(_table)] = Field(
        {}, description="arguments of the class: depth=18,width=0.5, or a JSON object"
    )
    compile: Literal["", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "", description="torch.compile in this mode; not given: as it is"
    )
    channels_last: bool = Field(False, description="keep images and weights in the channels_last memory format, which GPUs prefer")
