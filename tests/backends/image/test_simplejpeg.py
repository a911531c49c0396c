"""simplejpeg, where it is installed: the pixels and refusals are those of OpenCV."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock.backends.errors import InvalidInput
from penstock.backends.image import jpeg_pixels
from penstock.backends.image.decode import checked_header, decode, decode_pixels

from .files import FILES, TURNED, encode
from .test_fuzz import CHANGES, changed

pytest.importorskip("simplejpeg")

JPEGS = {
    case: encoded
    for case, encoded in (FILES | TURNED).items()
    if encoded.startswith(b"\xff\xd8\xff")
} | {"stored as RGB": encode("JPEG", keep_rgb=True)}


def by_opencv(function: Callable[..., Any], *args: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_pixels, "decode_jpeg", None)
        return outcome(function, *args)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args).tolist()
    except InvalidInput as error:
        return str(error)


@pytest.mark.parametrize("case", JPEGS)
def test_every_kind_of_file(case: str) -> None:
    assert outcome(decode, JPEGS[case], 10**6) == by_opencv(decode, JPEGS[case], 10**6)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photographs(mode: str, subsampling: int, scale: int) -> None:
    image = Image.fromarray(load_sample_image("china.jpg")).resize((203, 151)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=subsampling)
    encoded = buffer.getvalue()
    args = (encoded, checked_header(encoded, 10**6), 10**6, scale)
    assert jpeg_pixels.by_simplejpeg(*args[:2], scale) is not None
    assert outcome(decode_pixels, *args) == by_opencv(decode_pixels, *args)


@settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.too_slow])
@given(changes=CHANGES)
def test_damaged_files(changes: list[tuple[str, int, bytes]]) -> None:
    for case in ("JPEG", "progressive"):
        encoded = changed(FILES[case], changes)
        assert outcome(decode, encoded, 10**5) == by_opencv(decode, encoded, 10**5)


def test_several_scans_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's way decodes them again, by Pillow, to see whether data are missing."""
    monkeypatch.setattr(jpeg_pixels, "JpegImageFile", None)
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", progressive=True)
    assert np.shape(decode(buffer.getvalue(), 10**6)) == (427, 640, 3)
