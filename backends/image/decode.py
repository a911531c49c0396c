"""Bytes of an image file to pixels: first the header and its bound, then OpenCV, then Pillow.

OpenCV's reading is the definition: rotated by EXIF, CMYK converted, alpha dropped, 16 bits scaled
to 8, grey and palette widened to three channels, the first frame of an animation. Pillow reads the
formats that OpenCV refuses.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "PCX", "SGI", "DIB", "DDS", "QOI", "ICNS", "PSD", "TGA"),
)
"""The formats that are read: the commonest first, and last TGA, which has no magic number.

Not Pillow's whole list: its EPS plugin, for one, starts Ghostscript on the client's file.
"""

OPENCV_HAS_THE_LAST_WORD = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
"""Formats that every OpenCV since 4.9 reads.

If it refuses one, the file is damaged, and Pillow might patch it with grey.
"""

END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
"""Marks that a complete file has after its header.

Older OpenCVs fill the missing part of a JPEG with grey and report nothing.
"""

WIDE_GREY_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
MODES_WITHOUT_RANGE = frozenset({"I", "F"})


class DecodeMatParams(Params):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="The most pixels that the header of an image may declare. An image with more "
        "is refused undecoded.",
    )


class DecodeMat(Backend):
    """An image file to pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: BGR, uint8,
    H×W×3; `color` becomes "bgr".

    A file that does not decode is a soft failure: `error` says why (`TooLarge` above `max_pixels`).
    Raises TypeError for another type of data.
    """

    parameters: ClassVar[type[Params] | None] = DecodeMatParams
    max = 1
    max_pixels: int

    def init(self, params: DecodeMatParams, context: Context) -> None:
        self.max_pixels = params.max_pixels

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            try:
                item["result"] = decode(file_bytes(item["data"], "DecodeMat"), self.max_pixels)
                item["color"] = "bgr"
            except InvalidInput as error:
                item["error"] = error


def decode(encoded: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the image in `encoded` as BGR uint8, H×W×3, in memory of its own.

    Raises `TooLarge` if the header declares more than `max_pixels` (nothing is decoded then), and
    `InvalidInput` if `encoded` is not an image, is truncated or can't be read.
    """
    return decode_pixels(encoded, checked_header(encoded, max_pixels))


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
        f"{backend}: data must be bytes, bytearray, memoryview or a one-dimensional uint8 array, "
        f"not {description}"
    )


def checked_header(encoded: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Return the header as Pillow's image object, with no pixel read.

    Raises what `decode` raises before it decodes.
    """
    with _pillow_errors():
        header = _read_header(encoded)
    name = header.format or "image"
    width, height = header.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the {name} header declares {width}x{height} pixels: at most {max_pixels} are allowed"
        )
    mark = END_MARKS.get(name)
    # Searched after the header only: an EXIF thumbnail is a JPEG with its own end mark.
    if mark is not None and encoded.rfind(mark, header.fp.tell() if header.fp else 0) < 0:
        raise InvalidInput(
            f"the {name} file is truncated: it has no end mark ({len(encoded)} bytes)"
        )
    return header


def decode_pixels(encoded: bytes, header: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Decode a file whose header has been checked."""
    name = header.format or "image"
    width, height = header.size
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # OpenCV's own bounds: 2^20 pixels per side, 2^30 in all
        raise InvalidInput(f"the {name} file does not decode: {error.err}") from error
    if pixels is not None:
        return np.ascontiguousarray(pixels, np.uint8)
    if name in OPENCV_HAS_THE_LAST_WORD:
        raise InvalidInput(
            f"the {name} file is truncated or damaged ({width}x{height} pixels declared, "
            f"{len(encoded)} bytes given)"
        )
    with _pillow_errors():
        return _decode_with_pillow(header)


def _read_header(encoded: bytes) -> ImageFile.ImageFile:
    """Return Pillow's image object, with no pixel read yet.

    `Image.open` isn't used: it warns or raises at `Image.MAX_IMAGE_PIXELS`, which belongs to the
    program that embeds us.
    """
    if not encoded:
        raise InvalidInput("the image is empty (0 bytes)")
    prefix = encoded[:16]
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.preinit()  # loads the common formats: cheap
            if name not in Image.OPEN:
                Image.init()  # loads all formats; later calls return at once
        if name not in Image.OPEN:
            continue  # this Pillow was built without it
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(prefix)
            if not accepted or isinstance(
                accepted, str
            ):  # a string is the reason why it can't be read
                continue
            return factory(io.BytesIO(encoded), "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error):
            continue  # these mean "not my format", as in Image.open
    raise InvalidInput(
        f"not an image file that can be read ({len(encoded)} bytes, beginning with {prefix!r})"
    )


def _decode_with_pillow(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode in MODES_WITHOUT_RANGE:
        raise InvalidInput(
            f"{image.format} pixels of mode {image.mode} have no defined range: convert the "
            "image to 8 "
            "or 16 bits per channel"
        )
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode in WIDE_GREY_MODES:  # Pillow's convert would clip, not scale
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[:, :, ::-1])


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Translate Pillow's many exceptions for a bad file to `InvalidInput`.

    They include OSError, SyntaxError, struct.error and zlib.error.
    """
    try:
        yield
    except (InvalidInput, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image is too large: {error}") from error
    except Exception as error:
        raise InvalidInput(f"the image does not decode: {error}") from error
