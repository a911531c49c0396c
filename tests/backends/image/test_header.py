"""Every format × (metadata that are damaged or huge, sizes that disagree, the bound on pixels)."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from sklearn.datasets import load_sample_image

from penstock.backends.base import Context
from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image import decode as decode_module
from penstock.backends.image.decode import checked_header, decode
from penstock.backends.image.header import PNG_SIGNATURE, read_header
from penstock.backends.item import Item

WIDTH, HEIGHT = 64, 48
LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "ICO": {"sizes": [(WIDTH, HEIGHT)]},
}
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "PCX", "SGI", "DIB", "DDS", "QOI", "TGA"),
)


@functools.cache
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((WIDTH, HEIGHT))


def encode(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = photo() if image is None else image
    if kind == "GIF":
        image = image.quantize(64)
    image.save(buffer, kind, **{**LOSSLESS.get(kind, {}), **options})
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def riff(encoded: bytes) -> bytes:
    return encoded[:4] + struct.pack("<I", len(encoded) - 8) + encoded[8:]


def set_after(encoded: bytes, name: bytes, offset: int, content: bytes) -> bytes:
    """Overwrite bytes at an offset from the first place of `name`."""
    at = encoded.index(name) + offset
    return encoded[:at] + content + encoded[at + len(content) :]


PNG_CHUNKS = {
    "zTXt": chunk(b"zTXt", b"key\0\0not deflated"),
    "zTXt that inflates to 5 MB": chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(5_000_000))),
    "iTXt": chunk(b"iTXt", b"key\0\1\0en\0key\0not deflated"),
    "iCCP": chunk(b"iCCP", b"name\0\0not deflated"),
    "iCCP of 2 MB": chunk(b"iCCP", b"name\0\0" + zlib.compress(os.urandom(2_000_000))),
    "tEXt with another checksum": chunk(b"tEXt", b"key\0value", 5),
    "tEXt of 2 MB": chunk(b"tEXt", b"key\0" + bytes(2_000_000)),
    **{
        f"{name.decode()} that is short": chunk(name, b"1")
        for name in (
            b"gAMA",
            b"pHYs",
            b"cHRM",
            b"sRGB",
            b"tRNS",
            b"bKGD",
            b"acTL",
            b"tIME",
            b"eXIf",
        )
    },
    "acTL without frames": chunk(b"acTL", struct.pack(">II", 0, 0)),
    "acTL of frames that are missing": chunk(b"acTL", struct.pack(">II", 9, 0)),
}
JPEG_SEGMENTS = {
    "JFIF that is short": segment(0xE0, b"JFIF\0\1"),
    "JFIF without a version": segment(0xE0, b"JFIF"),
    "Adobe that is short": segment(0xEE, b"Adobe"),
    "EXIF of nothing": segment(0xE1, b"Exif\0\0"),
    "EXIF that points outside": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "a profile's part": segment(0xE2, b"ICC_PROFILE\0\1"),
    "a profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "MPF": segment(0xE2, b"MPF\0bad"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\08BIM\4"),
    "a thumbnail that is larger": segment(
        0xE1, encode("JPEG", photo().resize((300, 300)), quality=20)
    ),
    "fill bytes": b"\xff\xff\xff",
}
GIF_EXTENSIONS = {
    "a comment": b"\x21\xfe\5abcde\0",
    "an application that is short": b"\x21\xff\3abc\0",
    "an unknown extension": b"\x21\x77\3abc\0",
}


def damaged_metadata() -> dict[str, bytes]:
    """Files whose pixels are whole and whose metadata are not."""
    png, jpeg, gif, jp2 = encode("PNG"), encode("JPEG"), encode("GIF"), encode("JPEG2000")
    exif = Image.Exif()
    exif[0x112] = 1
    webp = encode("WEBP", exif=exif, icc_profile=b"abc")
    webp_exif = webp.index(b"EXIF")
    frame = gif.index(b"\x2c", 13 + 3 * 64)
    if gif[frame - 8 : frame - 6] == b"\x21\xf9":
        frame -= 8
    stream = jp2.index(b"jp2c") - 4
    ppm = encode("PPM")
    avif = encode("AVIF", exif=exif)
    inner = png[:33] + PNG_CHUNKS["iCCP of 2 MB"] + PNG_CHUNKS["gAMA that is short"] + png[33:]
    files = {f"PNG: {name}": png[:33] + part + png[33:] for name, part in PNG_CHUNKS.items()}
    files |= {f"JPEG: {name}": jpeg[:2] + part + jpeg[2:] for name, part in JPEG_SEGMENTS.items()}
    files |= {
        f"GIF: {name}": gif[:frame] + part + gif[frame:] for name, part in GIF_EXTENSIONS.items()
    }
    files |= {
        f"JPEG2000: {name.decode()} of {len(content)} bytes": jp2[:stream]
        + struct.pack(">I4s", 8 + len(content), name)
        + content
        + jp2[stream:]
        for name in (b"xml ", b"uuid", b"abcd")
        for content in (b"", b"x" * 2_000_000)
    }
    tiff_tags: dict[str, dict[int, Any]] = {
        "an EXIF directory outside": {34665: 4_000_000_000},
        "a profile": {34675: b"bad"},
        "XMP": {700: b"<"},
        "an orientation of 9": {274: 9},
    }
    for name, tags in tiff_tags.items():
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            info[tag] = value
        files[f"TIFF: {name}"] = encode("TIFF", tiffinfo=info)
    return {
        **files,
        "WEBP: EXIF": riff(webp[:webp_exif] + b"EXIF\4\0\0\0\xff\xff\xff\xff"),
        "WEBP: EXIF that is missing": riff(webp[:webp_exif]),
        "AVIF: EXIF": avif.replace(b"II*\0", b"\xff\xff\xff\xff").replace(b"MM\0*", b"\xff" * 4),
        "AVIF: an unknown box": avif + struct.pack(">I4s", 12, b"abcd") + b"junk",
        "PPM: a comment of 100 kB": ppm.replace(b"\n", b"\n#" + b"x" * 100_000 + b"\n", 1),
        "ICO: an inner PNG": set_after(icon(inner), b"\0\0\1\0", 6, bytes([WIDTH, HEIGHT])),
        "ICNS: an inner PNG": icns(inner),
    }


def icon(png: bytes, size: int = 0) -> bytes:
    """An ICO with one PNG, which its directory calls size×size (0: 256)."""
    return (
        struct.pack("<HHH", 0, 1, 1)
        + struct.pack("<BBBBHHII", size, size, 0, 0, 1, 32, len(png), 22)
        + png
    )


def icns(inner: bytes, kind: bytes = b"icp6") -> bytes:
    entry = kind + struct.pack(">I", 8 + len(inner)) + inner
    return b"icns" + struct.pack(">I", 8 + len(entry)) + entry


METADATA = damaged_metadata()


@pytest.mark.parametrize("case", METADATA)
def test_metadata_do_not_cost_the_image(case: str) -> None:
    pixels = decode(METADATA[case], 10**8)
    tolerance = 4 if case.startswith(("JPEG:", "GIF", "AVIF", "WEBP")) else 0
    if case.startswith("GIF"):
        tolerance = 12
    difference = np.abs(pixels[:, :, ::-1].astype(int) - np.asarray(photo(), int)).mean()
    assert pixels.shape == (HEIGHT, WIDTH, 3) and difference <= tolerance


def test_decodetensor_answers_the_same() -> None:
    pytest.importorskip("torch")
    from penstock.backends.image.tensor.decode import DecodeTensor, DecodeTensorParams

    backend = DecodeTensor()
    params = DecodeTensorParams.model_validate({"color": "bgr", "data_format": "nhwc"})
    backend.init(params, Context(device="cpu"))
    for case, encoded in {**METADATA, **DISAGREEING}.items():
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


def files() -> dict[str, bytes]:
    encoded = {kind: encode(kind) for kind in FORMATS}
    png = encoded["PNG"]
    return {
        **encoded,
        "progressive": encode("JPEG", progressive=True),
        "animated WEBP": encode("WEBP", save_all=True, append_images=[photo().rotate(9)]),
        "lossy WEBP": encode("WEBP", lossless=False),
        "animated AVIF": encode("AVIF", save_all=True, append_images=[photo().rotate(9)]),
        "big TIFF": encode("TIFF", big_tiff=True),
        "code stream": encode("JPEG2000", no_jp2=True),
        "ICO of a bitmap": encode("ICO", bitmap_format="bmp"),
        "ICO": icon(png),
        "ICNS": icns(png),
    }


FILES = files()


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


def disagreeing() -> dict[str, bytes]:
    """Files in which one place says less than 64×48, and another 64×48."""
    png, webp, gif = encode("PNG"), encode("WEBP", icc_profile=b"abc"), encode("GIF")
    jp2, avif = encode("JPEG2000"), encode("AVIF")
    sequence = encode("AVIF", save_all=True, append_images=[photo().rotate(9)])
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 4) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((256, 4), (257, 4), (322, WIDTH), (323, HEIGHT))
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return {
        "PNG, the first of two headers": png[:8] + header + png[8:],
        "WEBP, the canvas": set_after(webp, b"VP8X", 12, b"\3\0\0\3\0\0"),
        "GIF, the screen": gif[:6] + struct.pack("<HH", 4, 4) + gif[10:],
        "JPEG2000, ihdr": set_after(jp2, b"ihdr", 4, struct.pack(">II", 4, 4)),
        "AVIF, ispe": set_after(avif, b"ispe", 8, struct.pack(">II", 4, 4)),
        "AVIF, ispe of a sequence": set_after(sequence, b"ispe", 8, struct.pack(">II", 4, 4)),
        "TIFF, the image of a tile": tiff,
        "ICO, the directory": icon(png, 4),
        "ICO, the directory, of a bitmap": set_after(
            encode("ICO", bitmap_format="bmp"), b"\0\0\1\0", 6, b"\4\4"
        ),
        "ICNS, the entry": icns(png, b"icp4"),
    }


DISAGREEING = disagreeing()


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
    monkeypatch.setattr(decode_module, "_open_with_pillow", lambda *_: pytest.fail("asked"))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM"):
        assert decode(encode(kind), 10**6).shape == (HEIGHT, WIDTH, 3)
