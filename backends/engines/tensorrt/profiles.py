"""Optimisation profiles: which shapes an engine takes, and for which of them it is tuned.

They follow from `min`, `max` and the batch sizes to prepare for. One profile in the file becomes a
profile for each batch size (1, 2, 4 ... `max`), from `min` to that size and tuned for it. Several
profiles in the file (`;`) stay as they are, each tuned for its `max`. All functions here are pure;
build.py gives the result to TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..shapes import batch_first, shape_text, with_batch

Shape = tuple[int, ...]


class Input(NamedTuple):
    """An input of a network. -1 in `shape` stands for any size; the batch is on `axis`."""

    name: str
    shape: Shape
    axis: int = 0

    @property
    def dynamic(self) -> bool:
        """True if some axis may have any size."""
        return -1 in self.shape

    @property
    def batched(self) -> bool:
        """True if the batch may have any size."""
        return bool(self.shape) and self.shape[self.axis] == -1

    def __str__(self) -> str:
        return f"{self.name} ({shape_text([None if size == -1 else size for size in self.shape])})"


class ShapeRange(NamedTuple):
    """The shapes of one input in one profile: smallest, the one tuned for, and largest."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the profile takes an input of this shape."""
        return len(shape) == len(self.max) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def holds_inner(self, shape: Sequence[int], axis: int = 0) -> bool:
        """Return whether the profile takes this shape, which lacks the batch axis."""
        return ShapeRange(*[batch_first(whole, axis)[1:] for whole in self]).holds(shape)

    def __str__(self) -> str:
        return (
            shape_text(self.max)
            if self.min == self.max
            else f"{shape_text(self.min)} to {shape_text(self.max)}"
        )


Profile = Mapping[str, ShapeRange]
"""The ranges of a profile, by the input's name."""


class ProfileError(ValueError):
    """Raised when `min` or `max` does not fit the model; `key` says which of them."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def make_profiles(
    inputs: Sequence[Input], low: str | None, high: str | None, sizes: Sequence[int]
) -> list[Profile]:
    """Return the profiles of a network: by rising batch size, or in the file's order.

    Empty if all shapes are fixed. An input of a fixed shape is in none of them: TensorRT may refuse
    to build with it (8.5: "Profile kOPT values are not self-consistent"). `low` and `high` are
    `min` and `max` as the file has them, `sizes` the batch sizes to prepare for. Raises
    ProfileError.
    """
    lows, highs = _split(low), _split(high)
    if len(lows) > 1 and len(lows) != len(highs):
        raise ProfileError(
            "min",
            f"min has {len(lows)} profiles and max {len(highs)}: expected as many, or one min "
            "for all",
        )
    largest = max(sizes)
    ranges = []
    for index, texts in enumerate(highs):
        highest = _complete(inputs, texts or [(largest,)], "max")
        given = lows[index if len(lows) > 1 else 0]
        lowest = _complete(inputs, given or [(1,)], "min", like=highest)
        _check(inputs, lowest, highest)
        ranges.append((lowest, highest))
    if not any(port.dynamic for port in inputs):
        return []
    if len(ranges) > 1:
        return [
            {
                port.name: ShapeRange(a, b, b)
                for port, a, b in zip(inputs, lowest, highest, strict=True)
                if port.dynamic
            }
            for lowest, highest in ranges
        ]
    ((lowest, highest),) = ranges
    return [
        _at(inputs, lowest, highest, size)
        for size in _sizes_between(inputs, lowest, highest, sizes)
    ]


def fitting(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the indexes of the profiles that take these shapes: those tuned for the smallest
    first, else in the order of the profiles.
    """
    indexes = [
        index
        for index, profile in enumerate(profiles)
        if all(profile[name].holds(shape) for name, shape in shapes.items())
    ]
    return sorted(
        indexes,
        key=lambda index: sum(_volume(shapes.opt) for shapes in profiles[index].values()),
    )


def describe(profiles: Sequence[Profile]) -> str:
    return (
        "; ".join(
            ", ".join(f"{name} {shapes}" for name, shapes in profile.items())
            for profile in profiles
        )
        or "fixed shapes"
    )


def _split(text: str | None) -> list[list[Shape]]:
    """Parse shapes by profile and input.

    `"1x3,1x10;4x3,4x10"` is [[(1, 3), (1, 10)], [(4, 3), (4, 10)]].
    """
    if text is None:
        return [[]]
    return [
        [tuple(int(size) for size in shape.split("x")) for shape in profile.split(",")]
        for profile in text.split(";")
    ]


def _complete(
    inputs: Sequence[Input], given: Sequence[Shape], key: str, like: Sequence[Shape] | None = None
) -> list[Shape]:
    """Return the whole shape of each input.

    A single number is the batch size of all inputs, and their open sizes are then taken from
    `like`. Raises ProfileError.
    """
    if len(given) == 1 and len(given[0]) == 1 and any(len(port.shape) != 1 for port in inputs):
        given = [given[0]] * len(inputs)
    if len(given) != len(inputs):
        names = ", ".join(map(str, inputs))
        raise ProfileError(
            key,
            f"{key} has {len(given)} shapes in a profile, but the model has {len(inputs)} inputs: "
            f"{names}",
        )
    return [
        _complete_one(port, shape, key, like[index] if like else None)
        for index, (port, shape) in enumerate(zip(inputs, given, strict=True))
    ]


def _complete_one(port: Input, given: Shape, key: str, like: Shape | None) -> Shape:
    if len(given) == 1 and len(port.shape) != 1:
        # A batch size. If the model's own is fixed, that one stays, and the engine pads batches to
        # it.
        first, *inner = batch_first(port.shape, port.axis) or (0,)
        rows = given[0] if port.batched else first
        whole = with_batch(rows, inner, port.axis) if port.shape else ()
        if like is not None:
            whole = tuple(
                own if size == -1 else size for size, own in zip(whole, like, strict=True)
            )
        if -1 in whole:
            axes = ", ".join(str(axis) for axis, size in enumerate(whole) if size == -1)
            raise ProfileError(
                key,
                f"{key} is the batch size {given[0]}, but axis {axes} of input {port} is open too: "
                "give a shape, as in 8x3x640x640",
            )
        return whole
    fits = len(given) == len(port.shape) and all(
        fixed in (-1, size) for fixed, size in zip(port.shape, given, strict=True)
    )
    if not fits:
        raise ProfileError(
            key,
            f"{key} has the shape {shape_text(given)} for input {port}: expected the input's own "
            "sizes wherever they are fixed",
        )
    return given


def _check(inputs: Sequence[Input], lowest: Sequence[Shape], highest: Sequence[Shape]) -> None:
    for port, low, high in zip(inputs, lowest, highest, strict=True):
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise ProfileError(
                "min",
                f"input {port}: min is {shape_text(low)} and max {shape_text(high)}: expected min "
                "<= max in every axis",
            )
        if 0 in high:
            raise ProfileError(
                "max", f"input {port}: max is {shape_text(high)}: expected sizes of at least 1"
            )
    for key, shapes in (("min", lowest), ("max", highest)):
        batches = {
            port.name: shape[port.axis]
            for port, shape in zip(inputs, shapes, strict=True)
            if port.batched
        }
        if len(set(batches.values())) > 1:
            sizes = ", ".join(f"{size} for {name}" for name, size in batches.items())
            raise ProfileError(
                key,
                f"{key} has different batch sizes in one profile: {sizes}; expected one for all "
                "inputs",
            )


def _sizes_between(
    inputs: Sequence[Input], lowest: Sequence[Shape], highest: Sequence[Shape], sizes: Sequence[int]
) -> list[int]:
    """Return the batch sizes into which one range of shapes is divided.

    It is a single one if the batch is fixed.
    """
    bounds = next(
        (
            (low[port.axis], high[port.axis])
            for port, low, high in zip(inputs, lowest, highest, strict=True)
            if port.batched
        ),
        (0, 0),
    )
    return [*(size for size in sizes if bounds[0] <= size < bounds[1]), bounds[1]]


def _at(
    inputs: Sequence[Input], lowest: Sequence[Shape], highest: Sequence[Shape], size: int
) -> Profile:
    """Return the profile that ends at a batch size and is tuned for it."""
    profile = {}
    for port, low, high in zip(inputs, lowest, highest, strict=True):
        top = with_batch(size, batch_first(high, port.axis)[1:], port.axis)
        top = top if port.batched else high
        if port.dynamic:
            profile[port.name] = ShapeRange(low, top, top)
    return profile


def _volume(shape: Shape) -> int:
    volume = 1
    for size in shape:
        volume *= size
    return volume
