"""The keys `inputs`, `outputs` and `reshape` of OnnxTensor. Those of other engines are beside
their own tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from pydantic import ValidationError

from penstock.backends.base import TensorPort
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.pipelines.pipeline import Pipeline

from .test_onnx import make, run, write

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """sum = a + b, difference = a - b, count (no rows) = the number of elements of a; Nx1 each.
    The bias is an optional input.
    """
    return write(
        tmp_path / "pair.onnx",
        [
            ("Add", ["a", "b"], ["plain"]),
            ("Add", ["plain", "bias"], ["sum"]),
            ("Sub", ["a", "b"], ["difference"]),
            ("Size", ["a"], ["count"]),
        ],
        [("a", FLOAT, ["n", 1]), ("b", FLOAT, ["n", 1]), ("bias", FLOAT, [1])],
        [("sum", FLOAT, ["n", 1]), ("difference", FLOAT, ["n", 1]), ("count", INT64, [])],
        [("bias", np.zeros(1, np.float32))],
    )


def column(value: float) -> Any:
    return np.full((1, 1), value, np.float32)


def test_inputs_and_outputs_by_name(pair: Path) -> None:
    backend = make(pair, max=4, inputs=["b", "a"], outputs="difference,sum")
    assert backend.batched  # `count`, which has no rows, is not asked for
    results = run(backend, [column(3), column(5)], {"a": column(1), "b": column(2)})
    assert [[part.item() for part in result] for result in results] == [[2, 8], [-1, 3]]
    assert [port.name for port in backend.signature.inputs] == ["b", "a"]
    assert [port.name for port in backend.signature.outputs] == ["difference", "sum"]
    assert not make(pair, max=4).batched


def test_an_optional_input_may_stand_before_the_others(pair: Path) -> None:
    backend = make(pair, max=4, inputs=["bias", "a", "b"], outputs=["sum"])
    backend.warm_up()
    bias = np.array([10], np.float32)
    results = run(backend, [None, column(1), column(2)], [bias, column(1), column(2)])
    assert [result.item() for result in results] == [3, 13]
    assert [port.optional for port in backend.signature.inputs] == [True, False, False]
    assert backend.signature.batch_axes == (None, 0, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inputs": ["a", "c"]}, r"inputs: names 'c', and the model has no such tensor"),
        ({"inputs": ["a"]}, r"inputs: lacks b, which the model needs"),
        ({"inputs": ["a", "b", "a"]}, r"inputs: names 'a' twice"),
        ({"outputs": ["sun"]}, r"outputs: names 'sun'.* did you mean 'sum'"),
        ({"reshape": {"c": {"from": [1], "to": []}}}, r"reshape: names 'c'"),
    ],
)
def test_names_that_do_not_fit_the_model(pair: Path, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(pair, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inputs": ["a"], "input_reorder": "0"}, "inputs and input_reorder both give an order"),
        ({"reshape": {"a": {"from": [2, -1], "to": [-1, 3]}}}, "differ in the number of elements"),
        (
            {"reshape": {"a": {"from": [1], "to": []}}, "batch_axis": {"a": 1}},
            "reshape and batch_axis both name a",
        ),
    ],
)
def test_keys_that_contradict_each_other(keys: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnnxParams.model_validate({"model": "m.onnx", **keys})


def test_shapes_differ_inside_and_outside_of_the_model(tmp_path: Path) -> None:
    path = write(
        tmp_path / "flat.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
    )
    backend = make(
        path,
        max=4,
        batched=True,
        reshape={"x": {"from": [1], "to": []}, "y": {"from": [], "to": [1, 1]}},
    )
    backend.warm_up()
    results = run(backend, column(1), column(2), np.ones((1, 2), np.float32))
    assert [result.tolist() for result in results[:2]] == [[[[2]]], [[[4]]]]
    assert isinstance(results[2], InvalidInput)
    assert "input x: expected shape Nx1, found 1x2" in str(results[2])
    assert backend.signature.inputs == (TensorPort("x", "float32", (-1, 1)),)
    assert backend.signature.outputs == (TensorPort("y", "float32", (-1, 1, 1)),)
    wrong = make(path, max=1, batched=True, reshape={"y": {"from": [2], "to": [2, 1]}})
    with pytest.raises(BackendError, match=r"output y: the model gave shape 1, .* expects Nx2"):
        run(wrong, np.ones(1, np.float32))


def test_open_sizes_keep_their_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "open.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, ["a", 2, "b"])],
        [("y", FLOAT, ["a", 2, "b"])],
    )
    backend = make(
        path,
        batched=False,
        reshape={"x": {"from": [-1, 1, 2, -1], "to": [-1, 2, -1]}},
    )
    (result,) = run(backend, np.ones((3, 1, 2, 5), np.float32))
    assert result.shape == (3, 2, 5)


async def test_a_pipeline_counts_rows_of_the_shapes_outside(pair: Path) -> None:
    net = {
        "backend": "OnnxTensor",
        "model": str(pair),
        "max": 4,
        "outputs": ["sum"],
        "reshape": {"a": {"from": [1, 1], "to": [1]}},
    }
    async with Pipeline.load({"net": net}) as pipeline:
        item = {"data": [np.ones((2, 1, 1), np.float32), np.ones((2, 1), np.float32)]}
        result = (await pipeline(item))["result"]
    assert result.tolist() == [[2], [2]]
