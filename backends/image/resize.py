"""Resizing: to a fixed size, to sizes that the image or the request decides, and by Pillow."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from ..allocation import empty_array
from ..base import Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item
from .geometry import InverseTransform, fit, width_at
from .pixels import MAX_SIDE, ImageBackend, resized, side, whole_size
from .resizing import ResizingParams


class ResizeMatParams(ResizingParams):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return self.resize_w, self.resize_h


class ResizeMat(ImageBackend):
    """Pixels at another size: bilinear, half-pixel centres, no antialiasing, as by OpenCV.

    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×resize_w×C of the same dtype.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = ResizeMatParams
    size: tuple[int, int]

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: ResizeMatParams, context: Context) -> None:
        self.size = params.resize_w, params.resize_h

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        return resized(image, *self.size)


def asked_size(item: Item) -> tuple[int, int] | None:
    """Return the (width, height) that the item asks for. None: it asks for none that is possible,
    and the backend that resizes says why.
    """
    try:
        return side(item, "resize_w", ""), side(item, "resize_h", "")
    except InvalidInput:
        return None


class DynamicResizeMatParams(ResizingParams):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="the most pixels (height times width) that a request may ask for",
    )

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int] | None:
        return asked_size(item)


class DynamicResizeMat(ImageBackend):
    """Pixels at the size that the item asks for in `resize_h` and `resize_w`, each 1 to 32767.

    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×resize_w×C of the same dtype.
    Bilinear (see ResizeMat).

    Raises InvalidInput if a key is missing or out of range, and TooLarge above `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = DynamicResizeMatParams
    max_pixels: int

    def init(self, params: DynamicResizeMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        height, width = (
            side(item, "resize_h", "DynamicResizeMat"),
            side(item, "resize_w", "DynamicResizeMat"),
        )
        if height * width > self.max_pixels:
            raise TooLarge(
                f"DynamicResizeMat: {width}x{height} pixels are asked for: at most "
                f"{self.max_pixels} are allowed"
            )
        return resized(image, width, height)


class FixRatioResizeMatParams(ResizingParams):
    max_h: int = Field(ge=1, le=MAX_SIDE, description="greatest height of the result in pixels")
    max_w: int = Field(ge=1, le=MAX_SIDE, description="greatest width of the result in pixels")

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return fit(width, height, self.max_w, self.max_h, up=True)


class FixRatioResizeMat(ImageBackend):
    """The largest image of the same aspect ratio within max_h×max_w, not padded. Enlarges too.

    `data`: H×W×C, uint8, uint16 or float32. `result`: of the same dtype; one side is max_h or
    max_w, the other is rounded up. Bilinear (see ResizeMat). Sets `inverse_trans`, which maps (x,
    y) in the result to (x, y) in `data`.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = FixRatioResizeMatParams
    params: FixRatioResizeMatParams

    def init(self, params: FixRatioResizeMatParams, context: Context) -> None:
        self.params = params

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        width, height = whole_size(item, image.shape[1], image.shape[0])
        new_width, new_height = self.params.size_of_result(width, height, item)
        item["inverse_trans"] = InverseTransform(width / new_width, height / new_height)
        return resized(image, new_width, new_height)


class AlignMatParams(ResizingParams):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    max_w: int = Field(ge=1, le=MAX_SIDE, description="greatest width of the result in pixels")
    align: int = Field(
        32,
        ge=1,
        le=MAX_SIDE,
        description="the width is rounded up to a multiple of this; it is the last one within "
        "max_w where that would be exceeded",
    )

    @model_validator(mode="after")
    def _holds_one(self) -> Self:
        if self.max_w < self.align:
            raise ValueError(
                f"max_w is {self.max_w}, and no multiple of align ({self.align}) fits into it"
            )
        return self

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return width_at(width, height, self.resize_h, self.max_w, self.align), self.resize_h


class AlignMat(ImageBackend):
    """An image resized to the height resize_h, its width rounded up to a multiple of `align`.

    The width keeps the aspect ratio before rounding, and is at most the last multiple of `align`
    within max_w. `data`: H×W×C, uint8, uint16 or float32. `result`: of the same dtype. Bilinear
    (see ResizeMat). Sets `resize_h` and `resize_w` to the size, and `inverse_trans`, which maps
    (x, y) in the result to (x, y) in `data`.

    Raises InvalidInput for another shape or dtype.

    torchpipe's AlignMat leaves the resizing to a DynamicResizeMat after it. That one may stay: it
    finds the size it wants.
    """

    parameters: ClassVar[type[Params] | None] = AlignMatParams
    params: AlignMatParams

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("resize_h", "resize_w", "inverse_trans")

    def init(self, params: AlignMatParams, context: Context) -> None:
        self.params = params

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        width, height = whole_size(item, image.shape[1], image.shape[0])
        new_width, new_height = self.params.size_of_result(width, height, item)
        item["resize_h"], item["resize_w"] = new_height, new_width
        item["inverse_trans"] = InverseTransform(width / new_width, height / new_height)
        return resized(image, new_width, new_height)


class PillowResizeMatParams(ResizingParams):
    resize_h: int | None = Field(
        None, ge=1, le=MAX_SIDE, description="height of the result in pixels"
    )
    resize_w: int | None = Field(
        None, ge=1, le=MAX_SIDE, description="width of the result in pixels"
    )
    resize_short: int | None = Field(
        None,
        ge=1,
        le=MAX_SIDE,
        description="in place of resize_h and resize_w: the shorter side of the result in pixels; "
        "the other keeps the aspect ratio, rounded down as torchvision's Resize does",
    )
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="with resize_short: the most pixels (height times width) of the result",
    )
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = Field(
        "bilinear", description="Pillow's filter; all except nearest antialias when they shrink"
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        sides = (self.resize_h, self.resize_w)
        if (None in sides) if self.resize_short is None else (sides != (None, None)):
            raise ValueError("expected resize_h and resize_w, or resize_short alone")
        return self

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        if self.resize_w is not None and self.resize_h is not None:
            return self.resize_w, self.resize_h
        short = self.resize_short or 0
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)


class PillowResizeMat(ImageBackend):
    """Pixels at another size, bit-equal to Pillow's `Image.resize`.

    For models trained on images that Pillow or torchvision resized. `data`: H×W×C, uint8 with C of
    1 to 4 (Pillow's L, LA, RGB, RGBA: it weighs colours by alpha), or float32 with any C (each
    channel as Pillow's F). `result`: resize_h×resize_w×C of the same dtype; with resize_short, its
    shorter side is that long. Slower than ResizeMat, and antialiased.

    Raises InvalidInput for another shape or dtype, and TooLarge above `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = PillowResizeMatParams
    params: PillowResizeMatParams
    filter: Image.Resampling

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: PillowResizeMatParams, context: Context) -> None:
        self.params = params
        self.filter = Image.Resampling[params.resample.upper()]

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        height, width, channels = image.shape
        size = self._size(*whole_size(item, width, height), item)
        result = empty_array((size[1], size[0], channels), image.dtype)
        if image.dtype == np.float32:
            for channel in range(channels):
                result[:, :, channel] = self._resize(image[:, :, channel], size)
        elif image.dtype == np.uint8 and channels <= 4:
            result[...] = self._resize(image if channels > 1 else image[:, :, 0], size).reshape(
                result.shape
            )
        else:
            raise InvalidInput(
                "PillowResizeMat: expected uint8 with 1 to 4 channels, or float32, found shape "
                f"{image.shape}, dtype {image.dtype}"
            )
        return result

    def _size(self, width: int, height: int, item: Item) -> tuple[int, int]:
        """Return the size of the result. Raises TooLarge above `max_pixels`."""
        size = self.params.size_of_result(width, height, item)
        if self.params.resize_short is not None and size[0] * size[1] > self.params.max_pixels:
            raise TooLarge(
                f"PillowResizeMat: an image of {width}x{height} pixels would get a longer side of "
                f"{max(size)}: at most {self.params.max_pixels} pixels are allowed"
            )
        return size

    def _resize(self, image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        return np.asarray(Image.fromarray(image).resize(size, self.filter))
