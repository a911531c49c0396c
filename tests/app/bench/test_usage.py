"""The monitor of GPU use while a load runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

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


def install(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of nvidia-smi."""
    program = folder / "nvidia-smi"
    program.write_text(text.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_gpu_use_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, QUICK, monkeypatch)
    monitor = Monitor(None)
    async with monitor as usage:
        await until(lambda: monitor._gpu)
    assert usage.gpu_percent == 40 and usage.gpu_memory_mb == pytest.approx(1000 * 2**20 / 1e6)


async def test_a_slow_nvidia_smi_is_killed_when_the_load_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, SLOW, monkeypatch)
    async with Monitor(None) as usage:
        await until((tmp_path / "asked").exists)
    assert usage.gpu_percent is None
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "asked").read_text()), 0)
