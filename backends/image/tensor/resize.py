"""Image tensors resized: to a fixed size, to one that the item asks for, or fitted and padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ...base import UNBOUNDED, Context, Params
from ...errors import TooLarge
from ...item import Item
from ..geometry import InverseTransform, fit
from ..pad import PAD_VALUE, PadValue
from ..pixels import MAX_SIDE, WHOLE_SIZE, side, whole_size
from ..resize import AlignMatParams, asked_size
from ..resizing import ResizingParams
from .backend import ImageTensorBackend, TensorParams

if TYPE_CHECKING:
    import torch


class ResizeTensorParams(TensorParams, ResizingParams):
    resize_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    resize_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return self.resize_w, self.resize_h


class ResizeTensor(ImageTensorBackend):
    """Pixels at another size: bilinear, half-pixel centres, no antialiasing, as ResizeMat.

    This is torch's `align_corners=False`. `data`: N×C×H×W, uint8, float16, bfloat16 or float32.
    `result`: N×C×resize_h×resize_w of the same dtype. On a GPU, uint8 differs by at most 1 from the
    result on the CPU.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = ResizeTensorParams
    samples = True
    max = UNBOUNDED
    reads = ()
    size: tuple[int, int]

    def init(self, params: ResizeTensorParams, context: Context) -> None:
        super().init(params, context)
        self.size = params.resize_h, params.resize_w

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .sampling import resized

        return resized(image, *self.size)


class DynamicResizeTensorParams(TensorParams, ResizingParams):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="the most pixels (height times width) that a request may ask for",
    )

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int] | None:
        return asked_size(item)


class DynamicResizeTensor(ImageTensorBackend):
    """Pixels at the size that the item asks for in `resize_h` and `resize_w`, each 1 to 32767.

    Otherwise like ResizeTensor.

    Raises InvalidInput if a key is missing or out of range, and TooLarge above `max_pixels`.
    """

    parameters: ClassVar[type[Params] | None] = DynamicResizeTensorParams
    samples = True
    max = UNBOUNDED
    reads = ("resize_h", "resize_w")
    max_pixels: int

    def init(self, params: DynamicResizeTensorParams, context: Context) -> None:
        super().init(params, context)
        self.max_pixels = params.max_pixels

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .sampling import resized

        height, width = (
            side(item, "resize_h", "DynamicResizeTensor"),
            side(item, "resize_w", "DynamicResizeTensor"),
        )
        if height * width > self.max_pixels:
            raise TooLarge(
                f"DynamicResizeTensor: {width}x{height} pixels are asked for: at most "
                f"{self.max_pixels} are allowed"
            )
        return resized(image, height, width)


class ResizePadTensorParams(TensorParams, ResizingParams):
    max_h: int = Field(ge=1, le=MAX_SIDE, description="height of the result in pixels")
    max_w: int = Field(ge=1, le=MAX_SIDE, description="width of the result in pixels")
    pad_value: PadValue = Field((0.0,), description=PAD_VALUE)

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int]:
        return fit(width, height, self.max_w, self.max_h)


class ResizePadTensor(ImageTensorBackend):
    """The largest image of the same aspect ratio within max_h×max_w, at the upper left, padded.

    Like ResizePadMat. `data`: N×C×H×W, uint8, float16, bfloat16 or float32. `result`:
    N×C×max_h×max_w of the same dtype. Sets `inverse_trans`, which maps (x, y) in the result to (x,
    y) in `data`.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = ResizePadTensorParams
    samples = True
    max = UNBOUNDED
    reads = (WHOLE_SIZE,)
    canvas: tuple[int, int]
    pad_value: tuple[float, ...]

    def init(self, params: ResizePadTensorParams, context: Context) -> None:
        super().init(params, context)
        self.canvas = params.max_w, params.max_h
        self.pad_value = params.pad_value

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .operations import fill_of, placed
        from .sampling import resized

        width, height = whole_size(item, image.shape[3], image.shape[2])
        fill = fill_of(self.pad_value, image, "ResizePadTensor")
        new_width, new_height = fit(width, height, *self.canvas)
        item["inverse_trans"] = InverseTransform(width / new_width, height / new_height)
        return placed(resized(image, new_height, new_width), (0, 0), self.canvas, fill)


class AlignTensorParams(TensorParams, AlignMatParams):
    pass


class AlignTensor(ImageTensorBackend):
    """An image resized to the height resize_h, its width rounded up to a multiple of `align`.

    Like AlignMat. `data`: N×C×H×W, uint8, float16, bfloat16 or float32. `result`: of the same
    dtype. Sets `resize_h` and `resize_w` to the size, and `inverse_trans`, which maps (x, y) in the
    result to (x, y) in `data`.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = AlignTensorParams
    samples = True
    max = UNBOUNDED
    reads = (WHOLE_SIZE,)
    params: AlignTensorParams

    def init(self, params: AlignTensorParams, context: Context) -> None:
        super().init(params, context)
        self.params = params

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .sampling import resized

        width, height = whole_size(item, image.shape[3], image.shape[2])
        new_width, new_height = self.params.size_of_result(width, height, item)
        item["resize_h"], item["resize_w"] = new_height, new_width
        item["inverse_trans"] = InverseTransform(width / new_width, height / new_height)
        return resized(image, new_height, new_width)
