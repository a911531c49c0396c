"""JPEGs to pixels: whole or at a fraction of their size, and whether a file has all of its data.

OpenCV decodes them, or simplejpeg where it is installed: both have libjpeg-turbo, and their pixels
are the same. simplejpeg passes libjpeg's warnings on. A file without one has all of its data, so it
need not be decoded a second time to see that.
"""

from __future__ import annotations

import io
import struct
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import InvalidInput
from ..memory import Reservation
from .header import Header
from .jpeg import JpegHeader, scan_ends, without_metadata

try:
    decode_jpeg: Any = import_module("simplejpeg").decode_jpeg
except (ImportError, ValueError):  # ValueError: it was built for another NumPy
    decode_jpeg = None

SCALES = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
"""OpenCV's flag for 1/N of the size, the smallest first. libjpeg leaves out the details then, in
its inverse transform, and rounds the size up.
"""

EMPTY_LEVELS = (126, 130), (63, 67)
"""Levels around 128 and 65, which the missing part of a JPEG has: in YCbCr or grey, and in CMYK."""

EXTRA_DATA = bytes((index * 73 + 41) % 251 for index in range(64))
"""Arbitrary data for a JPEG's decoder that still wants some. Without 0xFF, which begins marks."""

BYTES_PER_PIXEL_OF_PILLOW = 20
"""Pillow keeps four bytes for a pixel, and each conversion is a copy."""


def by_simplejpeg(encoded: bytes, header: Header, scale: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG to BGR at 1/`scale` of its size by simplejpeg.

    Return None if OpenCV must decode it: simplejpeg is not installed, does not turn by EXIF and has
    other colours for CMYK, and it refuses a file for which libjpeg has a warning.
    """
    jpeg = header.jpeg
    if decode_jpeg is None or jpeg is None or not _suits_simplejpeg(jpeg):
        return None
    try:
        pixels: NDArray[np.uint8] = decode_jpeg(
            encoded,
            "BGR",
            min_height=-(-header.height // scale),
            min_width=-(-header.width // scale),
        )
    except (ValueError, RuntimeError):
        return None
    return pixels


def _suits_simplejpeg(jpeg: JpegHeader) -> bool:
    return jpeg.channels in (1, 3) and jpeg.orientation == 1 and jpeg.huffman


def can_be_reduced(jpeg: JpegHeader) -> bool:
    """Return whether a file is decoded faster at a part of its size.

    Without simplejpeg one of several scans is not: to see whether it has all of its data, it is
    decoded whole.
    """
    return jpeg.single_scan or (decode_jpeg is not None and _suits_simplejpeg(jpeg))


def checked_scan_ends(encoded: bytes) -> list[int]:
    """Return where the data of a JPEG's scans end. Raises InvalidInput if one is missing."""
    try:
        return scan_ends(encoded)
    except ValueError as error:
        reason = str(error)
    except (IndexError, struct.error):
        reason = "a segment is cut"
    raise InvalidInput(
        f"the JPEG image is truncated or damaged: {reason} ({len(encoded)} bytes given)"
    )


def ends_early(
    encoded: bytes,
    header: Header,
    pixels: NDArray[np.uint8],
    ends: list[int],
    memory: Reservation,
) -> bool:
    """Return whether the data of a scan end before its pixels, although a mark follows them.

    libjpeg fills the rest with grey, or leaves it without its details, and OpenCV does not pass its
    warning on. A corner of such grey makes a file suspect, and several scans do. Then it is decoded
    again with more data at the end of each scan. They change a pixel only where data were missing.
    `ends`: where the scans end, if that is known already.
    """
    jpeg = header.jpeg
    if jpeg is None or not jpeg.huffman:  # arithmetic coding may leave out zeros at the end
        return False
    if jpeg.single_scan and not _has_empty_corner(pixels):
        return False
    memory.cover(BYTES_PER_PIXEL_OF_PILLOW * header.width * header.height, "an image")
    longer, start = [], 0
    for end in ends or checked_scan_ends(encoded):
        longer += [encoded[start:end], EXTRA_DATA]
        start = end
    longer.append(encoded[start:])
    try:
        again = _jpeg_by_pillow(b"".join(longer))
        if np.array_equal(again[..., ::-1], pixels):
            return False
        # Reduced, turned by EXIF, in CMYK, or the two differ: compare like with like.
        return not np.array_equal(again, _jpeg_by_pillow(encoded))
    except MemoryError:
        raise
    except Exception:  # OpenCV has decoded it: Pillow's opinion does not count
        return False


def _jpeg_by_pillow(encoded: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG by Pillow, as it is stored: H×W×C, or H×W.

    Not by OpenCV, whose libjpeg would print a warning about the additional data.
    """
    return np.asarray(JpegImageFile(io.BytesIO(without_metadata(encoded))))


def _has_empty_corner(pixels: NDArray[np.uint8]) -> bool:
    """Return whether a corner of H×W×3 pixels has the grey that the lost part of a JPEG has."""
    corners = pixels[:: max(pixels.shape[0] - 1, 1), :: max(pixels.shape[1] - 1, 1)]
    return any(
        bool(((corners >= low) & (corners <= high)).all(axis=2).any()) for low, high in EMPTY_LEVELS
    )
