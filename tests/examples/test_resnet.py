"""examples/resnet: exported, served, and compared with torch on photographs."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock import Pipeline

from .conftest import Load, Serve

torch = pytest.importorskip("torch")

RESNET = Path(__file__).parents[2] / "examples" / "resnet"
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope="module")
def export(load: Load) -> ModuleType:
    return load(RESNET / "export.py")


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    files = []
    for name in ("china.jpg", "flower.jpg"):
        buffer = io.BytesIO()
        Image.fromarray(load_sample_image(name)).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the example and write its model, as `python export.py resnet18 --weights …` does."""
    folder = tmp_path_factory.mktemp("resnet")
    for name in ("export.py", "resnet18.toml", "resnet18_one.toml"):
        shutil.copy(RESNET / name, folder)
    code = (
        "import sys, torch; sys.path.insert(0, '.'); import export; "
        "torch.save(export.build('resnet18', seed=7).state_dict(), 'seven.pth')"
    )
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    for command in (["-c", code], ["export.py", "resnet18", "--weights", "seven.pth"]):
        subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            check=True,
            timeout=120,
            capture_output=True,
        )
    return folder


def prepared(image: bytes) -> Any:
    """Return what reaches the network in Penstock: 1×3×224×224, from 0 to 255."""
    nodes = {
        "decode": {
            "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
            "resize_h": 224,
            "resize_w": 224,
            "color": "rgb",
        }
    }

    async def run() -> Any:
        async with Pipeline.load({"pipeline": {"name": "prepare"}, **nodes}) as pipeline:
            return (await pipeline({"data": image}))["result"]

    return torch.from_numpy(np.array(asyncio.run(run()), np.float32)).reshape(1, 3, 224, 224)


@pytest.fixture
def served(serve: Serve, folder: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with serve(folder / request.param) as client:
        yield client


@pytest.mark.parametrize("served", ["resnet18.toml", "resnet18_one.toml"], indirect=True)
def test_the_class_and_score_are_those_of_torch(
    served: httpx.Client, folder: Path, export: ModuleType, photographs: list[bytes]
) -> None:
    network = export.build("resnet18", folder / "seven.pth")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    answers = []
    for photograph in photographs:
        with torch.no_grad():
            scores = network((prepared(photograph) - mean) / std).softmax(1)[0]
        answers.append(served.put("resnet18", content=photograph).json())
        assert answers[-1]["class"] == answers[-1]["result"] == int(scores.argmax())
        assert answers[-1]["score"] == pytest.approx(float(scores.max()), abs=1e-4)
    files = [("images", photograph) for photograph in photographs]
    results = served.post("resnet18/batch", files=files).json()["results"]
    assert results[1]["class"] == answers[1]["class"]
    assert results[1]["score"] == pytest.approx(answers[1]["score"], abs=1e-4)


def test_weights_come_from_the_file(export: ModuleType, folder: Path) -> None:
    """They do not come from the seed, and nothing but weights is unpickled."""
    seven, again = (
        export.build("resnet18", seed=7).state_dict(),
        export.build("resnet18", folder / "seven.pth", seed=8).state_dict(),
    )
    assert all(torch.equal(seven[key], again[key]) for key in seven) and len(seven) == len(again)
    assert not torch.equal(
        seven["fc.weight"], export.build("resnet18", seed=8).state_dict()["fc.weight"]
    )
    torch.save({"fc.weight": os.system}, folder / "evil.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        export.build("resnet18", folder / "evil.pth")
