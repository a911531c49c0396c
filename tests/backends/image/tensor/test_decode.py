"""DecodeTensor on the CPU, the files that nvJPEG gets, and those that it refuses."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput, TooLarge
from penstock.backends.image.decode import DecodeMat, DecodeMatParams, checked_header
from penstock.backends.image.tensor import decode as decode_module
from penstock.backends.image.tensor.decode import (
    DecodeTensor,
    find_nvjpeg,
    refused_as_none,
    suits_nvjpeg,
)
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


@pytest.mark.parametrize("params", [{"color": "hsv"}, {"data_format": "chw"}, {"device_id": -1}])
def test_wrong_parameters_are_a_load_error(make: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(DecodeTensor, **params)


# nvJPEG


def adobe_transform(encoded: bytes) -> int | None:
    header = checked_header(encoded, 10**9).jpeg
    assert header is not None
    return header.adobe_transform


def adobe_rgb(photo: Any) -> Any:
    """A JPEG with channels red, green and blue, which Adobe's marker calls untransformed."""
    encoded = encode(photo, "JPEG", keep_rgb=True)
    assert adobe_transform(encoded) == 0
    return encoded


def ycck(photo: Any) -> Any:
    """A JPEG in CMYK whose Adobe marker says that its first three channels are transformed."""
    encoded = bytearray(encode(Image.fromarray(photo).convert("CMYK"), "JPEG"))
    encoded[encoded.index(b"Adobe") + 11] = 2
    assert adobe_transform(bytes(encoded)) == 2
    return bytes(encoded)


CASES: dict[str, tuple[Callable[[Any], bytes], bool]] = {
    "plain": (lambda photo: encode(photo, "JPEG"), True),
    "progressive": (lambda photo: encode(photo, "JPEG", progressive=True), True),
    "grey": (lambda photo: encode(photo[:, :, 0], "JPEG"), True),
    "upright": (lambda photo: turned(photo, 1), True),
    "no orientation": (lambda photo: turned(photo, 0), True),
    "turned": (lambda photo: turned(photo, 6), False),
    "mirrored": (lambda photo: turned(photo, 2), False),
    # Pillow warns about it, which is an error in tests.
    "damaged exif": (
        lambda photo: encode(photo, "JPEG", dpi=(72, 72), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        False,
    ),
    "cmyk": (lambda photo: encode(Image.fromarray(photo).convert("CMYK"), "JPEG"), False),
    "ycck": (ycck, False),
    "rgb": (adobe_rgb, False),
    "png": (lambda photo: encode(photo, "PNG"), False),
    "webp": (lambda photo: encode(photo, "WEBP"), False),
}


@pytest.mark.parametrize("case", CASES)
def test_files_that_nvjpeg_gets(photo: Any, case: str) -> None:
    make_file, expected = CASES[case]
    assert suits_nvjpeg(checked_header(make_file(photo), 10**9)) is expected


@pytest.fixture
def with_nvjpeg(make: Any) -> Any:
    """DecodeTensor with another decoder in place of nvJPEG."""

    def with_nvjpeg(nvjpeg: Any, **params: Any) -> Any:
        backend = make(DecodeTensor, **params)
        backend.nvjpeg = nvjpeg
        return backend

    return with_nvjpeg


@pytest.mark.parametrize("data_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_the_images_of_nvjpeg_get_the_wanted_order(
    with_nvjpeg: Any, photo: Any, color: str, data_format: str
) -> None:
    backend = with_nvjpeg(
        lambda files: [torch.from_numpy(photo.transpose(2, 0, 1).copy()) for _ in files],
        color=color,
        data_format=data_format,
    )
    item: Item = {"data": encode(photo, "JPEG")}
    backend.forward([item])
    channels = {
        "rgb": photo,
        "bgr": photo[:, :, ::-1],
        "gray": cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[:, :, None],
    }[color]
    expected = channels if data_format == "nhwc" else channels.transpose(2, 0, 1)
    assert np.array_equal(item["result"][0].numpy(), expected) and item["result"].is_contiguous()
    assert (item["color"], item["data_format"]) == (color, data_format)


def test_nvjpeg_decodes_a_batch_at_once_and_the_cpu_what_it_refuses(
    with_nvjpeg: Any, photo: Any
) -> None:
    calls = []
    jpeg, other, refused, png = (
        encode(photo, "JPEG"),
        encode(photo[::-1], "JPEG"),
        encode(photo[:, ::-1], "JPEG"),
        encode(photo, "PNG"),
    )
    planes = {jpeg: photo, other: photo[::-1]}

    def decode(files: Any) -> Any:
        calls.append(files)
        if refused in files:
            raise RuntimeError("nvjpegDecode failed: 5")
        return [torch.from_numpy(planes[file].transpose(2, 0, 1).copy()) for file in files]

    batch: list[Item] = [
        {"data": file} for file in (jpeg, png, refused, b"\xff\xd8\xff\xd9", other)
    ]
    with_nvjpeg(decode, color="bgr").forward(batch)
    assert calls == [[jpeg, refused, other], [jpeg], [refused], [other]]
    for index, expected in (
        (0, photo[:, :, ::-1]),
        (1, photo[:, :, ::-1]),
        (2, decode_mat(refused)),
        (4, photo[::-1, :, ::-1]),
    ):
        assert np.array_equal(batch[index]["result"][0].permute(1, 2, 0).numpy(), expected)
        assert batch[index]["color"] == "bgr"
    assert isinstance(batch[3]["error"], InvalidInput) and "result" not in batch[3]
    calls.clear()
    with_nvjpeg(decode).forward([{"data": jpeg}, {"data": other}])
    assert calls == [[jpeg, other]]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_an_error_of_the_device_is_not_a_refusal(error: Any) -> None:
    def fail(files: list[bytes]) -> list[Any]:
        raise error

    with pytest.raises(RuntimeError) as caught:
        refused_as_none(fail, [b"", b""])
    assert caught.value is error


def test_nvjpeg_that_is_asked_for_and_missing_is_a_load_error() -> None:
    with pytest.raises(BackendError, match="nvjpeg = true needs torchvision with nvJPEG"):
        find_nvjpeg(torch.device("cuda", 99))


class Half:
    """A GPU's half that computes on the CPU."""

    on_gpu = True

    def __init__(self, *_: Any) -> None:
        self.device = torch.device("cpu")

    def errors(self, _: str) -> Any:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """A GPU, and a decoder like nvJPEG: what a file lacks is taken from the image before.

    Return the batches that it decodes.
    """
    from penstock.backends.gpu import device

    calls: list[list[bytes]] = []
    memory = torch.zeros(3, 427, 640, dtype=torch.uint8)

    def nvjpeg(files: list[bytes]) -> list[Any]:
        calls.append(files)
        images = []
        for file in files:
            pixels: Any = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
            written = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
            memory[:] = torch.where(written == 128, memory, written)
            images.append(memory.clone())
        return images

    monkeypatch.setattr(device, "choose_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(device, "DeviceHalf", Half)
    monkeypatch.setattr(decode_module, "find_nvjpeg", lambda _: nvjpeg)
    return calls


def cut(encoded: bytes) -> bytes:
    return encoded[: len(encoded) // 2].rstrip(b"\xff") + b"\xff\xd9"


def test_a_gpu_shows_no_part_of_another_image(make: Any, photo: Any, stand_in: Any) -> None:
    backend = make(DecodeTensor)
    batch: list[Item] = [{"data": encode(photo, "JPEG")}, {"data": cut(encode(photo, "JPEG"))}]
    for item in batch:
        backend.forward([item])
    assert stand_in == [] and backend.max == 1
    assert np.array_equal(
        batch[0]["result"][0].permute(1, 2, 0).numpy()[:, :, ::-1], decode_mat(batch[0]["data"])
    )
    assert "truncated" in str(batch[1]["error"]) and "result" not in batch[1]


def test_nvjpeg_is_used_where_it_is_asked_for(make: Any, photo: Any, stand_in: Any) -> None:
    jpeg = encode(photo, "JPEG")
    backend = make(DecodeTensor, nvjpeg=True)
    batch: list[Item] = [{"data": jpeg}, {"data": encode(photo, "PNG")}, {"data": jpeg[:-9]}]
    backend.forward(batch)
    assert stand_in == [[jpeg]] and backend.max > 1
    assert ["result" in item for item in batch] == [True, True, False]


def test_nvjpeg_on_the_cpu_is_said_to_have_no_effect(
    make: Any, photo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make(DecodeTensor, nvjpeg=True)
    assert "DecodeTensor: nvjpeg = true has no effect on cpu: the CPU decodes" in caplog.text
    item: Item = {"data": cut(encode(photo, "JPEG"))}
    backend.forward([item])
    assert "truncated" in str(item["error"])
