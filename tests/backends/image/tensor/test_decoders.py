"""The decoders of a GPU: which files they get, and what happens to those that they refuse.

nvImageCodec's own tests run on the CPU where it is installed: it needs no GPU for that.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput, TooLarge
from penstock.backends.image.decode import DecodeMat, DecodeMatParams, checked_header
from penstock.backends.image.tensor import decode as decode_module
from penstock.backends.image.tensor import decoders as decoders_module
from penstock.backends.image.tensor.decode import DecodeTensor
from penstock.backends.image.tensor.decoders import (
    NvImageCodec,
    NvJpeg,
    find_nvimgcodec,
    find_nvjpeg,
)
from penstock.backends.item import Item
from penstock.backends.memory import budget

torch = pytest.importorskip("torch")


def encode(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def turned(photo: Any, orientation: int, kind: str = "JPEG") -> Any:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(photo, kind, exif=exif)


def decode_mat(encoded: Any) -> Any:
    item: Item = {"data": encoded}
    backend = DecodeMat()
    backend.init(DecodeMatParams(max_pixels=10**9), Context())
    backend.forward([item])
    return item["result"]


# which files they get


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


CASES: dict[str, tuple[Callable[[Any], bytes], bool, bool]] = {
    "plain": (lambda photo: encode(photo, "JPEG"), True, True),
    "progressive": (lambda photo: encode(photo, "JPEG", progressive=True), True, True),
    "grey": (lambda photo: encode(photo[:, :, 0], "JPEG"), True, True),
    "upright": (lambda photo: turned(photo, 1), True, True),
    "no orientation": (lambda photo: turned(photo, 0), True, True),
    "turned": (lambda photo: turned(photo, 6), False, True),
    "mirrored": (lambda photo: turned(photo, 2), False, True),
    # Pillow warns about it, which is an error in tests.
    "damaged exif": (
        lambda photo: encode(photo, "JPEG", dpi=(72, 72), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        False,
        False,
    ),
    "cmyk": (lambda photo: encode(Image.fromarray(photo).convert("CMYK"), "JPEG"), False, False),
    "ycck": (ycck, False, False),
    "rgb": (adobe_rgb, False, False),
    "png": (lambda photo: encode(photo, "PNG"), False, True),
    "webp": (lambda photo: encode(photo, "WEBP"), False, True),
    "tiff": (lambda photo: encode(photo, "TIFF"), False, True),
    "jpeg 2000": (lambda photo: encode(photo[:64, :64], "JPEG2000"), False, True),
    "gif": (lambda photo: encode(photo[:64, :64], "GIF"), False, False),
    "icon": (lambda photo: encode(photo[:64, :64], "ICO"), False, False),
}


@pytest.mark.parametrize("case", CASES)
def test_files_that_a_decoder_gets(photo: Any, case: str) -> None:
    make_file, nvjpeg, nvimgcodec = CASES[case]
    header = checked_header(make_file(photo), 10**9)
    on_cpu = NvImageCodec(standing_in(), torch.device("cpu"), None, 1, 10**9)
    assert (NvJpeg(lambda _: []).suits(header), on_cpu.suits(header)) == (nvjpeg, nvimgcodec)


# nvJPEG


@pytest.fixture
def with_nvjpeg(make: Any) -> Any:
    """DecodeTensor with another decoder in place of nvJPEG."""

    def with_nvjpeg(nvjpeg: Any, **params: Any) -> Any:
        backend = make(DecodeTensor, **params)
        backend.decoder = NvJpeg(nvjpeg)
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
        NvJpeg(fail).decode([b"", b""])
    assert caught.value is error


def test_nvjpeg_that_is_asked_for_and_missing_is_a_load_error() -> None:
    with pytest.raises(BackendError, match='decoder = "nvjpeg" needs torchvision'):
        find_nvjpeg(torch.device("cuda", 99))


class Half:
    """A GPU's half that computes on the CPU."""

    on_gpu = True
    stream = None

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
    monkeypatch.setattr(decode_module, "find_nvjpeg", lambda _: NvJpeg(nvjpeg))
    return calls


def cut(encoded: bytes) -> bytes:
    return encoded[: len(encoded) // 2].rstrip(b"\xff") + b"\xff\xd9"


def test_a_gpu_shows_no_part_of_another_image(make: Any, photo: Any, stand_in: Any) -> None:
    backend = make(DecodeTensor)
    batch: list[Item] = [{"data": encode(photo, "JPEG")}, {"data": cut(encode(photo, "JPEG"))}]
    for item in batch:
        backend.forward([item])
    assert stand_in == []
    assert np.array_equal(
        batch[0]["result"][0].permute(1, 2, 0).numpy()[:, :, ::-1], decode_mat(batch[0]["data"])
    )
    assert "truncated" in str(batch[1]["error"]) and "result" not in batch[1]


@pytest.mark.parametrize("key", [{"decoder": "nvjpeg"}, {"nvjpeg": True}], ids=str)
def test_nvjpeg_is_used_where_it_is_asked_for(
    make: Any, photo: Any, stand_in: Any, key: dict[str, Any]
) -> None:
    jpeg = encode(photo, "JPEG")
    backend = make(DecodeTensor, **key)
    batch: list[Item] = [{"data": jpeg}, {"data": encode(photo, "PNG")}, {"data": jpeg[:-9]}]
    backend.forward(batch)
    assert stand_in == [[jpeg]] and backend.max > 1
    assert ["result" in item for item in batch] == [True, True, False]


@pytest.mark.parametrize("decoder", ["nvjpeg", "nvimgcodec"])
def test_a_decoder_of_a_gpu_is_said_to_have_no_effect_on_the_cpu(
    make: Any, photo: Any, caplog: pytest.LogCaptureFixture, decoder: str
) -> None:
    backend = make(DecodeTensor, decoder=decoder)
    assert f'decoder = "{decoder}" has no effect on cpu: the CPU decodes' in caplog.text
    item: Item = {"data": cut(encode(photo, "JPEG"))}
    backend.forward([item])
    assert "truncated" in str(item["error"])


# nvImageCodec


class Stream:
    """A parsed file. nvImageCodec raises for what it can't parse when it is asked for the size."""

    def __init__(self, file: bytes) -> None:
        self.file = file

    @property
    def height(self) -> int:
        return int(self._pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self._pixels.shape[1])

    @functools.cached_property
    def _pixels(self) -> Any:
        pixels = cv2.imdecode(np.frombuffer(self.file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise RuntimeError("Failed to get image info")
        return pixels

    def planes(self) -> Any:
        return self._pixels.transpose(2, 0, 1).copy()


def standing_in(refuses: Callable[[bytes], bool] = lambda _: False) -> Any:
    """A module with the names of nvImageCodec that are used, which decodes by OpenCV.

    `calls` holds the batches, with None for what was not parsed.
    """
    calls: list[list[bytes | None]] = []

    def image(stream: Stream | None) -> Any:
        if stream is None or refuses(stream.file):
            return None
        return stream.planes()

    def decode(streams: Any, *, params: Any, cuda_stream: int) -> Any:
        calls.append([stream and stream.file for stream in streams])
        return [image(stream) for stream in streams]

    return types.SimpleNamespace(
        calls=calls,
        CodeStream=Stream,
        Decoder=lambda **_: types.SimpleNamespace(decode=decode),
        DecodeParams=types.SimpleNamespace,
        ColorSpec=types.SimpleNamespace(SRGB=1),
        SampleFormat=types.SimpleNamespace(P_RGB=3),
        Backend=lambda kind: kind,
        BackendKind=types.SimpleNamespace(CPU_ONLY=1),
        NVIMGCODEC_DEVICE_CPU_ONLY=-99999,
    )


@pytest.fixture(params=["stand-in", "installed"])
def library(request: pytest.FixtureRequest) -> Any:
    if request.param == "stand-in":
        return standing_in()
    return pytest.importorskip("nvidia.nvimgcodec")


@pytest.fixture
def with_nvimgcodec(make: Any) -> Any:
    """DecodeTensor with nvImageCodec, or what stands in for it, on the CPU."""

    def with_nvimgcodec(library: Any, **params: Any) -> Any:
        backend = make(DecodeTensor, **params)
        backend.decoder = NvImageCodec(library, torch.device("cpu"), None, 1, backend.max_pixels)
        return backend

    return with_nvimgcodec


@pytest.mark.parametrize(
    ("color", "data_format"), [("rgb", "nchw"), ("bgr", "nhwc"), ("gray", "nchw")]
)
def test_a_batch_of_all_kinds_has_the_pixels_of_decodemat(
    with_nvimgcodec: Any, photo: Any, library: Any, color: str, data_format: str
) -> None:
    photo = photo[::3, ::3]
    files = [
        *(encode(photo, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")),
        encode(photo[:60, :80], "JPEG2000"),
        *(turned(photo, orientation) for orientation in (3, 6)),
        turned(photo, 8, "PNG"),
        encode(Image.fromarray(photo).convert("CMYK"), "JPEG"),
        encode(photo[::-1], "JPEG", subsampling=0),
        encode(photo[:, :, 0], "JPEG"),
    ]
    batch: list[Item] = [{"data": file} for file in (*files, b"none", files[0][:-9])]
    with_nvimgcodec(library, color=color, data_format=data_format).forward(batch)
    for item in batch[:-2]:
        bgr = decode_mat(item["data"])
        expected = {
            "rgb": bgr[:, :, ::-1],
            "bgr": bgr,
            "gray": cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None],
        }[color]
        result = item["result"]
        assert result.is_contiguous() and result.untyped_storage().nbytes() == result.numel()
        pixels = result[0] if data_format == "nhwc" else result[0].permute(1, 2, 0)
        assert np.array_equal(pixels.numpy(), expected)
        assert (item["color"], item["data_format"]) == (color, data_format)
    assert all(isinstance(item["error"], InvalidInput) for item in batch[-2:])


def test_one_call_decodes_a_batch_and_the_cpu_what_it_refuses(
    with_nvimgcodec: Any, photo: Any
) -> None:
    jpeg, png, refused = encode(photo, "JPEG"), encode(photo, "PNG"), encode(photo[::-1], "PNG")
    library = standing_in(lambda file: file == refused)
    items: list[Item] = [{"data": file} for file in (jpeg, refused, png)]
    with_nvimgcodec(library, color="bgr").forward(items)
    assert library.calls == [[jpeg, refused, png]]
    assert np.array_equal(items[1]["result"][0].permute(1, 2, 0).numpy(), decode_mat(refused))


def test_a_file_in_which_it_reads_a_larger_size_goes_to_the_cpu(
    with_nvimgcodec: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = standing_in()
    monkeypatch.setattr(Stream, "height", 10**6)
    item: Item = {"data": encode(photo, "PNG")}
    with_nvimgcodec(library).forward([item])
    assert library.calls == [[None]] and "result" in item


def test_a_large_image_is_refused_before_it_is_decoded(with_nvimgcodec: Any, photo: Any) -> None:
    library = standing_in()
    item: Item = {"data": encode(photo, "PNG")}
    with_nvimgcodec(library, max_pixels=100).forward([item])
    assert library.calls == [] and type(item["error"]) is TooLarge


def test_images_that_do_not_fit_together_are_decoded_one_by_one(
    with_nvimgcodec: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = standing_in()
    png = encode(photo, "PNG")
    backend = with_nvimgcodec(library)
    used = budget.used
    backend.forward([{"data": png}])
    assert library.calls == [[png]] and budget.used <= used
    monkeypatch.setattr(budget, "limit", used + 12 * 427 * 640)
    items: list[Item] = [{"data": png}, {"data": png}]
    backend.forward(items)
    assert library.calls == [[png], [png]] and all("result" in item for item in items)


class Decoded:
    """An image in the memory of a GPU, as nvImageCodec describes it."""

    def __init__(self, planes: Any) -> None:
        self.planes = torch.from_numpy(planes)
        self.capacity = planes.nbytes

    def to_dlpack(self, stream: int) -> Any:
        assert stream == -1
        return torch.utils.dlpack.to_dlpack(self.planes)


def test_on_a_gpu_memory_is_used_again_and_formats_are_asked_for_once(
    photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[Any] = []
    used: list[Any] = []

    def decode(streams: Any, *, params: Any, cuda_stream: int, images: Any = None) -> Any:
        assert cuda_stream == 7
        used.append(images)
        return [stream and Decoded(stream.planes()) for stream in streams]

    def decoder(**options: Any) -> Any:
        decoders.append(options)
        if options["backends"] is None:
            return types.SimpleNamespace(decode=decode)
        return types.SimpleNamespace(  # of GPUs only: no PNG
            decode=lambda streams, **_: [
                None if stream.file.startswith(b"\x89PNG") else Decoded(stream.planes())
                for stream in streams
            ]
        )

    library = standing_in()
    library.Decoder = decoder
    for kind in ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"):
        setattr(library.BackendKind, kind, kind)
    monkeypatch.setattr(decoders_module, "_on_gpu", {})
    monkeypatch.setattr(decoders_module, "MAX_KEPT_BYTES", photo[::2, ::2].nbytes)
    stream: Any = types.SimpleNamespace(cuda_stream=7)
    found, other = (
        NvImageCodec(library, torch.device("cuda", 0), stream, 2, max_pixels)
        for max_pixels in (10**9, 100)  # the bound is for files of clients
    )
    assert found.on_gpu == other.on_gpu == ["JPEG", "JPEG2000", "TIFF", "WEBP"]
    assert [options["backends"] is None for options in decoders] == [False, True, True]
    small, large = encode(photo[::2, ::2], "PNG"), encode(photo, "PNG")
    used.clear()
    for files in ([small, small], [small, large], [small], [small, small], [large], [b"no", small]):
        for image, file in zip(found.decode(files), files, strict=True):
            if file != b"no":
                assert image is not None
                bgr = image.permute(1, 2, 0).numpy()[:, :, ::-1]
                assert np.array_equal(bgr, decode_mat(file))
            else:
                assert image is None
    # Kept are the sample that was decoded at load, then two images.
    assert [images and len(images) for images in used] == [None, 2, 1, 2, 1, 2]


def test_a_missing_library_is_a_load_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(BackendError, match=r"pip install 'penstock-serve\[nvimgcodec\]'"):
        find_nvimgcodec(torch.device("cuda", 0), None, instances=1, max_pixels=1)


def test_what_decodes_where_is_logged(
    make: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = NvImageCodec(standing_in(), torch.device("cpu"), None, 1, 10**9)
    monkeypatch.setattr(decode_module, "find_nvimgcodec", lambda *_, **__: found)
    caplog.set_level(logging.INFO, "penstock.backends.image")
    assert make(DecodeTensor, decoder="nvimgcodec").max > 1
    assert "is nvJPEG, nvidia-nvjpeg, installed?" in caplog.text
    caplog.clear()
    found.on_gpu = ["JPEG", "TIFF"]
    make(DecodeTensor, decoder="nvimgcodec")
    assert "decodes on cpu: JPEG, TIFF; on the CPU: JPEG2000, PNG, WEBP" in caplog.text
