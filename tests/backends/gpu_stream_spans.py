"""Work on a device, on the timeline, measured by the device's own clock.

scripts/gpu_check runs this file. pytest doesn't collect it on its own, because of its name.
"""

from __future__ import annotations

import threading
import time

import torch

from penstock.backends import timeline
from penstock.backends.gpu.device import DeviceHalf

from .trace_events import Shown


def test_on_a_gpu_spans_are_on_the_track_of_its_stream() -> None:
    recording = timeline.Recording()

    def batches() -> None:
        half = DeviceHalf(torch.device("cuda", 0), "node 'a'")
        parts = [torch.rand(4, 256, 256) for _ in range(2)]
        for _ in range(3):
            with half.errors("running"):
                start = time.monotonic()
                batch = half.assemble(0, parts, 8, 8, torch.float32)
                with half.span("run", rows=8):
                    for _ in range(20):
                        batch = batch @ batch
                half.fetch([batch])
                recording.add("p/a#0", "batch", start, time.monotonic())
        half.close()

    with timeline.record(recording):
        thread = threading.Thread(target=batches, name="p/a#0")
        thread.start()
        thread.join()
    spans = Shown(recording.trace()).spans
    assert [(depth, name) for depth, name, *_ in spans["p/a#0"]] == [
        (0, "batch"),
        (1, "assembly"),
    ] * 3
    assert [(depth, name) for depth, name, *_ in spans["p/a#0 on cuda:0"]] == [
        (0, "copy"),
        (0, "run"),
        (0, "copy back"),
    ] * 3
    whole = [(start, end) for _, name, start, end, _ in spans["p/a#0"] if name == "batch"]
    for position, (_, _, start, end, _) in enumerate(spans["p/a#0 on cuda:0"]):
        assert whole[position // 3][0] <= start <= end <= whole[position // 3][1], (
            "the device worked within the batch"
        )
