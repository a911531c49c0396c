"""The baseline of ResNet-18: JPEG -> class in plain loops over OpenCV and ONNX Runtime.

There is no server and no queue.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime

from penstock.backends.engines.normalise import fuse_normalisation

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZE = 224


class Layout(NamedTuple):
    """The division of a loop's work."""

    threads: int
    threads_per_run: int
    batch: int

    def __str__(self) -> str:
        return f"{self.threads} × {self.threads_per_run} threads, batch {self.batch}"


def layouts(processors: int) -> list[Layout]:
    """Return the layouts to try.

    One thread per processor or all processors in one run, and images one by one or in batches.
    """
    candidates = [Layout(processors, 1, batch) for batch in (1, 4, 8)]
    if processors > 1:
        candidates += [Layout(1, processors, batch) for batch in (1, 8)]
    return candidates


def read_model(path: Path) -> bytes:
    """Read a model and fuse mean and std into it, as Penstock does: the loop should be the best."""
    model = onnx.load(path)
    fuse_normalisation(model, MEAN, STD)
    return bytes(model.SerializeToString())


def open_session(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(
    session: Any, buffer: np.ndarray[Any, Any], jpegs: Sequence[bytes]
) -> list[tuple[int, float]]:
    """Return the class and score of each image."""
    for row, jpeg in enumerate(jpegs):
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        image = cv2.cvtColor(cv2.resize(image, (SIZE, SIZE)), cv2.COLOR_BGR2RGB)
        buffer[row] = image.transpose(2, 0, 1)
    logits = session.run(None, {session.get_inputs()[0].name: buffer[: len(jpegs)]})[0]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    return [
        (int(index), float(row[index]))
        for index, row in zip(scores.argmax(axis=1), scores, strict=True)
    ]


def open_sessions(model: bytes, layout: Layout) -> list[Any]:
    """Open a session of ONNX Runtime for each thread of a layout."""
    return [open_session(model, layout.threads_per_run) for _ in range(layout.threads)]


class Loop:
    """A loop with one layout, warmed up."""

    def __init__(
        self,
        model: bytes,
        layout: Layout,
        jpegs: Sequence[bytes],
        opener: Callable[[bytes, Layout], list[Any]] = open_sessions,
    ) -> None:
        """`opener` opens a session for each thread, with the methods of ONNX Runtime's."""
        cv2.setNumThreads(1)
        self.layout = layout
        self.sessions = opener(model, layout)
        self.buffers = [np.empty((layout.batch, 3, SIZE, SIZE), np.float32) for _ in self.sessions]
        self.jpegs = jpegs
        for session, buffer in zip(self.sessions, self.buffers, strict=True):
            run(session, buffer, list(itertools.islice(itertools.cycle(jpegs), layout.batch)))

    def rate(self, seconds: float) -> float:
        """Run for `seconds`, to the end of a batch, and return the images per second."""
        rates = [0.0] * len(self.sessions)
        begun = time.perf_counter()

        def work(index: int) -> None:
            source = itertools.cycle(self.jpegs)
            images = 0
            while (now := time.perf_counter()) < begun + seconds:
                run(
                    self.sessions[index],
                    self.buffers[index],
                    list(itertools.islice(source, self.layout.batch)),
                )
                images += self.layout.batch
                now = time.perf_counter()
            rates[index] = images / (now - begun)

        threads = [
            threading.Thread(target=work, args=(index,)) for index in range(len(self.sessions))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)

    def single(self, count: int) -> float:
        """Return the median time of an image alone, in ms."""
        times = []
        for jpeg in itertools.islice(itertools.cycle(self.jpegs), count):
            started = time.perf_counter()
            run(self.sessions[0], self.buffers[0], [jpeg])
            times.append(time.perf_counter() - started)
        return sorted(times)[count // 2] * 1000
