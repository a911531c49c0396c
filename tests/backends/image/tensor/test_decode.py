"""DecodeTensor on the CPU."""

from __future__ import annotations

import io
import threading
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from penstock.backends.base import Context
from penstock.backends.errors import InvalidInput, MemoryFull, TooLarge
from penstock.backends.image.decode import DecodeMat, DecodeMatParams, decode_for
from penstock.backends.image.tensor import decode as decode_module
from penstock.backends.image.tensor.decode import DecodeTensor
from penstock.backends.item import Item

torch = pytest.importorskip("torch")


def encode(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def turned(photo: Any, orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(photo, "JPEG", exif=exif)


def decode_mat(encoded: Any) -> Any:
    item: Item = {"data": encoded}
    backend = DecodeMat()
    backend.init(DecodeMatParams(max_pixels=10**9), Context())
    backend.forward([item])
    return item["result"]


@pytest.fixture
def decode(make: Any) -> Any:
    """Run DecodeTensor on the CPU and return the item."""

    def decode(data: Any, **params: Any) -> Any:
        item = {"data": data}
        make(DecodeTensor, **params).forward([item])
        if "result" in item:
            result = item["result"]
            assert result.dtype == torch.uint8 and result.is_contiguous() and result.ndim == 4
            assert result.untyped_storage().nbytes() == result.numel()
        return item

    return decode


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_pixels_are_decodemats(decode: Any, photo: Any, kind: str) -> None:
    encoded = encode(photo, kind)
    bgr = decode_mat(encoded)
    colors = {
        "bgr": bgr,
        "rgb": bgr[:, :, ::-1],
        "gray": cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None],
    }
    for color, expected in colors.items():
        item = decode(encoded, color=color)
        assert np.array_equal(item["result"][0].permute(1, 2, 0).numpy(), expected)
        assert (item["color"], item["data_format"]) == (color, "nchw")
        for data_format in ("nhwc", "hwc"):
            rows = decode(encoded, color=color, data_format=data_format)
            assert np.array_equal(rows["result"][0].numpy(), expected)
            assert (rows["color"], rows["data_format"]) == (color, "nhwc")


def test_rgb_is_the_default(decode: Any) -> None:
    item = decode(encode(Image.new("RGB", (4, 3), "red"), "PNG"))
    assert item["result"][0, :, 0, 0].tolist() == [255, 0, 0] and item["result"].shape == (
        1,
        3,
        3,
        4,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_by_exif(decode: Any, photo: Any, orientation: int) -> None:
    encoded = turned(photo, orientation)
    assert np.array_equal(
        decode(encoded, color="bgr")["result"][0].permute(1, 2, 0).numpy(), decode_mat(encoded)
    )


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)]
)
def test_every_type_of_bytes(decode: Any, photo: Any, wrap: Any) -> None:
    assert decode(wrap(encode(photo, "PNG")))["result"].shape == (1, 3, 427, 640)


@pytest.mark.parametrize("data", ["text", None, np.zeros((4, 4), np.uint8)])
def test_other_types_are_a_type_error(decode: Any, data: Any) -> None:
    with pytest.raises(TypeError, match="DecodeTensor: expected bytes"):
        decode(data)


def test_soft_failures_leave_the_other_items_alone(make: Any, photo: Any) -> None:
    jpeg = encode(photo, "JPEG")
    batch: list[Item] = [{"data": jpeg}, {"data": b"no"}, {"data": jpeg[:-5000]}, {"data": jpeg}]
    make(DecodeTensor).forward(batch)
    assert ["result" in item for item in batch] == [True, False, False, True]
    assert all(type(item["error"]) is InvalidInput and "color" not in item for item in batch[1:3])


def test_too_large(decode: Any, photo: Any) -> None:
    assert type(decode(encode(photo, "PNG"), max_pixels=640 * 427 - 1)["error"]) is TooLarge


@pytest.mark.parametrize(
    "params",
    [
        {"color": "hsv"},
        {"data_format": "chw"},
        {"device_id": -1},
        {"decoder": "gpu"},
        {"decoder": "nvimgcodec", "nvjpeg": True},
    ],
)
def test_wrong_parameters_are_a_load_error(make: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(DecodeTensor, **params)


def test_images_of_a_batch_are_decoded_at_once(
    make: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, before = threading.Barrier(4, timeout=60), set(threading.enumerate())

    def wait_for_others(*args: Any) -> Any:
        together.wait()
        return decode_for(*args)

    monkeypatch.setattr(decode_module, "threads_per_instance", lambda instances: 8 // instances)
    monkeypatch.setattr(decode_module, "decode_for", wait_for_others)
    backend = make(DecodeTensor, Context(node="test", device="cpu", instances=2))
    jpeg = encode(photo, "JPEG")
    files = [encode(photo, "PNG"), encode(photo, "WEBP"), jpeg, jpeg[:2000] + jpeg[-2:], b"text"]
    batch: list[Item] = [{"data": file} for file in files]
    backend.forward(batch)
    for item in batch[:3]:
        pixels = item["result"][0].permute(1, 2, 0).numpy()[:, :, ::-1]
        assert np.array_equal(pixels, decode_mat(item["data"]))
        assert item["color"] == "rgb" and item["data_format"] == "nchw"
    assert all("result" not in item for item in batch[3:])
    assert "truncated" in str(batch[3]["error"]) and "not an image" in str(batch[4]["error"])
    backend.close()
    assert set(threading.enumerate()) <= before


def test_an_error_in_any_of_the_threads_fails_the_batch(
    make: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=60)

    def fail(_: Any, item: Item, *args: Any) -> Any:
        together.wait()
        if item["fails"]:
            raise RuntimeError("broken")
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(decode_module, "threads_per_instance", lambda _: 3)
    monkeypatch.setattr(decode_module, "decode_for", fail)
    backend = make(DecodeTensor)
    for failing in range(3):
        batch = [{"data": encode(photo, "JPEG"), "fails": at == failing} for at in range(3)]
        with pytest.raises(RuntimeError, match="broken"):
            backend.forward(batch)
    backend.close()


def test_an_image_without_memory_beside_others_is_decoded_alone(
    make: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded at once may need more than one after the other."""
    lacking: set[int] = set()

    def decode(resizing: Any, item: Item, *args: Any) -> Any:
        if item["lacks"] and id(item) not in lacking:
            lacking.add(id(item))
            raise MemoryFull("an image needs 9 bytes")
        return decode_for(resizing, item, *args)

    monkeypatch.setattr(decode_module, "threads_per_instance", lambda _: 2)
    monkeypatch.setattr(decode_module, "decode_for", decode)
    backend = make(DecodeTensor)
    batch: list[Item] = [{"data": encode(photo, "PNG"), "lacks": at != 1} for at in range(3)]
    backend.forward(batch)
    assert len(lacking) == 2 and not any("error" in item for item in batch)
    lacking.clear()
    lone: list[Item] = [{"data": encode(photo, "PNG"), "lacks": True}]
    backend.forward(lone)
    assert isinstance(lone[0]["error"], MemoryFull)
    backend.close()


def test_a_batch_has_two_images_for_each_thread(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are in memory at once. With one processor a batch is one image."""
    monkeypatch.setattr(decode_module, "threads_per_instance", lambda instances: 4 // instances)
    for instances, expected in ((4, 1), (2, 4), (1, 8)):
        backend = make(DecodeTensor, Context(node="test", device="cpu", instances=instances))
        assert backend.max == expected
        backend.close()
