"""The boxes of AVIF and HEIC files (ISO/IEC 14496-12 and 23008-12): brand, sizes and turns.

No library is used, because the limit on pixels must be checked before libavif sees the file: it
allocates what the AV1 stream declares, up to 16384x16384, whatever size the boxes around it state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"miaf"})

SEQUENCE_HEADER = 1
"""Type of the AV1 unit (OBU) that declares the size of all frames. AV1 5.5.1."""

MAX_PARTS = 100_000
"""The most boxes, chunks, segments or items that are read: no honest file has as many.

Without it a file of 16 MB could hold a thread for 10 seconds.
"""

MAX_STREAMS = 10_000
"""The most places at which an AV1 sequence header is looked for. It takes up to 0.1 ms."""

MAX_SEQUENCE_HEADER = 512
"""Bytes. One with every option is about 360 long."""

CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco"})
"""Boxes that hold nothing but boxes."""


class Box(NamedTuple):
    """One box, with the range of its content in the file."""

    kind: bytes
    start: int
    end: int


class Turn(NamedTuple):
    """One step that makes the decoded pixels upright.

    `irot`: quarter turns anticlockwise. `imir`: 0 swaps top and bottom, 1 swaps left and right.
    """

    kind: Literal["irot", "imir"]
    value: int


class Avif(NamedTuple):
    """The largest size that a part of the file declares, and the turns of its primary image."""

    width: int
    height: int
    turns: tuple[Turn, ...]


def brand_format(encoded: bytes) -> Literal["AVIF", "HEIC", "HEIF"] | None:
    """Return the format that the file's brands state, or None if it is none of these."""
    if encoded[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(encoded[:4], "big"), 4096)
    brands = {encoded[8:12], *(encoded[at : at + 4] for at in range(16, end, 4))}
    if brands & AVIF_BRANDS:
        return "AVIF"
    if brands & HEIC_BRANDS:
        return "HEIC"
    return "HEIF" if brands & HEIF_BRANDS else None


def read_avif(encoded: bytes) -> Avif:
    """Read the sizes and turns of an AVIF file, with no pixel decoded.

    The sizes are those of all `ispe` boxes, grids, tracks and AV1 sequence headers.

    Raises struct.error, IndexError or ValueError if the boxes are damaged.
    """
    boxes = list(_walk(encoded))
    sizes: list[tuple[int, int]] = []
    streams: list[int] = []  # where AV1 begins
    items: list[tuple[int, int]] = []  # number and beginning
    grids: set[int] = set()
    properties: list[Box] = []
    primary = 0
    associated: dict[int, list[int]] = {}
    idat = next((box.start for box in boxes if box.kind == b"idat"), 0)
    for kind, start, end in boxes:
        if kind == b"ispe":
            sizes.append(struct.unpack_from(">II", encoded, start + 4))
        elif kind == b"av1C" and end > start + 4:
            streams.append(start + 4)
        elif kind == b"tkhd":
            sizes.append((_u16(encoded, end - 8), _u16(encoded, end - 4)))
        elif kind in (b"stco", b"co64"):
            streams += struct.unpack_from(">I" if kind == b"stco" else ">Q", encoded, start + 8)
        elif kind == b"pitm":
            primary = int.from_bytes(encoded[start + 4 : end], "big")
        elif kind == b"iloc":
            items += _items(encoded, start, idat)
        elif kind == b"infe":
            number, _, item_type = struct.unpack_from(
                ">IH4s" if encoded[start] > 2 else ">HH4s",  # version 3 is wider
                encoded,
                start + 4,
            )
            if item_type == b"grid":
                grids.add(number)
        elif kind == b"ipma":
            associated |= _associations(encoded, start)
        elif kind == b"ipco":
            properties = list(_boxes(encoded, start, end))
    for number, start in items:
        if number in grids:
            sizes.append(
                struct.unpack_from(">II" if encoded[start + 1] else ">HH", encoded, start + 4)
            )
        else:
            streams.append(start)
    if len(streams) > MAX_STREAMS:
        raise ValueError(f"more than {MAX_STREAMS} items")
    for start in streams:
        sizes += _sequence_sizes(encoded, start)
    if not sizes:
        raise ValueError("no size is declared")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    turns: list[Turn] = []
    for index in associated.get(primary, ()):
        if not 1 <= index <= len(properties):
            continue
        kind, start, _ = properties[index - 1]
        if kind == b"irot":
            turns.append(Turn("irot", encoded[start] & 3))
        elif kind == b"imir":
            turns.append(Turn("imir", encoded[start] & 1))
    return Avif(width, height, tuple(turns))


def _walk(encoded: bytes) -> Iterator[Box]:
    """Yield the boxes of a file, those inside others too."""
    inside = [(0, len(encoded))]
    count = 0
    while inside:
        for box in _boxes(encoded, *inside.pop()):
            yield box
            count += 1
            if count > MAX_PARTS:
                raise ValueError(f"more than {MAX_PARTS} boxes")
            if box.kind in CONTAINERS:
                inside.append((box.start, box.end))
            elif box.kind == b"meta":  # has a version first
                inside.append((box.start + 4, box.end))
            elif box.kind == b"iinf":
                inside.append((box.start + (8 if encoded[box.start] else 6), box.end))
            elif box.kind == b"stsd":
                inside += [
                    (entry.start + 78, entry.end)  # an entry has 78 bytes of its own first
                    for entry in _boxes(encoded, box.start + 8, box.end)
                    if entry.kind == b"av01"
                ]


def _boxes(encoded: bytes, start: int, end: int) -> Iterator[Box]:
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", encoded, start)
        content = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", encoded, content)
            content += 8
        elif length == 0:
            length = end - start
        if length < content - start:
            raise ValueError(f"the box {kind!r} is {length} bytes long")
        yield Box(kind, content, min(start + length, end))
        start += length


def _u16(encoded: bytes, start: int) -> int:
    return int.from_bytes(encoded[start : start + 2], "big")


def _items(encoded: bytes, start: int, idat: int) -> Iterator[tuple[int, int]]:
    """Yield the numbers of an `iloc` box's items, and where each begins. ISO/IEC 14496-12, 8.11.3.

    `idat`: where the content of the box idat begins, which some items are in.
    """
    version = encoded[start]
    sizes = _u16(encoded, start + 4)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    at = start + 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(encoded):
            raise ValueError("the box iloc is cut")
        at += size
        return int.from_bytes(encoded[at - size : at], "big")

    for _ in range(min(number(wide), MAX_PARTS)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # the data reference
        base = number(base_size)
        extents = number(2)
        if extents:  # the first extent holds the header
            at += index_size
            yield item, base + number(offset_size) + (idat if method == 1 else 0)
            at += length_size + (extents - 1) * (index_size + offset_size + length_size)


def _associations(encoded: bytes, start: int) -> dict[int, list[int]]:
    """Return the numbers of each item's properties, counted from 1. ISO/IEC 23008-12, 9.3."""
    version, wide = encoded[start], encoded[start + 3] & 1
    (count,) = struct.unpack_from(">I", encoded, start + 4)
    at = start + 8
    associated: dict[int, list[int]] = {}
    for _ in range(min(count, MAX_PARTS)):
        item, properties = struct.unpack_from(">IB" if version else ">HB", encoded, at)
        at += 5 if version else 3
        # The highest bit marks a property that a reader must understand.
        associated[item] = [
            number & (0x7FFF if wide else 0x7F)
            for number in struct.unpack_from(f">{properties}{'H' if wide else 'B'}", encoded, at)
        ]
        at += properties * (2 if wide else 1)
    return associated


def _sequence_sizes(encoded: bytes, start: int) -> list[tuple[int, int]]:
    """Return the size in the AV1 sequence header that begins at `start` after other OBUs.

    Empty if there is none.
    """
    for _ in range(4):  # a temporal delimiter and metadata may come first
        if not 0 <= start < len(encoded):
            return []
        first = encoded[start]
        if first & 0x83 != 0x02:  # forbidden bit, has_size_field, reserved bit
            return []
        start += 2 if first & 4 else 1
        size = shift = 0
        for byte in encoded[start : start + 8]:  # leb128
            start += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if first >> 3 & 15 == SEQUENCE_HEADER:
            return [_sequence_size(encoded[start : start + min(size, MAX_SEQUENCE_HEADER)])]
        start += size
    return []


def _sequence_size(payload: bytes) -> tuple[int, int]:
    """Return the largest width and height in an AV1 sequence header. AV1 5.5.1."""
    value, left = int.from_bytes(payload, "big"), 8 * len(payload)

    def bits(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError("the AV1 sequence header is cut")
        return value >> left & ((1 << count) - 1)

    bits(4)  # profile, still picture
    if bits(1):  # reduced_still_picture_header
        bits(5)
    else:
        delays = 0
        decoder_model = 0
        if bits(1):  # timing_info
            bits(64)
            if bits(1):  # equal_picture_interval, and how long a picture is, as uvlc
                zeros = 0
                while not bits(1):
                    zeros += 1
                    if zeros == 32:
                        raise ValueError("the AV1 sequence header is damaged")
                bits(zeros)
            decoder_model = bits(1)
            if decoder_model:
                delays = bits(5) + 1
                bits(42)
        initial_delay = bits(1)
        for _ in range(bits(5) + 1):  # operating points
            bits(12)
            if bits(5) > 7:  # levels above 7 have a tier
                bits(1)
            if decoder_model and bits(1):
                bits(2 * delays + 1)
            if initial_delay and bits(1):
                bits(4)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return bits(width_bits) + 1, bits(height_bits) + 1
