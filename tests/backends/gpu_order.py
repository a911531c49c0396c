"""Work on a GPU from several threads, each with a stream of its own, in order.

scripts/gpu_check runs this file. pytest doesn't collect it on its own, because of its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock import pipe

DEVICE = torch.device("cuda", 0)
ELEMENTS = 1 << 20
LONG_CYCLES = 400_000_000
"""A fifth of a second or more."""


OUTSIDER = f"""
import torch

def outsider(data):
    '''Work on the thread's current stream, without naming a device, as a user's code may.'''
    data = data.to("cuda:0")
    torch.cuda._sleep({LONG_CYCLES})
    result = data + 1
    return {{"dict": result, "lists": [[result + 1]], "many": [0.5] * 100}}
"""


def written_late() -> torch.Tensor:
    """Return a tensor of sevens that the device is still writing, on the default stream."""
    # Tests of engines leave this thread with another current stream.
    with torch.cuda.stream(torch.cuda.default_stream(DEVICE)):
        tensor = torch.zeros((1, ELEMENTS), device=DEVICE)
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
        return tensor.fill_(7)


def read(tensor: torch.Tensor) -> Any:
    """Read the values of a tensor through a stream that waits for no other."""
    stream = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return sorted(set(tensor.to("cpu", non_blocking=False).flatten().tolist()))


@pytest.mark.parametrize("graphs", [False, True])
def test_an_engine_waits_for_the_callers_work(graphs: bool) -> None:
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


def test_an_image_backend_waits_for_the_callers_work() -> None:
    with pipe(
        {"backend": "S[ResizeTensor,FloatTensor]", "resize_h": 32, "resize_w": 32, "device_id": 0}
    ) as run:
        for _ in range(3):
            item: dict[str, Any] = {"data": written_late().view(1, 1, 1024, 1024)}
            run(item)
            assert read(item["result"]) == [7]


def test_the_result_of_a_users_backend_on_the_device_is_complete(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text(OUTSIDER)
    with pipe({"backend": f"Python[{tmp_path / 'outsider.py'}:outsider]"}) as run:
        for value in (1.0, 2.0):
            item: dict[str, Any] = {"data": torch.full((ELEMENTS,), value)}
            run(item)
            assert read(item["result"]["dict"]) == [value + 1]
            assert read(item["result"]["lists"][0][0]) == [value + 2]
