"""Where torch backends run, what they say without torch, and torchpipe's first pipeline on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock import pipe
from penstock.backends.errors import BackendError, ConfigError
from penstock.backends.registry import BUILTINS, describe

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
NAMES = sorted(name for name, target in BUILTINS.items() if target.startswith("penstock.backends.image.tensor"))

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as on a machine that has none
from penstock import pipe
from penstock.backends.base import Context
from penstock.backends.registry import describe, find_backend
from penstock.pipelines.config import load

load({"backend": "S[DecodeTensor,ResizeTensor,cvtColorTensor]", "resize_h": 8, "resize_w": 8, "color": "rgb"})
for name in sys.argv[1:]:
    cls = find_backend(name)
    assert describe(name).parameters
    try:
        cls().init(cls.parameters.model_construct(), Context())
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_they_are_all_there():
    assert len(NAMES) == 19
    for name in NAMES:
        found = describe(name)
        assert found.extra == "torch" and found.available and found.parameters
        assert "device_id" in {parameter.name for parameter in found.parameters}


def test_without_torch_files_can_be_checked_and_init_says_what_is_missing():
    answer = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *NAMES], capture_output=True, text=True, check=True)
    said = answer.stdout.splitlines()
    assert len(said) == len(NAMES)
    for name, line in zip(NAMES, said, strict=True):
        real = "CvtColorTensor" if name == "cvtColorTensor" else name
        assert line == f"BackendError {real} needs extra torch, which is not installed here: pip install 'penstock[torch]'"


@pytest.mark.parametrize(
    "expression", ["S[ResizeTensor(8,9),cvtColorTensor(rgb)]", "S[ResizeTensor(device_id=0,resize_h=8,resize_w=9),cvtColorTensor(rgb)]"]
)
def test_positional_arguments_are_the_backends_own(bound, expression):
    resize, color = bound(expression).children
    assert (resize.params.resize_h, resize.params.resize_w, color.params.color) == (8, 9, "rgb")


def test_describing_them_imports_no_torch():
    code = f"import sys, penstock.backends.registry as r; [r.describe(n) for n in {NAMES}]; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


# with torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def no_gpu(torch, monkeypatch):
    """As on a machine without one, wherever this runs."""
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


def test_torchpipes_first_pipeline_without_a_gpu(torch, no_gpu):
    with pipe(QUICK_START) as model:
        items = [{"data": (DIGITS / "digit.png").read_bytes()} for _ in range(5)]
        model(items)
        for item in items:
            assert isinstance(item["result"], torch.Tensor) and item["result"].argmax().item() == 3
        broken = {"data": b"no image"}
        model(broken)
        assert "result" not in broken
        assert model.max() == 4


def test_the_same_as_by_opencv(no_gpu):
    item = {"data": (DIGITS / "digit.png").read_bytes()}
    with pipe(QUICK_START) as model:
        model(item)
        found = item["result"]
    with pipe({**QUICK_START, "backend": "S[DecodeMat,ResizeMat,cvtColorMat,Mat2Tensor,ModelTensor,SyncTensor]"}) as model:
        model(item)
    assert found.tolist() == item["result"].tolist()


def test_a_gpu_that_is_not_there(no_gpu):
    with pytest.raises((BackendError, ConfigError), match="torch sees 0 GPUs here"):
        pipe({"backend": "GpuTensor", "device_id": 0})
