"""Parameters of the torch engines.

They are declared without torch, so that a file can be checked on a machine that lacks it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...params import EngineParams


def _table(value: Any) -> Any:
    """Parse `"depth=18,width=0.5"` or a JSON object into a dict."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [piece.partition("=") for piece in value.split(",") if piece.strip()]
    return {key.strip(): _number(text.strip()) for key, _, text in pairs}


def _number(text: str) -> Any:
    """Parse an int, a float, or true or false; other text stays text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


TensorType = Literal[
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]


class TorchParams(EngineParams):
    """The parameters of all torch engines.

    Options with Triton's names may be written in lower case too.
    """

    dtypes: dict[str, TensorType] = Field(
        {},
        description="the dtype in which inputs go to the model, by name: x = bfloat16; default: as "
        "they come, and float64 as float32 unless the model has weights in float64",
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, capture a CUDA graph for each batch size (1, 2, 4 ... max) at "
        "warm-up, if the shapes are known, as from max = 8x3x224x224",
    )
    inference_mode: bool = Field(
        True,
        alias="INFERENCE_MODE",
        description="run in torch.inference_mode; false: in torch.no_grad",
    )
    disable_cudnn: bool | None = Field(
        None,
        alias="DISABLE_CUDNN",
        description="run without cuDNN; holds for the whole process; default: torch's setting",
    )
    enable_weight_sharing: bool = Field(
        True,
        alias="ENABLE_WEIGHT_SHARING",
        description="let the instances on one device share the weights",
    )
    enable_cache_cleaning: bool = Field(
        False,
        alias="ENABLE_CACHE_CLEANING",
        description="give unused GPU memory back to the driver after every batch; slow",
    )
    inter_op_thread_count: int | None = Field(
        None,
        alias="INTER_OP_THREAD_COUNT",
        ge=1,
        description="threads that run independent operators in parallel on the CPU; holds for the "
        "whole process; default: torch's setting",
    )
    intra_op_thread_count: int | None = Field(
        None,
        alias="INTRA_OP_THREAD_COUNT",
        ge=1,
        description="CPU threads within an operator; default: the processors that the process may "
        "use, divided among the instances; 1 on a GPU",
    )


class TorchScriptParams(TorchParams):
    """The parameters of Triton's PyTorch backend, by its names; lower case works too."""

    disable_optimized_execution: bool = Field(
        False,
        alias="DISABLE_OPTIMIZED_EXECUTION",
        description="run TorchScript without its optimiser",
    )
    enable_jit_executor: bool | None = Field(
        None,
        alias="ENABLE_JIT_EXECUTOR",
        description="use TorchScript's profiling executor; holds for the whole process; default: "
        "torch's setting",
    )
    enable_jit_profiling: bool | None = Field(
        None,
        alias="ENABLE_JIT_PROFILING",
        description="let TorchScript profile the first runs; holds for the whole process; default: "
        "torch's setting",
    )
    enable_tensor_fuser: bool | None = Field(
        None,
        alias="ENABLE_TENSOR_FUSER",
        description="use TorchScript's tensor expression fuser; holds for the whole process; "
        "default: torch's setting",
    )
    enable_nvfuser: bool | None = Field(
        None,
        alias="ENABLE_NVFUSER",
        description="no effect, a warning in the log: torch dropped nvFuser",
    )


class PythonTensorParams(TorchParams):
    model: str = Field(
        description="the class or function that makes the module: package.module:Class or "
        "file.py:Class"
    )
    state_dict: str | None = Field(
        None,
        description="file of the weights: .safetensors, or one that torch.load reads with "
        "weights_only; default: the weights that the module is made with",
    )
    kwargs: Annotated[dict[str, Any], BeforeValidator(_table)] = Field(
        {},
        description="arguments for the class or function: depth=18,width=0.5, or a JSON object",
    )
    compile: Literal[
        "", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = Field("", description="the mode of torch.compile; default: the module is not compiled")
    quantize: Literal["", "int8-weight-only", "int8-dynamic", "fp8-weight-only", "fp8-dynamic"] = (
        Field(
            "",
            description="quantise the weights of linear layers with torchao; -dynamic: their "
            "inputs too, at each run; the error is logged at load; default: they stay as they are",
        )
    )
    channels_last: bool = Field(
        False,
        description="keep images and weights in the channels_last memory format, which is faster "
        "on GPUs",
    )
