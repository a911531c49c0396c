"""The markers of a JPEG (ITU-T T.81): its size, its channels, and whether a scan is missing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .bmff import MAX_PARTS
from .tiff import tiff_orientation

SOS, EOI, DRI = 0xDA, 0xD9, 0xDD
"""Markers: start of scan, end of image, how many units are between restarts."""
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers SOF0 to SOF15, which declare the size. C4, C8 and CC are others."""

SEQUENTIAL, PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC9}), frozenset({0xC2, 0xCA})
"""Frames whose scans are judged here: all but lossless and hierarchical ones."""

MAX_SCANS = 100
"""The most scans that are read. Encoders write 10, and mozjpeg up to 64.

Each takes a pass over all coefficients. A file of 100 kB could ask for 10,000 passes.
"""

MARKER = re.compile(rb"\xff[^\x00\xff]")
"""A marker between segments. Any number of 0xFF may come before it."""

END_OF_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends the coded data of a scan. Zero and the restarts are part of the data."""

RESTART = re.compile(rb"\xff([\xd0-\xd7])")
RESTARTS_IN_ORDER = bytes(range(0xD0, 0xD8))


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The channels and scans that a JPEG declares."""

    channels: int
    named_rgb: bool
    """The channels' names are R, G and B, which means that they are not YCbCr."""
    adobe_transform: int | None
    orientation: int | None
    """EXIF's orientation: 1 if there is none, None if it can't be read."""
    huffman: bool
    single_scan: bool
    """One scan holds all channels in full, as in nearly every JPEG that is not progressive."""
    restarts: bool
    data_start: int
    """The offset at which the coded data of the first scan begin."""


def read_jpeg(encoded: bytes) -> tuple[int, int, JpegHeader]:
    """Return the width, the height and the rest of the header.

    Raises ValueError, IndexError or struct.error if it is cut or damaged.
    """
    width = height = channels = frame = 0
    named_rgb = restarts = False
    adobe_transform: int | None = None
    orientation: int | None = 1
    for marker, start, end in jpeg_segments(encoded, 2):
        if marker in FRAMES:
            frame = marker
            new_height, new_width, channels = struct.unpack_from(">HHB", encoded, start + 1)
            width, height = max(width, new_width), max(height, new_height)
            named_rgb = encoded[start + 6 : end : 3] == b"RGB"
        elif marker == 0xE1 and encoded.startswith(b"Exif\0\0", start):  # APP1
            tagged = tiff_orientation(encoded[start + 6 : end])
            orientation = tagged if orientation == 1 else orientation
        elif marker == 0xEE and encoded.startswith(b"Adobe", start) and end >= start + 12:  # APP14
            adobe_transform = encoded[start + 11]
        elif marker == DRI:
            restarts = any(encoded[start:end])
        elif marker == SOS:
            if not channels:
                raise ValueError("the size comes after the pixels")
            return (
                width,
                height,
                JpegHeader(
                    channels=channels,
                    named_rgb=named_rgb,
                    adobe_transform=adobe_transform,
                    orientation=orientation,
                    huffman=frame <= 0xC2,  # above are lossless and arithmetic coding
                    single_scan=frame not in PROGRESSIVE and encoded[start] == channels,
                    restarts=restarts,
                    data_start=end,
                ),
            )
    raise ValueError("it has no pixels")


def jpeg_segments(encoded: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield each marker from `at` on, with the range of its content, up to the end mark.

    After a start of scan the coded data are skipped. Raises ValueError if the file ends first.
    """
    for _ in range(MAX_PARTS):
        match = MARKER.search(encoded, at)  # libjpeg too skips bytes between segments
        if match is None:
            raise ValueError("it has no end mark")
        at = match.end()
        marker = encoded[at - 1]
        if marker == EOI:
            yield marker, at - 2, at
            return
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:  # no content
            continue
        (length,) = struct.unpack_from(">H", encoded, at)
        start, at = at + 2, at + max(length, 2)
        if at > len(encoded):
            raise ValueError("a segment is cut")
        yield marker, start, at
        if marker == SOS:
            following = END_OF_DATA.search(encoded, at)
            if following is None:
                raise ValueError("it has no end mark")
            at = following.start()
    raise ValueError(f"more than {MAX_PARTS} segments")


def without_metadata(encoded: bytes) -> bytes:
    """Return a JPEG without the segments before its first scan that no pixel depends on."""
    kept, at = [encoded[:2]], 2
    for marker, start, end in jpeg_segments(encoded, 2):
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE  # applications' data, and comments
        if not metadata or (marker == 0xEE and end >= start + 12):  # Adobe's tells the colours
            kept.append(encoded[start - 4 : end])
        at = end
        if marker == SOS:
            break
    return b"".join(kept) + encoded[at:]


class _Channel(NamedTuple):
    name: int
    across: int
    """Its samples per unit, from left to right."""
    down: int


def scan_ends(encoded: bytes) -> list[int]:
    """Return where the coded data of each scan end.

    Raises ValueError, IndexError or struct.error if a scan or a restart is missing, a segment is
    damaged, or there are more than `MAX_SCANS`.
    """
    width = height = interval = frame = 0
    channels: list[_Channel] = []
    precise: set[tuple[int, int]] = set()  # channel and coefficient
    ends: list[int] = []
    for marker, start, end in jpeg_segments(encoded, 2):
        if marker in FRAMES:
            frame = marker
            height, width, count = struct.unpack_from(">HHB", encoded, start + 1)
            channels = [
                _Channel(encoded[at], encoded[at + 1] >> 4, encoded[at + 1] & 15)
                for at in range(start + 6, start + 6 + 3 * count, 3)
            ]
        elif marker == DRI:
            (interval,) = struct.unpack_from(">H", encoded, start)
        elif marker == SOS:
            if len(ends) == MAX_SCANS:
                raise ValueError(f"it has more than {MAX_SCANS} scans")
            following = END_OF_DATA.search(encoded, end)
            if following is None:
                raise ValueError("it has no end mark")
            ends.append(len(encoded[end : following.start()].rstrip(b"\xff")) + end)
            names = encoded[start + 1 : start + 1 + 2 * encoded[start] : 2]
            first, last, approximation = encoded[end - 3 : end]
            if frame in SEQUENTIAL:  # libjpeg ignores what some encoders write here
                first, last, approximation = 0, 63, 0
            if approximation & 15 == 0:
                precise |= {(name, index) for name in names for index in range(first, last + 1)}
            if interval and frame in SEQUENTIAL | PROGRESSIVE:
                scanned = [channel for channel in channels if channel.name in names]
                needed = -(-_units(width, height, channels, scanned) // interval) - 1
                found = b"".join(RESTART.findall(encoded, end, ends[-1]))[:needed]
                if found != (RESTARTS_IN_ORDER * (needed // 8 + 1))[:needed]:
                    raise ValueError("a restart mark is missing")
    if frame in SEQUENTIAL | PROGRESSIVE and len(precise) < 64 * len(channels):
        raise ValueError("a scan is missing")
    return ends


def _units(width: int, height: int, channels: list[_Channel], scanned: list[_Channel]) -> int:
    """Return how many coded units (MCUs) a scan of some channels has. T.81, A.2."""
    across = 8 * max((channel.across for channel in channels), default=0)
    down = 8 * max((channel.down for channel in channels), default=0)
    if not across or not down:
        raise ValueError("it has no samples")
    if len(scanned) != 1:
        return -(-width // across) * -(-height // down)
    (only,) = scanned  # blocks, without those that only fill its units
    return -(-width * only.across // across) * -(-height * only.down // down)
