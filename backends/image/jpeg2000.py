"""The size and the tiles of a JPEG 2000 (ITU-T T.800, annex A)."""

from __future__ import annotations

import struct

from .bmff import MAX_PARTS, MAX_STREAMS

JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
J2K_SIGNATURE = b"\xff\x4f\xff\x51"

SOT, EOC = 0xFF90, 0xFFD9
"""Markers: start of a tile's part, end of the code stream."""

MAX_TILES = 10_000
"""OpenJPEG takes 12 kB for each tile before it reads any. 200 bytes can ask for 65,535."""


def read_jpeg2000(encoded: bytes) -> tuple[int, int]:
    """Return the width and the height: the largest of ihdr and of all code streams.

    Raises ValueError, IndexError or struct.error if the header is cut or a tile is missing.
    """
    sizes = [(0, 0)]
    stream = encoded.find(J2K_SIGNATURE)
    if encoded.startswith(JP2_SIGNATURE):
        box = encoded.find(b"ihdr", 0, stream if stream >= 0 else None)
        if box >= 0:
            height, width = struct.unpack_from(">II", encoded, box + 4)
            sizes.append((width, height))
    for _ in range(MAX_STREAMS):  # another box may hold what looks like a code stream
        if stream < 0:
            return max(sizes, key=lambda size: size[0] * size[1])
        right, bottom, left, top = struct.unpack_from(">IIII", encoded, stream + 8)
        sizes.append((max(right - left, 0), max(bottom - top, 0)))
        _check_tiles(encoded, stream, right, bottom)
        stream = encoded.find(J2K_SIGNATURE, stream + 1)
    raise ValueError(f"more than {MAX_STREAMS} code streams")


def _check_tiles(encoded: bytes, stream: int, right: int, bottom: int) -> None:
    """Raise ValueError if a code stream has too many tiles, or lacks one, which would be black."""
    across, down, left, top = struct.unpack_from(">IIII", encoded, stream + 24)
    if not across or not down:
        raise ValueError("its tiles have no size")
    tiles = -(-max(right - left, 0) // across) * -(-max(bottom - top, 0) // down)
    if tiles > MAX_TILES:
        raise ValueError(f"it has {tiles} tiles, and at most {MAX_TILES} are read")
    found: set[int] = set()
    at = stream + 2
    for _ in range(MAX_PARTS):
        if at + 4 > len(encoded):
            break
        marker, length = struct.unpack_from(">HH", encoded, at)
        if marker == EOC:
            break
        if marker == SOT:
            tile, length = struct.unpack_from(">HI", encoded, at + 4)
            found.add(tile)
            if not length:  # the last part, up to the end
                break
            at += max(length, 12)
        elif found:
            return  # the decoder may find its way, and we have not
        else:
            at += 2 + length
    if len(found) < tiles:
        raise ValueError(f"{tiles - len(found)} of its {tiles} tiles are missing")
