"""Bytes of an image file to pixels: first the header and its bound, then OpenCV, then Pillow.

OpenCV's reading is the definition: rotated by EXIF, CMYK converted, alpha dropped, 16 bits scaled
to 8, grey and palette widened to three channels, the first frame of an animation. Pillow reads the
formats that OpenCV refuses.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..allocation import UNCOUNTED_BYTES, no_memory
from ..base import Backend, Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item
from ..memory import Reservation, budget
from .bmff import Turn
from .header import PNG_SIGNATURE, Header, png_chunks, read_header
from .jpeg_pixels import (
    BYTES_PER_PIXEL_OF_PILLOW,
    SCALES,
    by_simplejpeg,
    checked_scan_ends,
    ends_early,
)
from .pillow import FORMATS, decode_with_pillow, open_with_pillow, pillow_errors
from .pixels import WHOLE_SIZE
from .reduction import scale_for, upright_size
from .resizing import REDUCE, ReducingParams, ResizingParams

PNG_ANCILLARY_CHUNKS = frozenset({b"tRNS", b"eXIf"})
"""The chunks that pixels depend on.

The others are removed, because OpenCV refuses a file for some that are damaged, and shows black for
a broken animation.
"""

BYTES_PER_PIXEL = {"JPEG": 9, "GIF": 10, "WEBP": 12, "TIFF": 14, "AVIF": 20, "JPEG2000": 26}
"""The most memory that decoding takes, by format, the result included.

Measured, and rounded up: OpenCV copies what it has decoded, and each format has buffers of its own.
"""

OTHER_BYTES_PER_PIXEL = 8
BYTES_PER_PIXEL_OF_SCANS = 24
"""Of a JPEG with several scans: libjpeg keeps all coefficients, and it is decoded twice."""


class DecodeMatParams(ReducingParams):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="the most pixels that the header of an image may declare; an image with more "
        "is refused undecoded",
    )
    reduce: bool = REDUCE


class DecodeMat(Backend):
    """An image file to pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: BGR, uint8,
    H×W×3; `color` becomes "bgr".

    With `reduce`, a JPEG comes at 1/2, 1/4 or 1/8 of its size if the backend that resizes it next
    makes it smaller still, or as small. Sizes and coordinates behind stay those of the whole image.

    A file that does not decode is a soft failure: `error` says why (`TooLarge` above `max_pixels`).
    Raises TypeError for another type of data.
    """

    parameters: ClassVar[type[Params] | None] = DecodeMatParams
    blocks = "its time grows with the image"
    in_front = True
    takes, gives = "file", "image"
    max = 1
    max_pixels: int
    resizing: ResizingParams | None

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("color",)

    def init(self, params: DecodeMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels
        self.resizing = params.resizing

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            try:
                encoded = file_bytes(item["data"], "DecodeMat")
                header = checked_header(encoded, self.max_pixels)
                item["result"] = decode_for(self.resizing, item, encoded, header, self.max_pixels)
                item["color"] = "bgr"
            except InvalidInput as error:
                item["error"] = error


def decode(encoded: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the image in `encoded` as BGR uint8, H×W×3, in memory of its own.

    Raises `TooLarge` if the header declares more than `max_pixels` (nothing is decoded then), and
    `InvalidInput` if `encoded` is not an image, is truncated or can't be read.
    """
    return decode_pixels(encoded, checked_header(encoded, max_pixels), max_pixels)


def decode_for(
    resizing: ResizingParams | None, item: Item, encoded: bytes, header: Header, max_pixels: int
) -> NDArray[np.uint8]:
    """Decode a file whose header has been checked, at a part of its size if that is enough for the
    backend that resizes the image. The item's `WHOLE_SIZE` says so then.

    Raises what `decode` raises.
    """
    item.pop(WHOLE_SIZE, None)  # of an earlier call with the same item
    scale = 1 if resizing is None else scale_for(header, resizing, item)
    pixels = decode_pixels(encoded, header, max_pixels, scale)
    if scale > 1:
        width, height = upright_size(header)
        if pixels.shape[:2] == (-(-height // scale), -(-width // scale)):
            item[WHOLE_SIZE] = width, height
        elif pixels.shape[:2] != (height, width):  # it states two sizes
            pixels = decode_pixels(encoded, header, max_pixels)
    return pixels


def file_bytes(data: Any, backend: str) -> bytes:
    """Return the bytes of a file, copied only if they aren't `bytes` already.

    Raises TypeError otherwise.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype == np.uint8:
        return data.tobytes()
    description = (
        f"a {data.dtype} array of shape {data.shape}"
        if isinstance(data, np.ndarray)
        else type(data).__name__
    )
    raise TypeError(
        f"{backend}: expected bytes, bytearray, memoryview or a one-dimensional uint8 array, "
        f"found {description}"
    )


def checked_header(encoded: bytes, max_pixels: int) -> Header:
    """Return the file's header, with no pixel decoded.

    Raises what `decode` raises before it decodes.
    """
    if not encoded:
        raise InvalidInput("the image is empty (0 bytes)")
    header = read_header(encoded)
    if header is None:
        with pillow_errors():
            image = open_with_pillow(encoded)
        header = Header(image.format or "image", *image.size)
    _check_size(header.format, header.width, header.height, max_pixels)
    # Searched after the header only: an EXIF thumbnail is a JPEG with its own end mark. Older
    # OpenCVs fill the missing part of a file without one with grey, and report nothing.
    if header.jpeg is not None and encoded.rfind(b"\xff\xd9", header.jpeg.data_start) < 0:
        raise InvalidInput(
            f"the JPEG image is truncated: it has no end mark ({len(encoded)} bytes)"
        )
    return header


def decode_pixels(
    encoded: bytes, header: Header, max_pixels: int, scale: int = 1
) -> NDArray[np.uint8]:
    """Decode a file whose header has been checked. With a `scale` of 2, 4 or 8, a JPEG comes at
    half, a fourth or an eighth of its size, rounded up, unless it is damaged.

    The memory that this takes is reserved before, and that of the pixels until they are freed.
    """
    if header.inner is not None:
        return decode(encoded[header.inner], max_pixels)
    memory = Reservation(budget)
    pixels_there = header.width * header.height
    if header.jpeg is not None and not header.jpeg.single_scan:
        needed = BYTES_PER_PIXEL_OF_SCANS * pixels_there
    else:
        needed = BYTES_PER_PIXEL.get(header.format, OTHER_BYTES_PER_PIXEL) * (
            pixels_there // scale**2
        )
    memory.resize(needed, "an image")
    try:
        pixels = _decode(encoded, header, max_pixels, scale, memory)
    except MemoryError:
        raise no_memory(needed) from None
    if pixels.nbytes > UNCOUNTED_BYTES:
        memory.resize(pixels.nbytes, "an image")
        memory.hand_over(pixels if pixels.base is None else pixels.base)
    return pixels


def _decode(
    encoded: bytes, header: Header, max_pixels: int, scale: int, memory: Reservation
) -> NDArray[np.uint8]:
    name = header.format
    flags = cv2.IMREAD_COLOR
    ends: list[int] = []
    if header.jpeg is not None:
        if header.jpeg.restarts or not header.jpeg.single_scan:
            ends = checked_scan_ends(encoded)
        if (whole := by_simplejpeg(encoded, header, scale)) is not None:
            return whole
        if header.jpeg.single_scan:
            flags = SCALES[scale]
    elif name == "PNG":
        encoded = _without_metadata(encoded)
    elif name == "AVIF":  # its own boxes say how it is turned, and EXIF does not count
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:  # OpenCV's own bounds: 2^20 pixels per side, 2^30 in all
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        raise InvalidInput(f"the {name} image does not decode: {error.err}") from error
    if pixels is not None:
        if header.jpeg is not None and ends_early(encoded, header, pixels, ends, memory):
            raise InvalidInput(
                f"the JPEG image is truncated: its data are too short for "
                f"{header.width}x{header.height} pixels ({len(encoded)} bytes)"
            )
        return np.ascontiguousarray(_turned(pixels, header.turns), np.uint8)
    if name not in FORMATS:
        raise InvalidInput(
            f"the {name} image is truncated or damaged ({header.width}x{header.height} pixels "
            f"declared, {len(encoded)} bytes given)"
        )
    with pillow_errors():
        image = open_with_pillow(encoded)
        _check_size(name, *image.size, max_pixels)
        memory.cover(BYTES_PER_PIXEL_OF_PILLOW * image.width * image.height, "an image")
        return decode_with_pillow(image)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(
            f"the {name} header declares {width}x{height} pixels: at most {max_pixels} are allowed"
        )


def _without_metadata(encoded: bytes) -> bytes:
    """Return a PNG with the chunks that its pixels depend on, and nothing after its end mark.

    Raises InvalidInput if it has no end mark.
    """
    kept = [PNG_SIGNATURE]
    try:
        for name, start, end in png_chunks(encoded):
            if name[0] & 0x20 == 0 or name in PNG_ANCILLARY_CHUNKS:  # upper case: critical
                kept.append(encoded[start:end])
    except (ValueError, struct.error) as error:
        raise InvalidInput(
            f"the PNG image is truncated: it has no end mark ({error}; {len(encoded)} bytes)"
        ) from error
    return b"".join(kept)


def _turned(pixels: NDArray[np.uint8], turns: tuple[Turn, ...]) -> NDArray[np.uint8]:
    for turn in turns:
        pixels = (
            np.rot90(pixels, turn.value)
            if turn.kind == "irot"
            else np.flip(pixels, axis=0 if turn.value == 0 else 1)
        )
    return pixels
