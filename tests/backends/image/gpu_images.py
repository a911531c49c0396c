"""Images on a GPU, compared with OpenCV: decoders, CV-CUDA's operations, streams.

scripts/gpu_check runs this file. pytest doesn't collect it on its own, because of its name. Without
a GPU its tests run on the CPU, and compare OpenCV with itself. What was measured is written to
images.json in the folder that OUT names.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock import Pipeline, pipe
from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput, TooLarge
from penstock.backends.image.crop import CropResizeMat, PerspectiveTransformMat
from penstock.backends.image.decode import decode
from penstock.backends.image.tensor import cv_cuda, sampling
from penstock.backends.image.tensor.backend import ImageTensorBackend
from penstock.backends.image.tensor.convert import CvtColorTensor
from penstock.backends.image.tensor.crop import (
    CenterCropTensor,
    CropResizeTensor,
    CropTensor,
    PerspectiveTransformTensor,
    WarpAffineTensor,
)
from penstock.backends.image.tensor.decode import DecodeTensor, DecodeTensorParams
from penstock.backends.image.tensor.resize import ResizePadTensor, ResizeTensor
from penstock.backends.item import Item

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda:0" if ON_GPU else "cpu"
CONTEXT = Context(node="test", device=DEVICE)
EXACT_WARPS = int(cv2.__version__.split(".")[0]) >= 5
"""OpenCV 4 rounds the coordinates of warps to 1/32 of a pixel."""

SEEN: dict[str, Any] = {}
BACKENDS_READY: dict[Any, DecodeTensor] = {}
"""To create one with nvImageCodec takes half a second."""


@pytest.fixture(scope="module")
def photo() -> Any:
    """A photograph, 427×640×3, uint8: one is enough here, where time is short."""
    image = load_sample_image("china.jpg").copy()
    image.flags.writeable = False
    return image


@pytest.fixture(scope="module")
def tensor(photo: Any) -> Any:
    return torch.from_numpy(photo.transpose(2, 0, 1)[None].copy())


@pytest.fixture(scope="module")
def decoding() -> Iterator[Any]:
    """Return DecodeTensor with these parameters, the same one for the same parameters."""

    def decoding(**params: Any) -> DecodeTensor:
        key = tuple(sorted(params.items()))
        if key not in BACKENDS_READY:
            backend = DecodeTensor()
            backend.init(DecodeTensorParams.model_validate(params), CONTEXT)
            BACKENDS_READY[key] = backend
        return BACKENDS_READY[key]

    yield decoding
    for backend in BACKENDS_READY.values():
        backend.close()
    BACKENDS_READY.clear()


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """Write what was measured."""
    yield
    text = json.dumps(SEEN, indent=1)
    print(text)
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "images.json").write_text(text)


@pytest.fixture(params=["CV-CUDA", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this library compute pixels on the GPU."""
    if request.param == "torch":
        monkeypatch.setattr(cv_cuda, "find_cvcuda", lambda: None)
    elif ON_GPU and cv_cuda.find_cvcuda() is None:
        pytest.skip("CV-CUDA is not installed")
    return str(request.param)


@pytest.fixture(params=["nvjpeg", "nvimgcodec"], scope="module")
def decoder(request: pytest.FixtureRequest, decoding: Any) -> str:
    if ON_GPU:
        try:
            decoding(decoder=request.param, color="bgr")
        except BackendError as error:
            pytest.skip(str(error))
    return str(request.param)


def encode(photo: Any, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (photo if isinstance(photo, Image.Image) else Image.fromarray(photo)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def turned(photo: Any, orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(photo, kind, exif=exif)


def rows(result: Any) -> Any:
    """Return 1×C×H×W on any device as H×W×C, in whole numbers that can be subtracted."""
    return result[0].permute(1, 2, 0).cpu().numpy().astype(float)


def test_the_libraries() -> None:
    names = ("cvcuda", "nvidia.nvimgcodec", "torchvision", "cv2")
    for name in names:
        try:
            module = __import__(name, fromlist=["x"])
            SEEN[name] = getattr(module, "__version__", "?")
        except ImportError as error:
            SEEN[name] = f"missing: {error}"
    SEEN["pixels by"] = cv_cuda.name() if ON_GPU else "no GPU"


# decoders


KINDS: dict[str, dict[str, Any]] = {
    "JPEG 4:2:0": {"quality": 90},
    "JPEG 4:4:4": {"subsampling": 0, "quality": 90},
    "JPEG progressive": {"progressive": True},
    "PNG": {"kind": "PNG"},
    "WebP": {"kind": "WEBP"},
    "WebP lossless": {"kind": "WEBP", "lossless": True},
    "TIFF": {"kind": "TIFF"},
    "TIFF LZW": {"kind": "TIFF", "compression": "tiff_lzw"},
    "JPEG 2000": {"kind": "JPEG2000"},
    "BMP": {"kind": "BMP"},
    "GIF": {"kind": "GIF"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_as_by_opencv(decoding: Any, photo: Any, decoder: str, kind: str) -> None:
    file = encode(photo, **KINDS[kind])
    batch: list[Item] = [{"data": file} for _ in range(3)]
    backend = decoding(decoder=decoder, color="bgr")
    for item in batch if backend.max == 1 else [None]:
        backend.forward(batch if item is None else [item])
    expected = decode(file, 10**9).astype(float)
    differences = [np.abs(rows(item["result"]) - expected) for item in batch]
    assert all(str(item["result"].device) == DEVICE for item in batch)
    mean, largest = float(np.mean(differences)), float(np.max(differences))
    assert mean < 1.5, (mean, largest)
    found = SEEN.setdefault(f"{decoder}, levels from OpenCV (mean, largest)", {})
    found[kind] = [round(mean, 4), largest]


def test_turned_by_exif(decoding: Any, photo: Any, decoder: str) -> None:
    for orientation in range(1, 9):
        for kind in ("JPEG", "PNG", "WEBP"):
            file = turned(photo[:100, :160], orientation, kind)
            item: Item = {"data": file}
            decoding(decoder=decoder, color="bgr").forward([item])
            expected = decode(file, 10**9)
            assert rows(item["result"]).shape == expected.shape, (kind, orientation)
            difference = np.abs(rows(item["result"]) - expected)
            assert difference.mean() < 2, (kind, orientation)


def test_colours_and_layouts(decoding: Any, photo: Any, decoder: str) -> None:
    for file in (encode(photo), encode(photo, "PNG"), encode(photo[:, :, 0])):
        bgr = decode(file, 10**9)
        expected = {
            "rgb": bgr[:, :, ::-1],
            "bgr": bgr,
            "gray": cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None],
        }
        for color, pixels in expected.items():
            for data_format in ("nchw", "nhwc"):
                item: Item = {"data": file}
                backend = decoding(decoder=decoder, color=color, data_format=data_format)
                backend.forward([item])
                result = item["result"]
                assert result.is_contiguous() and (item["color"], item["data_format"]) == (
                    color,
                    data_format,
                )
                assert result.untyped_storage().nbytes() == result.numel()
                planes = result if data_format == "nchw" else result.permute(0, 3, 1, 2)
                assert np.abs(rows(planes) - pixels).mean() < 1.5


def test_what_a_gpu_would_read_differently_is_decoded_as_by_opencv(
    decoding: Any, photo: Any, decoder: str
) -> None:
    files = [
        encode(Image.fromarray(photo).convert("CMYK")),
        encode(photo, keep_rgb=True),
        encode(photo, "GIF"),
        encode(photo, "BMP"),
        encode(Image.fromarray(photo).convert("P"), "PNG"),
        encode(Image.fromarray(np.dstack([photo, photo[:, :, 0]]), "RGBA"), "PNG"),
    ]
    for file in files:
        item: Item = {"data": file}
        decoding(decoder=decoder, color="bgr").forward([item])
        assert np.array_equal(rows(item["result"]), decode(file, 10**9))


def test_refused_before_decoding(decoding: Any, photo: Any, decoder: str) -> None:
    backend = decoding(decoder=decoder, max_pixels=1000)
    for file, error in ((encode(photo), TooLarge), (b"", InvalidInput), (b"hello", InvalidInput)):
        item: Item = {"data": file}
        backend.forward([item])
        assert type(item["error"]) is error and "result" not in item


def test_damaged_files_spoil_no_others(photo: Any, decoder: str) -> None:
    """Each batch has good files between cut and changed ones. The good ones stay right."""
    draw = np.random.default_rng(0)
    good = [encode(photo[:200, :300]), encode(photo[:200, :300], "PNG")]
    expected = [decode(file, 10**9)[:, :, ::-1] for file in good]
    config = {"backend": "DecodeTensor", "decoder": decoder, "max": 16, "device": DEVICE}
    outcomes = {"result": 0, "error": 0}
    kinds = ("JPEG", "PNG", "WEBP", "TIFF", "JPEG2000")
    with pipe(config) as run:
        for _ in range(12):
            items: list[Item] = []
            for kind in kinds:
                file = bytearray(encode(photo[:120, :160], kind))
                if draw.random() < 0.5:
                    del file[int(draw.integers(20, len(file))) :]
                    file += b"\xff\xd9" if kind == "JPEG" else b""
                else:
                    for _ in range(4):
                        file[int(draw.integers(20, len(file)))] ^= 1 << int(draw.integers(8))
                items.append({"data": bytes(file)})
            items += [{"data": file} for file in good]
            draw.shuffle(items)
            run(items)
            for item in items:
                if item["data"] in good:
                    pixels = expected[good.index(item["data"])]
                    assert np.abs(rows(item["result"]) - pixels).mean() < 1.5
                else:
                    outcomes["result" if "result" in item else "error"] += 1
    SEEN[f"{decoder}, damaged files"] = outcomes
    if ON_GPU:
        torch.cuda.synchronize()  # the device is well


def test_memory_does_not_grow(decoding: Any, photo: Any, decoder: str) -> None:
    if not ON_GPU:
        pytest.skip("no GPU")
    files = [encode(photo[shift:, shift:]) for shift in range(16)]
    backend = decoding(decoder=decoder, color="bgr")
    free = 0
    for turn in range(40):
        backend.forward([{"data": file} for file in files])
        if turn == 10:
            torch.cuda.synchronize()
            free = torch.cuda.mem_get_info()[0]
    torch.cuda.synchronize()
    grown = (free - torch.cuda.mem_get_info()[0]) / 2**20
    SEEN[f"{decoder}, MiB more after 30 batches"] = round(grown, 1)
    assert grown < 64


def test_the_log_says_what_decodes_where(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock.backends.image")
    try:
        make(DecodeTensor, CONTEXT, decoder="nvimgcodec")
    except BackendError as error:
        pytest.skip(str(error))
    assert "nvimgcodec" in caplog.text.lower() or "nvImageCodec" in caplog.text
    SEEN["log of nvimgcodec"] = caplog.records[-1].getMessage()


# operations


SIZES = [(224, 224), (100, 900), (1, 1), (854, 1280), (53, 77)]


def layouts(tensor: Any) -> dict[str, Any]:
    """Return N×C×H×W tensors on the device that lie in memory in different ways."""
    both = torch.cat([tensor, tensor.flip(3)]).to(DEVICE)
    return {
        "planes": both,
        "pixels": both.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "cut": both[:, :, 10:301, 7:500],
        "cut pixels": both.permute(0, 2, 3, 1).contiguous()[:, 10:301, 7:500].permute(0, 3, 1, 2),
        "grey": both[:, :1],
        "turned": both.transpose(2, 3),
        "seven channels": torch.cat([both, both, both[:, :1]], 1),
    }


def on_cpu(image: Any) -> Any:
    """Return each image as H×W×C of NumPy."""
    return [pixels.permute(1, 2, 0).contiguous().cpu().numpy() for pixels in image]


def note(library: str, operation: str, difference: Any) -> None:
    found = SEEN.setdefault(f"{library}, levels from OpenCV (largest)", {})
    found[operation] = max(found.get(operation, 0.0), round(float(np.max(difference)), 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16], ids=str)
def test_resized_as_by_opencv(tensor: Any, library: str, dtype: Any) -> None:
    for layout, image in layouts(tensor).items():
        image = image.to(dtype)
        for height, width in SIZES:
            result = sampling.resized(image, height, width)
            assert result.dtype == dtype and result.shape == (*image.shape[:2], height, width)
            for ours, pixels in zip(on_cpu(result.float()), on_cpu(image.float()), strict=True):
                source = pixels.astype(np.uint8) if dtype == torch.uint8 else pixels
                expected = cv2.resize(source, (width, height)).reshape(ours.shape)
                difference = np.abs(ours - expected)
                # OpenCV computes seven channels another way than three.
                assert difference.max() <= (0.02 if dtype == torch.float32 else 1), (layout, width)
                if dtype == torch.uint8:
                    note(library, "resize", difference)


WARPS = {
    "affine": cv2.getRotationMatrix2D((300.0, 200.0), 30, 0.8),
    "affine, larger": np.array([[0.5, 0.02, 20.5], [-0.03, 0.4, 10.25]]),
    "perspective": np.array([[0.9, 0.1, 13.0], [-0.05, 1.1, 2.0], [2e-4, 1e-4, 1.0]]),
}


@pytest.mark.parametrize("warp", WARPS)
def test_transformed_as_by_opencv(tensor: Any, library: str, warp: str) -> None:
    matrix: Any = WARPS[warp]
    operation: Any = cv2.warpAffine if len(matrix) == 2 else cv2.warpPerspective
    for layout, image in layouts(tensor).items():
        channels = image.shape[1]
        for fill in ([9.0] * channels, [float(20 * n) for n in range(channels)], None):
            result = sampling.warped(image, matrix, 300, 401, fill)
            for ours, pixels in zip(on_cpu(result), on_cpu(image), strict=True):
                planes = [
                    operation(
                        pixels[:, :, channel].copy(),
                        matrix,
                        (401, 300),
                        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                        borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
                        borderValue=0 if fill is None else fill[channel],
                    )
                    for channel in range(channels)
                ]
                difference = np.abs(ours.astype(int) - np.dstack(planes))
                note(library, warp, difference)
                if EXACT_WARPS:
                    assert difference.max() <= 1, (layout, fill)
                else:
                    assert difference.mean() < 0.5, (layout, fill)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_grey_as_by_opencv(make: Any, tensor: Any, library: str, order: str) -> None:
    code = cv2.COLOR_RGB2GRAY if order == "rgb" else cv2.COLOR_BGR2GRAY
    backend = make(CvtColorTensor, CONTEXT, color="gray")
    for layout in ("planes", "pixels", "cut", "turned"):
        image = layouts(tensor)[layout]
        item: Item = {"data": image, "color": order}
        backend.forward([item])
        for ours, pixels in zip(on_cpu(item["result"]), on_cpu(image), strict=True):
            difference = np.abs(ours[:, :, 0].astype(int) - cv2.cvtColor(pixels, code))
            note(library, "grey", difference)
            assert difference.max() <= 1


BACKENDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "resize": (ResizeTensor, {"resize_h": 120, "resize_w": 160}, {}),
    "pad": (ResizePadTensor, {"max_h": 224, "max_w": 224, "pad_value": "1,2,3"}, {}),
    "crop": (CropTensor, {}, {"_box": [10, 20, 300, 400]}),
    "middle": (CenterCropTensor, {"crop_h": 500, "crop_w": 300}, {}),
    "crop and resize": (
        CropResizeTensor,
        {"resize_h": 120, "resize_w": 160, "enlarge_ratio": 0.1},
        {"_box": [10, 20, 300, 400]},
    ),
    "quadrilateral": (
        PerspectiveTransformTensor,
        {},
        {"_box": [(100.5, 50.25), (400, 80), (500, 300), (-30, 170)]},
    ),
    "warp": (
        WarpAffineTensor,
        {"target_h": 300, "target_w": 500, "pad_value": "1,2,3"},
        {"affine_matrix": [0.7, 0.4, 20.3, -0.4, 0.7, 90.6]},
    ),
    "swap": (CvtColorTensor, {"color": "bgr"}, {"color": "rgb"}),
    "grey": (CvtColorTensor, {"color": "gray"}, {"color": "rgb"}),
}


@pytest.mark.parametrize("data_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("case", BACKENDS)
def test_backends_do_the_same_as_on_the_cpu(
    make: Any, tensor: Any, library: str, case: str, data_format: str
) -> None:
    cls, params, keys = BACKENDS[case]
    data = tensor if data_format == "nchw" else tensor.permute(0, 2, 3, 1).contiguous()
    here: Item = {"data": data, "data_format": data_format, **keys}
    make(cls, Context(node="test", device="cpu"), **params).forward([here])
    backend: ImageTensorBackend = make(cls, CONTEXT, **params)
    batch: list[Item] = [
        {"data": value, "data_format": data_format, **keys}
        for value in (data, data.to(DEVICE), data.to(DEVICE))
    ]
    for items in [batch] if backend.max > 1 else [[item] for item in batch]:
        backend.forward(items)
    for item in batch:
        result = item["result"]
        assert str(result.device) == DEVICE and result.is_contiguous()
        assert result.untyped_storage().nbytes() == result.numel() * result.element_size()
        difference = (result.cpu().int() - here["result"].int()).abs()
        if EXACT_WARPS or case not in ("warp", "quadrilateral"):
            assert difference.max() <= 1
        else:
            assert difference.float().mean() < 0.5
    assert torch.equal(batch[1]["data"].cpu(), data)


def test_crops_are_those_of_the_mat_backends(
    make: Any, photo: Any, tensor: Any, library: str
) -> None:
    for mat, cls, case in (
        (CropResizeMat, CropResizeTensor, "crop and resize"),
        (PerspectiveTransformMat, PerspectiveTransformTensor, "quadrilateral"),
    ):
        _, params, keys = BACKENDS[case]
        image: Item = {"data": photo, **keys}
        make(mat, **params).forward([image])
        ours: Item = {"data": tensor, **keys}
        make(cls, CONTEXT, **params).forward([ours])
        difference = np.abs(rows(ours["result"]) - image["result"])
        assert difference.max() <= 1 or (not EXACT_WARPS and difference.mean() < 0.5)


def test_memory_is_given_back(make: Any, library: str) -> None:
    """CV-CUDA holds what it used last, and gives it back when the backend is closed."""
    if not ON_GPU:
        pytest.skip("no GPU")
    torch.cuda.synchronize()
    cv_cuda.forget()
    before = torch.cuda.memory_allocated()
    backend = make(ResizeTensor, CONTEXT, resize_h=500, resize_w=500)
    seen = []
    for number in range(100):
        item: Item = {"data": torch.zeros((1, 3, 2000 + number, 3000), dtype=torch.uint8)}
        backend.forward([item])
        del item
        torch.cuda.synchronize()
        seen.append(torch.cuda.memory_allocated() - before)
    backend.close()
    left = torch.cuda.memory_allocated() - before
    SEEN[f"{library}, MiB held (most, after close)"] = [max(seen) / 2**20, left / 2**20]
    assert max(seen) < 200 * 2**20 and left < 2**20


# streams and threads


CHAIN = "S[DecodeTensor,ResizeTensor,CvtColorTensor]"


def files_of(photo: Any) -> list[bytes]:
    """Return files of different pixels, sizes and kinds."""
    draw = np.random.default_rng(1)
    files = []
    for number in range(20):
        height, width = (int(side) for side in draw.integers(200, 420, 2))
        pixels = np.roll(photo, 31 * number, (0, 1, 2)[number % 3])[:height, :width]
        kind = ("JPEG", "JPEG", "JPEG", "PNG", "WEBP")[number % 5]
        files.append(turned(pixels, 6) if number % 7 == 3 else encode(pixels, kind))
    return files


@pytest.fixture
def own_library(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CV-CUDA computes behind nvImageCodec, and torch behind nvJPEG."""
    if decoder == "nvjpeg":
        monkeypatch.setattr(cv_cuda, "find_cvcuda", lambda: None)


@pytest.mark.usefixtures("own_library")
def test_1000_requests_at_once_get_their_own_answers(photo: Any, decoder: str) -> None:
    files = files_of(photo)
    config = {
        "net": {
            "backend": CHAIN,
            "resize_h": 96,
            "resize_w": 96,
            "color": "bgr",
            "decoder": decoder,
            "device": DEVICE,
            "max": 16,
            "instance_num": 3,
        },
    }

    async def main() -> None:
        async with Pipeline.load(config) as pipeline:
            alone = []
            for file in files:
                answer = await pipeline({"data": file})
                alone.append(answer["result"].cpu().int())

            async def one(number: int) -> None:
                answer = await pipeline({"data": files[number % len(files)]})
                result = answer["result"].cpu().int()
                # In a batch, nvJPEG may choose another kernel.
                assert (result - alone[number % len(files)]).abs().float().mean() < 1, number

            await asyncio.gather(*[one(number) for number in range(1000)])

    asyncio.run(main())


@pytest.mark.usefixtures("own_library")
def test_threads_with_streams_of_their_own(photo: Any, decoder: str) -> None:
    files = files_of(photo)
    config = {
        "backend": "S[DecodeTensor,ResizePadTensor,CvtColorTensor,FloatTensor]",
        "max_h": 160,
        "max_w": 160,
        "color": "gray",
        "decoder": decoder,
        "device": DEVICE,
        "instance_num": 4,
    }
    with pipe(config) as run:
        alone = []
        for file in files:
            item: Item = {"data": file}
            run(item)
            alone.append(item["result"].cpu())
        wrong: list[int] = []

        def work(first: int) -> None:
            for number in range(first, first + 40):
                item: Item = {"data": files[number % len(files)]}
                run(item)
                if (item["result"].cpu() - alone[number % len(files)]).abs().mean() > 1:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(5 * number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
