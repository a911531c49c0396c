"""The torch image backends on a GPU, compared with their results on the CPU.

scripts/gpu_check runs this file. pytest doesn't collect it on its own, because of its name.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from penstock import pipe
from penstock.backends.base import Context
from penstock.backends.errors import BackendError
from penstock.backends.image.tensor.convert import (
    CpuTensor,
    CvtColorTensor,
    FloatTensor,
    GpuTensor,
    NCHWTensor,
)
from penstock.backends.image.tensor.crop import CopyMakeBorderTensor, CropTensor, WarpAffineTensor
from penstock.backends.image.tensor.decode import DecodeTensor
from penstock.backends.image.tensor.decoders import find_nvjpeg
from penstock.backends.image.tensor.files import LoadTensor, SaveTensor
from penstock.backends.image.tensor.resize import DynamicResizeTensor, ResizePadTensor, ResizeTensor
from penstock.backends.image.tensor.rows import ArgMaxTensor, CatTensor, SplitTensor
from penstock.backends.item import Item

ON_CPU, ON_GPU = Context(node="test", device="cpu"), Context(node="test", device="cuda:0")

CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "resize": (ResizeTensor, {"resize_h": 224, "resize_w": 224}, {}),
    "enlarge": (ResizeTensor, {"resize_h": 900, "resize_w": 1000}, {}),
    "the item's size": (DynamicResizeTensor, {}, {"resize_h": 50, "resize_w": 60}),
    "pad": (ResizePadTensor, {"max_h": 224, "max_w": 224, "pad_value": "1,2,3"}, {}),
    "crop": (CropTensor, {}, {"_box": [10, 20, 300, 400]}),
    "border": (CopyMakeBorderTensor, {"top": 3, "right": 9, "pad_value": 7}, {}),
    "warp": (
        WarpAffineTensor,
        {"target_h": 300, "target_w": 500, "pad_value": "1,2,3"},
        {"affine_matrix": [0.7, 0.4, 20.3, -0.4, 0.7, 90.6]},
    ),
    "colour": (CvtColorTensor, {"color": "bgr"}, {"color": "rgb"}),
    "grey": (CvtColorTensor, {"color": "gray"}, {"color": "rgb"}),
    "float": (FloatTensor, {}, {}),
    "nchw": (NCHWTensor, {}, {}),
    "best class": (ArgMaxTensor, {}, {}),
    "rows joined": (CatTensor, {}, {}),
    "to the GPU": (GpuTensor, {}, {}),
    "rows split": (SplitTensor, {}, {}),
}


@pytest.mark.parametrize("on_gpu", [False, True], ids=["from the CPU", "from the GPU"])
@pytest.mark.parametrize("data_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_on_the_cpu(
    make: Any, tensor: Any, case: str, dtype: Any, data_format: str, on_gpu: Any
) -> None:
    cls, params, keys = CASES[case]
    data = (
        tensor.to(dtype)
        if data_format == "nchw"
        else tensor.permute(0, 2, 3, 1).contiguous().to(dtype)
    )
    actual, expected = ({"data": data, "data_format": data_format, **keys} for _ in range(2))
    if on_gpu:
        actual["data"] = data.to("cuda:0")
    backend = make(cls, ON_GPU, **params)
    assert backend.device == "cuda:0"
    backend.forward([actual])
    make(cls, ON_CPU, **params).forward([expected])
    if cls is SplitTensor:
        (actual["result"],), (expected["result"],) = actual["result"], expected["result"]
    result = actual["result"]
    assert (
        result.device == torch.device("cuda", 0)
        and result.is_contiguous()
        and result.dtype == expected["result"].dtype
    )
    assert result.untyped_storage().nbytes() == result.numel() * result.element_size()
    if on_gpu:
        assert torch.equal(actual["data"].cpu(), data)
    difference = (result.cpu().double() - expected["result"].double()).abs()
    # OpenCV 4 warps in steps of 1/32 of a pixel.
    assert (
        difference.mean() < 0.5
        if cls is WarpAffineTensor
        else difference.max() <= (1 if dtype != torch.float32 else 0.01)
    )


def test_back_on_the_cpu(make: Any, tensor: Any) -> None:
    item: Item = {"data": [tensor.cuda(), tensor]}
    make(CpuTensor, ON_GPU).forward([item])
    assert [result.device.type for result in item["result"]] == ["cpu", "cpu"] and torch.equal(
        item["result"][0], tensor
    )


def test_files_hold_tensors_of_the_cpu(make: Any, tensor: Any, tmp_path: Path) -> None:
    make(SaveTensor, ON_GPU, save_dir=str(tmp_path)).forward([{"data": tensor.cuda()}])
    (path,) = tmp_path.iterdir()
    assert torch.load(path).device.type == "cpu"
    item: Item = {"data": None}
    make(LoadTensor, ON_GPU, tensor_name=str(path)).forward([item])
    assert item["result"].is_cuda and torch.equal(item["result"].cpu(), tensor)


def encode(photo: Any, kind: str = "JPEG", **options: Any) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(params=[False, True], ids=["CPU", "nvJPEG"])
def nvjpeg(request: pytest.FixtureRequest) -> bool:
    if request.param:
        try:
            find_nvjpeg(torch.device("cuda:0"))
        except BackendError as error:
            pytest.skip(str(error))
    return bool(request.param)


def test_no_part_of_another_image_is_shown(make: Any, photo: Any) -> None:
    """Of a JPEG that was cut and given an end mark, nvJPEG would show what it decoded before."""
    encoded = encode(photo)
    items: list[Item] = [
        {"data": encoded},
        {"data": encoded[: len(encoded) // 2].rstrip(b"\xff") + b"\xff\xd9"},
    ]
    make(DecodeTensor, ON_GPU).forward(items)
    assert items[0]["result"].is_cuda
    assert "truncated" in str(items[1]["error"]) and "result" not in items[1]


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("data_format", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}, {"kind": "PNG"}], ids=str
)
def test_decoded_on_the_gpu(
    make: Any, photo: Any, options: Any, color: str, data_format: str, nvjpeg: bool
) -> None:
    items = [{"data": encode(photo, **options)} for _ in range(2)]
    for item, context in zip(items, (ON_GPU, ON_CPU), strict=True):
        make(
            DecodeTensor,
            context,
            color=color,
            data_format=data_format,
            nvjpeg=nvjpeg and context is ON_GPU,
        ).forward([item])
    actual, expected = (item["result"] for item in items)
    assert actual.is_cuda and actual.is_contiguous() and actual.shape == expected.shape
    assert (actual.cpu().float() - expected.float()).abs().mean() < 1.5


def test_a_batch_at_once(photo: Any, nvjpeg: bool) -> None:
    """A batch gives the same as one by one, with files of every kind in it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [
        *(encode(photo[shift:]) for shift in (0, 0, 1, 0)),
        encode(photo[:200, :300]),
        encode(photo, "PNG"),
        encode(photo, exif=turned.tobytes()),
        encode(photo[::-1]),
    ]
    config = {
        "backend": "S[DecodeTensor,ResizeTensor,CvtColorTensor]",
        "resize_h": 224,
        "resize_w": 224,
        "color": "bgr",
        "nvjpeg": nvjpeg,
    }
    with (
        pipe({**config, "max": 1}) as alone,
        pipe({**config, "max": 16, "batching_timeout": 1000}) as run,
    ):
        assert (alone.max(), run.max()) == (1, 16)
        items: list[Item] = [{"data": file} for file in (*files, b"none", *files[:7])]
        run(items)
        for item in items:
            single: Item = {"data": item["data"]}
            alone(single)
            if "result" not in single:
                assert "result" not in item
                continue
            assert (
                item["result"].is_cuda
                and item["result"].untyped_storage().nbytes() == 3 * 224 * 224
            )
            difference = (item["result"].float() - single["result"].float()).abs()
            assert difference.max() <= 1, item["result"].shape


def test_threads_with_streams_of_their_own(photo: Any, nvjpeg: bool) -> None:
    config = {
        "backend": "S[DecodeTensor,ResizePadTensor,cvtColorTensor,FloatTensor]",
        "max_h": 224,
        "max_w": 224,
        "color": "bgr",
        "nvjpeg": nvjpeg,
    }
    encoded = encode(photo)
    with pipe({**config, "instance_num": 4, "device_id": 0}) as run:
        first = {"data": encoded}
        run(first)
        equal = []

        def work() -> None:
            for _ in range(50):
                item = {"data": encoded}
                run(item)
                equal.append(torch.equal(item["result"], first["result"]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert equal == [True] * 400
