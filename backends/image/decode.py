"""Bytes of an image file to pixels: the header and its bound first, then OpenCV, then Pillow for what OpenCV refuses.

OpenCV's reading is the definition (design §7): rotated by EXIF, CMYK converted, alpha dropped, 16-bit scaled to 8,
grey and palette widened to three channels, the first frame of an animation. No backend here: `mat.py` has that.
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
"""What is read: the commonest first, and last TGA, which has no magic number.

Not Pillow's whole list: its EPS plugin, for one, starts Ghostscript on the client's file.
"""

OPENCV_HAS_THE_LAST_WORD = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
"""Every OpenCV since 4.9 reads these, so a refusal means a damaged file, which Pillow might patch up with grey."""

END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
"""What a whole file has behind its header. Older OpenCVs fill the missing part of a JPEG with grey and say nothing."""

WIDE_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
UNDEFINED_RANGE = frozenset({"I", "F"})


class DecodeMatParams(Params):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Most pixels that an image's header may promise; above it the item is refused, undecoded.",
    )


class DecodeMat(Backend):
    """An image file to pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: BGR, uint8, H×W×3; `color` becomes "bgr".
    What does not decode is a soft failure: `error` says why (`TooLarge` above `max_pixels`). Another type of data is a TypeError.
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
    """The image in `encoded` as BGR uint8, H×W×3, in memory of its own.

    Raises `TooLarge` where the header promises more than `max_pixels` (nothing is decoded then), and `InvalidInput` where
    `encoded` is no image, a truncated one, or otherwise unreadable.
    """
    return decode_pixels(encoded, checked_header(encoded, max_pixels))


def file_bytes(data: Any, backend: str) -> bytes:
    """The bytes of a file, copied only where they are not `bytes` already. Raises TypeError for what holds none."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype == np.uint8:
        return data.tobytes()
    found = (
        f"a {data.dtype} array of shape {data.shape}"
        if isinstance(data, np.ndarray)
        else type(data).__name__
    )
    raise TypeError(
        f"{backend}: data must be bytes, bytearray, memoryview or a one-dimensional uint8 array, not {found}"
    )


def checked_header(encoded: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """What the header says, as Pillow's image object with no pixel read. Raises what `decode` raises before it decodes."""
    with _pillow_says():
        header = _read_header(encoded)
    name = header.format or "image"
    width, height = header.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the {name} header promises {width}x{height} pixels, more than the {max_pixels} allowed"
        )
    mark = END_MARKS.get(name)
    # Searched behind the header only: an EXIF thumbnail is a JPEG with an end of its own.
    if mark is not None and encoded.rfind(mark, header.fp.tell() if header.fp else 0) < 0:
        raise InvalidInput(
            f"the {name} file is truncated: it has no end mark ({len(encoded)} bytes)"
        )
    return header


def decode_pixels(encoded: bytes, header: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """`decode`, its header checked."""
    name = header.format or "image"
    width, height = header.size
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # OpenCV's own bounds (2^20 a side, 2^30 in all)
        raise InvalidInput(f"the {name} file does not decode: {error.err}") from error
    if pixels is not None:
        return np.ascontiguousarray(pixels, np.uint8)
    if name in OPENCV_HAS_THE_LAST_WORD:
        raise InvalidInput(
            f"the {name} file is truncated or damaged ({width}x{height} pixels promised, {len(encoded)} bytes given)"
        )
    with _pillow_says():
        return _decode_with_pillow(header)


def _read_header(encoded: bytes) -> ImageFile.ImageFile:
    """Pillow's image object, no pixel read yet.

    Not by `Image.open`: that one warns or raises at `Image.MAX_IMAGE_PIXELS`, which belongs to whoever embeds us.
    """
    if not encoded:
        raise InvalidInput("the image is empty (0 bytes)")
    prefix = encoded[:16]
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.preinit()  # the common formats: cheap
            if name not in Image.OPEN:
                Image.init()  # all that Pillow has; returns at once from the second call on
        if name not in Image.OPEN:
            continue  # Pillow built without it
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(prefix)
            if not accepted or isinstance(accepted, str):  # a string says why Pillow can't read it
                continue
            return factory(io.BytesIO(encoded), "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error):
            continue  # these mean "not mine", as in Image.open
    raise InvalidInput(
        f"not an image file that can be read ({len(encoded)} bytes, beginning with {prefix!r})"
    )


def _decode_with_pillow(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode in UNDEFINED_RANGE:
        raise InvalidInput(
            f"{image.format} with pixels of mode {image.mode} has no defined range; convert it to 8 or 16 bits a channel"
        )
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode in WIDE_GREY:  # Pillow's convert would clip instead of scaling
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[:, :, ::-1])


@contextmanager
def _pillow_says() -> Iterator[None]:
    """Pillow's many exceptions for a bad file (OSError, SyntaxError, struct.error, zlib.error ...) as `InvalidInput`."""
    try:
        yield
    except (InvalidInput, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image is too large: {error}") from error
    except Exception as error:
        raise InvalidInput(f"the image does not decode: {error}") from error
