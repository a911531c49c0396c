"""OpenvinoTensor. What it shares with OnnxTensor is tested there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from penstock.backends.base import Context, TensorPort
from penstock.backends.engines.model import ModelParams, choose_engine
from penstock.backends.engines.openvino import OpenvinoParams, OpenvinoTensor
from penstock.backends.errors import BackendError, ConfigError, InvalidInput

from .test_onnx import write

openvino = pytest.importorskip("openvino")

FLOAT = TensorProto.FLOAT


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """sum = a + b, Nx2; rows = the shape of a: two numbers, whatever the batch."""
    return write(
        tmp_path / "network.onnx",
        [("Add", ["a", "b"], ["sum"]), ("Shape", ["a"], ["rows"])],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])],
        [("sum", FLOAT, ["n", 2]), ("rows", TensorProto.INT64, [2])],
    )


def make(path: Path, device: str = "", **params: Any) -> Any:
    backend = OpenvinoTensor()
    model: Any = OpenvinoParams.model_validate({"model": str(path), "threads": 1, **params})
    backend.init(model, Context(node="node", device=device))
    return backend


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": value} for value in data]
    backend.forward(batch)
    return [item.get("result", item.get("error")) for item in batch]


def row(*values: float) -> Any:
    return np.array([values], np.float32)


def test_a_model_of_its_own_format(network: Path) -> None:
    path = network.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(network), path)
    backend = make(path, max=4, inputs=["b", "a"], outputs=["sum"])
    backend.warm_up()
    results = run(backend, [row(1, 2), row(3, 4)], {"a": row(5, 6), "b": row(7, 8)}, [row(1, 2)])
    assert [result.tolist() for result in results[:2]] == [[[4, 6]], [[12, 14]]]
    assert isinstance(results[2], InvalidInput)
    assert "OpenvinoTensor: the model has 2 inputs (b, a), but data holds 1" in str(results[2])
    assert backend.signature.inputs == (
        TensorPort("b", "float32", (-1, 2)),
        TensorPort("a", "float32", (-1, 2)),
    )


def test_model_tensor_chooses_it_for_its_own_format() -> None:
    choice = choose_engine(
        ModelParams.model_validate({"model": "1/model.xml"}), Context(node="node")
    )
    assert choice.engine is OpenvinoTensor


def test_results_have_memory_of_their_own(network: Path) -> None:
    backend = make(network, batched=False)
    (first,) = run(backend, [row(1, 2), row(3, 4)])
    run(backend, [row(5, 6), row(7, 8)])
    assert [part.tolist() for part in first] == [[[4, 6]], [1, 2]]


def test_rows_that_share_an_output_do_not_share_runs(network: Path) -> None:
    assert not make(network, max=4).batched
    assert make(network, max=4, outputs=["sum"]).batched


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": "1"}, "mean: OpenvinoTensor builds no normalisation"),
        ({"precision": "int8"}, "precision: found 'int8', expected one of fp32, fp16, bf16"),
        ({"device": "cuda:0"}, "OpenvinoTensor runs only on the CPU"),
        ({"outputs": ["sun"]}, "outputs: names 'sun'"),
    ],
)
def test_keys_that_do_not_fit(network: Path, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(network, **keys)


def test_files_that_can_not_be_read(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"none\.xml does not exist"):
        make(network.with_name("none.xml"))
    wrong = network.with_name("wrong.xml")
    wrong.write_text("<net/>")
    with pytest.raises(BackendError, match=r"wrong\.xml can't be loaded"):
        make(wrong)
    hidden = network.with_name("net.xml.encrypted")
    hidden.write_bytes(b"")
    with pytest.raises(BackendError, match="reads only plain files"):
        make(hidden)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'penstock-serve\[openvino\]'"):
        make(network)
