"""Parameters of OnnxTensor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..params import CpuEngineParams


class OnnxParams(CpuEngineParams):
    provider: Literal["", "cpu", "cuda", "tensorrt"] = Field(
        "",
        description="ONNX Runtime's execution provider: cpu, cuda or tensorrt; default: cuda if "
        "the node's device is a GPU, or if there is one and onnxruntime-gpu is installed; else cpu",
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, capture a CUDA graph for each batch size (1, 2, 4 ... max) at "
        "warm-up, if the shapes are known, as from max = 8x3x224x224",
    )
    arena_limit: int | None = Field(
        None,
        gt=0,
        description="the most GPU memory that ONNX Runtime takes for each instance, in MiB; "
        "default: no limit",
    )
    arena_extend_strategy: Literal["same_as_requested", "next_power_of_two"] = Field(
        "same_as_requested",
        description="how much GPU memory ONNX Runtime takes when it needs more: what it needs, or "
        "the next power of two, which asks the driver less often",
    )
    cudnn_conv_algo_search: Literal["exhaustive", "heuristic", "default"] = Field(
        "heuristic",
        description="how cuDNN's algorithm for a convolution is chosen on a GPU: by running all, "
        "which takes a while for each new shape; by a rule; or always the same",
    )
    execution_mode: Literal["sequential", "parallel"] = Field(
        "sequential",
        description="parallel: operators that do not depend on each other run side by side",
    )
    inter_op_thread_count: int | None = Field(
        None,
        ge=1,
        description="threads that run operators side by side, with execution_mode = parallel; "
        "default: the processors that the process may use",
    )
    graph_optimization_level: Literal["all", "extended", "basic", "disabled"] = Field(
        "all", description="how far ONNX Runtime rewrites the graph"
    )
    enable_mem_arena: bool = Field(
        True, description="keep freed memory for the next run; false: give it back at once"
    )
    enable_mem_pattern: bool = Field(
        True, description="plan the memory of a run ahead, from the run before"
    )
    shrink_mem_arena: bool = Field(
        False,
        description="give memory that the arena does not use back after each run; no CUDA graphs",
    )
