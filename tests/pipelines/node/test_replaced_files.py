"""A model file that is replaced while its pipeline runs, and instances that load again."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import BackendError
from penstock.pipelines.pipeline import Pipeline

LOOPS = ["uvloop"]
"""Children take long, and no loop changes what they read."""

EXAMPLES = Path(__file__).parents[3] / "examples" / "digits"

OPS = """
import os
import penstock

class Die(penstock.Backend):
    def forward(self, batch):
        for item in batch:
            if item.get("die"):
                raise penstock.DeviceError("asked to")
            item["result"] = item["data"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ops.py").write_text(OPS)
    shutil.copy(EXAMPLES / "digits.onnx", tmp_path / "digits.onnx")
    return tmp_path


def tables(folder: Path, executor: str) -> dict[str, Any]:
    return {
        "digits": {
            "backend": f"S[Python[{folder}/ops.py:Die],OnnxTensor]",
            "model": str(folder / "digits.onnx"),
            "executor": executor,
            "instance_num": 2,
            "max": 1,
            "retry": False,
        }
    }


@asynccontextmanager
async def running(folder: Path, executor: str) -> AsyncIterator[Pipeline]:
    async with asyncio.timeout(60), Pipeline.load(tables(folder, executor)) as pipeline:
        yield pipeline


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def replace(folder: Path) -> None:
    """Replace the model as a deployment does: a new file is renamed over the old one."""
    import onnx

    model = onnx.load(folder / "digits.onnx")
    model.doc_string = "version 2"
    onnx.save(model, folder / "new.onnx")
    (folder / "new.onnx").replace(folder / "digits.onnx")


def item(**keys: Any) -> dict[str, Any]:
    return {"data": np.zeros((1, 1, 8, 8), np.float32), **keys}


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_an_instance_that_loads_again_reads_the_same_model(
    folder: Path, executor: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnx")
    caplog.set_level(logging.ERROR, "penstock")
    original = (folder / "digits.onnx").read_bytes()
    async with running(folder, executor) as pipeline:
        before = (await pipeline(item()))["result"]
        replace(folder)
        with pytest.raises(BackendError):
            await pipeline(item(die=True))
        await until(lambda: "digits.onnx has changed on disk since" in caplog.text)
        assert "1 of 2 executors are not running" in pipeline.not_ready
        for _ in range(4):  # the other instance goes on with the model that it has
            assert np.array_equal((await pipeline(item()))["result"], before)
        # The same bytes in a new file are the same model.
        (folder / "back.onnx").write_bytes(original)
        (folder / "back.onnx").replace(folder / "digits.onnx")
        await until(lambda: not pipeline.not_ready)
    replace(folder)
    async with running(folder, executor) as pipeline:  # a new load takes what is there
        await pipeline(item())


async def test_a_child_does_not_import_new_code(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder, "process") as pipeline:
        (folder / "ops.py").write_text(OPS + "\nVERSION = 2\n")
        for executor in pipeline.nodes[0].executors:
            assert executor._process is not None
            os.kill(executor._process.pid or 0, signal.SIGKILL)
        await until(lambda: "ops.py has changed on disk since" in caplog.text)
        (folder / "ops.py").write_text(OPS)
        await until(lambda: not pipeline.not_ready)
