"""Tags of the first directory of a TIFF file or of EXIF, which is a TIFF inside another file."""

from __future__ import annotations

import struct

EXIF_ORIENTATION = 0x0112
"""Number of the orientation in TIFF and EXIF. Values of 2 to 8 mean turned or mirrored."""


NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
"""Types of whole numbers. libtiff takes each of them for a size."""


def tiff_tags(encoded: bytes, wanted: set[int]) -> dict[int, list[int]]:
    """Return the numbers of each wanted tag in the first directory of a TIFF or EXIF.

    A tag may be there twice; libtiff takes the first.
    """
    order = {b"II": "<", b"MM": ">"}[encoded[:2]] if encoded[:2] in (b"II", b"MM") else ""
    if not order:
        raise ValueError("no byte order")
    big = struct.unpack_from(order + "H", encoded, 2) == (43,)
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), encoded, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), encoded, at)
    at += 8 if big else 2
    length, value_at = (20, 12) if big else (12, 8)
    tags: dict[int, list[int]] = {}
    for entry in range(at, at + length * min(count, 65535), length):
        tag, kind = struct.unpack_from(order + "HH", encoded, entry)
        if tag in wanted and kind in NUMBERS:
            (value,) = struct.unpack_from(order + NUMBERS[kind], encoded, entry + value_at)
            tags.setdefault(tag, []).append(value)
    return tags


def tiff_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory: 1 if none, None if it can't be read."""
    try:
        value = tiff_tags(exif, {EXIF_ORIENTATION}).get(EXIF_ORIENTATION, [1])[0]
    except (struct.error, IndexError, ValueError, OverflowError):
        return None
    return value if value in range(1, 9) else 1
