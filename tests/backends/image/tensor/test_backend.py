"""Torch backends: their device, and their errors without torch or without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import pipe
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions.registry import BUILTINS, describe, find_backend
from penstock.backends.item import Item

DIGITS = Path(__file__).parents[4] / "examples" / "digits"
NAMES = sorted(
    name
    for name, target in BUILTINS.items()
    if target.startswith("penstock.backends.image.tensor.")
)

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as on a machine without it
from penstock import pipe
from penstock.backends.base import Context
from penstock.backends.expressions.registry import describe, find_backend
from penstock.pipelines.config.load import load

load({
    "backend": "S[DecodeTensor,ResizeTensor,cvtColorTensor]",
    "resize_h": 8,
    "resize_w": 8,
    "color": "rgb",
})
for name in sys.argv[1:]:
    cls = find_backend(name)
    assert describe(name).parameters
    try:
        cls().init(cls.parameters.model_construct(), Context())
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_all_are_described() -> None:
    assert len(NAMES) == 23
    for name in NAMES:
        description = describe(name)
        assert description.extra == "torch" and description.parameters
        assert "device_id" in {parameter.name for parameter in description.parameters}


def test_without_torch_files_can_be_checked_and_init_names_the_extra() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *NAMES], capture_output=True, text=True, check=True
    )
    lines = answer.stdout.splitlines()
    assert len(lines) == len(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        real = "CvtColorTensor" if name == "cvtColorTensor" else name
        assert line == (
            f"BackendError {real} needs extra torch, which is not installed here: "
            "pip install 'penstock-serve[torch]'"
        )


@pytest.mark.parametrize(
    "expression",
    [
        "S[ResizeTensor(8,9),cvtColorTensor(rgb)]",
        "S[ResizeTensor(device_id=0,resize_h=8,resize_w=9),cvtColorTensor(rgb)]",
    ],
)
def test_device_id_is_not_a_positional_argument(bound: Any, expression: str) -> None:
    resize, color = bound(expression).children
    assert (resize.params.resize_h, resize.params.resize_w, color.params.color) == (8, 9, "rgb")


def test_describing_them_imports_no_torch() -> None:
    code = (
        "import sys, penstock.backends.expressions.registry as registry;"
        f"[registry.describe(name) for name in {NAMES}]; print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


# with torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def no_gpu(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs of this machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


QUICK_START = {
    "backend": "S[DecodeTensor,ResizeTensor,cvtColorTensor,ModelTensor,SyncTensor]",
    "model": str(DIGITS / "digits.onnx"),
    "resize_h": "8",
    "resize_w": "8",
    "color": "gray",
    "mean": "77",
    "std": "95",
    "max": 4,
    "batching_timeout": "5",
    "instance_num": 2,
}


def test_torchpipes_first_pipeline_without_a_gpu(torch: Any, no_gpu: Any) -> None:
    with pipe(QUICK_START) as model:
        items: list[Item] = [{"data": (DIGITS / "digit.png").read_bytes()} for _ in range(5)]
        model(items)
        for item in items:
            assert isinstance(item["result"], torch.Tensor) and item["result"].argmax().item() == 3
        broken = {"data": b"no image"}
        model(broken)
        assert "result" not in broken
        assert model.max() == 4


def test_the_same_as_by_opencv(no_gpu: Any) -> None:
    item: Item = {"data": (DIGITS / "digit.png").read_bytes()}
    with pipe(QUICK_START) as model:
        model(item)
        result = item["result"]
    with pipe(
        {
            **QUICK_START,
            "backend": "S[DecodeMat,ResizeMat,cvtColorMat,Mat2Tensor,ModelTensor,SyncTensor]",
        }
    ) as model:
        model(item)
    assert result.tolist() == item["result"].tolist()


def test_a_missing_gpu(no_gpu: Any) -> None:
    with pytest.raises((BackendError, ConfigError), match="torch sees 0 GPUs here"):
        pipe({"backend": "GpuTensor", "device_id": 0})


# images that are transformed together, as on a GPU


@pytest.fixture
def together(make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a backend on the CPU that works as on a GPU. Return it and the size of each call."""

    def together(cls: Any, **params: Any) -> Any:
        backend = make(cls, **params)
        backend.together = True
        calls: list[int] = []
        transform = backend.transform

        def counted(image: Any, item: Item) -> Any:
            calls.append(len(image))
            return transform(image, item)

        monkeypatch.setattr(
            backend,
            "transform",
            counted,
        )
        return backend, calls

    return together


def images_of(torch: Any, *sizes: Any, dtype: Any = "uint8", channels: int = 3) -> Any:
    draw = np.random.default_rng(0)
    return [
        torch.from_numpy(draw.integers(0, 256, (1, channels, *size), np.uint8)).to(
            getattr(torch, dtype)
        )
        for size in sizes
    ]


@pytest.mark.parametrize(
    ("name", "params", "keys"),
    [
        ("ResizeTensor", {"resize_h": 7, "resize_w": 9}, {}),
        ("DynamicResizeTensor", {}, {"resize_h": 7, "resize_w": 9}),
        ("ResizePadTensor", {"max_h": 20, "max_w": 30}, {}),
        ("CvtColorTensor", {"color": "gray"}, {"color": "bgr"}),
    ],
)
def test_images_of_one_shape_go_together(
    torch: Any, make: Any, together: Any, name: str, params: dict[str, Any], keys: dict[str, Any]
) -> None:
    cls = find_backend(name)
    data = images_of(torch, (8, 6), (8, 6), (5, 5), (8, 6))
    data.append(torch.cat(data[:2]))  # one item with two images
    data.append(data[0].permute(0, 2, 3, 1).contiguous())
    batch: list[Item] = [{"data": image, **keys} for image in data]
    batch[-1]["data_format"] = "nhwc"
    backend, calls = together(cls, **params)
    backend.forward(batch)
    assert sorted(calls) == [1, 1, 5]
    for item in batch:
        alone = {key: value for key, value in item.items() if key != "result"} | keys
        for key in ("inverse_trans", "error"):
            alone.pop(key, None)
        make(cls, **params).forward([alone])
        assert torch.equal(item["result"], alone["result"]) and item["result"].is_contiguous()
        # Not a view of all results.
        assert item["result"].untyped_storage().nbytes() == item["result"].numel()
        assert {key: item[key] for key in item if key not in {"data", "result"}} == {
            key: alone[key] for key in alone if key not in {"data", "result"}
        }


def test_only_like_images_go_together(torch: Any, together: Any) -> None:
    data = images_of(torch, (8, 6), (8, 6), (8, 6), (8, 6))
    batch: list[Item] = [
        {"data": image, "resize_h": 4, "resize_w": width}
        for image, width in zip(data, (3, 5, 3, [5]), strict=True)
    ]
    backend, calls = together(find_backend("DynamicResizeTensor"))
    backend.forward(batch)
    assert calls == [2, 1, 1]
    assert [
        item["result"].shape[3] if "result" in item else type(item["error"]) for item in batch
    ] == [3, 5, 3, InvalidInput]
    floats, calls = together(find_backend("ResizeTensor"), resize_h=4, resize_w=4)
    values = (data[0], data[1].float(), "no image", data[2])
    mixed: list[Item] = [{"data": value} for value in values]
    floats.forward(mixed)
    assert sorted(calls) == [1, 2]
    dtypes = [item["result"].dtype if "result" in item else None for item in mixed]
    assert dtypes == [torch.uint8, torch.float32, None, torch.uint8]
    assert isinstance(mixed[2]["error"], InvalidInput)


def test_a_group_that_fails_is_transformed_one_by_one(torch: Any, together: Any) -> None:
    backend, calls = together(find_backend("CvtColorTensor"), color="rgb")
    batch: list[Item] = [{"data": image} for image in images_of(torch, (8, 6), (8, 6))]  # no color
    backend.forward(batch)
    assert calls == [2, 1, 1]
    assert all(isinstance(item["error"], InvalidInput) and "result" not in item for item in batch)


def test_images_in_the_right_color_stay(torch: Any, together: Any) -> None:
    backend, calls = together(find_backend("CvtColorTensor"), color="rgb")
    data = images_of(torch, (8, 6), (8, 6), (8, 6))
    batch: list[Item] = [{"data": image, "color": "rgb"} for image in data]
    batch[2] |= {"data": data[2].permute(0, 2, 3, 1).contiguous(), "data_format": "nhwc"}
    backend.forward(batch)
    assert calls == []
    assert all(
        torch.equal(item["result"], item["data"]) and item["color"] == "rgb" for item in batch
    )
    wrong = [
        {"data": image, "color": "rgb"} for image in images_of(torch, (8, 6), (8, 6), channels=1)
    ]
    backend.forward(wrong)
    assert all("does not fit an image of 1 channels" in str(item["error"]) for item in wrong)


def test_on_the_cpu_each_is_transformed_alone(torch: Any, make: Any) -> None:
    assert make(find_backend("ResizeTensor"), resize_h=4, resize_w=4).max == 1
