"""A fast decoder for large JPEGs, which refuses all else, and the mean colour of pixels."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from penstock import InvalidInput

MIN_SIDE_PIXELS = 64
"""An eighth of it still shows what is on the picture."""
MAX_PIXELS = 50_000_000


def eighth(encoded: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file at an eighth of its size: H×W×3, BGR.

    Raises InvalidInput if it is not a JPEG, too small or too large, or perhaps not complete.
    """
    try:
        width, height = JpegImageFile(io.BytesIO(encoded)).size  # the header alone
    except (SyntaxError, OSError) as error:
        raise InvalidInput(f"not a JPEG file: {error}") from error
    if min(width, height) < MIN_SIDE_PIXELS or width * height > MAX_PIXELS:
        raise InvalidInput(
            f"the JPEG file has {width}x{height} pixels: expected sides of at least "
            f"{MIN_SIDE_PIXELS}, and at most {MAX_PIXELS:,} pixels in all"
        )
    decoded: Any = None
    if encoded.endswith(b"\xff\xd9"):
        decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    if decoded is None:
        raise InvalidInput("the JPEG file is damaged, or has data after its end")
    pixels: NDArray[np.uint8] = decoded
    return pixels


def mean_colour(pixels: NDArray[np.uint8]) -> str:
    """Return the mean of H×W×3, BGR, as `#rrggbb`."""
    blue, green, red = (round(value) for value in cv2.mean(pixels)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
