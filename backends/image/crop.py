"""Parts of an image: the box or the quadrilateral in the item's `_box`.

`_box` comes from another node (a detector), never from the network: names that start with `_` are
internal.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..allocation import counted, empty_array
from ..base import Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item
from .pixels import MAX_SIDE, ImageBackend, resized


class CropMat(ImageBackend):
    """The part of an image within `_box` = [x1, y1, x2, y2], in pixels.

    x2 and y2 are exclusive. Floats are truncated to whole pixels (towards zero), then the box must
    lie within the image: 0 <= x1 < x2 <= W, 0 <= y1 < y2 <= H. `data`: H×W×C, uint8, uint16 or
    float32. `result`: (y2-y1)×(x2-x1)×C of the same dtype, a copy.

    Raises InvalidInput for a `_box` that is missing, not four numbers, empty or out of range, and
    for another shape or dtype.
    """

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        x1, y1, x2, y2 = whole_box(
            numbers(item, "_box", 4, "CropMat"), image.shape[1], image.shape[0], "CropMat"
        )
        return image[y1:y2, x1:x2].copy()


class CenterCropMatParams(Params):
    crop_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    crop_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")


class CenterCropMat(ImageBackend):
    """The middle of an image, as torchvision's CenterCrop cuts it out.

    `data`: H×W×C, uint8, uint16 or float32. `result`: crop_h×crop_w×C of the same dtype, a copy. A
    smaller image is padded with 0.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = CenterCropMatParams
    size: tuple[int, int]

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: CenterCropMatParams, context: Context) -> None:
        self.size = params.crop_h, params.crop_w

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        (top, missing_h), (left, missing_w) = (
            middle(side, crop) for side, crop in zip(image.shape, self.size, strict=False)
        )
        if missing_h or missing_w:
            padded = np.zeros(
                (image.shape[0] + missing_h, image.shape[1] + missing_w, image.shape[2]),
                image.dtype,
            )
            above, before = missing_h // 2, missing_w // 2
            padded[above : above + image.shape[0], before : before + image.shape[1]] = image
            image = padded
        return image[top : top + self.size[0], left : left + self.size[1]].copy()


def middle(side: int, crop: int) -> tuple[int, int]:
    """Return where the middle `crop` pixels of a side begin, and how many the side lacks.

    Half of what it lacks, rounded down, is padded before it; then the middle begins at 0.
    """
    # round, not //: of an odd rest torchvision takes the even half, as Python rounds.
    return round(max(side - crop, 0) / 2), max(crop - side, 0)


class CropResizeMatParams(Params):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")
    enlarge_ratio: float = Field(
        0.0,
        ge=0,
        le=100,
        description="the box grows on each side by this fraction of its size, within the image",
    )
    relative: bool = Field(
        False,
        description="true: `_box` is in fractions of the image's size, as in torchpipe; false: "
        "in pixels",
    )


class CropResizeMat(ImageBackend):
    """The part of an image within `_box` (see CropMat), resized (see ResizeMat).

    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×resize_w×C of the same dtype.
    torchpipe's box is in fractions of the image's size: set `relative` for its files.

    Raises InvalidInput for a `_box` that CropMat refuses, and for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = CropResizeMatParams
    params: CropResizeMatParams

    def init(self, params: CropResizeMatParams, context: Context) -> None:
        self.params = params

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        height, width, _ = image.shape
        x1, y1, x2, y2 = enlarged_box(item, width, height, self.params, "CropResizeMat")
        return resized(image[y1:y2, x1:x2], self.params.resize_w, self.params.resize_h)


class PerspectiveTransformMatParams(Params):
    max_pixels: int = Field(100_000_000, ge=1, description="the most pixels that a result may have")


class PerspectiveTransformMat(ImageBackend):
    """A quadrilateral of an image, made upright.

    `_box` is 4 points (x, y) in pixels, clockwise from the upper left. They may lie outside the
    image. The result is as wide as the upper edge is long and as high as the left edge (truncated
    to whole pixels, as in torchpipe), so an upright box gives the result of CropMat. Bilinear; the
    edge of the image is repeated beyond it. `data`: H×W×C, uint8, uint16 or float32. `result`: of
    the same dtype.

    Raises InvalidInput for a `_box` that is missing, not 4 finite points, not convex or not
    clockwise, or whose upper or left edge is shorter than a pixel. Raises TooLarge if the result
    would have a side above 32767 or more than `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = PerspectiveTransformMatParams
    max_pixels: int

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: PerspectiveTransformMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        points, width, height = quadrilateral(item, "PerspectiveTransformMat")
        return self.upright(image, points, width, height, cv2.INTER_LINEAR)

    def upright(
        self,
        image: NDArray[Any],
        points: NDArray[np.float64],
        width: int,
        height: int,
        interpolation: int,
    ) -> NDArray[Any]:
        """Return the quadrilateral as an image of this size."""
        backend = type(self).__name__
        matrix = upright_matrix(points, width, height, self.max_pixels, backend)
        result = empty_array((height, width, image.shape[2]), image.dtype)
        try:
            cv2.warpPerspective(
                image,
                matrix,
                (width, height),
                dst=result,
                flags=interpolation,
                borderMode=cv2.BORDER_REPLICATE,
            )
        except cv2.error as error:  # OpenCV 4: an image with a side above 32767
            raise InvalidInput(
                f"{backend}: OpenCV can't transform an image of shape {image.shape}: {error.err}"
            ) from error
        return result


class TextCropMat(PerspectiveTransformMat):
    """A line of text of an image, made upright, as PaddleOCR's `get_rotate_crop_image` cuts it out.

    `_box` is 4 points (x, y) in pixels, clockwise from the upper left. They may lie outside the
    image. The result is as wide as the longer of the upper and lower edges and as high as the
    longer of the left and right edges (truncated to whole pixels). Bicubic; the edge of the image
    is repeated beyond it. A result at least 1.5 times as high as wide is turned by 90°
    counterclockwise: vertical text lies then. `data`: H×W×C, uint8, uint16 or float32. `result`: of
    the same dtype.

    Raises InvalidInput for a `_box` that is missing, not 4 finite points, or without an edge of a
    pixel in each direction. Raises TooLarge if the result would have a side above 32767 or more
    than `max_pixels`.
    """

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        points = numbers(item, "_box", 8, "TextCropMat").reshape(4, 2)
        # In float32, as PaddleOCR does: a length just below a whole number is another width.
        with np.errstate(over="ignore"):
            corners = points.astype(np.float32)
        upper_left, upper_right, lower_right, lower_left = corners
        width = int(max(_length(upper_left, upper_right), _length(lower_right, lower_left)))
        height = int(max(_length(upper_left, lower_left), _length(upper_right, lower_right)))
        if width < 1 or height < 1:
            raise InvalidInput(
                f"TextCropMat: _box is {points.tolist()}: expected the corners of a line of text, "
                "clockwise from the upper left, at least a pixel wide and high"
            )
        result = self.upright(image, points, width, height, cv2.INTER_CUBIC)
        if height >= TURNED_FROM * width:
            return counted(np.ascontiguousarray(np.rot90(result)))
        return result


TURNED_FROM = 1.5
"""Height / width from which text is vertical: PaddleOCR's number."""


def _length(start: NDArray[np.float32], end: NDArray[np.float32]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(start - end))
    return length if length < 2 * MAX_SIDE else 2.0 * MAX_SIDE  # infinite, or none


EXPECTED_NUMBERS = {
    ("_box", 4): "[x1, y1, x2, y2]",
    ("_box", 8): "4 points [x, y], clockwise from the upper left",
    ("affine_matrix", 6): "2 rows of 3",
}


def numbers(item: Item, key: str, count: int, backend: str) -> NDArray[np.float64]:
    """Return the `count` finite numbers that the item has under this key.

    Raises InvalidInput otherwise.
    """
    expected = EXPECTED_NUMBERS[key, count]
    if key not in item:
        raise InvalidInput(f"{backend}: the item has no {key}: expected {expected}")
    try:
        values = np.asarray(item[key], np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise InvalidInput(
            f"{backend}: {key} is {item[key]!r:.200}: expected {expected}, finite numbers"
        )
    return values


def whole_box(
    box: NDArray[np.float64], width: int, height: int, backend: str
) -> tuple[int, int, int, int]:
    """Return the box in whole pixels. Raises InvalidInput if it is not within the image."""
    x1, y1, x2, y2 = (int(value) for value in box)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise InvalidInput(
            f"{backend}: _box is {[x1, y1, x2, y2]}: expected 0 <= x1 < x2 <= {width} and "
            f"0 <= y1 < y2 <= {height}, the size of the image"
        )
    return x1, y1, x2, y2


def enlarged_box(
    item: Item, width: int, height: int, params: CropResizeMatParams, backend: str
) -> tuple[int, int, int, int]:
    """Return the item's `_box` in whole pixels, grown on each side within the image.

    Raises InvalidInput if it is not within the image before it grows.
    """
    box = numbers(item, "_box", 4, backend)
    if params.relative:
        box = box * (width, height, width, height)
    x1, y1, x2, y2 = whole_box(box, width, height, backend)
    more_x, more_y = (
        int(params.enlarge_ratio * (x2 - x1)),
        int(params.enlarge_ratio * (y2 - y1)),
    )
    return (
        max(x1 - more_x, 0),
        max(y1 - more_y, 0),
        min(x2 + more_x, width),
        min(y2 + more_y, height),
    )


def quadrilateral(item: Item, backend: str) -> tuple[NDArray[np.float64], int, int]:
    """Return the four points of the item's `_box`, and the width and height of the result.

    Raises InvalidInput unless they are convex, clockwise, and a pixel wide and high.
    """
    points = numbers(item, "_box", 8, backend).reshape(4, 2)
    width, height = int(math.dist(points[0], points[1])), int(math.dist(points[0], points[3]))
    if not _clockwise(points) or width < 1 or height < 1:
        raise InvalidInput(
            f"{backend}: _box is {points.tolist()}: expected the corners of a convex "
            "quadrilateral, clockwise from the upper left, with an upper and a left edge of at "
            "least a pixel"
        )
    return points, width, height


def upright_matrix(
    points: NDArray[np.float64], width: int, height: int, max_pixels: int, backend: str
) -> NDArray[np.float64]:
    """Return the 3×3 matrix that maps (x, y) in the image to (x, y) in the upright result.

    Raises TooLarge for a result with a side above `MAX_SIDE`, or more than `max_pixels`.
    """
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise TooLarge(
            f"{backend}: _box gives {width}x{height} pixels: at most {max_pixels} pixels and a "
            f"side of {MAX_SIDE} are allowed"
        )
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(points.astype(np.float32), target), np.float64)


def _clockwise(points: NDArray[np.float64]) -> bool:
    """Return whether each corner turns right (y points down).

    The four points are then convex and clockwise, and no three of them lie on a line.
    """
    edges = np.roll(points, -1, axis=0) - points
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    # 1e-6 times the squared length: OpenCV's single precision takes a flatter corner for a line.
    return bool((turns > 1e-6 * (np.abs(edges) ** 2).sum(axis=1).max()).all())
