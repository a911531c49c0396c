"""Sizes of resized images, and the way back from their coordinates to the original's.

Numbers only, no pixels. Coordinates are continuous: 0 is the left or upper edge of an image, its
width or height is the other edge. So the boxes in an image resized from w to v pixels are the
original's times v / w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

Coordinate = TypeVar("Coordinate", float, "NDArray[Any]")


def fit(
    width: int, height: int, max_width: int, max_height: int, *, up: bool = False
) -> tuple[int, int]:
    """Return the largest (width, height) of the same aspect ratio within the bounds, at least 1×1.

    One side meets its bound. The other is rounded to the nearest pixel (`up`: upwards). Enlarges
    too. Computed in whole numbers, so that the last bit of a float never decides about a pixel.
    """
    if max_height * width <= max_width * height:
        return _divide(max_height * width, height, max_width, up=up), max_height
    return max_width, _divide(max_width * height, width, max_height, up=up)


def width_at(width: int, height: int, new_height: int, max_width: int, align: int = 1) -> int:
    """Return the width that keeps the aspect ratio at `new_height`.

    It is rounded up to a multiple of `align`, and at most the last one within `max_width`, which
    holds one at least.
    """
    exact = _divide(new_height * width, height, max_width, up=True)
    return min(-(-exact // align), max_width // align) * align


def _divide(numerator: int, denominator: int, max_quotient: int, *, up: bool) -> int:
    quotient = (
        -(-numerator // denominator) if up else (2 * numerator + denominator) // (2 * denominator)
    )
    return min(max(quotient, 1), max_quotient)


@dataclass(frozen=True, slots=True)
class InverseTransform:
    """`inverse_trans`: maps a point of the result to the same point of the original.

    Takes floats, or arrays of them.
    """

    x_ratio: float
    """Pixels of the original per pixel of the result."""
    y_ratio: float
    left: int = 0
    top: int = 0
    """The position of the image in the result."""
    bounds: tuple[int, int] | None = None
    """The original's (width, height). Points of the padding are moved to its edge.

    None: they map to points outside of the original.
    """

    def __call__(self, x: Coordinate, y: Coordinate) -> tuple[Coordinate, Coordinate]:
        x, y = (x - self.left) * self.x_ratio, (y - self.top) * self.y_ratio
        if self.bounds is None:
            return x, y
        return _within(x, self.bounds[0]), _within(y, self.bounds[1])


def _within(value: Any, most: int) -> Any:
    """Return a number or an array, cut to 0 to `most`."""
    return value.clip(0, most) if hasattr(value, "clip") else min(max(value, 0.0), float(most))
