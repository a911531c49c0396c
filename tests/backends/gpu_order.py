"""Work of different threads on a GPU, each with a stream of its own, in order. scripts/gpu_check runs it; pytest by itself does not find
it by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock import pipe

DEVICE = torch.device("cuda", 0)
ELEMENTS = 1 << 20
LONG = 400_000_000
"""Cycles: a fifth of a second or more."""


OUTSIDER = f"""
import torch

def outsider(data):
    '''A user's: works on the thread's current stream, and does not say that it has a device.'''
    data = data.to("cuda:0")
    torch.cuda._sleep({LONG})
    made = data + 1
    return {{"dict": made, "lists": [[made + 1]], "many": [0.5] * 100}}
"""


def written_late() -> torch.Tensor:
    """A tensor of sevens, which the device is still busy with, on the default stream."""
    with torch.cuda.stream(
        torch.cuda.default_stream(DEVICE)
    ):  # tests of engines leave this thread another one
        tensor = torch.zeros((1, ELEMENTS), device=DEVICE)
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG)
        return tensor.fill_(7)


def read(tensor: torch.Tensor) -> Any:
    """The tensor's values, by a stream that waits for no other."""
    stream = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return tensor.to("cpu", non_blocking=False).unique().tolist()


@pytest.mark.parametrize("graphs", [False, True])
def test_an_engine_reads_what_the_caller_has_asked_for(graphs: bool) -> None:
    config = {
        "backend": "PythonTensor",
        "model": "torch.nn:Identity",
        "max": f"2x{ELEMENTS}",
        "cuda_graphs": graphs,
    }
    with pipe(config) as run:
        for _ in range(3):
            item: dict[str, Any] = {"data": written_late()}
            run(item)
            assert item["result"].unique().tolist() == [7]


def test_an_image_backend_reads_what_the_caller_has_asked_for() -> None:
    with pipe(
        {"backend": "S[ResizeTensor,FloatTensor]", "resize_h": 32, "resize_w": 32, "device_id": 0}
    ) as run:
        for _ in range(3):
            item: dict[str, Any] = {"data": written_late().view(1, 1, 1024, 1024)}
            run(item)
            assert read(item["result"]) == [7]


def test_what_a_users_backend_leaves_on_the_device_is_there(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text(OUTSIDER)
    with pipe({"backend": f"Python[{tmp_path / 'outsider.py'}:outsider]"}) as run:
        for value in (1.0, 2.0):
            item: dict[str, Any] = {"data": torch.full((ELEMENTS,), value)}
            run(item)
            assert read(item["result"]["dict"]) == [value + 1]
            assert read(item["result"]["lists"][0][0]) == [value + 2]
