"""examples/voice_activity: what Silero's own code says of each stream, however batches mix them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from .conftest import Load, Serve

EXAMPLE = Path(__file__).parents[2] / "examples" / "voice_activity"
RATE = 16_000
CHUNK = 512
STREAMS = 6


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, load: Load) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    load(folder / "export.py").export(folder / "voice.onnx")
    return folder / "voice.toml"


@pytest.fixture(scope="module")
def sounds(load: Load) -> list[bytes]:
    """Return 1.28 s of noise for each stream, 40 chunks, with a voice in it."""
    recording = load(EXAMPLE / "vowels.py").recording
    return [
        recording(1.28, 0.3 + 0.05 * number, 0.9 + 0.05 * number, 110 + 15 * number)
        for number in range(STREAMS)
    ]


@pytest.fixture(scope="module")
def client(serve: Serve, pipeline: Path) -> Iterator[httpx.Client]:
    with serve(pipeline) as client:
        yield client


@pytest.fixture(scope="module")
def silero() -> Iterator[Any]:
    import torch

    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad  # sets the threads of torch

    yield load_silero_vad(onnx=True)
    torch.set_num_threads(threads)


def probabilities(silero: Any, sound: bytes) -> list[float]:
    """Return what Silero's own class says of each chunk, one after another."""
    import torch

    silero.reset_states()
    samples = np.frombuffer(sound, "<i2").astype(np.float32) / 32768
    return [float(silero(torch.from_numpy(chunk), RATE)) for chunk in samples.reshape(-1, CHUNK)]


def test_streams_share_batches_and_no_state(
    client: httpx.Client, silero: Any, sounds: list[bytes]
) -> None:
    sizes: list[int] = []

    async def stream(session: httpx.AsyncClient, name: str, sound: bytes) -> list[float]:
        found = []
        for start in range(0, len(sound), 2 * CHUNK):
            answer = await session.post(
                "voice", params={"sequence": name}, content=sound[start : start + 2 * CHUNK]
            )
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["result"])
            batch = re.search(r"run\.voice;[^,]*batch (\d+)", answer.headers["server-timing"])
            assert batch is not None
            sizes.append(int(batch[1]))
        return found

    async def all_streams() -> list[list[float]]:
        url = client.base_url
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=False) as session:
            return await asyncio.gather(
                *[stream(session, f"call {number}", sound) for number, sound in enumerate(sounds)]
            )

    for found, sound in zip(asyncio.run(all_streams()), sounds, strict=True):
        assert found == pytest.approx(probabilities(silero, sound), abs=1e-4)
        assert min(found) < 0.1 < 0.9 < max(found)  # there is speech, and silence
    assert max(sizes) > 1


def test_the_client_prints_the_stretches(client: httpx.Client, sounds: list[bytes]) -> None:
    command = [sys.executable, str(EXAMPLE / "send.py"), f"{client.base_url}voice"]
    done = subprocess.run(command, input=sounds[0], capture_output=True, check=True, timeout=60)
    (line,) = done.stdout.decode().splitlines()
    began, ended = map(float, re.findall(r"[0-9.]+(?= s)", line))
    assert (began, ended) == pytest.approx((0.3, 0.95), abs=0.1)


def test_a_chunk_of_another_size_is_refused(client: httpx.Client) -> None:
    answer = client.post("voice", params={"sequence": "short"}, content=bytes(100))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "1024 bytes" in answer.json()["detail"]
