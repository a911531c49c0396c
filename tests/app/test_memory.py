"""What a server holds for its requests, under a limit of the operating system."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

IMAGES = 60
SIDE = 3000  # 27 MB decoded, and about 30 KB as a PNG
ADDRESS_SPACE_BYTES = 3 << 30
"""The server itself takes about half of it; 60 decoded images would take 1.6 GB."""

SLOW = """
import os

import penstock


class Slow(penstock.Backend):
    def forward(self, batch):
        open(os.environ["GATE"]).close()  # a FIFO: until the test opens the other end
        for item in batch:
            item["result"] = str(item["data"].shape)
"""

PIPELINE = """
[pipeline]
timeout = 300

[decode]
backend = "DecodeMat"
instance_num = 2
next = "slow"

[slow]
backend = "Python[slow.py:Slow]"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit -v and /proc")
async def test_images_do_not_pile_up_before_a_slow_node(spawn: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "images.toml").write_text(PIPELINE)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    png = cv2.imencode(".png", np.zeros((SIDE, SIDE, 3), np.uint8))[1].tobytes()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, limit[1]))
    try:  # the child inherits it
        server = spawn(
            *("serve", tmp_path / "images.toml", "--port", 0, "--max-memory", 512 << 20),
            GATE=str(gate),
            OPENBLAS_NUM_THREADS="1",  # its buffers are address space
        )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    with server.listening() as client:
        server.wait_for("ready after")
        async with httpx.AsyncClient(
            base_url=client.base_url, timeout=300, limits=httpx.Limits(max_connections=None)
        ) as clients:
            calls = [
                asyncio.ensure_future(clients.post("/predict/images", content=png))
                for _ in range(IMAGES)
            ]
            # All are inside, the first is in the slow node, and no image is being decoded.
            inside, slow, busy, decoded = 0.0, 0.0, 1.0, 0.0
            while inside < IMAGES or not slow or busy:
                text = (await clients.get("/metrics")).text
                inside = value(text, 'penstock_requests_in_flight{pipeline="images"}')
                slow = value(text, 'penstock_executors_busy{node="slow",pipeline="images"}')
                busy = value(text, 'penstock_executors_busy{node="decode",pipeline="images"}')
                decoded = value(
                    text, 'penstock_items_total{node="decode",outcome="ok",pipeline="images"}'
                )
            assert decoded <= 8  # the share of 64 MB, and a batch of each executor
            opener = subprocess.Popen(
                [sys.executable, "-c", f"while True: open({str(gate)!r}, 'w').close()"]
            )
            try:
                answers = await asyncio.gather(*calls)
            finally:
                opener.kill()
                opener.wait()
        assert [answer.status_code for answer in answers] == [200] * IMAGES
        server.process.terminate()
        assert server.end() == 0


def value(text: str, sample: str) -> float:
    return next(
        (float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample)), 0.0
    )
