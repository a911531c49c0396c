"""DecodeTensor: bytes of an image file to a tensor, by OpenCV or, if asked for, by nvJPEG."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import BeforeValidator, Field

from ...base import Context, Params
from ...errors import BackendError, InvalidInput
from ...item import Item
from ..decode import checked_header, decode_pixels, file_bytes
from ..header import Header
from ..pixels import Color
from .backend import TensorBackend, TensorParams

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("penstock.backends.image")

Decoder = Callable[[list[bytes]], "list[torch.Tensor]"]
"""JPEGs to tensors of 3×H×W in RGB on the GPU. Raises RuntimeError for one that it refuses."""

DataFormat = Annotated[
    Literal["nchw", "nhwc"], BeforeValidator(lambda value: "nhwc" if value == "hwc" else value)
]


class DecodeTensorParams(TensorParams):
    color: Color = Field("rgb", description="order of the channels")
    data_format: DataFormat = Field(
        "nchw", description="order of the tensor's axes; torchpipe's hwc is nhwc"
    )
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="the most pixels that the header of an image may declare; an image with more "
        "is refused undecoded",
    )
    nvjpeg: bool = Field(
        False,
        description="decode JPEGs by nvJPEG if the node is on a GPU; only for clients that are "
        "trusted: in a damaged JPEG, nvJPEG can show a part of another request's image",
    )


class DecodeTensor(TensorBackend):
    """An image file to a tensor of pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: uint8, 1×C×H×W
    (`nhwc`: 1×H×W×C), where C is 3, or 1 for gray. Sets `color` and `data_format` to the order of
    channels and axes.

    A file that does not decode is a soft failure, as in DecodeMat. Raises TypeError for another
    type of data.

    The pixels are those of DecodeMat, decoded on the CPU and moved to the node's device. A batch is
    one image.

    With `nvjpeg`, a GPU and torchvision, nvJPEG decodes on the GPU: its pixels differ by a few
    levels (another inverse transform, another upsampling of colours). It gets upright JPEGs in RGB
    or grey. All others, and those that it refuses, are decoded on the CPU. It takes a batch at
    once, and is five times as fast with 32 images as with one. Of a JPEG whose data end early, the
    missing part holds what nvJPEG decoded before, for whomever: no default for unknown clients.
    """

    parameters: ClassVar[type[Params] | None] = DecodeTensorParams
    takes, gives = "file", "tensor"

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("color", "data_format")

    nvjpeg: Decoder | None = None

    def init(self, params: DecodeTensorParams, context: Context) -> None:
        super().init(params, context)
        self.color, self.data_format, self.max_pixels = (
            params.color,
            params.data_format,
            params.max_pixels,
        )
        if params.nvjpeg and self._half.on_gpu:
            self.nvjpeg = find_nvjpeg(self._half.device)
        elif params.nvjpeg:
            logger.warning(
                "node %r: DecodeTensor: nvjpeg = true has no effect on %s: the CPU decodes",
                context.node,
                self._half.device,
            )
        if self.nvjpeg is None:
            self.max = 1

    def forward(self, batch: list[Item]) -> None:
        with self._half.errors("decoding images"):
            jpegs: list[tuple[Item, bytes, Header]] = []
            for item in batch:
                try:
                    encoded = file_bytes(item["data"], "DecodeTensor")
                    header = checked_header(encoded, self.max_pixels)
                    if self.nvjpeg is not None and suits_nvjpeg(header):
                        jpegs.append((item, encoded, header))
                    else:
                        self._decode_here(item, encoded, header)
                except InvalidInput as error:
                    item["error"] = error
            images = (
                refused_as_none(self.nvjpeg, [encoded for _, encoded, _ in jpegs])
                if self.nvjpeg is not None and jpegs
                else []
            )
            alike: dict[torch.Size, list[tuple[Item, torch.Tensor]]] = {}
            for (item, encoded, header), image in zip(jpegs, images, strict=True):
                if image is not None:
                    alike.setdefault(image.shape, []).append((item, image))
                    continue
                try:
                    self._decode_here(item, encoded, header)
                except InvalidInput as error:
                    item["error"] = error
            for members in alike.values():
                self._answer(members)

    def _decode_here(self, item: Item, encoded: bytes, header: Header) -> None:
        """Decode one file on the CPU."""
        from .operations import from_pixels

        pixels = decode_pixels(encoded, header, self.max_pixels)
        item["result"] = from_pixels(pixels, self.color, self.data_format == "nhwc").to(
            self._half.device
        )
        item["color"], item["data_format"] = self.color, self.data_format

    def _answer(self, members: list[tuple[Item, torch.Tensor]]) -> None:
        """Set the results of images of one size that nvJPEG has decoded."""
        import torch

        from .operations import converted, separate

        images = converted(torch.stack([image for _, image in members]), "rgb", self.color)
        results = separate(
            images.permute(0, 2, 3, 1) if self.data_format == "nhwc" else images, [1] * len(members)
        )
        for (item, _), result in zip(members, results, strict=True):
            item["result"] = result
            item["color"], item["data_format"] = self.color, self.data_format


def suits_nvjpeg(header: Header) -> bool:
    """Return whether nvJPEG would decode the file as OpenCV does.

    nvJPEG ignores EXIF rotation, can't read CMYK, and assumes that three channels are YCbCr.
    """
    jpeg = header.jpeg
    return (
        jpeg is not None
        and jpeg.channels in (1, 3)
        and not jpeg.named_rgb
        and jpeg.adobe_transform != 0
        and jpeg.orientation == 1
    )


def refused_as_none(decoder: Decoder, files: list[bytes]) -> list[torch.Tensor | None]:
    """Decode files by nvJPEG.

    None stands for each that it refuses. Errors of the device are raised.
    """
    import torch

    try:
        return list(decoder(files))
    except RuntimeError as error:
        if isinstance(
            error, (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", ()))
        ) or "CUDA error" in str(error):
            raise
        if len(files) > 1:  # it does not say which one
            return [refused_as_none(decoder, [file])[0] for file in files]
        logger.debug("nvJPEG refuses an image: %s", error)
        return [None]


def find_nvjpeg(device: torch.device) -> Decoder:
    """Return torchvision's nvJPEG.

    Raises BackendError if torchvision is missing, does not fit torch, or is built without it.
    """
    import torch

    try:
        io: Any = import_module("torchvision.io")
        rgb = io.ImageReadMode.RGB

        def decode(files: list[bytes]) -> list[torch.Tensor]:
            # Copies, because torch warns about read-only memory. Not by NumPy, which would release
            # the GIL for each.
            encoded = [torch.from_numpy(np.frombuffer(bytearray(file), np.uint8)) for file in files]
            images: list[torch.Tensor] = io.decode_jpeg(encoded, mode=rgb, device=device)
            return images

        # A first image tests nvJPEG, and loads it.
        decode([cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(
            f"DecodeTensor: nvjpeg = true needs torchvision with nvJPEG, which can't be used on "
            f"{device} ({type(error).__name__}: {error}): install a torchvision that fits torch, "
            "or remove nvjpeg to decode on the CPU"
        ) from error
    return decode
