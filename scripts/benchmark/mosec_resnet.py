"""JPEG -> ResNet-18 in mosec, with the instances and batches of resnet18_one.toml.

It runs in mosec's environment. PACKAGES names the directory of packages that has the rest, MODEL
the ONNX file.
"""

from __future__ import annotations

import os
import site
from pathlib import Path

from mosec import Server, Worker

site.addsitedir(os.environ["PACKAGES"])

import cv2
import numpy as np
from resnet_loop import SIZE, open_session, read_model, run

INSTANCES, MAX_BATCH = 2, 8


class ResNet(Worker):
    """Decodes, resizes and classifies a batch, as the plain loop does."""

    def __init__(self) -> None:
        super().__init__()
        cv2.setNumThreads(1)
        self.session = open_session(read_model(Path(os.environ["MODEL"])), 1)
        self.buffer = np.empty((MAX_BATCH, 3, SIZE, SIZE), np.float32)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[tuple[int, float]]:
        return run(self.session, self.buffer, data)

    def serialize(self, data: tuple[int, float]) -> bytes:
        return b'{"class":%d,"score":%f}' % data


if __name__ == "__main__":
    server = Server()
    server.append_worker(ResNet, num=INSTANCES, max_batch_size=MAX_BATCH)
    server.run()
