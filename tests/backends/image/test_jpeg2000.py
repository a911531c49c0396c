"""JPEG 2000 files whose tiles are missing, or are more than a file can have."""

from __future__ import annotations

import struct

import cv2
import pytest

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.decode import decode
from penstock.backends.image.jpeg2000 import read_jpeg2000

from .files import HEIGHT, WIDTH, encode, set_after

SIZ = b"\xff\x4f\xff\x51"


def tiled(jp2: bool = False) -> bytes:
    return encode("JPEG2000", tile_size=(16, 16), no_jp2=not jp2)


def reason(encoded: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(encoded, 10**6)
    return str(caught.value)


@pytest.mark.parametrize("jp2", [False, True])
def test_every_tile_is_there(jp2: bool) -> None:
    assert read_jpeg2000(tiled(jp2)) == (WIDTH, HEIGHT)
    assert decode(tiled(jp2), 10**6).shape == (HEIGHT, WIDTH, 3)


def test_tiles_are_missing() -> None:
    """OpenJPEG leaves them black."""
    encoded = tiled()
    parts = encoded.split(b"\xff\x90\0\x0a")
    assert len(parts) == 13
    joined = b"\xff\x90\0\x0a".join(parts[:9]) + b"\xff\xd9"
    assert "4 of its 12 tiles are missing" in reason(joined)
    hole = b"\xff\x90\0\x0a".join([*parts[:3], *parts[5:]])
    assert "2 of its 12 tiles are missing" in reason(hole)


def test_too_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenJPEG would take 750 MB for a file of 200 bytes."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    encoded = set_after(
        encode("JPEG2000", no_jp2=True), SIZ, 8, struct.pack(">IIII", 255, 255, 0, 0)
    )
    encoded = set_after(encoded, SIZ, 24, struct.pack(">II", 1, 1))
    assert "it has 65025 tiles, and at most 10000 are read" in reason(encoded)
    assert "its tiles have no size" in reason(set_after(encoded, SIZ, 24, bytes(8)))


def test_a_box_that_looks_like_a_code_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the true one counts."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    encoded, small = encode("JPEG2000"), encode("JPEG2000", no_jp2=True)
    small = set_after(small, SIZ, 8, struct.pack(">II", 4, 4))
    encoded = set_after(encoded, b"ihdr", 4, struct.pack(">II", 4, 4))
    stream = encoded.index(b"jp2c") - 4
    box = struct.pack(">I4s", 8 + len(small), b"abcd") + small
    with pytest.raises(TooLarge, match=f"declares {WIDTH}x{HEIGHT} pixels"):
        decode(encoded[:stream] + box + encoded[stream:], WIDTH * HEIGHT - 1)
