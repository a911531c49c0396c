"""What is watched while a load runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from penstock.app.bench.usage import Monitor

SLOW = """#!/bin/sh
echo $$ > {folder}/asked.tmp
mv {folder}/asked.tmp {folder}/asked
exec sleep 60
"""
QUICK = """#!/bin/sh
echo 40, 1000
"""


def install(folder: Any, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in nvidia-smi's place."""
    program = folder / "nvidia-smi"
    program.write_text(text.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_gpus_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, QUICK, monkeypatch)
    monitor = Monitor(None)
    async with monitor as usage:
        await until(lambda: monitor._gpu)
    assert usage.gpu_percent == 40 and usage.gpu_memory_mb == pytest.approx(1000 * 2**20 / 1e6)


async def test_a_question_that_takes_long_ends_with_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, SLOW, monkeypatch)
    async with Monitor(None) as usage:
        await until((tmp_path / "asked").exists)
    assert usage.gpu_percent is None
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "asked").read_text()), 0)
