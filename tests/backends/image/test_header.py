"""Every format × (metadata that are damaged or huge, sizes that disagree, the bound on pixels)."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from penstock.backends.base import Context
from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image import decode as decode_module
from penstock.backends.image.decode import checked_header, decode
from penstock.backends.image.header import PNG_SIGNATURE, read_header
from penstock.backends.item import Item

from .files import (
    CUT,
    DISAGREEING,
    FILES,
    HEIGHT,
    METADATA,
    TURNED,
    WIDTH,
    encode,
    photo,
)


@pytest.mark.parametrize("case", METADATA)
def test_metadata_do_not_cost_the_image(case: str) -> None:
    pixels = decode(METADATA[case], 10**8)
    tolerance = 4 if case.startswith(("JPEG:", "GIF", "AVIF", "WEBP")) else 0
    if case.startswith("GIF"):
        tolerance = 12
    difference = np.abs(pixels[:, :, ::-1].astype(int) - np.asarray(photo(), int)).mean()
    assert pixels.shape == (HEIGHT, WIDTH, 3) and difference <= tolerance


@pytest.mark.parametrize("case", TURNED)
def test_orientation(case: str) -> None:
    pixels = decode(TURNED[case], WIDTH * HEIGHT)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels[:, :, ::-1].astype(int) - np.asarray(photo(), int)).mean() < 4


@pytest.mark.parametrize("case", CUT)
def test_a_cut_file_is_refused(case: str) -> None:
    with pytest.raises(InvalidInput, match="image"):
        decode(CUT[case], WIDTH * HEIGHT)


def test_decodetensor_answers_the_same() -> None:
    pytest.importorskip("torch")
    from penstock.backends.image.tensor.decode import DecodeTensor, DecodeTensorParams

    backend = DecodeTensor()
    params = DecodeTensorParams.model_validate({"color": "bgr", "data_format": "nhwc"})
    backend.init(params, Context(device="cpu"))
    for case, encoded in {**METADATA, **DISAGREEING, **TURNED, **CUT}.items():
        item: Item = {"data": encoded}
        backend.forward([item])
        try:
            expected = decode(encoded, 10**8)
        except InvalidInput as error:
            assert str(item["error"]) == str(error), case
        else:
            assert np.array_equal(item["result"][0].numpy(), expected), case


# sizes and the bound


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a pixel is decoded."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("allocated"))


@pytest.mark.parametrize("case", FILES)
def test_the_bound_of_every_format(
    case: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    encoded = FILES[case]
    assert decode(encoded, WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    request.getfixturevalue("undecoded")
    header = checked_header(encoded, WIDTH * HEIGHT)
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    with pytest.raises(TooLarge, match=f"declares {WIDTH}x{HEIGHT} pixels"):
        decode(encoded, WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("case", DISAGREEING)
@pytest.mark.usefixtures("undecoded")
def test_the_largest_of_sizes_that_disagree_counts(case: str) -> None:
    with pytest.raises(TooLarge, match=f"declares {WIDTH}x{HEIGHT} pixels"):
        decode(DISAGREEING[case], WIDTH * HEIGHT - 1)


def test_an_icons_largest_image_is_decoded() -> None:
    small, large = encode("PNG", photo().resize((16, 16))), encode("PNG")
    entries = b"".join(
        struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(png), start)
        for png, start in ((small, 38), (large, 38 + len(small)))
    )
    pixels = decode(struct.pack("<HHH", 0, 1, 2) + entries + small + large, 10**6)
    assert np.array_equal(pixels[:, :, ::-1], np.asarray(photo()))


@pytest.mark.parametrize("case", FILES)
def test_a_header_that_is_cut_is_an_invalid_input(case: str) -> None:
    encoded = FILES[case]
    for length in range(0, min(len(encoded) - 64, 400), 3):
        with pytest.raises(InvalidInput, match="image"):
            decode(encoded[:length], 10**6)


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_header_raises_nothing_else(case: str) -> None:
    """Random bytes are overwritten, and what is decoded is within the bound."""
    random = np.random.default_rng(0)
    encoded = FILES[case]
    for _ in range(60):
        damaged = bytearray(encoded)
        for at in random.integers(0, min(len(encoded), 300), 3):
            damaged[at] = random.integers(256)
        try:
            pixels = decode(bytes(damaged), 10**5)
        except InvalidInput:
            continue
        assert pixels.shape[0] * pixels.shape[1] <= 10**5


AVIF_BRAND = b"\0\0\0\x14ftypavif\0\0\0\0avif"
ALL_HEADER: dict[str, Callable[[int], bytes]] = {
    "AVIF, boxes": lambda size: AVIF_BRAND + struct.pack(">I4s", 8, b"abcd") * (size // 8),
    "AVIF, boxes in boxes": lambda size: (
        AVIF_BRAND
        + b"".join(struct.pack(">I4s", size - 8 * at, b"moov") for at in range(size // 8))
    ),
    "AVIF, extents without bytes": lambda size: (
        AVIF_BRAND
        + struct.pack(">I4s", size, b"iloc")
        + b"\0\0\0\0\0\0\xff\xff"
        + b"\0\1\0\0\xff\xff" * (size // 6)
    ),
    "GIF, comments": lambda size: b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe\0" * (size // 3),
    "JPEG, comments": lambda size: b"\xff\xd8" + b"\xff\xfe\0\2" * (size // 4),
    "JPEG, fill bytes": lambda size: b"\xff\xd8" + b"\xff" * size,
    "JPEG, restarts": lambda size: b"\xff\xd8\xff\xe0\0\2" + b"\xff\xd0" * (size // 2),
    "PNG, texts": lambda size: PNG_SIGNATURE + b"\0\0\0\0tEXt\0\0\0\0" * (size // 12),
    "WEBP, chunks": lambda size: b"RIFF\0\0\0\0WEBP" + b"abcd\0\0\0\0" * (size // 8),
    "ICNS, entries": lambda size: b"icns\0\0\0\0" + b"abcd\0\0\0\x08" * (size // 8),
    "PPM, comments": lambda size: b"P6" + b"#\n" * (size // 2),
}


@pytest.mark.parametrize("case", ALL_HEADER)
def test_a_file_that_is_all_header_is_refused_soon(case: str) -> None:
    encoded = ALL_HEADER[case](16_000_000)
    began = time.thread_time()
    with contextlib.suppress(InvalidInput):
        assert read_header(encoded) is None
    assert time.thread_time() - began < 3  # 13 without the bounds


def test_an_offset_beyond_what_an_index_can_be() -> None:
    encoded = bytearray(FILES["big TIFF"])
    encoded[8:16] = b"\xff" * 8
    with pytest.raises(InvalidInput, match="TIFF image is truncated or damaged: its header is cut"):
        decode(bytes(encoded), 10**6)


# formats that are not read


@pytest.mark.parametrize(
    ("encoded", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc" + bytes(100), "HEIC"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1" + bytes(100), "HEIF"),
        (b"\xff\x0a" + bytes(100), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL"),
        (b"%PDF-1.7" + bytes(100), "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0" + bytes(100), "PostScript"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a > b -->\n<!DOCTYPE svg>\n<svg/>", "SVG"),
        (b"v/1\1\2\0\0\0" + bytes(100), "OpenEXR"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9 +X 9\n", "Radiance HDR"),
        (b"P7\nWIDTH 9\nHEIGHT 9\nDEPTH 3\nMAXVAL 255\nENDHDR\n", "PAM"),
        (b"PF\n9 9\n-1.0\n" + bytes(100), "PFM"),
        (b"II\xbc\1" + bytes(100), "JPEG XR"),
    ],
)
def test_a_format_that_is_not_read_is_named(encoded: bytes, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(encoded, 10**8)
    assert str(caught.value) == (
        f"the file is {name}, which can't be read: convert it to JPEG, PNG, WebP or AVIF"
    )


def test_an_avif_with_heifs_brand_first() -> None:
    avif = encode("AVIF").replace(b"ftypavif", b"ftypmif1", 1)
    assert read_header(avif) is not None


def test_pillow_is_not_asked_about_formats_of_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "open_with_pillow", lambda *_: pytest.fail("asked"))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM"):
        assert decode(encode(kind), 10**6).shape == (HEIGHT, WIDTH, 3)
