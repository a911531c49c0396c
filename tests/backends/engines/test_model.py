"""ModelTensor: which engine a file gets, and what it answers in."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import Context
from penstock.backends.engines import model
from penstock.backends.engines.model import ModelTensor, engine_for
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.errors import BackendError
from penstock.backends.registry import describe, find_backend

NO_TORCH = importlib.util.find_spec("torch") is None


def write(path, outputs=1, kind=TensorProto.FLOAT):
    names = [f"y{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name]) for name in names],
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info(name, kind, ["n", 3]) for name in names],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def make(path, **params):
    backend = ModelTensor()
    backend.init(ModelTensor.parameters(model=str(path), **params), Context(node="node"))
    return backend


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(model, "find_spec", lambda name: None)


def test_it_is_there():
    assert find_backend("ModelTensor") is ModelTensor
    assert describe("ModelTensor").available


@pytest.mark.usefixtures("without_torch")
def test_an_onnx_file_runs_by_onnx_runtime(tmp_path):
    backend = make(write(tmp_path / "Same.ONNX"), max="4")
    assert backend.max == 4
    backend.warm_up()
    batch = [{"data": np.full((1, 3), value, np.float32)} for value in (1, 2)]
    backend.forward(batch)
    assert [item["result"].tolist() for item in batch] == [[[1, 1, 1]], [[2, 2, 2]]]
    assert all(isinstance(item["result"], np.ndarray) for item in batch)
    backend.close()


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("outputs", [1, 2])
def test_where_torch_is_installed_tensors_come_out(tmp_path, outputs):
    import torch

    backend = make(write(tmp_path / "same.onnx", outputs))
    batch = [{"data": torch.full((1, 3), value)} for value in (1.0, 2.0)] + [{"data": "no array"}]
    backend.forward(batch)
    results = [item["result"] if outputs == 2 else [item["result"]] for item in batch[:2]]
    for value, tensors in zip((1.0, 2.0), results, strict=True):
        assert len(tensors) == outputs
        assert all(isinstance(each, torch.Tensor) and each.tolist() == [[value] * 3] for each in tensors)
    assert "result" not in batch[2] and "expected" in str(batch[2]["error"])
    backend.close()


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_text_stays_numpy(tmp_path):
    backend = make(write(tmp_path / "text.onnx", kind=TensorProto.STRING))
    item = {"data": np.array([["a", "b", "c"]])}
    backend.forward([item])
    assert item["result"].tolist() == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.onnx.encrypted", "is encrypted"),
        ("model", r"node 'node': ModelTensor: the model model has no suffix that says what it is: expected .onnx, .trt, .plan, .pt, .pt2"),
        ("absent.onnx", "absent.onnx does not exist"),
    ],
)
def test_what_does_not_run_here_says_what_is_missing(tmp_path, name, message):
    (tmp_path / "m.onnx.encrypted").write_bytes(b"")
    with pytest.raises(BackendError, match=message):
        make(tmp_path / name if name.endswith("encrypted") else name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m.trt", "TensorrtTensor"),
        ("m.plan.encrypted", "TensorrtTensor"),
        ("M.PT", "TorchScriptTensor"),
        ("m.pt2", "TorchExportTensor"),
        ("m.onnx", "OnnxTensor"),
    ],
)
def test_the_file_says_which_engine_and_a_machine_without_a_gpu_runs_onnx_by_onnx_runtime(name, expected):
    params = ModelTensor.parameters(model=name)
    assert engine_for(params, Context(device="cpu")).__name__ == expected


@pytest.mark.parametrize(
    ("gpu", "library", "capability", "device", "expected"),
    [
        (True, "tensorrt", 9, "", "TensorrtTensor"),
        (True, "tensorrt", 9, "cuda:0", "TensorrtTensor"),
        (True, "tensorrt", 9, "cpu", "OnnxTensor"),
        (True, "tensorrt_rtx", 12, "", "TensorrtTensor"),
        (True, "tensorrt_rtx", 9, "", "OnnxTensor"),
        (True, "", 9, "", "OnnxTensor"),
        (False, "tensorrt", 9, "", "OnnxTensor"),
    ],
)
@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_onnx_runs_by_tensorrt_on_a_gpu_that_its_library_runs_on(monkeypatch, gpu, library, capability, device, expected):
    import torch

    def find(wanted):
        if not library:
            raise BackendError("TensorRT is not here")
        return Library(library, "10.0", None, None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(model, "find_library", find)
    assert engine_for(ModelTensor.parameters(model="m.onnx"), Context(device=device)).__name__ == expected


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_an_exported_program_runs(tmp_path):
    import torch

    linear = torch.nn.Linear(3, 2)
    program = torch.export.export(linear, (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "linear.pt2")
    backend = make(tmp_path / "linear.pt2", max="4", INFERENCE_MODE=False)
    backend.warm_up()
    assert (backend.min, backend.max, backend.device) == (1, 4, "")
    item = {"data": torch.ones(1, 3)}
    backend.forward([item])
    assert torch.allclose(item["result"], linear(torch.ones(1, 3)))
    backend.close()
