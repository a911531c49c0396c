"""Image backends on OpenCV, NumPy in and out: decode, convert colours, resize, make a tensor.

Each works on one image (`max` is 1; a Sequential loops it), and none changes its input in place.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import InvalidInput
from ..item import Item
from .decode import decode, file_bytes
from .pixels import MAX_SIDE, image_of, owned, resized

Color = Literal["rgb", "bgr", "gray"]

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}

CONVERSIONS = {
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("bgr", "gray"): cv2.COLOR_BGR2GRAY,
    ("rgb", "gray"): cv2.COLOR_RGB2GRAY,
    ("gray", "bgr"): cv2.COLOR_GRAY2BGR,
    ("gray", "rgb"): cv2.COLOR_GRAY2RGB,
}


class DecodeMatParams(Params):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Most pixels that an image's header may promise; above it the item is refused, undecoded.",
    )


class DecodeMat(Backend):
    """An image file to pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: BGR, uint8, H×W×3; `color` becomes "bgr".
    What does not decode is a soft failure: `error` says why (`TooLarge` above `max_pixels`). Another type of data is a TypeError.
    """

    parameters: ClassVar[type[Params] | None] = DecodeMatParams
    max = 1
    max_pixels: int

    def init(self, params: DecodeMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            try:
                item["result"] = decode(file_bytes(item["data"], "DecodeMat"), self.max_pixels)
                item["color"] = "bgr"
            except InvalidInput as error:
                item["error"] = error


class CvtColorMatParams(Params):
    color: Color = Field(description="The channel order to convert to.")


class CvtColorMat(Backend):
    """Pixels in another channel order. `data` and `result`: H×W×C, uint8, uint16 or float32.

    Reads the item's `color` (without one: "gray" for one channel, else OpenCV's "bgr") and sets it.
    Raises InvalidInput for another shape or dtype, or a `color` that does not fit.
    """

    parameters: ClassVar[type[Params] | None] = CvtColorMatParams
    max = 1
    color: Color

    def init(self, params: CvtColorMatParams, context: Context) -> None:
        self.color = params.color

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            image = image_of(item["data"], "CvtColorMat")
            source = item.get("color") or ("gray" if image.shape[2] == 1 else "bgr")
            if CHANNELS.get(source) != image.shape[2]:
                raise InvalidInput(
                    f"CvtColorMat: color {source!r} does not fit an image of shape {image.shape}; known: {', '.join(CHANNELS)}"
                )
            if source == self.color:
                item["result"] = owned(image)
            else:
                # Into an array of ours, since OpenCV drops the channel axis of grey images.
                converted = np.empty((*image.shape[:2], CHANNELS[self.color]), image.dtype)
                cv2.cvtColor(image, CONVERSIONS[source, self.color], dst=converted)
                item["result"] = converted
            item["color"] = self.color


class ResizeMatParams(Params):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="Height of the result in pixels.")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="Width of the result in pixels.")


class ResizeMat(Backend):
    """Pixels at another size, by OpenCV's bilinear convention (half-pixel centres, no antialiasing).

    `data`: H×W×C, uint8, uint16 or float32. `result`: resize_h×resize_w×C of the same dtype.
    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = ResizeMatParams
    max = 1
    size: tuple[int, int]

    def init(self, params: ResizeMatParams, context: Context) -> None:
        self.size = params.resize_w, params.resize_h

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = resized(image_of(item["data"], "ResizeMat"), *self.size)


class Mat2TensorParams(Params):
    data_format: Literal["nchw", "nhwc"] = Field("nchw", description="Order of the tensor's axes.")
    device: str | int = Field(
        "cpu",
        description="Accepted from torchpipe's files: the result is NumPy, and the engine moves it.",
    )


class Mat2Tensor(Backend):
    """An image as a tensor with a batch dimension, its dtype kept (the engine's fused `mean` and `std` normalise).

    `data`: H×W×C, uint8, uint16 or float32. `result`: 1×C×H×W (`nhwc`: 1×H×W×C), C-contiguous.
    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = Mat2TensorParams
    max = 1
    data_format: str

    def init(self, params: Mat2TensorParams, context: Context) -> None:
        self.data_format = params.data_format

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            image = image_of(item["data"], "Mat2Tensor")
            if self.data_format == "nhwc":
                item["result"] = np.array(image[np.newaxis])
                continue
            height, width, channels = image.shape
            tensor = np.empty((1, channels, height, width), image.dtype)
            # Seven times as fast as NumPy's transposing copy (5 µs instead of 37 at 224×224×3).
            cv2.split(image, list(tensor[0]))
            item["result"] = tensor
