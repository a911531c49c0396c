"""Tensors to another device, dtype, layout or order of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...base import UNBOUNDED, Context, Params
from ...errors import InvalidInput
from ...item import Item
from ..pixels import CHANNELS, Color
from .backend import ImageTensorBackend, TensorBackend, TensorParams, is_nhwc

if TYPE_CHECKING:
    import torch


class CvtColorTensorParams(TensorParams):
    color: Color = Field(description="the channel order to convert to")


class CvtColorTensor(ImageTensorBackend):
    """Pixels in another channel order, like CvtColorMat.

    `data` and `result`: N×C×H×W, uint8, float16, bfloat16 or float32. Reads the item's `color`,
    which DecodeTensor and DecodeMat set (without one: "gray" for one channel), and sets it.

    Raises InvalidInput for a `color` that is missing or does not fit, and for another shape or
    dtype.
    """

    keeps_size = True
    parameters: ClassVar[type[Params] | None] = CvtColorTensorParams
    samples = True
    max = UNBOUNDED
    reads = ("color",)
    color: str

    def init(self, params: CvtColorTensorParams, context: Context) -> None:
        super().init(params, context)
        self.color = params.color

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        from .operations import converted

        channels = image.shape[1]
        source = item.get("color") or ("gray" if channels == 1 else None)
        if source is None:
            raise InvalidInput(
                "CvtColorTensor: the item has no color: expected rgb or bgr for its "
                f"{channels} channels"
            )
        if CHANNELS.get(source) != channels:
            raise InvalidInput(
                f"CvtColorTensor: color {source!r} does not fit an image of {channels} channels: "
                f"expected one of {', '.join(CHANNELS)}"
            )
        item["color"] = self.color
        return converted(image, source, self.color)

    def transform_together(self, members: list[tuple[Item, torch.Tensor]]) -> None:
        item, image = members[0]
        if item.get("color") != self.color or image.shape[1] != CHANNELS[self.color]:
            super().transform_together(members)
            return
        for item, image in members:  # already in this color
            item["result"] = self.ordered(image, item)


class FloatTensor(TensorBackend):
    """A tensor as float32. Its values are kept, not scaled to 0 to 1.

    `data`: a tensor or array of numbers of any shape. `result`: the same as float32.

    Raises InvalidInput for anything else.
    """

    keeps_size = True

    def answer(self, item: Item) -> torch.Tensor:
        from .operations import owned

        (tensor,) = self.tensors([item["data"]])
        if tensor.is_complex():
            raise InvalidInput("FloatTensor: expected real numbers, found complex ones")
        return owned(tensor.to(self._half.device).float())


class NCHWTensor(TensorBackend):
    """An image, or several of one size, as N×C×H×W.

    `data`: H×W×C, H×W, or four dimensions in the order that the item's `data_format` names (default
    nchw); uint8, float16, bfloat16 or float32. `result`: the same pixels; `data_format` becomes
    "nchw".

    Raises InvalidInput for another shape or dtype.
    """

    keeps_size = True

    def answer(self, item: Item) -> torch.Tensor:
        from .operations import image_of, owned

        image = image_of(item["data"], is_nhwc(item, "NCHWTensor"), self._half.device, "NCHWTensor")
        item["data_format"] = "nchw"
        return owned(image)


class GpuTensor(TensorBackend):
    """Tensors on the GPU: `device_id`, else the node's, else the first.

    On a machine without one they stay on the CPU. `data`: a tensor or array of numbers, or a list
    of them. `result`: the same as torch tensors there.

    Raises InvalidInput for anything else.
    """

    keeps_size = True

    def answer(self, item: Item) -> Any:
        return moved(self.tensors(item["data"]), item["data"], self._half.device)


class CpuTensor(TensorBackend):
    """Tensors on the CPU.

    `data`: a tensor or array of numbers, or a list of them. `result`: the same as torch tensors
    there.

    Raises InvalidInput for anything else.
    """

    keeps_size = True

    def answer(self, item: Item) -> Any:
        return moved(self.tensors(item["data"]), item["data"], "cpu")


def moved(tensors: list[torch.Tensor], data: Any, device: torch.device | str) -> Any:
    """Move the tensors to a device. Return a list if `data` is one."""
    from .operations import owned

    results = [owned(tensor.to(device)) for tensor in tensors]
    return results if isinstance(data, list | tuple) else results[0]
