"""examples/resnet: exported, served, and compared with torch itself on a photograph."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from sklearn.datasets import load_sample_image

from penstock import Pipeline, create_app

torch = pytest.importorskip("torch")

RESNET = Path(__file__).parents[2] / "examples" / "resnet"
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope="module")
def export() -> Any:
    spec = importlib.util.spec_from_file_location("resnet_export", RESNET / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photographs() -> Any:
    found = []
    for name in ("china.jpg", "flower.jpg"):
        buffer = io.BytesIO()
        Image.fromarray(load_sample_image(name)).save(buffer, "JPEG", quality=92)
        found.append(buffer.getvalue())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example with its model, as `python export.py resnet18 --weights …` makes it."""
    folder = tmp_path_factory.mktemp("resnet")
    for name in ("export.py", "resnet18.toml", "resnet18_one.toml"):
        shutil.copy(RESNET / name, folder)
    code = "import sys, torch; sys.path.insert(0, '.'); import export; torch.save(export.build('resnet18', seed=7).state_dict(), 'seven.pth')"
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


def prepared(image: Any) -> Any:
    """What reaches the network in Penstock: 3×224×224, 0 to 255."""
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
def served(folder: Any, request: Any) -> Any:
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(folder / request.param),
            port=0,
            loop="uvloop",
            lifespan="on",
            log_config=None,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", timeout=60
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.mark.parametrize("served", ["resnet18.toml", "resnet18_one.toml"], indirect=True)
def test_the_class_and_score_are_those_of_torch(
    served: Any, folder: Any, export: Any, photographs: Any
) -> None:
    network = export.build("resnet18", folder / "seven.pth")
    for photograph in photographs:
        with torch.no_grad():
            image = (prepared(photograph) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
                STD
            ).view(3, 1, 1)
            scores = network(image).softmax(1)[0]
        answer = served.put("/predict/resnet18", content=photograph).json()
        assert answer["class"] == answer["result"] == int(scores.argmax())
        assert answer["score"] == pytest.approx(float(scores.max()), abs=1e-4)
    both = served.post(
        "/predict/resnet18/batch", files=[("images", each) for each in photographs]
    ).json()["results"]
    assert both[1]["class"] == answer["class"] and both[1]["score"] == pytest.approx(
        answer["score"], abs=1e-4
    )


def test_weights_come_from_the_file(export: Any, folder: Any) -> None:
    """Not from the seed; and only weights are unpickled."""
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
