"""Image tensors cut, bordered and warped. The item may bring the box, border or matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
from pydantic import Field

from ...base import UNBOUNDED, Context, Params
from ...errors import InvalidInput, TooLarge
from ...item import Item
from ..crop import (
    CenterCropMatParams,
    CropResizeMatParams,
    PerspectiveTransformMatParams,
    enlarged_box,
    middle,
    numbers,
    quadrilateral,
    upright_matrix,
    whole_box,
)
from ..pad import PAD_VALUE, PadValue
from ..pixels import MAX_SIDE, side
from .backend import ImageTensorBackend, TensorParams

if TYPE_CHECKING:
    import torch

FLATTEST_DETERMINANT = 1e-9
"""A matrix with a smaller determinant leaves nothing of an image."""


class CropTensor(ImageTensorBackend):
    """The part of an image within `_box` = [x1, y1, x2, y2], in pixels (see CropMat).

    The box must lie within the image: 0 <= x1 < x2 <= W and 0 <= y1 < y2 <= H. `data`: N×C×H×W,
    uint8, float16, bfloat16 or float32. `result`: N×C×(y2-y1)×(x2-x1) of the same dtype, a copy.

    Raises InvalidInput for a `_box` that is missing, not four numbers, empty or out of range, and
    for another shape or dtype.
    """

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        x1, y1, x2, y2 = whole_box(
            numbers(item, "_box", 4, "CropTensor"), image.shape[3], image.shape[2], "CropTensor"
        )
        return image[:, :, y1:y2, x1:x2]


class CenterCropTensorParams(TensorParams, CenterCropMatParams):
    pass


class CenterCropTensor(ImageTensorBackend):
    """The middle of an image, like CenterCropMat.

    `data`: N×C×H×W, uint8, float16, bfloat16 or float32. `result`: N×C×crop_h×crop_w of the same
    dtype, a copy. A smaller image is padded with 0.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = CenterCropTensorParams
    max = UNBOUNDED
    reads = ()
    size: tuple[int, int]

    def init(self, params: CenterCropTensorParams, context: Context) -> None:
        super().init(params, context)
        self.size = params.crop_h, params.crop_w

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .operations import placed

        channels, height, width = image.shape[1:]
        (top, missing_h), (left, missing_w) = (
            middle(side, crop) for side, crop in zip((height, width), self.size, strict=True)
        )
        if missing_h or missing_w:
            canvas = width + missing_w, height + missing_h
            corner = missing_w // 2, missing_h // 2
            image = placed(image, corner, canvas, [0.0] * channels)
        return image[:, :, top : top + self.size[0], left : left + self.size[1]]


class CropResizeTensorParams(TensorParams, CropResizeMatParams):
    pass


class CropResizeTensor(ImageTensorBackend):
    """The part of an image within `_box`, resized, like CropResizeMat.

    `data`: N×C×H×W, uint8, float16, bfloat16 or float32. `result`: N×C×resize_h×resize_w of the
    same dtype. On a GPU, uint8 differs by at most 1 from the result on the CPU.

    Raises InvalidInput for a `_box` that CropTensor refuses, and for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = CropResizeTensorParams
    samples = True
    params: CropResizeTensorParams

    def init(self, params: CropResizeTensorParams, context: Context) -> None:
        super().init(params, context)
        self.params = params

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .sampling import resized

        height, width = image.shape[2:]
        x1, y1, x2, y2 = enlarged_box(item, width, height, self.params, "CropResizeTensor")
        return resized(image[:, :, y1:y2, x1:x2], self.params.resize_h, self.params.resize_w)


class PerspectiveTransformTensorParams(TensorParams, PerspectiveTransformMatParams):
    pass


class PerspectiveTransformTensor(ImageTensorBackend):
    """A quadrilateral of an image, made upright, like PerspectiveTransformMat.

    `_box` is 4 points (x, y) in pixels, clockwise from the upper left. `data`: N×C×H×W, uint8,
    float16, bfloat16 or float32. `result`: of the same dtype. On a GPU, uint8 differs by at most 1
    from the result on the CPU with OpenCV 5, whose coordinates are exact as those of a GPU are.

    Raises InvalidInput and TooLarge for what PerspectiveTransformMat refuses.
    """

    parameters: ClassVar[type[Params] | None] = PerspectiveTransformTensorParams
    samples = True
    max_pixels: int

    def init(self, params: PerspectiveTransformTensorParams, context: Context) -> None:
        super().init(params, context)
        self.max_pixels = params.max_pixels

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .sampling import warped

        name = "PerspectiveTransformTensor"
        points, width, height = quadrilateral(item, name)
        matrix = upright_matrix(points, width, height, self.max_pixels, name)
        refuse_long_sides(image, name)
        # OpenCV's own inverse, so that the CPU gives what PerspectiveTransformMat gives.
        inverse = np.asarray(cv2.invert(matrix)[1], np.float64)
        return warped(image, inverse, height, width, None)


class CopyMakeBorderTensorParams(TensorParams):
    top: int = Field(
        0,
        ge=0,
        le=MAX_SIDE,
        description="added above, in pixels; the item's `top` takes precedence; likewise the other "
        "three",
    )
    bottom: int = Field(0, ge=0, le=MAX_SIDE, description="added below, in pixels")
    left: int = Field(0, ge=0, le=MAX_SIDE, description="added at the left, in pixels")
    right: int = Field(0, ge=0, le=MAX_SIDE, description="added at the right, in pixels")
    pad_value: PadValue = Field((0.0,), description=PAD_VALUE)
    max_pixels: int = Field(100_000_000, ge=1, description="the most pixels that a result may have")


class CopyMakeBorderTensor(ImageTensorBackend):
    """An image with a border of `pad_value` around it.

    The item's keys `top`, `bottom`, `left` and `right` take precedence over the parameters. `data`:
    N×C×H×W, uint8, float16, bfloat16 or float32. `result`: N×C×(top+H+bottom)×(left+W+right) of the
    same dtype.

    Raises InvalidInput for a border that is not a whole number from 0 to 32767, and for another
    shape or dtype. Raises TooLarge above `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = CopyMakeBorderTensorParams
    params: CopyMakeBorderTensorParams

    def init(self, params: CopyMakeBorderTensorParams, context: Context) -> None:
        super().init(params, context)
        self.params = params

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .operations import fill_of, placed

        top, bottom, left, right = (
            side(item, key, "CopyMakeBorderTensor", 0) if key in item else getattr(self.params, key)
            for key in ("top", "bottom", "left", "right")
        )
        width, height = left + image.shape[3] + right, top + image.shape[2] + bottom
        if width * height > self.params.max_pixels:
            raise TooLarge(
                f"CopyMakeBorderTensor: the result would have {width}x{height} pixels: at most "
                f"{self.params.max_pixels} are allowed"
            )
        return placed(
            image,
            (left, top),
            (width, height),
            fill_of(self.params.pad_value, image, "CopyMakeBorderTensor"),
        )


class WarpAffineTensorParams(TensorParams):
    target_h: int = Field(
        ge=1,
        le=MAX_SIDE,
        description="height of the result in pixels; the item's `target_h` takes precedence",
    )
    target_w: int = Field(
        ge=1,
        le=MAX_SIDE,
        description="width of the result in pixels; the item's `target_w` takes precedence",
    )
    pad_value: PadValue = Field((0.0,), description=PAD_VALUE)
    inverse: bool = Field(
        False,
        description="true: `affine_matrix` maps the result to `data`, as in torchpipe's "
        "PPLWarpAffineTensor",
    )
    max_pixels: int = Field(
        100_000_000, ge=1, description="the most pixels that a request may ask for"
    )


class WarpAffineTensor(ImageTensorBackend):
    """An affine transformation by the item's `affine_matrix`, as `cv2.warpAffine` does it.

    The matrix is 2 rows of 3, or 6 numbers, and maps (x, y) in `data` to (x, y) in the result.
    Coordinates are OpenCV's: the centre of a pixel has whole numbers. Bilinear; `pad_value` is
    beyond the image. `data`: N×C×H×W, uint8, float16, bfloat16 or float32. `result`:
    N×C×target_h×target_w of the same dtype.

    Raises InvalidInput for a matrix that is missing, not six finite numbers, or not invertible, for
    an image with a side above 32767, and for another shape or dtype. Raises TooLarge if the item
    asks for more than `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = WarpAffineTensorParams
    samples = True
    params: WarpAffineTensorParams

    def init(self, params: WarpAffineTensorParams, context: Context) -> None:
        super().init(params, context)
        self.params = params

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .operations import fill_of
        from .sampling import warped

        name = "WarpAffineTensor"
        height = side(item, "target_h", name) if "target_h" in item else self.params.target_h
        width = side(item, "target_w", name) if "target_w" in item else self.params.target_w
        if height * width > self.params.max_pixels:
            raise TooLarge(
                f"{name}: {width}x{height} pixels are asked for: at most "
                f"{self.params.max_pixels} are allowed"
            )
        refuse_long_sides(image, name)
        matrix = numbers(item, "affine_matrix", 6, name).reshape(2, 3)
        if abs(np.linalg.det(matrix[:, :2])) < FLATTEST_DETERMINANT:
            raise InvalidInput(
                f"{name}: affine_matrix is {matrix.tolist()}: it can't be inverted, because it "
                "maps an image to a line or a point"
            )
        if not self.params.inverse:
            matrix = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
        return warped(image, matrix, height, width, fill_of(self.params.pad_value, image, name))


def refuse_long_sides(image: torch.Tensor, backend: str) -> None:
    """Raise InvalidInput for an image that OpenCV 4 can't transform."""
    if max(image.shape[2:]) > MAX_SIDE:
        raise InvalidInput(
            f"{backend}: expected an image with no side above {MAX_SIDE}, found shape "
            f"{tuple(image.shape)}"
        )
