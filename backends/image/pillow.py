"""Files to pixels by Pillow, for the formats that OpenCV refuses."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from ..errors import InvalidInput, TooLarge

FORMATS = (
    *("GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "PCX", "SGI", "DIB", "DDS", "QOI", "ICNS", "PSD", "TGA"),
)
"""The formats that Pillow may read: the commonest first, and last TGA, which has no magic number.

Not Pillow's whole list: its EPS plugin, for one, starts Ghostscript on the client's file. Not JPEG,
PNG and WebP, which every OpenCV reads: if it refuses one, the file is damaged, and Pillow
might patch it with grey.
"""

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


def open_with_pillow(encoded: bytes) -> ImageFile.ImageFile:
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


def decode_with_pillow(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
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
def pillow_errors() -> Iterator[None]:
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
