"""What every image backend agrees on: which arrays are images, and the base class that reads and answers them."""

from __future__ import annotations

import operator
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..base import Backend
from ..errors import InvalidInput
from ..item import Item

PIXEL_TYPES = frozenset({"uint8", "uint16", "float32"})
"""The dtypes that OpenCV's cvtColor, resize and warpPerspective all take."""

MAX_CHANNELS = 128
"""OpenCV 5's own bound (4.x: 512)."""

MAX_SIDE = 32767
"""Longest side of an image that a parameter or a request may ask for, in pixels."""


Color = Literal["rgb", "bgr", "gray"]
"""Orders of an image's channels. OpenCV's own is bgr."""

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
"""How many channels an image of each color has."""


class ImageBackend(Backend):
    """One image in, one out, by `transform`. The input array is never written to; the result is C-contiguous and owns its memory."""

    max = 1

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = self.transform(image_of(item["data"], type(self).__name__), item)

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        """The result for an H×W×C image. May set further keys of the item. Raises InvalidInput where something does not fit."""
        raise NotImplementedError


def image_of(data: Any, backend: str) -> NDArray[Any]:
    """`data` if it is an image, H×W×C (H×W counts as one channel), C-contiguous. Raises InvalidInput otherwise."""
    if not isinstance(data, np.ndarray):
        raise InvalidInput(
            f"{backend}: data must be an image as a NumPy array of shape HxWxC, not {type(data).__name__}"
        )
    if data.dtype.name not in PIXEL_TYPES or data.ndim not in (2, 3) or 0 in data.shape:
        raise InvalidInput(
            f"{backend}: expected an image of shape HxWxC and dtype uint8, uint16 or float32, got shape {data.shape}, dtype {data.dtype}"
        )
    if data.ndim == 3 and data.shape[2] > MAX_CHANNELS:
        raise InvalidInput(
            f"{backend}: expected an image of at most {MAX_CHANNELS} channels, got shape {data.shape}"
        )
    if not data.dtype.isnative:  # OpenCV reads the machine's byte order only
        data = data.astype(data.dtype.newbyteorder("="))
    # ... and any stride but a negative one.
    return np.ascontiguousarray(data if data.ndim == 3 else data[:, :, np.newaxis])


def resized(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """At another size, by OpenCV's bilinear convention: half-pixel centres, no antialiasing. Always a new array."""
    result = np.empty((height, width, image.shape[2]), image.dtype)
    # Into an array of ours, since OpenCV drops the channel axis of grey images.
    cv2.resize(image, (width, height), dst=result, interpolation=cv2.INTER_LINEAR)
    return result


def owned(image: NDArray[Any]) -> NDArray[Any]:
    """The image itself, or a copy of a view: what leaves a backend keeps no larger array alive."""
    return image if image.base is None else image.copy()


def side(item: Item, key: str, backend: str, least: int = 1) -> int:
    """A length in pixels that the item asks for. Raises InvalidInput where it is absent or out of range."""
    if key not in item:
        raise InvalidInput(
            f"{backend}: the item has no {key}: expected a whole number from {least} to {MAX_SIDE}"
        )
    try:
        found = operator.index(item[key])
    except TypeError:
        found = -1
    if not least <= found <= MAX_SIDE:
        raise InvalidInput(
            f"{backend}: {key} is {item[key]!r}: expected a whole number from {least} to {MAX_SIDE}"
        )
    return found
