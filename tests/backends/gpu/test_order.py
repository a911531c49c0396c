"""The tensors that are waited for. gpu_order.py tests on a GPU that the waits work."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from penstock.backends.base import Backend  # noqa: E402
from penstock.backends.gpu.order import keep_order, tensors_in, torch_on_gpu  # noqa: E402
from penstock.backends.item import Item  # noqa: E402


def test_tensors_are_found_in_nested_values() -> None:
    a, b, c, d = (torch.full((1,), value) for value in range(4))
    batch = [
        {
            "data": a,
            "result": {"boxes": [b, 1.5], "more": {"deep": ((c,),)}},
            "text": "x",
            "scores": [0.1] * 9,
        },
        {"data": b"jpeg", "result": [[1, 2], None, [d]]},
    ]
    assert [int(tensor) for tensor in tensors_in(torch, batch)] == [0, 1, 2, 3]


def test_a_value_that_contains_itself() -> None:
    loop: dict[str, Any] = {"tensor": torch.zeros(1)}
    loop["again"] = [loop]
    assert {tensor.shape for tensor in tensors_in(torch, [loop])} == {(1,)}


def test_forward_runs_unchanged_without_a_gpu() -> None:
    class Double(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = item["data"] * 2

    backend = Double()
    keep_order(backend, "")
    batch: list[Item] = [{"data": torch.ones(1)}]
    backend.forward(batch)
    assert batch[0]["result"].item() == 2 and torch_on_gpu() is None


def test_a_process_without_torch_does_not_import_it() -> None:
    code = """
import sys
from penstock import pipe
with pipe({"net": {"backend": "DecodeMat"}}) as run:
    run({"data": b"no image"})
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
