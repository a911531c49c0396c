"""examples/speech: stretches of speech, found while the sound arrives, however it is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "speech"
PIPELINE = FOLDER / "speech.toml"
RATE = 16_000
SPOKEN = [(0.5, 1.2), (2.0, 2.6)]


def recording() -> bytes:
    """Make 3.4 s of noise with two loud stretches."""
    random = np.random.default_rng(0)
    sound = random.normal(0, 50, int(3.4 * RATE))
    time = np.arange(len(sound)) / RATE
    for start, end in SPOKEN:
        inside = (start <= time) & (time < end)
        sound += inside * 3000 * np.sin(2 * np.pi * 180 * time)
    return sound.astype("<i2").tobytes()


@pytest.mark.parametrize("size", [999, 16_000, 1 << 20])
def test_stretches_do_not_depend_on_where_chunks_end(client: httpx.Client, size: int) -> None:
    sound = recording()
    pieces = [sound[start : start + size] for start in range(0, len(sound), size)]
    answer = client.post("speech", content=iter(pieces))
    found = [(part["from"], part["to"]) for part in answer.json()["result"]]
    assert found == pytest.approx(np.array(SPOKEN), abs=0.03)


def test_the_client_sends_by_websocket(client: httpx.Client) -> None:
    url = f"ws://127.0.0.1:{client.base_url.port}/predict/speech/stream"
    command = [sys.executable, str(FOLDER / "send.py"), url]
    output = subprocess.run(command, input=recording(), capture_output=True, check=True, timeout=60)
    lines = [json.loads(line)["result"] for line in output.stdout.splitlines()]
    assert [(part["from"], part["to"]) for part in lines] == pytest.approx(
        np.array(SPOKEN), abs=0.03
    )
