"""Parameters that all engines share.

They are declared apart from the engines, so that a file can be checked on a machine that can't run it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .base import UNBOUNDED, BatchRange, Params

_NUMBER = re.compile(r"\d+")


def as_text(value: Any) -> Any:
    """Native numbers where text is declared too: `max = 4` is `max = "4"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def as_numbers(value: Any) -> Any:
    """`"123.675, 116.28, 103.53"` as numbers; a single number is a tuple of one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def as_names(value: Any) -> Any:
    """`"conv1,fc"` as names."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


Numbers = Annotated[tuple[float, ...], BeforeValidator(as_numbers)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_names)]
Shapes = Annotated[
    str,
    BeforeValidator(as_text),
    Field(pattern=r"^\s*\d+(\s*x\s*\d+)*(\s*[,;]\s*\d+(\s*x\s*\d+)*)*\s*$"),
]
"""A batch size or shapes: `4`, `4x3x224x224`, `1x3x224x224,1x10` (`,` between inputs, `;` between profiles)."""


def why_no_file(path: Path) -> str:
    return "is a directory" if path.is_dir() else "does not exist"


def batch_sizes(shapes: str) -> list[int]:
    """The batch size of each profile, which is the first number of its first input: `"1x3,1x10;4x3,4x10"` is [1, 4]."""
    found = (_NUMBER.search(profile) for profile in shapes.split(";"))
    return [int(number[0]) for number in found if number]


PostProcessor = Literal[
    "", "split", "cpu", "Softmax", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax", "ArgMax"
]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "best"]


LogLevel = Literal["verbose", "info", "warning", "error"]


class EngineParams(Params):
    """What every engine takes."""

    model: str = Field(
        description="the file: .onnx, .trt, .plan or .engine, .pt (each also with .encrypted), .pt2"
    )
    min: Shapes | None = Field(
        None,
        description="smallest batch, or shapes: 1, 1x3x224x224; ',' between inputs, ';' between profiles",
    )
    max: Shapes | None = Field(
        None,
        description="largest batch, or shapes: 4, 4x3x224x224; ',' between inputs, ';' between profiles",
    )
    precision: Precision | None = Field(
        None, description="of the weights and layers; the model's own where not given"
    )
    precision_fp32: Names = Field(
        (), alias="precision::fp32", description="parts of names of layers that are kept in fp32"
    )
    mean: Numbers | None = Field(
        None, description="subtracted from each channel, fused into the network"
    )
    std: Numbers | None = Field(
        None, description="each channel is divided by it after mean, fused into the network"
    )
    cache: str | None = Field(
        None, alias="model::cache", description="where the compiled engine is kept"
    )
    timing_cache: str | None = Field(
        None,
        alias="model::timingcache",
        description="where timings of a build are kept for the next one",
    )
    max_workspace_size: int | None = Field(
        None, gt=0, description="memory for building and running, MB"
    )
    weight_budget_percentage: float | None = Field(
        None, ge=0, le=100, description="share of the weights that stays on the device, percent"
    )
    input_reorder: str | None = Field(
        None, description="the order in which data holds the model's inputs"
    )
    output_reorder: str | None = Field(
        None, description="the order in which result holds the model's outputs"
    )
    postprocessor: PostProcessor | None = Field(
        None,
        description="Softmax (SoftmaxCpu), ArgMax, SoftmaxArgMax or SoftmaxMax of the model's scores; split, cpu: nothing",
    )
    top_k: int = Field(
        1,
        ge=1,
        description="with ArgMax, SoftmaxArgMax or SoftmaxMax: how many of the best classes `top` lists",
    )
    hardware_compatibility: str | None = Field(
        None, description="which other devices a compiled engine must run on"
    )
    log_level: LogLevel | None = Field(
        None, description="of the engine's own library: verbose, info, warning, error"
    )

    def declared_range(self) -> BatchRange:
        """The batch range that `min` and `max` say; the model may narrow it at `init`."""
        sizes_min = batch_sizes(self.min) if self.min is not None else []
        sizes_max = batch_sizes(self.max) if self.max is not None else []
        return BatchRange(min(sizes_min, default=1), max(sizes_max, default=UNBOUNDED))
