"""A fast decoder that refuses what it is not for, and the mean colour of pixels."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from penstock import InvalidInput

SHORTEST_SIDE = 64
"""In pixels: an eighth of it still shows what is on the picture."""
MAX_PIXELS = 50_000_000


def eighth(encoded: bytes) -> NDArray[np.uint8]:
    """A JPEG file at an eighth of its size: H×W×3, BGR. InvalidInput for what is no JPEG, too small or large, or not surely whole."""
    try:
        width, height = JpegImageFile(io.BytesIO(encoded)).size  # the header alone
    except (SyntaxError, OSError) as error:
        raise InvalidInput(f"no JPEG file: {error}") from error
    if min(width, height) < SHORTEST_SIDE or width * height > MAX_PIXELS:
        raise InvalidInput(f"a JPEG file of {width}x{height} pixels")
    pixels: Any = (
        cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
        if encoded.endswith(b"\xff\xd9")
        else None
    )
    if pixels is None:
        raise InvalidInput("the JPEG file is damaged, or there is something behind it")
    return pixels


def mean_colour(pixels: NDArray[np.uint8]) -> str:
    """`#rrggbb` of H×W×3, BGR."""
    blue, green, red = (round(value) for value in cv2.mean(pixels)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
