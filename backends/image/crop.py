"""Parts of an image: the box or the quadrilateral that the item's `_box` names.

`_box` comes from another node (a detector), never from the network: names that start with `_` are internal.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..base import Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item
from .pixels import MAX_SIDE, ImageBackend, resized


class CropMat(ImageBackend):
    """The part of an image within `_box` = [x1, y1, x2, y2], in pixels; x2 and y2 are the first that are left out.

    Floats are cut to whole pixels (towards zero), then the box must lie within the image: 0 <= x1 < x2 <= W, 0 <= y1 < y2 <= H.
    `data`: H×W×C, uint8, uint16 or float32. `result`: (y2-y1)×(x2-x1)×C of the same dtype, a copy.
    Raises InvalidInput for a `_box` that is absent, no four numbers, empty or out of range, and for another shape or dtype.
    """

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        x1, y1, x2, y2 = whole_box(
            numbers(item, "_box", 4, "CropMat"), image.shape[1], image.shape[0], "CropMat"
        )
        return image[y1:y2, x1:x2].copy()


class CropResizeMatParams(Params):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="Height of the result in pixels.")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="Width of the result in pixels.")
    enlarge_ratio: float = Field(
        0.0,
        ge=0,
        le=100,
        description="The box grows on each side by this share of its size, as far as the image goes.",
    )
    relative: bool = Field(
        False,
        description="Whether `_box` is in shares of the image's size (as torchpipe's); false: in pixels.",
    )


class CropResizeMat(ImageBackend):
    """The part of an image within `_box`, as CropMat, at another size, as ResizeMat.

    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×resize_w×C of the same dtype.
    Raises InvalidInput for a `_box` that CropMat refuses, and for another shape or dtype.

    torchpipe's box is in shares of the image's size: set `relative` for its files.
    """

    parameters: ClassVar[type[Params] | None] = CropResizeMatParams
    size: tuple[int, int]
    enlarge_ratio: float
    relative: bool

    def init(self, params: CropResizeMatParams, context: Context) -> None:
        self.size = params.resize_w, params.resize_h
        self.enlarge_ratio = params.enlarge_ratio
        self.relative = params.relative

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        height, width, _ = image.shape
        box = numbers(item, "_box", 4, "CropResizeMat")
        if self.relative:
            box = box * (width, height, width, height)
        x1, y1, x2, y2 = whole_box(box, width, height, "CropResizeMat")
        more_x, more_y = int(self.enlarge_ratio * (x2 - x1)), int(self.enlarge_ratio * (y2 - y1))
        x1, y1 = max(x1 - more_x, 0), max(y1 - more_y, 0)
        return resized(image[y1 : y2 + more_y, x1 : x2 + more_x], *self.size)


class PerspectiveTransformMatParams(Params):
    max_pixels: int = Field(100_000_000, ge=1, description="Most pixels that a result may have.")


class PerspectiveTransformMat(ImageBackend):
    """A quadrilateral made upright: `_box` = 4 points (x, y), clockwise from the upper left, in pixels; they may lie outside the image.

    The result is as wide as the upper edge is long and as high as the left edge (cut to whole pixels, as torchpipe does), so that an
    upright box gives what CropMat gives. Bilinear; beyond the image its edge is repeated.
    `data`: H×W×C, uint8, uint16 or float32. `result`: of the same dtype.
    Raises InvalidInput for a `_box` that is absent, not 4 finite points, not convex or not clockwise, or with an upper or left edge
    that is shorter than a pixel; TooLarge where the result would have a side above 32767 or more than `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = PerspectiveTransformMatParams
    max_pixels: int

    def init(self, params: PerspectiveTransformMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        points = numbers(item, "_box", 8, "PerspectiveTransformMat").reshape(4, 2)
        width, height = int(math.dist(points[0], points[1])), int(math.dist(points[0], points[3]))
        if not _clockwise(points) or width < 1 or height < 1:
            raise InvalidInput(
                f"PerspectiveTransformMat: _box is {points.tolist()}: expected the corners of a convex quadrilateral, clockwise from "
                f"the upper left, its upper and left edges at least a pixel long"
            )
        if max(width, height) > MAX_SIDE or width * height > self.max_pixels:
            raise TooLarge(
                f"PerspectiveTransformMat: _box gives {width}x{height} pixels, more than {self.max_pixels}, or a side above {MAX_SIDE}"
            )
        target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        matrix = cv2.getPerspectiveTransform(points.astype(np.float32), target)
        result = np.empty((height, width, image.shape[2]), image.dtype)
        try:
            cv2.warpPerspective(
                image,
                matrix,
                (width, height),
                dst=result,
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        except cv2.error as error:  # OpenCV 4: an image with a side above 32767
            raise InvalidInput(
                f"PerspectiveTransformMat: OpenCV can't transform an image of shape {image.shape}: {error.err}"
            ) from error
        return result


EXPECTED = {
    ("_box", 4): "[x1, y1, x2, y2]",
    ("_box", 8): "4 points [x, y], clockwise from the upper left",
    ("affine_matrix", 6): "2 rows of 3",
}


def numbers(item: Item, key: str, count: int, backend: str) -> NDArray[np.float64]:
    """So many finite numbers that the item has by this key. Raises InvalidInput where it has not."""
    expected = EXPECTED[key, count]
    if key not in item:
        raise InvalidInput(f"{backend}: the item has no {key}: expected {expected}")
    try:
        found = np.asarray(item[key], np.float64).ravel()
    except (TypeError, ValueError):
        found = np.empty(0)
    if len(found) != count or not np.isfinite(found).all():
        raise InvalidInput(
            f"{backend}: {key} is {item[key]!r:.200}: expected {expected}, finite numbers"
        )
    return found


def whole_box(
    box: NDArray[np.float64], width: int, height: int, backend: str
) -> tuple[int, int, int, int]:
    """The box in whole pixels. Raises InvalidInput where it is not within the image."""
    x1, y1, x2, y2 = (int(value) for value in box)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise InvalidInput(
            f"{backend}: _box is {[x1, y1, x2, y2]}: expected 0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}, the image's size"
        )
    return x1, y1, x2, y2


def _clockwise(points: NDArray[np.float64]) -> bool:
    """Whether each corner turns right (y points down), so that the four are convex, clockwise and no three in a line."""
    edges = np.roll(points, -1, axis=0) - points
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    # Squared lengths times 1e-6: a corner flatter than that is a line to OpenCV's single precision.
    return bool((turns > 1e-6 * (np.abs(edges) ** 2).sum(axis=1).max()).all())
