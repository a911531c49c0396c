"""Resizing that keeps the aspect ratio and pads the rest, for models with fixed input shapes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, FiniteFloat

from ..allocation import empty_array
from ..base import Context, Params
from ..errors import InvalidInput
from ..item import Item
from ..params import as_numbers
from .geometry import InverseTransform, fit, width_at
from .pixels import MAX_SIDE, ImageBackend, whole_size
from .resizing import ResizingParams

PadValue = Annotated[
    tuple[FiniteFloat, ...], BeforeValidator(as_numbers), Field(min_length=1, max_length=4)
]
PAD_VALUE = (
    "value of the padding: one number, or one per channel; rounded and clipped to the image's dtype"
)


class Padded(ImageBackend):
    """Base class: an image resized into a canvas of `pad_value`."""

    pad_value: tuple[float, ...]

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("inverse_trans",)

    def place(
        self,
        image: NDArray[Any],
        size: tuple[int, int],
        canvas: tuple[int, int],
        corner: tuple[int, int],
    ) -> NDArray[Any]:
        """Return a new image of the size `canvas`, with `image` resized to `size` at `corner`.

        All are (x, y).
        """
        channels = image.shape[2]
        if len(self.pad_value) not in (1, channels):
            raise InvalidInput(
                f"{type(self).__name__}: pad_value has {len(self.pad_value)} numbers, but the "
                f"image has {channels} channel(s): expected one number, or one per channel"
            )
        value = np.array(self.pad_value)
        if image.dtype.kind == "u":
            value = np.clip(np.rint(value), 0, np.iinfo(image.dtype).max)
        (width, height), (left, top) = size, corner
        padded = empty_array((canvas[1], canvas[0], channels), image.dtype)
        # A scalar fills fifty times as fast.
        padded[...] = value if len(set(self.pad_value)) > 1 else value[0]
        cv2.resize(
            image,
            size,
            dst=padded[top : top + height, left : left + width],
            interpolation=cv2.INTER_LINEAR,
        )
        return padded


class ResizePadMatParams(ResizingParams):
    max_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    max_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")
    pad_value: PadValue = Field((0.0,), description=PAD_VALUE)

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return fit(width, height, self.max_w, self.max_h)


class ResizePadMat(Padded):
    """The largest image of the same aspect ratio within max_h×max_w, at the upper left, padded.

    The padding is below or at the right. `data`: H×W×C, uint8, uint16 or float32. `result`:
    max_h×max_w×C of the same dtype. Bilinear (see ResizeMat); the shorter side is rounded to the
    nearest pixel. Sets `inverse_trans`, which maps (x, y) in the result to (x, y) in `data`, and
    points of the padding outside of it.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = ResizePadMatParams
    center = False
    canvas: tuple[int, int]

    def init(self, params: ResizePadMatParams, context: Context) -> None:
        self.canvas = params.max_w, params.max_h
        self.pad_value = params.pad_value

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        width, height = whole_size(item, image.shape[1], image.shape[0])
        size = fit(width, height, *self.canvas)
        corner = _centered(size, self.canvas) if self.center else (0, 0)
        bounds = (width, height) if self.center else None
        item["inverse_trans"] = InverseTransform(width / size[0], height / size[1], *corner, bounds)
        return self.place(image, size, self.canvas, corner)


class ResizeCenterPadMat(ResizePadMat):
    """Like ResizePadMat, with the image in the middle (a spare pixel goes below or right).

    `inverse_trans` moves points of the padding to the nearest edge of `data`, as torchpipe's does,
    so that a box stays within it (to the edge itself, 0 to width; torchpipe's to the last pixel,
    width - 1).
    """

    center = True


class LetterBoxMatParams(ResizingParams):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")
    pad_value: PadValue = Field(
        (0.0,),
        alias="pad_val",
        description=f"{PAD_VALUE}; also accepted as pad_value; YOLO's is 114",
    )

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return fit(width, height, self.resize_w, self.resize_h)


class LetterBoxMat(Padded):
    """YOLO's letterbox: the largest image within resize_h×resize_w, in the middle, padded around.

    The aspect ratio is kept; small images are enlarged. `data`: H×W×C, uint8, uint16 or float32.
    `result`: resize_h×resize_w×C of the same dtype. Sets `scale` (float) and `offset` (x, y; whole
    pixels): x in `data` is (x - offset_x) / scale, likewise y, up to the rounding of the size. Sets
    `inverse_trans`, which maps (x, y) so, and points of the padding to the nearest edge of `data`.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = LetterBoxMatParams
    center = True
    canvas: tuple[int, int]

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("scale", "offset", "inverse_trans")

    def init(self, params: LetterBoxMatParams, context: Context) -> None:
        self.canvas = params.resize_w, params.resize_h
        self.pad_value = params.pad_value

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        width, height = whole_size(item, image.shape[1], image.shape[0])
        size = fit(width, height, *self.canvas)
        corner = _centered(size, self.canvas) if self.center else (0, 0)
        item["scale"] = scale = min(self.canvas[0] / width, self.canvas[1] / height)
        item["offset"] = corner
        item["inverse_trans"] = InverseTransform(1 / scale, 1 / scale, *corner, (width, height))
        return self.place(image, size, self.canvas, corner)


class TopLeftResizeMat(LetterBoxMat):
    """Like LetterBoxMat, with the image at the upper left: `offset` is (0, 0)."""

    center = False


class FixHResizePadMatParams(ResizingParams):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    max_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")
    pad_value: PadValue = Field((0.0,), description=PAD_VALUE)

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return width_at(width, height, self.resize_h, self.max_w), self.resize_h


class FixHResizePadMat(Padded):
    """A line of text for a recogniser: resized to the height resize_h, padded at the right.

    The width keeps the aspect ratio, rounded up, and is squeezed to max_w if it exceeds that.
    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×max_w×C of the same dtype. Sets
    `inverse_trans`, which maps (x, y) in the result to (x, y) in `data`.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = FixHResizePadMatParams
    canvas: tuple[int, int]

    def init(self, params: FixHResizePadMatParams, context: Context) -> None:
        self.canvas = params.max_w, params.resize_h
        self.pad_value = params.pad_value

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        width, height = whole_size(item, image.shape[1], image.shape[0])
        size = width_at(width, height, self.canvas[1], self.canvas[0]), self.canvas[1]
        item["inverse_trans"] = InverseTransform(width / size[0], height / size[1])
        return self.place(image, size, self.canvas, (0, 0))


def _centered(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
