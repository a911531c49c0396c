"""Small files that claim much: what they make a decoder allocate, each in a process of its own."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.backends.errors import InvalidInput
from penstock.backends.image.decode import decode

SIDE = 1000
MAX_PIXELS = SIDE * SIDE
ALLOWED_BYTES = 20 * MAX_PIXELS + (40 << 20)
"""20 a pixel (JPEG 2000 with four channels), and what a decoder's code and tables take."""

PARENT = """
import json, os, pickle, resource, sys
from penstock.backends.errors import InvalidInput
from penstock.backends.image.decode import decode

def most():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

decode(b"P6 1 1 255 abc", 1)
for case, encoded in pickle.load(sys.stdin.buffer).items():
    if os.fork() == 0:
        before = most()
        try:
            decode(encoded, int(sys.argv[1]))
        except InvalidInput:
            pass
        print(json.dumps([case, most() - before]), flush=True)
        os._exit(0)
    os.wait()
"""
"""A process is forked for each case: importing what they need takes longer than they do."""


def tiff(width: int, height: int, **tags: int) -> bytes:
    numbers = {"samples": 277, "bits": 258, "compression": 259, "rows": 278, "bytes": 279}
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    entries |= {279: 64} | {numbers[name]: value for name, value in tags.items()}
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
        + bytes(100)
    )


def jpeg2000(width: int, height: int, tile: int, channels: int) -> bytes:
    size = struct.pack(">H8IH", 0, width, height, 0, 0, tile, tile, 0, 0, channels)
    size += b"\7\1\1" * channels
    return (
        b"\xff\x4f\xff\x51"
        + struct.pack(">H", len(size) + 2)
        + size
        + b"\xff\x52\0\x0c\0\0\0\1\0\1\4\4\0\1\xff\x5c\0\7\x40\x40\x48\x48\x50"
        + b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1\xff\x93"
        + bytes(50)
        + b"\xff\xd9"
    )


def bmp(bits: int, compression: int = 0, colors: int = 0, side: int = SIDE) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, 0, 0, 0, colors, 0)
        + bytes(100)
    )


def claims(side: int) -> dict[str, bytes]:
    """Headers of images of side×side, with next to no pixels."""
    big = struct.pack(">II", side, side)
    return {
        "QOI": b"qoif" + big + b"\3\0" + b"\xfd" * 100,
        "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3" + big + b"\0\x08\0\3" + bytes(114),
        "TGA": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, side, side, 24, 0) + bytes(99),
        "SGI": struct.pack(">HBBHHHHII", 474, 0, 1, 3, side, side, 3, 0, 255) + bytes(600),
        "PCX": struct.pack("<BBBBHHHHHH", 10, 5, 1, 8, 0, 0, side - 1, side - 1, 72, 72)
        + bytes(48)
        + struct.pack("<BBHHHH", 0, 3, side, 1, 0, 0)
        + bytes(150),
        "GIF": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, side, side, 0x80)
        + bytes(6)
        + b"\2\2\x44\1\0;",
        "BMP": bmp(24, side=side),
        "DIB": bmp(24, side=side)[14:],
        "PPM": b"P6 %d %d 65535 " % (side, side) + bytes(100),
        "TIFF": tiff(side, side),
        "JPEG2000": jpeg2000(side, side, side, 4),
    }


ALLOCATING = {
    **claims(SIDE),
    **{f"too large a {kind}": encoded for kind, encoded in claims(20_000).items()},
    "TIFF of 65,535 samples": tiff(SIDE, SIDE, samples=65535),
    "TIFF of 64 bits": tiff(SIDE, SIDE, samples=4, bits=64),
    "TIFF of a long strip": tiff(100, 100, rows=0xFFFFFFFF),
    "TIFF of many bytes": tiff(100, 100, bytes=0xFFFFFFF0),
    "TIFF of many deflated bytes": tiff(100, 100, compression=8, bytes=0x7FFFFFF0),
    "JPEG 2000 of many channels": jpeg2000(SIDE, SIDE, SIDE, 16_000),
    "JPEG 2000 of many tiles": jpeg2000(255, 255, 1, 3),
    "BMP of many colours": bmp(8, colors=2**31 - 1),
    "BMP of runs": bmp(8, compression=1),
    "ICNS of a long entry": b"icns\x7f\0\0\0it32\x7f\0\0\0" + bytes(100),
}


@pytest.fixture(scope="module")
def allocated() -> dict[str, int]:
    """The bytes that each case made a process of its own allocate; none if it died."""
    run = subprocess.run(
        [sys.executable, "-c", PARENT, str(MAX_PIXELS)],
        input=pickle.dumps(ALLOCATING),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return dict(map(json.loads, run.stdout.splitlines()))


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
@pytest.mark.parametrize("case", ALLOCATING)
def test_what_a_small_file_allocates(allocated: dict[str, int], case: str) -> None:
    assert allocated[case] < ALLOWED_BYTES


@pytest.mark.parametrize("case", claims(20_000))
def test_what_is_too_large_is_refused(case: str) -> None:
    with pytest.raises(InvalidInput, match="declares 20000x20000 pixels"):
        decode(claims(20_000)[case], MAX_PIXELS)
