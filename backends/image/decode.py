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
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import Field

from ..allocation import UNCOUNTED_BYTES, no_memory
from ..base import Backend, Context, Params
from ..errors import InvalidInput, TooLarge
from ..item import Item
from ..memory import Reservation, budget
from .bmff import Turn
from .header import PNG_SIGNATURE, Header, png_chunks, read_header
from .jpeg import JpegHeader, scan_ends, without_metadata

FORMATS = (
    *("GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "PCX", "SGI", "DIB", "DDS", "QOI", "ICNS", "PSD", "TGA"),
)
"""The formats that Pillow may read: the commonest first, and last TGA, which has no magic number.

Not Pillow's whole list: its EPS plugin, for one, starts Ghostscript on the client's file. Not JPEG,
PNG and WebP, which every OpenCV reads: if it refuses one, the file is damaged, and Pillow
might patch it with grey.
"""

PNG_ANCILLARY_CHUNKS = frozenset({b"tRNS", b"eXIf"})
"""The chunks that pixels depend on.

The others are removed, because OpenCV refuses a file for some that are damaged, and shows black for
a broken animation.
"""

EMPTY_LEVELS = (126, 130), (63, 67)
"""Levels around 128 and 65, which the missing part of a JPEG has: in YCbCr or grey, and in CMYK."""

EXTRA_DATA = bytes((index * 73 + 41) % 251 for index in range(64))
"""Arbitrary data for a JPEG's decoder that still wants some. Without 0xFF, which begins marks."""

DDS_HEADER_BYTES = 128
DDS_PIXELS: dict[tuple[str, int, int, int, int], str] = {
    ("RGB", 16, 0xF800, 0x7E0, 0x1F): "BGR;16",
    ("RGB", 16, 0x7C00, 0x3E0, 0x1F): "BGR;15",
    ("RGBA", 16, 0x7C00, 0x3E0, 0x1F): "BGRA;15",
    ("RGB", 24, 0xFF0000, 0xFF00, 0xFF): "BGR",
    ("RGB", 24, 0xFF, 0xFF00, 0xFF0000): "RGB",
    ("RGB", 32, 0xFF0000, 0xFF00, 0xFF): "BGRX",
    ("RGB", 32, 0xFF, 0xFF00, 0xFF0000): "RGBX",
    ("RGBA", 32, 0xFF0000, 0xFF00, 0xFF): "BGRA",
    ("RGBA", 32, 0xFF, 0xFF00, 0xFF0000): "RGBA",
}
"""Pillow's names of uncompressed DDS pixels, by mode, bits and masks.

Pillow itself reads them in Python: 16 MB would hold the interpreter's lock for 5 seconds. Before
Pillow 13 a file of 128 bytes held it for minutes.
"""

WIDE_GREY_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
MODES_WITHOUT_RANGE = frozenset({"I", "F"})

NOT_THIS_FORMAT = SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error
"""The exceptions that Pillow's plugins raise for a file of another format, as in `Image.open`."""


BYTES_PER_PIXEL = {"JPEG": 9, "GIF": 10, "WEBP": 12, "TIFF": 14, "AVIF": 20, "JPEG2000": 26}
"""The most memory that decoding takes, by format, the result included.

Measured, and rounded up: OpenCV copies what it has decoded, and each format has buffers of its own.
"""

OTHER_BYTES_PER_PIXEL = 8
BYTES_PER_PIXEL_OF_SCANS = 24
"""Of a JPEG with several scans: libjpeg keeps all coefficients, and it is decoded twice."""
BYTES_PER_PIXEL_OF_PILLOW = 20
"""Pillow keeps four bytes for a pixel, and each conversion is a copy."""


class DecodeMatParams(Params):
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="the most pixels that the header of an image may declare; an image with more "
        "is refused undecoded",
    )


class DecodeMat(Backend):
    """An image file to pixels.

    `data`: bytes, bytearray, memoryview, or a one-dimensional uint8 array. `result`: BGR, uint8,
    H×W×3; `color` becomes "bgr".

    A file that does not decode is a soft failure: `error` says why (`TooLarge` above `max_pixels`).
    Raises TypeError for another type of data.
    """

    parameters: ClassVar[type[Params] | None] = DecodeMatParams
    blocks = "its time grows with the image"
    takes, gives = "file", "image"
    max = 1
    max_pixels: int

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("color",)

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
    return decode_pixels(encoded, checked_header(encoded, max_pixels), max_pixels)


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
        with _pillow_errors():
            image = _open_with_pillow(encoded)
        header = Header(image.format or "image", *image.size)
    _check_size(header.format, header.width, header.height, max_pixels)
    # Searched after the header only: an EXIF thumbnail is a JPEG with its own end mark. Older
    # OpenCVs fill the missing part of a file without one with grey, and report nothing.
    if header.jpeg is not None and encoded.rfind(b"\xff\xd9", header.jpeg.data_start) < 0:
        raise InvalidInput(
            f"the JPEG image is truncated: it has no end mark ({len(encoded)} bytes)"
        )
    return header


def decode_pixels(encoded: bytes, header: Header, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file whose header has been checked.

    The memory that this takes is reserved before, and that of the pixels until they are freed.
    """
    if header.inner is not None:
        return decode(encoded[header.inner], max_pixels)
    memory = Reservation(budget)
    pixels_there = header.width * header.height
    if header.jpeg is not None and not header.jpeg.single_scan:
        needed = BYTES_PER_PIXEL_OF_SCANS
    else:
        needed = BYTES_PER_PIXEL.get(header.format, OTHER_BYTES_PER_PIXEL)
    memory.resize(needed * pixels_there, "an image")
    try:
        pixels = _decode(encoded, header, max_pixels, memory)
    except MemoryError:
        raise no_memory(needed * pixels_there) from None
    if pixels.nbytes > UNCOUNTED_BYTES:
        memory.resize(pixels.nbytes, "an image")
        memory.hand_over(pixels if pixels.base is None else pixels.base)
    return pixels


def _decode(
    encoded: bytes, header: Header, max_pixels: int, memory: Reservation
) -> NDArray[np.uint8]:
    name = header.format
    flags = cv2.IMREAD_COLOR
    ends: list[int] = []
    if header.jpeg is not None and (header.jpeg.restarts or not header.jpeg.single_scan):
        ends = _scan_ends(encoded)
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
        if header.jpeg is not None and _ends_early(encoded, header.jpeg, pixels, ends, memory):
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
    with _pillow_errors():
        image = _open_with_pillow(encoded)
        _check_size(name, *image.size, max_pixels)
        memory.cover(BYTES_PER_PIXEL_OF_PILLOW * image.width * image.height, "an image")
        return _decode_with_pillow(image)


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


def _scan_ends(encoded: bytes) -> list[int]:
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


def _ends_early(
    encoded: bytes,
    jpeg: JpegHeader,
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
    if not jpeg.huffman:  # arithmetic coding may leave out zeros at the end
        return False
    if jpeg.single_scan and not _has_empty_corner(pixels):
        return False
    memory.cover(BYTES_PER_PIXEL_OF_PILLOW * pixels.shape[0] * pixels.shape[1], "an image")
    longer, start = [], 0
    for end in ends or _scan_ends(encoded):
        longer += [encoded[start:end], EXTRA_DATA]
        start = end
    longer.append(encoded[start:])
    try:
        again = _jpeg_by_pillow(b"".join(longer))
        if np.array_equal(again[..., ::-1], pixels):
            return False
        # Turned by EXIF, in CMYK, or the two differ: compare like with like.
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


def _turned(pixels: NDArray[np.uint8], turns: tuple[Turn, ...]) -> NDArray[np.uint8]:
    for turn in turns:
        pixels = (
            np.rot90(pixels, turn.value)
            if turn.kind == "irot"
            else np.flip(pixels, axis=0 if turn.value == 0 else 1)
        )
    return pixels


def _open_with_pillow(encoded: bytes) -> ImageFile.ImageFile:
    """Return Pillow's image object, with no pixel read yet.

    `Image.open` isn't used: it warns or raises at `Image.MAX_IMAGE_PIXELS`, which belongs to the
    program that embeds us.
    """
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
            # A string is the reason why the file can't be read.
            if not accepted or isinstance(accepted, str):
                continue
            return factory(io.BytesIO(encoded), "")
        except NOT_THIS_FORMAT:
            continue
    raise InvalidInput(
        f"not an image file that can be read ({len(encoded)} bytes, beginning with {prefix!r})"
    )


def _decode_with_pillow(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode in MODES_WITHOUT_RANGE:
        raise InvalidInput(
            f"{image.format} pixels of mode {image.mode} have no defined range: convert the image "
            "to 8 or 16 bits per channel"
        )
    if image.tile and image.tile[0].codec_name == "dds_rgb":
        arguments: Any = image.tile[0].args
        bits, masks = arguments
        pixels = DDS_PIXELS.get((image.mode, bits, masks[0], masks[1], masks[2]))
        if pixels is None:
            raise InvalidInput(
                f"DDS pixels of {bits} bits with the masks {', '.join(map(hex, masks))} can't be "
                "read: convert the image to PNG"
            )
        image.tile = [
            image.tile[0]._replace(codec_name="raw", offset=DDS_HEADER_BYTES, args=(pixels, 0, 1))
        ]
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
