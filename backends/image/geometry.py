"""Sizes of resized images, and the way back from their coordinates to the original's. Numbers only, no pixels.

Coordinates are continuous: 0 is an image's left or upper edge and its width or height the other edge, so the boxes of an image
resized from w to v pixels are the original's times v / w.
"""

from __future__ import annotations

from dataclasses import dataclass


def fit(
    width: int, height: int, max_width: int, max_height: int, *, up: bool = False
) -> tuple[int, int]:
    """The largest (width, height) of the same aspect ratio within the bounds, at least 1×1.

    One side meets its bound; the other is rounded to the nearest pixel (`up`: upwards). Enlarges too. In whole numbers, so that
    no float's last bit decides about a pixel.
    """
    if max_height * width <= max_width * height:
        return _divide(max_height * width, height, max_width, up=up), max_height
    return max_width, _divide(max_width * height, width, max_height, up=up)


def width_at(width: int, height: int, new_height: int, max_width: int, align: int = 1) -> int:
    """The width that keeps the aspect ratio at `new_height`, rounded up to a multiple of `align`, and at most `max_width`."""
    exact = _divide(new_height * width, height, max_width, up=True)
    return min(-(-exact // align) * align, max_width)


def _divide(numerator: int, denominator: int, most: int, *, up: bool) -> int:
    quotient = (
        -(-numerator // denominator) if up else (2 * numerator + denominator) // (2 * denominator)
    )
    return min(max(quotient, 1), most)


@dataclass(frozen=True, slots=True)
class InverseTransform:
    """`inverse_trans`: a point of the result to the same point of the original. Takes floats, or arrays of them without `bounds`."""

    x_ratio: float
    """Original pixels to one of the result's."""
    y_ratio: float
    left: int = 0
    top: int = 0
    """Where the image begins in the result."""
    bounds: tuple[int, int] | None = None
    """The original's (width, height): points of the padding come back on its edge. None: outside of it."""

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        x, y = (x - self.left) * self.x_ratio, (y - self.top) * self.y_ratio
        if self.bounds is None:
            return x, y
        width, height = self.bounds
        return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))
