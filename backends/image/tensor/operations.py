"""Operations of the torch image backends on pixels: read, ordered, recoloured, bordered.

This module, sampling.py and cv_cuda.py import torch; the backends import them when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ...allocation import counted, empty_array
from ...engines.torch.reading import as_tensor
from ...errors import InvalidInput
from ..pixels import MAX_CHANNELS
from . import cv_cuda

TENSOR_PIXEL_TYPES = frozenset({torch.uint8, torch.float16, torch.bfloat16, torch.float32})

LUMA = (9798, 19235, 3735)
"""Weights of red, green and blue in grey, in units of 2^-15.

They are OpenCV's for whole numbers (0.299, 0.587, 0.114).
"""

# reading and answering


def tensor_of(value: Any, backend: str) -> torch.Tensor:
    """Return the value as a tensor, without a copy if an array's memory can be shared.

    Raises InvalidInput for anything that isn't a tensor or an array of numbers.
    """
    if (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "buif"
        and not (value.flags.c_contiguous and value.flags.owndata)
    ):
        value = np.array(value, order="C")  # a view would keep its base alive
    tensor = as_tensor(value, backend)
    return tensor.detach() if tensor.requires_grad else tensor


def image_of(value: Any, nhwc: bool, device: torch.device, backend: str) -> torch.Tensor:
    """Return `value` as N×C×H×W on the device, of any strides.

    Three dimensions are read as H×W×C and two as H×W, as in Tensor2Mat. Raises InvalidInput for
    another shape or dtype.
    """
    tensor = tensor_of(value, backend)
    shape = tuple(tensor.shape)
    if tensor.dtype not in TENSOR_PIXEL_TYPES or tensor.ndim not in (2, 3, 4) or 0 in shape:
        layout = "NxHxWxC" if nhwc else "NxCxHxW"
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InvalidInput(
            f"{backend}: expected an image of shape {layout} and dtype uint8, float16, bfloat16 or "
            f"float32, found shape {shape}, dtype {dtype}"
        )
    if tensor.ndim < 4:
        image = (
            tensor.view(1, 1, *shape) if tensor.ndim == 2 else tensor.permute(2, 0, 1).unsqueeze(0)
        )
    else:
        image = tensor.permute(0, 3, 1, 2) if nhwc else tensor
    if image.shape[1] > MAX_CHANNELS:
        layout = "HxWxC" if tensor.ndim == 3 else "NxHxWxC" if nhwc else "NxCxHxW"
        raise InvalidInput(
            f"{backend}: shape {shape}, read as {layout}, has more than {MAX_CHANNELS} channels: "
            "is it another layout?"
        )
    return image if image.device == device else image.to(device)


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself, or a contiguous copy of a view.

    A result must not keep a larger tensor alive.
    """
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return (
        tensor
        if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        else tensor.clone()
    )


def separate(images: torch.Tensor, rows: list[int]) -> Sequence[torch.Tensor]:
    """Split N×... into tensors of `rows` each, contiguous, in memory of their own."""
    split: Any = torch.split_with_sizes_copy  # torch's stub says that it returns None
    pieces: Sequence[torch.Tensor] = split(images.contiguous(), rows)
    return pieces


def from_pixels(image: NDArray[np.uint8], color: str, nhwc: bool) -> torch.Tensor:
    """Return OpenCV's H×W×3 in BGR as 1×C×H×W (`nhwc`: 1×H×W×C) in `color`, on the CPU."""
    height, width, _ = image.shape
    if color == "gray":
        grey = counted(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        return torch.from_numpy(
            grey.reshape(1, height, width, 1) if nhwc else grey.reshape(1, 1, height, width)
        )
    if nhwc:
        return torch.from_numpy(
            (counted(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) if color == "rgb" else image)[
                np.newaxis
            ]
        )
    planes = empty_array((1, 3, height, width), np.uint8)
    cv2.split(
        image, [planes[0, channel] for channel in ((2, 1, 0) if color == "rgb" else (0, 1, 2))]
    )
    return torch.from_numpy(planes)


# colours


def converted(image: torch.Tensor, source: str, target: str) -> torch.Tensor:
    """Return N×C×H×W in another order of channels: rgb, bgr (C = 3) or gray (C = 1)."""
    if source == target:
        return image
    if source == "gray":
        return image.expand(-1, 3, -1, -1)
    if target != "gray":
        return image.flip(1)
    if image.is_cuda and (result := cv_cuda.grey(image, source)) is not None:
        return result
    luma = LUMA if source == "rgb" else LUMA[::-1]
    if image.dtype != torch.uint8:
        weights = [weight / 2**15 for weight in luma]
        return sum_of(image.float(), weights).to(image.dtype)
    return ((sum_of(image.int(), luma) + 2**14) >> 15).to(torch.uint8)


def sum_of(image: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Return the sum of the channels, each times its weight: N×1×H×W."""
    total = image[:, :1] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        total = total + image[:, channel : channel + 1] * weight
    return total


def as_type(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert floats to pixels: rounded and clipped if the dtype is of whole numbers."""
    return values.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)


# borders


def fill_of(pad_value: Sequence[float], image: torch.Tensor, backend: str) -> list[float]:
    """Return a value per channel, as the image's dtype has it.

    Raises InvalidInput unless there is one value, or one per channel.
    """
    channels = image.shape[1]
    if len(pad_value) not in (1, channels):
        raise InvalidInput(
            f"{backend}: pad_value has {len(pad_value)} numbers, but the image has {channels} "
            "channel(s): expected one number, or one per channel"
        )
    values = (
        [float(min(max(round(value), 0), 255)) for value in pad_value]
        if image.dtype == torch.uint8
        else list(pad_value)
    )
    return values * channels if len(values) == 1 else values


def placed(
    image: torch.Tensor, corner: tuple[int, int], canvas: tuple[int, int], fill: Sequence[float]
) -> torch.Tensor:
    """Place the image at `corner` of a new one of the size `canvas`, both (x, y).

    The rest is filled with a value per channel.
    """
    count, channels, height, width = image.shape
    left, top = corner
    value = image.new_tensor(fill).view(1, -1, 1, 1)
    result = value.expand(count, channels, canvas[1], canvas[0]).clone(
        memory_format=torch.contiguous_format
    )
    result[:, :, top : top + height, left : left + width] = image
    return result
