"""JPEGs that lost a part of their data and have an end mark all the same."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock.backends.errors import InvalidInput
from penstock.backends.image import jpeg_pixels
from penstock.backends.image.decode import decode
from penstock.backends.image.jpeg import MAX_SCANS, jpeg_segments, read_jpeg, scan_ends

END = b"\xff\xd9"


@pytest.fixture(autouse=True, params=["OpenCV", "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "OpenCV":
        monkeypatch.setattr(jpeg_pixels, "decode_jpeg", None)
    elif jpeg_pixels.decode_jpeg is None:
        pytest.skip("simplejpeg is not installed")


@functools.cache
def photo(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(load_sample_image("china.jpg")).resize((203, 151))
    if mode == "CMYK":  # Pillow's has no black, so that the last scan would have no data
        return Image.merge("CMYK", (*image.split(), image.convert("L")))
    return image.convert(mode)


def encode(image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (photo() if image is None else image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def starts_of_scans(encoded: bytes) -> list[int]:
    return [start - 4 for marker, start, _ in jpeg_segments(encoded, 2) if marker == 0xDA]


def reason(encoded: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(encoded, 10**6)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [40, 75, 100])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.95])
def test_the_last_scan_is_cut(mode: str, quality: int, kept: float) -> None:
    encoded = encode(photo(mode), quality=quality, progressive=True)
    begin, end = starts_of_scans(encoded)[-1], len(encoded) - 2
    begin = begin + 2 + int.from_bytes(encoded[begin + 2 : begin + 4], "big")
    cut = encoded[: begin + int((end - begin) * kept)].rstrip(b"\xff") + END
    assert "its data are too short for 203x151 pixels" in reason(cut)


def test_any_scan_is_cut() -> None:
    encoded = encode(progressive=True)
    ends = scan_ends(encoded)
    assert len(ends) == 10
    for begin, end in zip(starts_of_scans(encoded), ends, strict=True):
        begin += 2 + int.from_bytes(encoded[begin + 2 : begin + 4], "big")
        half = (begin + end) // 2
        cut = encoded[:half].rstrip(b"\xff") + encoded[end:]
        assert "its data are too short" in reason(cut)


def test_cut_between_scans() -> None:
    encoded = encode(progressive=True)
    for end in scan_ends(encoded)[:-1]:
        assert "a scan is missing" in reason(encoded[:end] + END)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (203, 151)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_whole_files(mode: str, size: tuple[int, int], subsampling: int) -> None:
    """No whole file is taken for a cut one."""
    image = photo().resize(size).convert(mode)
    for options in (
        {"progressive": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1, "progressive": True},
        {"restart_marker_blocks": 3, "progressive": True, "quality": 100},
    ):
        encoded = encode(image, subsampling=subsampling, **options)
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), int)
        assert np.abs(decode(encoded, 10**6)[:, :, ::-1] - expected).mean() < 3


def test_a_whole_file_prints_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """libjpeg writes its warnings to standard error, which is the server's log."""
    decode(encode(progressive=True), 10**6)
    decode(encode(Image.new("RGB", (64, 48), (128, 128, 128))), 10**6)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("corner", [(0, 0, 0), (128, 128, 128)])
def test_a_part_between_restarts_is_missing(progressive: bool, corner: Any) -> None:
    image = photo().copy()
    image.paste(corner, (150, 100, 203, 151))
    encoded = encode(image, restart_marker_rows=1, progressive=progressive)
    third, fourth = (encoded.index(bytes((0xFF, 0xD0 + number))) for number in (2, 3))
    assert "a restart mark is missing" in reason(encoded[:third] + encoded[fourth:])


def test_a_restart_too_many_is_harmless() -> None:
    """Some encoders write one after the last unit."""
    encoded = encode(restart_marker_rows=1)
    last = b"\xff" + bytes([0xD0 + encoded.count(b"\xff\xdd") - 1 + (-(-151 // 16) - 1) % 8])
    assert np.array_equal(decode(encoded[:-2] + last + END, 10**6), decode(encoded, 10**6))


@pytest.mark.parametrize("spectral", [b"\0\0\0", b"\0\x3f\x01"])
def test_what_a_sequential_scan_says_of_coefficients_is_ignored(spectral: bytes) -> None:
    encoded = encode()
    (start,) = starts_of_scans(encoded)
    written = encoded[: start + 11] + spectral + encoded[start + 14 :]
    assert written[start + 10 : start + 15] != encoded[start + 10 : start + 15]
    assert np.array_equal(decode(written, 10**6), decode(encoded, 10**6))


def test_too_many_scans() -> None:
    """A small file would cost a pass over all pixels for each."""
    encoded = encode(photo("L"), progressive=True)
    begin, end = starts_of_scans(encoded)[-1], len(encoded) - 2
    scan = encoded[begin:end]
    assert f"more than {MAX_SCANS} scans" in reason(encoded[:end] + scan * MAX_SCANS + END)


@pytest.mark.parametrize("sampling", [0x00, 0x10, 0x01])
def test_channels_without_samples(sampling: int) -> None:
    encoded = bytearray(encode(photo("L"), restart_marker_rows=1))
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 11] = sampling
    assert "JPEG image" in reason(bytes(encoded))


def test_the_size_of_two_frames_is_the_larger() -> None:
    encoded = encode()
    frame = encoded.index(b"\xff\xc0")
    small = encoded[frame : frame + 5] + struct.pack(">HH", 4, 4) + encoded[frame + 9 : frame + 19]
    width, height, header = read_jpeg(encoded[:frame] + small + encoded[frame:])
    assert (width, height, header.single_scan) == (203, 151, True)
