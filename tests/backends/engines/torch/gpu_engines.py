"""Tests of the torch engines that need a GPU. scripts/gpu_check runs them; pytest does not collect
a file of this name.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.backends.gpu.device import STREAMS_PER_DEVICE, own_stream

from .modules import Pool, Total

DEVICE = torch.device("cuda", 0)

NETS = """
import torch
from torch import nn

class Positive(nn.Module):
    '''Waits for the device, which is not allowed in a CUDA graph.'''
    def forward(self, x):
        return x * 2 if int((x > 0).sum()) >= 0 else x

class Plus(nn.Module):
    '''Copies from memory that is not pinned: torch refuses that in a CUDA graph.'''
    def forward(self, x):
        return x + x * torch.ones(1).to(x.device)

class Twice(nn.Module):
    def forward(self, x):
        return x * 2
"""


def in_threads(count: int, work: Any) -> list[Any]:
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_each_thread_has_its_own_stream_and_returns_it_when_it_ends() -> None:
    there = threading.Barrier(12)  # threads of the round before may still be ending

    def take() -> int:
        stream = own_stream(DEVICE)
        assert stream is not None and own_stream(DEVICE) is stream
        there.wait(60)
        return int(stream.cuda_stream)

    for _ in range(2 * STREAMS_PER_DEVICE // 12 + 1):
        assert len(set(in_threads(12, take))) == 12


def test_batches_larger_than_any_captured_graph(exported: Any, make: Any, run: Any) -> None:
    backend = make("TorchExportTensor", exported(Pool(), torch.zeros(2, 3, 4, 4)))
    backend.warm_up()
    assert len(backend.children[0]._half._graphs) == 4
    for count in (3, 20, 3, 8, 33, 1):
        data = [torch.randn(1, 3, 4, 4) for _ in range(count)]
        answers = torch.cat(run(backend, *data))
        assert torch.allclose(answers, Pool()(torch.cat(data)), atol=1e-5)


def test_a_model_that_can_not_be_captured_runs_without_graphs_and_leaks_no_memory(
    tmp_path: Path, make: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    backend = make("PythonTensor", f"{tmp_path / 'nets.py'}:Positive", max="4x1024x1024")
    backend.warm_up()
    assert "runs without CUDA graphs" in caplog.text
    assert not backend.children[0]._half._graphs
    run(backend, *(torch.ones(1, 1024, 1024) for _ in range(3)))
    before = torch.cuda.memory_reserved()
    for value in range(100):
        results = run(
            backend, *(torch.full((1, 1024, 1024), float(value + item)) for item in range(3))
        )
        assert [float(result[0, 0, 0]) for result in results] == [
            2.0 * (value + item) for item in range(3)
        ]
    assert torch.cuda.memory_reserved() <= before + 2**22


def test_failed_captures_leave_nothing_behind(tmp_path: Path, make: Any, run: Any) -> None:
    """One of them ends in Python, before the driver sees it, and one in the driver."""
    (tmp_path / "nets.py").write_text(NETS)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for name, captured in (("Plus", 0), ("Positive", 0), ("Twice", 3), ("Plus", 0), ("Twice", 3)):
        backend = make("PythonTensor", f"{tmp_path / 'nets.py'}:{name}", max="4x1024x1024")
        backend.warm_up()
        assert len(backend.children[0]._half._graphs) == captured
        for value in (1.0, 2.0, 3.0):
            (result,) = run(backend, torch.full((1, 1024, 1024), value))
            assert result.unique().tolist() == [2 * value]
        backend.close()
        del backend
        gc.collect()
        torch.cuda.empty_cache()  # fails if a pool was released twice
        assert torch.cuda.memory_allocated() <= before + 2**20


def test_outputs_without_a_row_for_each_item_are_not_padded(
    scripted: Any, make: Any, run: Any
) -> None:
    backend = make("TorchScriptTensor", scripted(Total()), max="4x2", batched=True)
    backend.warm_up()
    assert len(backend.children[0]._half._graphs) == 1  # the one for a single row
    assert run(backend, torch.ones(3, 2), request_size=3)[0].tolist() == [[3, 3]]


def test_tensors_of_the_device_and_of_the_host_in_one_batch(
    exported: Any, make: Any, run: Any
) -> None:
    backend = make("TorchExportTensor", exported(Pool(), torch.zeros(2, 3, 4, 4)), max=4)
    backend.warm_up()
    data = [torch.randn(1, 3, 4, 4) for _ in range(3)]
    mixed = [data[0].cuda(), data[1], data[2].cuda()]
    torch.cuda.synchronize()
    assert torch.allclose(torch.cat(run(backend, *mixed)), Pool()(torch.cat(data)), atol=1e-5)


def test_instances_load_and_capture_while_others_run(exported: Any, make: Any, run: Any) -> None:
    """Captures happen one at a time, and batches that run meanwhile are not disturbed."""
    path = exported(torch.nn.Conv2d(3, 8, 3), torch.zeros(2, 3, 16, 16))
    ending = threading.Event()
    data = [torch.randn(1, 3, 16, 16) for _ in range(3)]

    def serve() -> int:
        backend = make("TorchExportTensor", path, max=4)
        backend.warm_up()
        first = torch.cat(run(backend, *data))
        count = 0
        while not ending.is_set():
            assert torch.allclose(torch.cat(run(backend, *data)), first, atol=1e-5)
            count += 1
        return count

    def load() -> bool:
        backend = make("TorchExportTensor", path, max=16, ENABLE_WEIGHT_SHARING=False)
        backend.warm_up()
        return len(backend.children[0]._half._graphs) == 5

    servers: list[int] = []
    thread = threading.Thread(target=lambda: servers.extend(in_threads(3, serve)))
    thread.start()
    try:
        assert in_threads(8, load) == [True] * 8
    finally:
        ending.set()
        thread.join(60)
    assert len(servers) == 3 and all(servers)
