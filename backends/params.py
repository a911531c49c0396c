"""Parameters that all engines share.

They are declared apart from the engines, so that a file can be checked on a machine that can't run
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .base import UNBOUNDED, BatchRange, Params
from .warm_up_samples import Sample

_NUMBER = re.compile(r"\d+")


def as_text(value: Any) -> Any:
    """Turn a number into text, for parameters declared as text: `max = 4` is `max = "4"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def as_numbers(value: Any) -> Any:
    """Split `"123.675, 116.28, 103.53"` at its commas. A single number becomes a tuple of one."""
    if isinstance(value, str):
        return tuple(number.strip() for number in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def as_names(value: Any) -> Any:
    """Split `"conv1,fc"` into names."""
    return (
        tuple(name.strip() for name in value.split(",") if name.strip())
        if isinstance(value, str)
        else value
    )


def as_switch(value: Any) -> Any:
    """Read `true` and `false` in the arguments of an expression, where all values are texts."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def as_axes(value: Any) -> Any:
    """Parse `"h=1,c=1"` into {"h": 1, "c": 1}. What is no number stays text, and is refused."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    return {
        name.strip(): int(axis) if axis.strip().isdecimal() else axis.strip()
        for name, _, axis in pairs
    }


Axes = Annotated[
    dict[str, Annotated[int, Field(ge=0, strict=True)]],
    BeforeValidator(as_axes),
]
Numbers = Annotated[tuple[float, ...], BeforeValidator(as_numbers)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_names)]
_SHAPES = re.compile(r"\s*\d+(\s*x\s*\d+)*(\s*[,;]\s*\d+(\s*x\s*\d+)*)*\s*", re.ASCII)


def check_shapes(value: str) -> str:
    """Refuse what is neither a batch size nor shapes. Raises ValueError."""
    if not _SHAPES.fullmatch(value):
        raise ValueError(
            "expected a batch size as 4, or shapes as 4x3x224x224, those of several inputs "
            "separated by commas"
        )
    return value


Shapes = Annotated[str, BeforeValidator(as_text), AfterValidator(check_shapes)]
"""A batch size or shapes: `4`, `4x3x224x224`, `1x3x224x224,1x10`.

`,` separates inputs, `;` separates profiles.
"""


def why_no_file(path: Path) -> str:
    """Explain why `path` isn't a file that can be read."""
    return "is a directory" if path.is_dir() else "does not exist"


def batch_sizes(shapes: str, axis: int = 0) -> list[int]:
    """Return the batch size of each profile: the size of its first input on `axis`, or the one
    number that stands for all.

    `"1x3,1x10;4x3,4x10"` is [1, 4].
    """
    firsts = [_NUMBER.findall(profile.split(",")[0]) for profile in shapes.split(";")]
    return [int(sizes[axis if axis < len(sizes) else 0]) for sizes in firsts if sizes]


class Reshape(BaseModel):
    """One element of the key `reshape`: the shape of a tensor before and after, without the batch.

    Each -1 in `from` stands for any size, and gives its size to the -1 at the same place in the
    order of those in `to`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    given: tuple[Annotated[int, Field(ge=-1, strict=True)], ...] = Field(alias="from")
    to: tuple[Annotated[int, Field(ge=-1, strict=True)], ...]

    @model_validator(mode="after")
    def _same_number_of_elements(self) -> Reshape:
        if elements_between_open_sizes(self.given) != elements_between_open_sizes(self.to):
            raise ValueError(
                f"from = {list(self.given)} and to = {list(self.to)} differ in the number of "
                "elements"
            )
        return self

    def after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape that `shape` becomes, both without the batch; None if `from` is not
        like it.
        """
        return _changed(shape, self.given, self.to)

    def before(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape that becomes `shape`; None if `to` is not like it."""
        return _changed(shape, self.to, self.given)


def _changed(
    shape: tuple[int, ...], pattern: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, ...] | None:
    if len(shape) != len(pattern) or any(
        known not in (-1, size) for known, size in zip(pattern, shape, strict=True)
    ):
        return None
    open_sizes = (size for known, size in zip(pattern, shape, strict=True) if known == -1)
    return tuple(next(open_sizes) if size == -1 else size for size in target)


def elements_between_open_sizes(shape: Iterable[int]) -> list[int]:
    """Return the number of elements before, between and after the -1s of a shape."""
    counts = [1]
    for size in shape:
        if size == -1:
            counts.append(1)
        else:
            counts[-1] *= size
    return counts


PostProcessor = Literal[
    "", "split", "cpu", "Softmax", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax", "ArgMax"
]
CLASSIFYING = frozenset({"ArgMax", "SoftmaxArgMax", "SoftmaxMax"})
"""Post-processors that answer the best classes instead of arrays."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "best"]
LogLevel = Literal["verbose", "info", "warning", "error"]


class EngineParams(Params):
    """The parameters that every engine takes."""

    model: str = Field(
        description="the model file: .onnx, .trt, .plan, .engine, .pt (each also with .encrypted) "
        "or .pt2"
    )
    min: Shapes | None = Field(
        None,
        description="the smallest batch, as a size or as shapes (1, 1x3x224x224); ',' separates "
        "inputs, ';' separates profiles",
    )
    max: Shapes | None = Field(
        None,
        description="the largest batch, as a size or as shapes (4, 4x3x224x224); ',' separates "
        "inputs, ';' separates profiles",
    )
    batched: bool | None = Field(
        None,
        description="false: each item runs alone; true: items share runs without the check at "
        "load that the model keeps rows apart; default: they share runs if the check passes",
    )
    warm_up: Annotated[bool | str | tuple[Sample, ...], BeforeValidator(as_switch)] = Field(
        True,
        description="the batches to run before the node is ready; true: zeros; values.npz: the "
        "arrays of this file, one for each input, by name; a list of samples: those; false: none",
    )
    batch_axis: Axes = Field(
        {},
        description="the batch axis of inputs and outputs, by name, where it is not 0: h=1,c=1",
    )
    precision: Precision | None = Field(
        None, description="the precision of weights and layers; not given: the model's own"
    )
    precision_fp32: Names = Field(
        (),
        alias="precision::fp32",
        description="parts of layer names; layers with one of them stay in fp32",
    )
    mean: Numbers | None = Field(
        None,
        description="subtracted from each channel inside the network: a value for each channel, or "
        "one for all, in units of the input (0 to 255 for images)",
    )
    std: Numbers | None = Field(
        None,
        description="each channel is divided by it inside the network, after mean: a value for "
        "each channel, or one for all",
    )
    cache: str | None = Field(
        None,
        alias="model::cache",
        description="file that keeps the compiled engine, or folder for such files; default: "
        "~/.cache/penstock/engines",
    )
    timing_cache: str | None = Field(
        None,
        alias="model::timingcache",
        description="file that keeps the timings of a build for the next one",
    )
    max_workspace_size: int | None = Field(
        None, gt=0, description="memory for building and running, in MB"
    )
    weight_budget_percentage: float | None = Field(
        None, ge=0, le=100, description="share of the weights that stays on the device, in percent"
    )
    inputs: Names = Field(
        (),
        description="names of the model's inputs, in the order in which data holds them; default: "
        "the model's order",
    )
    outputs: Names = Field(
        (),
        description="names of the model's outputs that result holds, in this order; default: all "
        "of them, in the model's order",
    )
    reshape: dict[str, Reshape] = Field(
        {},
        description="inputs that get another shape in front of the model, and outputs that get one "
        "after it, by name, without the batch axis: x = { from = [1], to = [] }",
    )
    input_reorder: str | None = Field(
        None,
        description="the order in which data holds the model's inputs, by index: 1,0 means the "
        "second input first",
    )
    output_reorder: str | None = Field(
        None,
        description="the order in which result holds the model's outputs, by index: 1,0 means the "
        "second output first",
    )
    postprocessor: PostProcessor | None = Field(
        None,
        description="what is computed from the model's scores: Softmax (SoftmaxCpu), ArgMax, "
        "SoftmaxArgMax or SoftmaxMax; split and cpu change nothing",
    )
    top_k: int = Field(
        1,
        ge=1,
        description="how many of the best classes `top` lists, with ArgMax, SoftmaxArgMax or "
        "SoftmaxMax",
    )
    hardware_compatibility: str | None = Field(
        None, description="the other devices that a compiled engine must run on"
    )
    log_level: LogLevel | None = Field(
        None,
        description="log level of the engine's own library: verbose, info, warning or error",
    )

    @field_validator("batch_axis")
    @classmethod
    def _has_a_batch(cls, value: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        if value and info.data.get("batched") is False:
            raise ValueError("batched = false says that there is no batch axis: keep one of them")
        return value

    @model_validator(mode="after")
    def _one_order(self) -> EngineParams:
        for names, order in (("inputs", "input_reorder"), ("outputs", "output_reorder")):
            if getattr(self, names) and getattr(self, order):
                raise ValueError(f"{names} and {order} both give an order: keep one of them")
        if both := self.reshape.keys() & self.batch_axis.keys():
            raise ValueError(f"reshape and batch_axis both name {min(both)}: keep one of them")
        return self

    @property
    def keys_set(self) -> tuple[str, ...]:
        """The keys besides `result` that an engine with these parameters sets in an item."""
        if self.postprocessor not in CLASSIFYING:
            return ()
        return ("class", "score", *(("top",) if self.top_k > 1 else ()))

    def declared_range(self, axis: int | None = None) -> BatchRange:
        """Return the batch range of the node. The model may narrow it at `init`.

        `axis` is the batch axis of the model's first input. None: the model is not open yet, so
        with `batch_axis` a shape does not say which of its sizes is the batch.
        """
        if self.batched is False:
            return BatchRange(1, 1)
        if axis is None and self.batch_axis and "x" in (self.max or "") + (self.min or ""):
            return BatchRange(1, UNBOUNDED)
        return self.size_range(axis or 0)

    def size_range(self, axis: int = 0) -> BatchRange:
        """Return the batch range that `min` and `max` give. `axis` is that of the first input."""
        sizes_min = batch_sizes(self.min, axis) if self.min is not None else []
        sizes_max = batch_sizes(self.max, axis) if self.max is not None else []
        return BatchRange(min(sizes_min, default=1), max(sizes_max, default=UNBOUNDED))


class CpuEngineParams(EngineParams):
    """The parameters of engines that compute on the CPU with threads of their own."""

    threads: int | None = Field(
        None,
        ge=1,
        description="threads of each instance; default: the processors that the process may use, "
        "divided among the instances",
    )
    pin_cores: bool = Field(
        False,
        description="keep the threads of each instance on processors of their own: for machines "
        "that run nothing else",
    )
