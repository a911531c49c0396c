"""Parameters of the torch engines, declared without importing torch: a file that uses them can be checked anywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...params import EngineParams


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
    """Options with Triton's names may be written in lower case too."""

    cuda_graphs: bool = Field(
        True,
        description="capture the work of each batch size at warm-up, on a GPU, where shapes are known",
    )
    inference_mode: bool = Field(
        True,
        alias="INFERENCE_MODE",
        description="run in torch's inference mode, else with gradients off",
    )
    disable_cudnn: bool | None = Field(
        None, alias="DISABLE_CUDNN", description="run without cuDNN; for the whole process"
    )
    enable_weight_sharing: bool = Field(
        True, alias="ENABLE_WEIGHT_SHARING", description="instances on one device share the weights"
    )
    enable_cache_cleaning: bool = Field(
        False,
        alias="ENABLE_CACHE_CLEANING",
        description="give unused GPU memory back after every batch: slow",
    )
    inter_op_thread_count: int | None = Field(
        None,
        alias="INTER_OP_THREAD_COUNT",
        ge=1,
        description="threads between operators, on the CPU; for the whole process",
    )
    intra_op_thread_count: int | None = Field(
        None,
        alias="INTRA_OP_THREAD_COUNT",
        ge=1,
        description="threads of the host within an operator; not given: the processors, shared among the instances (on a GPU: 1)",
    )


class TorchScriptParams(TorchParams):
    """Those of Triton's PyTorch backend, by its names; each in snake case too."""

    disable_optimized_execution: bool = Field(
        False,
        alias="DISABLE_OPTIMIZED_EXECUTION",
        description="run TorchScript without its optimiser",
    )
    enable_jit_executor: bool | None = Field(
        None,
        alias="ENABLE_JIT_EXECUTOR",
        description="TorchScript's profiling executor; for the whole process",
    )
    enable_jit_profiling: bool | None = Field(
        None,
        alias="ENABLE_JIT_PROFILING",
        description="TorchScript's profiling; for the whole process",
    )
    enable_tensor_fuser: bool | None = Field(
        None,
        alias="ENABLE_TENSOR_FUSER",
        description="TorchScript's tensor expression fuser; for the whole process",
    )
    enable_nvfuser: bool | None = Field(
        None, alias="ENABLE_NVFUSER", description="gone from torch: accepted, with a warning"
    )


class PythonTensorParams(TorchParams):
    model: str = Field(description="what makes the module: package.module:Class or file.py:Class")
    state_dict: str | None = Field(
        None,
        description="its weights: a .safetensors file, or one that torch loads with weights_only",
    )
    kwargs: Annotated[dict[str, Any], BeforeValidator(_table)] = Field(
        {}, description="arguments of the class: depth=18,width=0.5, or a JSON object"
    )
    compile: Literal[
        "", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = Field("", description="torch.compile in this mode; not given: as it is")
    channels_last: bool = Field(
        False,
        description="keep images and weights in the channels_last memory format, which GPUs prefer",
    )
