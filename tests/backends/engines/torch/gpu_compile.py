"""Tests of compiled torch models that need a GPU. scripts/gpu_check runs them; pytest does not
collect a file of this name by itself. Named on a machine without a GPU, they run on the CPU.

They write what they measured to gpu_compile.jsonl in the folder $OUT.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
HALF = {"precision": "fp16", "channels_last": True} if ON_GPU else {"channels_last": True}
TOLERANCE = 1e-2 if ON_GPU else 1e-4
"""Relative, of fp16 or float32 against float32 in eager mode on the CPU."""
MIB = 2**20
REQUESTS, LEVELS = 500, 16

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    '''A net whose answer depends on every pixel.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(32, 10)
    def forward(self, x):
        return self.head(self.body(x).flatten(1))
"""


def net() -> Any:
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    return scope["Net"]().eval()


def allocated() -> int:
    """Return the bytes of torch's tensors on the GPU, without cuBLAS's workspaces: each stream that
    has run a matrix product keeps one.
    """
    gc.collect()
    if not ON_GPU:
        return 0
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


@pytest.fixture(autouse=True)
def _memory_is_given_back() -> Any:
    """Check that a closed pipeline leaves nothing on the GPU."""
    before = allocated()
    yield
    torch._dynamo.reset()
    assert allocated() <= before + 4 * MIB


async def check(name: str, node: dict[str, Any]) -> None:
    """Compare the node's answers with those of eager mode: batches of 1, 3 and 8, then many
    requests at once.
    """
    generator = np.random.default_rng(0)
    # Neighbours differ far more in brightness than fp16 rounds, so that a swapped answer shows.
    levels = [number * 7 % LEVELS for number in range(REQUESTS)]
    images = np.stack(
        [generator.normal(size=(3, 32, 32)) * 0.01 + 4 * level / LEVELS for level in levels]
    ).astype(np.float32)
    with torch.inference_mode():
        expected = net()(torch.from_numpy(images)).numpy()
    started = time.perf_counter()
    config = load({"net": {"max": "8x3x32x32", "device": str(DEVICE), **node}})
    worst = 0.0
    async with Pipeline(config) as pipeline:
        loaded = time.perf_counter()
        for rows in (1, 3, 8):
            item = {"data": images[:rows], "request_size": rows}
            found = np.asarray((await pipeline(item))["result"])
            assert found.shape == (rows, 10)
            worst = max(worst, float(np.abs(found - expected[:rows]).max()))
        answers = await asyncio.gather(*(pipeline({"data": image[None]}) for image in images))
    found = np.concatenate([np.asarray(answer["result"]) for answer in answers])
    worst = max(worst, float(np.abs(found - expected).max()))
    scale = float(np.abs(expected).max())
    of_level = np.stack([expected[levels.index(level)] for level in range(LEVELS)])
    nearest = np.abs(found[:, None] - of_level[None]).max(2).argmin(1)
    swapped = int((nearest != levels).sum())
    row = {
        "test": name,
        "load_s": round(loaded - started, 1),
        "largest_relative_difference": worst / scale,
        "swapped": swapped,
        "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
    }
    print(row)
    if out := os.environ.get("OUT"):
        with Path(out, "gpu_compile.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    assert worst <= TOLERANCE * scale and not swapped, row


def test_a_package_compiled_for_this_device_answers_as_eager_torch(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.zeros(2, 3, 32, 32, device=DEVICE)
    program = torch.export.export(net().to(DEVICE), (example,), dynamic_shapes=({0: batch},))
    path = str(tmp_path / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler calls deprecated functions of torch
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    asyncio.run(
        check("AOTInductor", {"backend": "TorchExportTensor", "model": path, "instance_num": 2})
    )


@pytest.mark.parametrize(
    ("mode", "instances"),
    [("default", 2), ("max-autotune-no-cudagraphs", 2), ("reduce-overhead", 1)],
)
def test_compiled_modules_answer_as_eager_ones(tmp_path: Path, mode: str, instances: int) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    target = f"{tmp_path / 'nets.py'}:Net"
    node = {"backend": "PythonTensor", "model": target, "compile": mode, **HALF}
    asyncio.run(check(mode, {**node, "instance_num": instances}))
