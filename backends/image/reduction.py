"""The part of its size at which a JPEG is decoded, where a backend behind makes it smaller still.

The configuration tells a decoder which backend that is. The decoder asks that one's parameters for
the size of the result, and the backend asks the item for the size that the image has in its file.
So the sizes of results and all coordinates are those of an image that was decoded whole.
"""

from __future__ import annotations

from ..item import Item
from .header import Header
from .jpeg_pixels import SCALES, can_be_reduced
from .resizing import ResizingParams

SIDEWAYS = (5, 6, 7, 8)
"""EXIF's orientations that exchange width and height."""

LEAST_SIDE = 64
"""Images with a shorter side, in pixels, are decoded whole: no time is to be won."""


def scale_for(header: Header, resizing: ResizingParams, item: Item) -> int:
    """Return 8, 4, 2 or 1: the size divided by it is not below that of the result."""
    jpeg = header.jpeg
    if jpeg is None or jpeg.orientation is None or not can_be_reduced(jpeg):
        return 1
    width, height = upright_size(header)
    size = resizing.size_of_result(width, height, item)
    if size is None or min(width, height) < LEAST_SIDE:
        return 1
    return next(
        scale
        for scale in SCALES
        if scale == 1 or (width >= scale * size[0] and height >= scale * size[1])
    )


def upright_size(header: Header) -> tuple[int, int]:
    """Return the (width, height) of an image that EXIF's orientation has turned."""
    if header.jpeg is not None and header.jpeg.orientation in SIDEWAYS:
        return header.height, header.width
    return header.width, header.height
