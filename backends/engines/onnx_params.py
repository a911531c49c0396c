"""Parameters of OnnxTensor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..params import EngineParams


class OnnxParams(EngineParams):
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of each instance; default: the processors that the process may use, "
        "divided among the instances",
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
        False, description="give memory that the arena does not use back after each run"
    )
