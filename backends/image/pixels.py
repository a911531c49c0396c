"""The common part of all OpenCV image backends: which arrays are images, and their base class."""

from __future__ import annotations

import operator
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..allocation import counted, empty_array
from ..base import Backend
from ..errors import InvalidInput
from ..item import Item

PIXEL_TYPES = frozenset({"uint8", "uint16", "float32"})
"""The dtypes that OpenCV's cvtColor, resize and warpPerspective all take."""

MAX_CHANNELS = 128
"""OpenCV 5's own bound (4.x: 512)."""

MAX_SIDE = 32767
"""Longest side of an image, in pixels, that a parameter or a request can ask for."""

Color = Literal["rgb", "bgr", "gray"]
"""Channel orders of images. OpenCV's own is bgr."""

WHOLE_SIZE = "_whole_size"
"""The item's key for (width, height) of the image in its file, while `data` is smaller than that.

A decoder sets it. It stays until the image has another size.
"""

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
"""The number of channels of each `Color`."""


class ImageBackend(Backend):
    """Base class of backends from one image to one image, by `transform`.

    The input array is never written to. The result is C-contiguous and owns its memory.
    """

    blocks = "its time grows with the image"
    in_front = True
    takes = gives = "image"
    max = 1

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = self.transform(image_of(item["data"], type(self).__name__), item)
            if not self.keeps_size:
                item.pop(WHOLE_SIZE, None)

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        """Return the result for an H×W×C image. May set further keys of the item.

        Raises InvalidInput if something does not fit.
        """
        raise NotImplementedError


def image_of(data: Any, backend: str) -> NDArray[Any]:
    """Return `data` as a C-contiguous image H×W×C (H×W is one channel).

    Raises InvalidInput otherwise.
    """
    if not isinstance(data, np.ndarray):
        raise InvalidInput(
            f"{backend}: expected an image as a NumPy array of shape HxWxC, found "
            f"{type(data).__name__}"
        )
    if data.dtype.name not in PIXEL_TYPES or data.ndim not in (2, 3) or 0 in data.shape:
        raise InvalidInput(
            f"{backend}: expected an image of shape HxWxC and dtype uint8, uint16 or float32, "
            f"found shape {data.shape}, dtype {data.dtype}"
        )
    if data.ndim == 3 and data.shape[2] > MAX_CHANNELS:
        raise InvalidInput(
            f"{backend}: expected an image of at most {MAX_CHANNELS} channels, found shape "
            f"{data.shape}"
        )
    if not data.dtype.isnative:  # OpenCV reads the byte order of the machine only
        data = data.astype(data.dtype.newbyteorder("="))
    # OpenCV takes any stride except a negative one.
    return np.ascontiguousarray(data if data.ndim == 3 else data[:, :, np.newaxis])


def resized(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Resize by OpenCV's bilinear convention: half-pixel centres, no antialiasing.

    Always a new array.
    """
    result = empty_array((height, width, image.shape[2]), image.dtype)
    # Into an array of ours: OpenCV drops the channel axis of grey images.
    cv2.resize(image, (width, height), dst=result, interpolation=cv2.INTER_LINEAR)
    return result


def owned(image: NDArray[Any]) -> NDArray[Any]:
    """Return the image itself, or a copy of a view: a result must not keep a larger array alive."""
    return image if image.base is None else counted(image.copy())


def whole_size(item: Item, width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) that an image has in its file. `data` has these now."""
    size: tuple[int, int] | None = item.get(WHOLE_SIZE)
    return size or (width, height)


def side(item: Item, key: str, backend: str, minimum: int = 1) -> int:
    """Return a length in pixels that the item asks for.

    Raises InvalidInput if missing or out of range.
    """
    if key not in item:
        raise InvalidInput(
            f"{backend}: the item has no {key}: expected a whole number from {minimum} to "
            f"{MAX_SIDE}"
        )
    try:
        length = operator.index(item[key])
    except TypeError:
        length = -1
    if not minimum <= length <= MAX_SIDE:
        raise InvalidInput(
            f"{backend}: {key} is {item[key]!r}: expected a whole number from {minimum} to "
            f"{MAX_SIDE}"
        )
    return length
