"""Pixels are counted in the budget of all requests, before they are decoded and until they die."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from penstock.backends import lazy_numpy
from penstock.backends.allocation import empty_array
from penstock.backends.base import Context
from penstock.backends.errors import MemoryFull, TooLarge
from penstock.backends.image import decode as decode_module
from penstock.backends.image.decode import DecodeMat, decode
from penstock.backends.memory import budget, limited

MIB = 1 << 20


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    gc.collect()  # items of earlier tests, in cycles with errors whose frames hold pixels
    with limited(64 * MIB):
        assert budget.used == 0
        yield


def file(form: str, side: int = 1000, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (255, 0, 0)).save(content, form, **options)
    return content.getvalue()


def test_pixels_are_held_until_their_last_view_is_gone() -> None:
    pixels = decode(file("PNG"), 10**9)
    assert budget.used == pixels.nbytes == 3_000_000
    view = pixels[::2, 3:4]
    del pixels
    assert budget.used == 3_000_000
    del view
    assert budget.used == 0


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("BMP", {}),
        ("TGA", {}),
        ("ICO", {"sizes": [(256, 256)]}),
    ],
)
def test_nothing_is_decoded_without_its_memory(
    form: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = file(form, **options)
    decoded = decode(encoded, 10**9)
    assert budget.used == decoded.nbytes
    del decoded

    def fail(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", fail)
    monkeypatch.setattr(decode_module, "by_simplejpeg", fail)
    monkeypatch.setattr(decode_module, "decode_with_pillow", fail)
    budget.reserve(64 * MIB - 100_000, "a test")
    try:
        with pytest.raises(MemoryFull, match=r"an image needs \d+ bytes.*\(max_memory\)"):
            decode(encoded, 10**9)
    finally:
        budget.release(64 * MIB - 100_000)
    assert budget.used == 0


def test_what_does_not_fit_is_a_soft_failure_of_its_item() -> None:
    backend = DecodeMat()
    assert DecodeMat.parameters is not None
    backend.init(DecodeMat.parameters(), Context())  # type: ignore[arg-type]  # the class's own
    batch: list[Any] = [{"data": file("PNG", 2500)} for _ in range(3)]
    backend.forward(batch)
    assert [type(item.get("error")) for item in batch] == [type(None), MemoryFull, MemoryFull]
    never: list[Any] = [{"data": file("PNG", 3000)}]
    backend.forward(never)
    assert type(never[0]["error"]) is TooLarge
    batch.clear()
    assert budget.used == 0


def test_an_allocation_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(cv2, "imdecode", refuse)
    with pytest.raises(MemoryFull, match="the operating system gives no more memory"):
        decode(file("PNG"), 10**9)
    monkeypatch.setattr(lazy_numpy.np, "empty", refuse)
    with pytest.raises(MemoryFull, match="needs 3000000 bytes"):
        empty_array((1000, 1000, 3), np.uint8)
    assert budget.used == 0


@pytest.mark.parametrize(
    "expression",
    [
        "ResizeMat(resize_h=1000, resize_w=1000)",
        "PillowResizeMat(resize_h=1000, resize_w=1000)",
        "LetterBoxMat(resize_h=1000, resize_w=1000)",
        "cvtColorMat(color=gray)",
        "FloatMat",
        "Mat2Tensor",
    ],
)
def test_images_made_from_images_are_counted(bound: Any, expression: str) -> None:
    name, _, rest = expression.partition("(")
    keys = dict(part.split("=") for part in rest.rstrip(")").split(", ") if part)
    backend = bound(name, **{k: int(v) if v.isdigit() else v for k, v in keys.items()}).create(
        Context()
    )
    image = np.zeros((1200, 900, 3), np.uint8)
    item: Any = {"data": image, "color": "bgr"}
    backend.forward([item])
    held = getattr(item["result"], "nbytes", 0)
    assert budget.used == held > MIB / 2
    item.clear()
    assert budget.used == 0
