"""DecodeMat, on real files of each kind."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock.backends.base import Context
from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.decode import DecodeMat
from penstock.backends.item import Item


def make(cls: Any, **params: Any) -> Any:
    backend = cls()
    backend.init(cls.parameters(**params), Context(node="test"))
    return backend


def run(backend: Any, data: Any, **keys: Any) -> Any:
    item: Item = {"data": data, **keys}
    backend.forward([item])
    return item


def decode(data: Any, **params: Any) -> Any:
    return run(make(DecodeMat, **params), data)


def encode(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Any:
    return Image.fromarray(load_sample_image("china.jpg"))


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Red, green over blue, white: every orientation looks different."""
    image = Image.new("RGB", (width, height))
    w, h = width // 2, height // 2
    for box, color in (
        ((0, 0), "#ff0000"),
        ((w, 0), "#00ff00"),
        ((0, h), "#0000ff"),
        ((w, h), "#ffffff"),
    ):
        image.paste(color, (*box, box[0] + w, box[1] + h))
    return image


def rgb(item: Any) -> Any:
    assert "error" not in item, item.get("error")
    result = item["result"]
    assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
    assert result.flags.c_contiguous
    assert item["color"] == "bgr"
    return result[:, :, ::-1].astype(int)


def difference(item: Any, expected: Any) -> Any:
    return np.abs(rgb(item) - np.asarray(expected.convert("RGB"), int)).mean()


# formats


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs(name: str) -> None:
    image = Image.fromarray(load_sample_image(name))
    assert difference(decode(encode(image, "JPEG", quality=95)), image) < 3


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda b: np.frombuffer(b, np.uint8),
        lambda b: memoryview(b + b)[: len(b)],
    ],
)
def test_every_type_of_bytes(photo: Any, wrap: Any) -> None:
    encoded = encode(photo, "PNG")
    assert difference(decode(wrap(encoded)), photo) == 0


def test_an_array_with_strides(photo: Any) -> None:
    encoded = np.frombuffer(encode(photo, "PNG"), np.uint8)
    assert difference(decode(np.repeat(encoded, 2)[::2]), photo) == 0


@pytest.mark.parametrize(
    "data",
    ["text", 7, None, [1, 2], np.zeros((4, 4), np.uint8), np.zeros(4, np.float32)],
    ids=lambda d: type(d).__name__,
)
def test_other_types_are_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match="DecodeMat: expected bytes"):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(kind: str, orientation: int) -> None:
    upright = quarters()
    # As a camera stores it: the turn of the viewer makes it upright again.
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x112] = orientation
    lossless: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    options = lossless.get(kind, {})
    assert difference(decode(encode(stored, kind, exif=exif, **options)), upright) < 3


@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk(photo: Any, progressive: bool) -> None:
    cmyk = photo.convert("CMYK")
    encoded = encode(cmyk, "JPEG", quality=95, progressive=progressive)
    assert Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert difference(decode(encoded), Image.open(io.BytesIO(encoded))) < 3
    assert difference(decode(encode(cmyk, "TIFF")), photo) < 3


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bits_are_scaled(extension: str) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    _, encoded = cv2.imencode(extension, wide)
    result = decode(encoded.tobytes())["result"]
    assert result.dtype == np.uint8
    assert np.abs(result.astype(float) - wide / 257).max() <= 1


def test_sixteen_bit_grey() -> None:
    grey = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    pixels = rgb(decode(encode(grey, "PNG")))
    assert np.abs(pixels[:, :, 0] - np.asarray(grey) / 257).max() <= 1
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_grey(photo: Any, kind: str) -> None:
    grey = photo.convert("L")
    assert difference(decode(encode(grey, kind)), grey) < 5


def test_bilevel(photo: Any) -> None:
    assert difference(decode(encode(photo.convert("1"), "PNG")), photo.convert("1")) == 0


def test_palette(photo: Any) -> None:
    palette = photo.quantize(64)
    assert difference(decode(encode(palette, "PNG")), palette) == 0
    assert difference(decode(encode(palette, "GIF")), palette) == 0


def test_palette_with_transparency(photo: Any) -> None:
    palette = photo.quantize(64)
    encoded = encode(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert difference(decode(encoded), palette) == 0


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})]
)
@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_alpha_is_dropped(photo: Any, kind: str, options: Any, alpha: Any) -> None:
    transparent = photo.convert("RGBA")
    transparent.putalpha(alpha)
    assert difference(decode(encode(transparent, kind, **options)), photo) == 0


def test_grey_with_alpha(photo: Any) -> None:
    grey = photo.convert("LA")
    grey.putalpha(9)
    assert difference(decode(encode(grey, "PNG")), photo.convert("L")) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_the_first_frame(kind: str, mode: str) -> None:
    frames = [Image.new(mode, (32, 24), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(encoded)), "n_frames", 1) == 3
    assert difference(decode(encoded), frames[0]) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_one_pixel(kind: str, mode: str) -> None:
    pixel = Image.new("RGB", (1, 1), "white").convert(mode)
    assert rgb(decode(encode(pixel, kind))).tolist() == [[[255, 255, 255]]]


def test_one_pixel_jpeg() -> None:
    assert rgb(decode(encode(Image.new("RGB", (1, 1), "white"), "JPEG"))).tolist() == [
        [[255, 255, 255]]
    ]


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "QOI", "DDS", "ICO"])
def test_formats_that_only_pillow_reads(photo: Any, kind: str) -> None:
    small = photo.resize((64, 48))
    encoded = encode(small, kind, **({"sizes": [(64, 48)]} if kind == "ICO" else {}))
    assert cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) is None
    assert difference(decode(encoded), small) == 0


def dds(data: bytes, size: tuple[int, int], alpha: bool, bits: int, *masks: int) -> bytes:
    """An uncompressed DDS."""
    return (
        b"DDS "
        + struct.pack(
            "<3I 4I 44x 4I 4I 5I",
            *(124, 0x1007, size[1], size[0], 0, 0, 0),
            *(32, 0x41 if alpha else 0x40, 0, bits),
            *(*masks, *([0] * (4 - len(masks)))),
            *(0x1000, 0, 0, 0, 0),
        )
        + data
    )


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (24, (0xFF0000, 0xFF00, 0xFF)),
        (24, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
    ],
)
def test_uncompressed_dds(bits: int, masks: tuple[int, ...], alpha: bool) -> None:
    if alpha and (bits == 24 or masks[1] == 0x7E0):
        pytest.skip("no bits are left for it")
    if alpha:
        masks = (*masks, 0xFF000000 if bits == 32 else 0x8000)
    data = np.random.default_rng(0).integers(0, 256, 6 * 5 * bits // 8, np.uint8).tobytes()
    encoded = dds(data, (6, 5), alpha, bits, *masks)
    with Image.open(io.BytesIO(encoded)) as image:  # in Python, a pixel at a time
        expected = image.convert("RGB")
    assert difference(decode(encoded), expected) < 1
    assert "truncated" in str(decode(encoded[:-1])["error"])


@pytest.mark.parametrize("bits", [0, 8, 24])
def test_other_uncompressed_dds_are_refused(bits: int) -> None:
    """They would take 1 s of Python per megabyte, and with 0 bits forever."""
    item = decode(dds(bytes(99), (9999, 9999), False, bits, 0xE0, 0x1C, 0x03))
    assert "can't be read: convert the image to PNG" in str(item["error"])


def test_postscript_is_not_read(photo: Any) -> None:
    assert isinstance(decode(encode(photo, "EPS"))["error"], InvalidInput)


# soft failures


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.01, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive", "thumbnail", "PNG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "QOI"]
)
def test_truncated(photo: Any, kind: str, fraction: float) -> None:
    options: dict[str, Any] = {}
    if kind == "progressive":
        kind, options = "JPEG", {"progressive": True}
    if kind == "thumbnail":  # a small whole JPEG in the header: its end mark is not the file's
        small = encode(photo.resize((32, 24)), "JPEG")
        kind, options = "JPEG", {"comment": small}
    if kind == "QOI":  # Pillow reads and writes it in Python
        photo = photo.resize((320, 213))
    encoded = encode(photo, kind, **options)
    item = decode(encoded[: int(len(encoded) * fraction)])
    assert type(item["error"]) is InvalidInput
    assert str(item["error"])
    assert "result" not in item and "color" not in item


def test_an_older_opencv_that_hides_truncation(photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV before 5 fills the missing part with grey, so the end mark is searched first."""
    grey = np.full((427, 640, 3), 128, np.uint8)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: grey)
    for kind, cut in (("JPEG", 2), ("JPEG", 5000), ("PNG", 12), ("PNG", 5000)):
        item = decode(
            encode(
                photo,
                kind,
                **({"comment": encode(photo.resize((32, 24)), "JPEG")} if kind == "JPEG" else {}),
            )[:-cut]
        )
        assert "truncated" in str(item["error"]) and "result" not in item


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.98])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"quality": 95, "subsampling": 0}),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_an_end_mark_before_the_end(photo: Any, mode: str, options: Any, fraction: float) -> None:
    """libjpeg fills the rest with grey, and OpenCV reports nothing."""
    encoded = encode(photo.convert(mode), "JPEG", **options)
    item = decode(encoded[: int(len(encoded) * fraction)].rstrip(b"\xff") + b"\xff\xd9")
    assert "truncated" in str(item["error"]) and "result" not in item


@pytest.mark.parametrize("fraction", [0.02, 0.5])
def test_an_end_mark_before_the_last_scan(photo: Any, fraction: float) -> None:
    """The whole picture is there, without its details."""
    encoded = encode(photo, "JPEG", progressive=True)
    item = decode(encoded[: int(len(encoded) * fraction)].rstrip(b"\xff") + b"\xff\xd9")
    assert "truncated" in str(item["error"]) and "result" not in item


def test_a_hole_in_the_middle(photo: Any) -> None:
    encoded = encode(photo, "JPEG")
    half = len(encoded) // 2
    item = decode(encoded[:half].rstrip(b"\xff") + encoded[half + len(encoded) // 50 :])
    assert "truncated" in str(item["error"])


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_a_cut_multi_picture_file(
    photo: Any, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end mark of the thumbnail in its header does not count."""
    thumbnail = encode(photo.resize((32, 24)), "JPEG")
    encoded = encode(photo, "MPO", save_all=True, append_images=[photo], comment=thumbnail)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    item = decode(encoded[: int(len(encoded) * fraction)])
    assert "it has no end mark" in str(item["error"])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_image_whose_corners_are_grey_is_whole(mode: str, options: Any) -> None:
    grey = Image.new("RGB", (70, 50), (128, 128, 128))
    grey.paste("red", (20, 20, 40, 30))
    grey = grey.convert(mode)
    encoded = encode(grey, "JPEG", **options)
    assert difference(decode(encoded), Image.open(io.BytesIO(encoded))) < 3
    longer = decode(encoded[:-2] + bytes(10) + encoded[-2:])  # after the data, and harmless
    assert difference(longer, Image.open(io.BytesIO(encoded))) < 3


def test_bytes_after_the_end_are_ignored(photo: Any) -> None:
    for kind in ("JPEG", "PNG"):
        assert difference(decode(encode(photo, kind, quality=95) + b"trailing" * 100), photo) < 3


def test_damaged_in_the_middle(photo: Any) -> None:
    encoded = bytearray(encode(photo, "PNG"))
    encoded[len(encoded) // 2] ^= 0xFF
    assert isinstance(decode(encoded)["error"], InvalidInput)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, world",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"\0" * 1000,
    ],
)
def test_other_data_than_an_image(data: Any) -> None:
    item = decode(data)
    assert type(item["error"]) is InvalidInput and "result" not in item
    assert "image" in str(item["error"])


@pytest.mark.parametrize("data", [b"no", b"hello, world"])
def test_other_data_is_reported_with_its_beginning(data: Any) -> None:
    assert (
        str(decode(data)["error"])
        == f"not an image file that can be read ({len(data)} bytes, beginning with {data!r})"
    )


def test_float_pixels_have_no_defined_range(photo: Any) -> None:
    assert "mode F" in str(decode(encode(photo.convert("F"), "TIFF"))["error"])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    pixels = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def bombs() -> dict[str, bytes]:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((64, 48))
    jpeg = bytearray(encode(photo, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    gif = bytearray(encode(photo.quantize(16), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    bmp = bytearray(encode(photo, "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    return {
        "PNG": png_header(60000, 60000),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("bound", [100_000_000, 3_599_999_999])
def test_a_header_that_declares_too_many_pixels(
    kind: str, bound: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    item = decode(bombs()[kind], max_pixels=bound)
    assert type(item["error"]) is TooLarge
    assert "60000x60000" in str(item["error"]) and str(bound) in str(item["error"])


def test_an_image_above_opencvs_own_bound() -> None:
    assert isinstance(decode(png_header(60000, 60000), max_pixels=2**40)["error"], InvalidInput)


def test_the_bound_is_ours_and_not_pillows(photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # would warn, and warnings are errors here
    assert difference(decode(encode(photo, "PNG"), max_pixels=640 * 427), photo) == 0
    assert type(decode(encode(photo, "PNG"), max_pixels=640 * 427 - 1)["error"]) is TooLarge


def test_a_soft_failure_leaves_the_other_items_alone(photo: Any) -> None:
    batch: list[Item] = [
        {"data": encode(photo, "PNG")},
        {"data": b"no"},
        {"data": encode(photo, "BMP")},
    ]
    make(DecodeMat).forward(batch)
    assert [sorted(item) for item in batch] == [
        ["color", "data", "result"],
        ["data", "error"],
        ["color", "data", "result"],
    ]
