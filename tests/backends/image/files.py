"""Image files of every format, for tests at every door: whole, turned, cut, damaged and lying.

All show one photograph of 64×48 pixels.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from typing import Any

from PIL import Image, TiffImagePlugin
from sklearn.datasets import load_sample_image

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


def disagreeing() -> dict[str, bytes]:
    """Files in which one place says less than 64×48, and another 64×48."""
    png, webp, gif = encode("PNG"), encode("WEBP", icc_profile=b"abc"), encode("GIF")
    small = encode("WEBP", photo().resize((4, 4)), icc_profile=b"abc")
    jp2, avif = encode("JPEG2000"), encode("AVIF")
    sequence = encode("AVIF", save_all=True, append_images=[photo().rotate(9)])
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 4) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((256, 4), (257, 4), (322, WIDTH), (323, HEIGHT))
    )
    twice = bytearray(encode("TIFF"))  # its compression, none, becomes a size
    (directory,) = struct.unpack_from("<I", twice, 4)
    compression = directory + 2 + 3 * 12
    twice[compression : compression + 12] = struct.pack("<HHII", 257, 4, 1, 1)
    signed = bytearray(encode("TIFF"))
    signed[directory + 4 : directory + 6] = b"\x09\0"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return {
        "PNG, the first of two headers": png[:8] + header + png[8:],
        "WEBP, the canvas": set_after(webp, b"VP8X", 12, b"\3\0\0\3\0\0"),
        "WEBP, the first of two canvases": riff(small[:30] + webp[12:30] + small[30:]),
        "GIF, the screen": gif[:6] + struct.pack("<HH", 4, 4) + gif[10:],
        "JPEG2000, ihdr": set_after(jp2, b"ihdr", 4, struct.pack(">II", 4, 4)),
        "AVIF, ispe": set_after(avif, b"ispe", 8, struct.pack(">II", 4, 4)),
        "AVIF, ispe of a sequence": set_after(sequence, b"ispe", 8, struct.pack(">II", 4, 4)),
        "TIFF, the image of a tile": tiff,
        "TIFF, the second of two heights": bytes(twice),
        "TIFF, a signed width": bytes(signed),
        "ICO, the directory": icon(png, 4),
        "ICO, the directory, of a bitmap": set_after(
            encode("ICO", bitmap_format="bmp"), b"\0\0\1\0", 6, b"\4\4"
        ),
        "ICNS, the entry": icns(png, b"icp4"),
    }


DISAGREEING = disagreeing()


def turned() -> dict[str, bytes]:
    """Files whose orientation the viewer must apply, as cameras write them."""
    transposed = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }
    files = {}
    for orientation, turns in transposed.items():
        image = photo()
        for turn in turns:
            image = image.transpose(turn)
        exif = Image.Exif()
        exif[0x112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            files[f"{kind} of orientation {orientation}"] = encode(kind, image, exif=exif)
        png = files[f"PNG of orientation {orientation}"]
        at = png.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        files[f"PNG of orientation {orientation} after the pixels"] = (
            png[:at] + png[end:-12] + png[at:end] + png[-12:]
        )
    return files


TURNED = turned()

CUT = {f"{case}, cut": encoded[: len(encoded) * 6 // 10] for case, encoded in FILES.items()} | {
    f"{case}, with an end mark": FILES[case][: len(FILES[case]) * share // 10].rstrip(b"\xff")
    + b"\xff\xd9"
    for case in ("JPEG", "progressive")
    for share in (6, 9)
}
