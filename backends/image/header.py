"""Format, size and orientation of an image file, read from its own bytes with no pixel decoded.

Only what these need is read. Profiles, texts and dates are skipped, so that one that is damaged or
huge does not cost the image. The decoders judge the rest.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..errors import InvalidInput
from .bmff import MAX_PARTS, Turn, brand_format, read_avif
from .jpeg import JpegHeader, read_jpeg
from .jpeg2000 import J2K_SIGNATURE, JP2_SIGNATURE, read_jpeg2000
from .tiff import tiff_tags

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNM_HEADER_BYTES = 1 << 18
"""The offset at which the search for the size of a PPM ends. Comments may come before it."""

NAMED_BY_THEIR_BEGINNING = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"P7\n": "PAM",
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
    b"II\xbc\1": "JPEG XR",
}
"""Formats that are not read, but that an error can name."""


SVG_HEADER_BYTES = 4096
SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:svg\b|[?!].*?<svg\b)", re.DOTALL)
"""Its first element. A declaration, a document type and comments may come before it."""


@dataclass(frozen=True, slots=True)
class Header:
    """A file's format and the largest size that it declares, which may be that of an inner part."""

    format: str
    width: int
    height: int
    turns: tuple[Turn, ...] = ()
    """How to make an AVIF upright. The decoders follow EXIF by themselves."""
    jpeg: JpegHeader | None = None
    inner: slice | None = None
    """The place of the image file in a container. None if the container's reader must decode it."""


def read_header(encoded: bytes) -> Header | None:
    """Read the header of a format that OpenCV reads, or of a container of such files.

    Return None for another format. Raises InvalidInput if the header is cut or damaged, and for a
    format that is known and not read (HEIC).
    """
    name = _format(encoded)
    read = READERS.get(name)
    if read is None:
        return None
    try:
        return read(encoded)
    except (struct.error, IndexError, OverflowError) as error:
        raise _damaged(name, "its header is cut", encoded) from error
    except ValueError as error:
        raise _damaged(name, str(error), encoded) from error


def _damaged(name: str, reason: str, encoded: bytes) -> InvalidInput:
    return InvalidInput(
        f"the {name} image is truncated or damaged: {reason} ({len(encoded)} bytes given)"
    )


def _format(encoded: bytes) -> str:
    """Return the format that the first bytes name, or "" for none of those below."""
    for beginning, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (PNG_SIGNATURE, "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (JP2_SIGNATURE, "JPEG2000"),
        (J2K_SIGNATURE, "JPEG2000"),
        (b"\0\0\1\0", "ICO"),
        (b"icns", "ICNS"),
    ):
        if encoded.startswith(beginning):
            return name
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "WEBP"
    if PNM.match(encoded, 0, PNM_HEADER_BYTES):
        return "PPM"
    name = brand_format(encoded) or next(
        (name for begin, name in NAMED_BY_THEIR_BEGINNING.items() if encoded.startswith(begin)), ""
    )
    if not name and SVG.match(encoded, 0, SVG_HEADER_BYTES):
        name = "SVG"
    if name in ("", "AVIF"):
        return name
    raise InvalidInput(
        f"the file is {name}, which can't be read: convert it to JPEG, PNG, WebP or AVIF"
    )


def _jpeg(encoded: bytes) -> Header:
    width, height, jpeg = read_jpeg(encoded)
    return Header("JPEG", width, height, jpeg=jpeg)


# PNG


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name and its range in the file with length and checksum, up to IEND.

    Raises ValueError if the file ends first.
    """
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, name = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            raise ValueError("a chunk is cut")
        yield name, at, end
        if name == b"IEND":
            return
        at = end
    raise ValueError(f"more than {MAX_PARTS} chunks")


def _png(encoded: bytes) -> Header:
    size = (0, 0)
    for name, start, _ in png_chunks(encoded):
        if name == b"IHDR":
            size = _larger(size, struct.unpack_from(">II", encoded, start + 8))
        elif name == b"IDAT":
            return Header("PNG", *size)
    raise ValueError("it has no pixels")


# The others


def _with_size(header: Header) -> Header:
    if header.width * header.height == 0:
        raise ValueError("it declares no pixels")
    return header


def _larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one, other, key=lambda size: size[0] * size[1])


def _webp(encoded: bytes) -> Header:
    """Read the canvas and the first frame, which may be inside ANMF."""
    size, at = (0, 0), 12
    for _ in range(MAX_PARTS):
        if at + 8 > len(encoded):
            break
        kind, length = struct.unpack_from("<4sI", encoded, at)
        start = at + 8
        if kind == b"VP8X":
            canvas = (
                1 + int.from_bytes(encoded[start + 4 : start + 7], "little"),
                1 + int.from_bytes(encoded[start + 7 : start + 10], "little"),
            )
            size = _larger(size, canvas)
        elif kind == b"ANMF":
            frame = (
                1 + int.from_bytes(encoded[start + 6 : start + 9], "little"),
                1 + int.from_bytes(encoded[start + 9 : start + 12], "little"),
            )
            size = _larger(size, frame)
            at = start + 16
            continue
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", encoded, start + 6)
            return Header("WEBP", *_larger(size, (width & 0x3FFF, height & 0x3FFF)))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", encoded, start + 1)
            frame = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            return Header("WEBP", *_larger(size, frame))
        at = start + length + (length & 1)
    raise ValueError("it has no pixels")


def _gif(encoded: bytes) -> Header:
    """Read the screen and the first frame, which Pillow lets grow beyond the screen."""
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MAX_PARTS):
        kind = encoded[at]
        if kind == 0x2C:  # an image
            left, top, inner_width, inner_height = struct.unpack_from("<HHHH", encoded, at + 1)
            return Header("GIF", max(width, left + inner_width), max(height, top + inner_height))
        if kind != 0x21:  # an extension
            raise ValueError("it has no pixels")
        at += 2
        for _ in range(MAX_PARTS):
            if not encoded[at]:
                break
            at += 1 + encoded[at]
        at += 1
    raise ValueError(f"more than {MAX_PARTS} extensions")


def _bmp(encoded: bytes) -> Header:
    return Header("BMP", *_dib_size(encoded, 14))


def _dib_size(encoded: bytes, at: int) -> tuple[int, int]:
    (length,) = struct.unpack_from("<I", encoded, at)
    width, height = struct.unpack_from(
        "<HH" if length == 12 else "<ii", encoded, at + 4
    )  # OS/2's first
    return abs(width), abs(height)  # a negative height means that the top row is first


def _tiff(encoded: bytes) -> Header:
    """Read the first directory's size and that of its tiles, which libtiff allocates whole."""
    tags = tiff_tags(encoded, {256, 257, 322, 323})
    image, tile = (
        (max(tags.get(width, [0])), max(tags.get(height, [0])))
        for width, height in ((256, 257), (322, 323))
    )
    size = _larger(image, tile)
    return _with_size(Header("TIFF", *size))


def _jpeg2000(encoded: bytes) -> Header:
    return _with_size(Header("JPEG2000", *read_jpeg2000(encoded)))


def _avif(encoded: bytes) -> Header:
    avif = read_avif(encoded)
    return Header("AVIF", avif.width, avif.height, avif.turns)


PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,10})(?:\s|#[^\n]*\n)+(\d{1,10})\s")


def _pnm(encoded: bytes) -> Header:
    match = PNM.match(encoded, 0, PNM_HEADER_BYTES)
    assert match is not None  # it is how the format was recognized
    return Header("PPM", int(match[1]), int(match[2]))


def _ico(encoded: bytes) -> Header:
    """Read the size of each inner PNG or bitmap: the directory's own sizes end at 256."""
    (count,) = struct.unpack_from("<H", encoded, 4)
    largest = Header("ICO", 0, 0)
    for entry in range(6, 6 + 16 * count, 16):
        length, start = struct.unpack_from("<II", encoded, entry + 8)
        inner: slice | None = None
        if encoded.startswith(PNG_SIGNATURE, start):
            width, height = struct.unpack_from(">II", encoded, start + 16)
            inner = slice(start, start + length)
        else:
            width, height = _dib_size(encoded, start)
            height //= 2  # the mask is below the pixels
        if width * height > largest.width * largest.height:
            largest = Header("ICO", width, height, inner=inner)
    return _with_size(largest)


ICNS_BITMAPS = {b"it32": 128, b"ih32": 48, b"il32": 32, b"is32": 16}
"""Kinds of entries that hold pixels, and the length of their sides."""


def _icns(encoded: bytes) -> Header:
    """Read the size of each inner PNG or JPEG 2000."""
    largest, at = Header("ICNS", 0, 0), 8
    for _ in range(MAX_PARTS):
        if at + 8 > len(encoded):
            return _with_size(largest)
        kind, length = struct.unpack_from(">4sI", encoded, at)
        if length < 8:
            raise ValueError("an entry is damaged")
        inner = slice(at + 8, at + length)
        at += length
        content = encoded[inner]
        if content.startswith(PNG_SIGNATURE):
            width, height = struct.unpack_from(">II", content, 16)
            entry = Header("ICNS", width, height, inner=inner)
        elif content.startswith((JP2_SIGNATURE, J2K_SIGNATURE)):
            entry = replace(_jpeg2000(content), format="ICNS", inner=inner)
        else:
            side = ICNS_BITMAPS.get(kind, 0)
            entry = Header("ICNS", side, side)
        if entry.width * entry.height > largest.width * largest.height:
            largest = entry
    raise ValueError(f"more than {MAX_PARTS} entries")


READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "JPEG2000": _jpeg2000,
    "AVIF": _avif,
    "PPM": _pnm,
    "ICO": _ico,
    "ICNS": _icns,
}
