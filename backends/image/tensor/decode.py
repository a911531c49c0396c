"""DecodeTensor: bytes of an image file to a tensor, by OpenCV or, if asked for, on the GPU."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ...base import Context, Params
from ...engines.processors import threads_per_instance
from ...errors import InvalidInput, MemoryFull
from ...item import Item
from ...memory import Reservation, budget
from ..decode import (
    BYTES_PER_PIXEL,
    OTHER_BYTES_PER_PIXEL,
    checked_header,
    decode_for,
    file_bytes,
)
from ..header import Header
from ..pixels import Color
from ..resizing import REDUCE, ReducingParams, ResizingParams
from .backend import TensorBackend, TensorParams
from .decoders import GpuDecoder, find_nvimgcodec, find_nvjpeg

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("penstock.backends.image")

DecoderName = Literal["cpu", "nvjpeg", "nvimgcodec"]

DataFormat = Annotated[
    Literal["nchw", "nhwc"], BeforeValidator(lambda value: "nhwc" if value == "hwc" else value)
]


IMAGES_PER_THREAD = 2
"""The images of a batch that the CPU decodes, for each thread. All of them are in memory before a
backend behind makes any smaller.
"""

File = tuple[Item, bytes, Header]
"""A file to decode: where its result goes, its bytes, and its checked header."""


class DecodeTensorParams(TensorParams, ReducingParams):
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
    decoder: DecoderName = Field(
        "cpu",
        description="cpu: OpenCV; on a GPU, nvjpeg: JPEGs by torchvision's nvJPEG, nvimgcodec: "
        "JPEG, PNG, WebP, TIFF and JPEG 2000 by nvImageCodec (extra nvimgcodec). The latter two "
        "only for clients that are trusted: of a damaged JPEG they can show a part of another "
        "request's image",
    )
    nvjpeg: bool = Field(False, description='true is `decoder = "nvjpeg"`, its older name')
    reduce: bool = REDUCE

    @model_validator(mode="after")
    def _one_decoder(self) -> Self:
        if self.nvjpeg and self.decoder != "nvjpeg" and "decoder" in self.model_fields_set:
            raise ValueError(
                f'nvjpeg = true is decoder = "nvjpeg", but decoder is {self.decoder!r}: remove '
                "nvjpeg"
            )
        return self


class DecodeTensor(TensorBackend):
    """An image file to a tensor of pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: uint8, 1×C×H×W
    (`nhwc`: 1×H×W×C), where C is 3, or 1 for gray. Sets `color` and `data_format` to the order of
    channels and axes.

    A file that does not decode is a soft failure, as in DecodeMat. Raises TypeError for another
    type of data.

    The pixels are those of DecodeMat, also with `reduce`. They are decoded on the CPU and moved to
    the node's device. Images of a batch are decoded at once, by as many threads as this instance's
    share of the processors; a batch has at most two images for each thread.

    On a GPU, `decoder` can name one that decodes there, a whole batch at once. What it would read
    differently from OpenCV, and what it refuses, is decoded on the CPU. `reduce` is for the CPU.

    * `nvjpeg`: torchvision's nvJPEG gets upright JPEGs in RGB or grey. Its pixels differ by a few
      levels (another inverse transform, another upsampling of colours). It is five times as fast
      with 32 images as with one.
    * `nvimgcodec`: nvImageCodec gets JPEGs in RGB or grey, JPEG 2000, TIFF, PNG and WebP. JPEGs are
      decoded on the GPU, JPEG 2000 and TIFF where NVIDIA's libraries for them are installed. The
      others are decoded by its own OpenCV, on as many threads as this instance's share of the
      processors.

    Of a JPEG whose data end early, the missing part holds what the GPU decoded before, for
    whomever: no default for unknown clients.
    """

    parameters: ClassVar[type[Params] | None] = DecodeTensorParams
    takes, gives = "file", "tensor"

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("color", "data_format")

    decoder: GpuDecoder | None = None
    resizing: ResizingParams | None = None
    helpers = 0
    threads: ThreadPoolExecutor | None = None

    def init(self, params: DecodeTensorParams, context: Context) -> None:
        super().init(params, context)
        self.color, self.data_format, self.max_pixels = (
            params.color,
            params.data_format,
            params.max_pixels,
        )
        self.resizing = params.resizing
        wanted: DecoderName = "nvjpeg" if params.nvjpeg else params.decoder
        if wanted != "cpu" and not self._half.on_gpu:
            logger.warning(
                'node %r: DecodeTensor: decoder = "%s" has no effect on %s: the CPU decodes',
                context.node,
                wanted,
                self._half.device,
            )
        elif wanted == "nvjpeg":
            self.decoder = find_nvjpeg(self._half.device)
        elif wanted == "nvimgcodec":
            self.decoder = self._nvimgcodec(context)
        self.helpers = threads_per_instance(context.instances) - 1
        if self.helpers and context.max != 1:
            self.threads = ThreadPoolExecutor(self.helpers, "decode")
        if self.decoder is None:
            self.max = 1 if self.threads is None else IMAGES_PER_THREAD * (self.helpers + 1)

    def _nvimgcodec(self, context: Context) -> GpuDecoder:
        decoder = find_nvimgcodec(
            self._half.device,
            self._half.stream,
            instances=context.instances,
            max_pixels=self.max_pixels,
        )
        level = logging.INFO if "JPEG" in decoder.on_gpu else logging.WARNING
        if context.instance == 0:
            logger.log(
                level,
                "node %r: DecodeTensor: nvImageCodec decodes on %s: %s; on the CPU: %s",
                context.node,
                self._half.device,
                ", ".join(decoder.on_gpu) or "nothing (is nvJPEG, nvidia-nvjpeg, installed?)",
                ", ".join(sorted(decoder.formats - {*decoder.on_gpu})),
            )
        return decoder

    def close(self) -> None:
        self.decoder = None
        if self.threads is not None:
            self.threads.shutdown()
        super().close()

    def forward(self, batch: list[Item]) -> None:
        with self._half.errors("decoding images"):
            there: list[File] = []
            here: list[File] = []
            memory = Reservation(budget)
            for item in batch:
                try:
                    encoded = file_bytes(item["data"], "DecodeTensor")
                    header = checked_header(encoded, self.max_pixels)
                except InvalidInput as error:
                    item["error"] = error
                    continue
                suits = self.decoder is not None and self.decoder.suits(header)
                (there if suits and _fits(memory, header) else here).append((item, encoded, header))
            if self.decoder is not None and there:
                images = self.decoder.decode([encoded for _, encoded, _ in there])
                here += self._answer_all(there, images)
            memory.close()
            self._decode_here(here)

    def _answer_all(self, files: list[File], images: list[torch.Tensor | None]) -> list[File]:
        """Set the results of the images. Return the files that the decoder refused."""
        alike: dict[torch.Size, list[tuple[Item, torch.Tensor]]] = {}
        refused = []
        for file, image in zip(files, images, strict=True):
            if image is None:
                refused.append(file)
            else:
                alike.setdefault(image.shape, []).append((file[0], image))
        for members in alike.values():
            self._answer(members)
        return refused

    def _decode_here(self, files: list[File]) -> None:
        """Decode files on the CPU and set their results.

        This thread takes one after the other, and so do the helpers. Where no processor is free
        they find nothing left to do.
        """
        images: dict[int, torch.Tensor | InvalidInput] = {}
        waiting = deque(range(len(files)))

        def work() -> None:
            while True:
                try:
                    index = waiting.popleft()
                except IndexError:
                    return
                images[index] = self._decoded(files[index])

        helpers = []
        if self.threads is not None:
            count = min(self.helpers, len(files) - 1)
            helpers = [self.threads.submit(work) for _ in range(count)]
        try:
            work()
        finally:
            waiting.clear()
            helpers = [helper for helper in helpers if not helper.cancel()]
            wait(helpers)
        for helper in helpers:
            helper.result()  # raises what it raised
        for index, file in enumerate(files):
            item, image = file[0], images[index]
            if isinstance(image, MemoryFull) and len(files) > 1:
                image = self._decoded(file)  # alone it may fit
            if isinstance(image, InvalidInput):
                item["error"] = image
            else:
                item["result"] = image.to(self._half.device)
                item["color"], item["data_format"] = self.color, self.data_format

    def _decoded(self, file: File) -> torch.Tensor | InvalidInput:
        """Decode a file on the CPU, or return why it can't be read. Several threads call this."""
        from .operations import from_pixels

        item, encoded, header = file
        try:
            pixels = decode_for(self.resizing, item, encoded, header, self.max_pixels)
            return from_pixels(pixels, self.color, self.data_format == "nhwc")
        except InvalidInput as error:
            return error

    def _answer(self, members: list[tuple[Item, torch.Tensor]]) -> None:
        """Set the results of images of one size that the GPU has decoded.

        They are copies in torch's memory: other processes can't map what nvImageCodec allocates.
        """
        import torch

        from .operations import converted, separate

        images = converted(torch.stack([image for _, image in members]), "rgb", self.color)
        if self.data_format == "nhwc":
            images = images.permute(0, 2, 3, 1)
        results = (
            [images.contiguous()] if len(members) == 1 else separate(images, [1] * len(members))
        )
        for (item, _), result in zip(members, results, strict=True):
            item["result"] = result
            item["color"], item["data_format"] = self.color, self.data_format


def _fits(memory: Reservation, header: Header) -> bool:
    """Reserve what a file takes in the machine's memory while a GPU's decoder decodes it.

    That is little of a JPEG, which is decoded on the GPU.
    """
    if header.format == "JPEG":
        return True
    bytes_per_pixel = BYTES_PER_PIXEL.get(header.format, OTHER_BYTES_PER_PIXEL)
    try:
        memory.resize(memory.size + bytes_per_pixel * header.width * header.height, "an image")
    except InvalidInput:  # alone it may fit: it is tried again then
        return False
    return True
