"""Warm-up of OnnxTensor, with models that refuse zeros."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import ConfigError
from penstock.backends.expressions.registry import find_backend
from penstock.pipelines.pipeline import Pipeline

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def ints(values: Any) -> Any:
    return np.array(values, np.int64)


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


def write(path: Path, operator: str, inputs: Any, output: Any) -> Path:
    graph = helper.make_graph(
        [helper.make_node(operator, [name for name, *_ in inputs], ["y"])],
        "graph",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info("y", *output)],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def expand(tmp_path: Path) -> Path:
    """y = x broadcast to the shape s."""
    inputs = [("x", FLOAT, [1, 3]), ("s", INT64, [2])]
    return write(tmp_path / "expand.onnx", "Expand", inputs, (FLOAT, ["a", "b"]))


@pytest.fixture
def divide(tmp_path: Path) -> Path:
    """y = a / b in whole numbers, N×1."""
    inputs = [("a", INT64, ["n", 1]), ("b", INT64, ["n", 1])]
    return write(tmp_path / "divide.onnx", "Div", inputs, (INT64, ["n", 1]))


def make(path: Path, **params: Any) -> Any:
    backend = OnnxTensor()
    context = Context(node="node", pipeline="pipe", directory=path.parent)
    backend.init(OnnxParams.model_validate({"model": path.name, **params}), context)
    return backend


async def test_a_model_that_refuses_zeros_is_loaded_with_one_warning(
    expand: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"backend": "OnnxTensor", "model": str(expand), "batched": False, "instance_num": 2}
    data = [floats([[1, 2, 3]]), ints([2, 3])]
    async with Pipeline.load({"expand": keys}) as pipeline:
        answer = await pipeline({"data": data})
    assert answer["result"].tolist() == [[1, 2, 3], [1, 2, 3]]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "expand.onnx is not warmed up, because the model refuses zeros: " in record.message
    assert "Expand" in record.message and "warm_up = false leaves warm-up out" in record.message
    assert "Non-zero status" not in capfd.readouterr().err


@pytest.mark.parametrize("most", [1, 4])
def test_division_by_zero(divide: Path, caplog: pytest.LogCaptureFixture, most: int) -> None:
    backend = make(divide, max=most)
    backend.warm_up()
    assert caplog.text.count("division by zero") == 1
    item: Any = {"data": [ints([[7]]), ints([[2]])]}
    backend.forward([item])
    assert item["result"].tolist() == [[3]]


@pytest.mark.parametrize("switch", [False, "false"])
def test_warm_up_can_be_left_out(
    divide: Path, caplog: pytest.LogCaptureFixture, switch: Any
) -> None:
    make(divide, max=1, warm_up=switch).warm_up()
    assert caplog.text == ""


def test_values_for_the_warm_up(
    divide: Path, expand: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Any] = []

    class Spy:
        def run(self, names: Any, feed: Any, options: Any) -> Any:
            ran.append({name: array.tolist() for name, array in feed.items()})
            return session.run(names, feed, options)

    np.savez(divide.parent / "ab.npz", b=ints([[2], [0]]), a=ints([[6], [1]]))
    backend = make(divide, max=2, warm_up="ab.npz", batched=True)
    session, backend.model.session = backend.model.session, Spy()
    backend.warm_up()
    assert ran == [{"a": [[6]] * rows, "b": [[2]] * rows} for rows in (1, 2)]

    np.savez(divide.parent / "xs.npz", x=floats([[1, 2, 3]]), s=ints([2, 3]))
    backend = make(expand, warm_up="xs.npz", batched=False)
    session, backend.model.session = backend.model.session, Spy()
    backend.warm_up()
    assert ran[2:] == [{"x": [[1, 2, 3]], "s": [2, 3]}] and caplog.text == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, r"values\.npz can't be read as a \.npz file: FileNotFoundError"),
        (b"no archive", r"values\.npz can't be read as a \.npz file: "),
        ({"a": ints([[1]])}, "the model's inputs are a, b, found a"),
        (
            {"a": ints([[1]]), "b": floats([[1]])},
            "input b: expected int64 of shape Nx1, found float32 of shape 1x1",
        ),
        ({"a": ints([[1]]), "b": ints(1)}, r"input b: .* found int64 of shape \(\)"),
    ],
)
def test_values_that_do_not_fit_are_an_error_of_the_file(
    divide: Path, values: Any, message: str
) -> None:
    path = divide.parent / "values.npz"
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif values is not None:
        np.savez(path, **values)
    with pytest.raises(ConfigError, match=r"\[node\] warm_up: .*" + message):
        make(divide, warm_up="values.npz", batched=True).warm_up()


@pytest.mark.parametrize("batched", [None, True])
@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_file_without_rows_is_an_error_of_the_file(
    divide: Path, engine: str, batched: bool | None, example: Any
) -> None:
    np.savez(divide.parent / "none.npz", a=ints(np.zeros((0, 1))), b=ints(np.zeros((0, 1))))
    make_engine = make if engine == "onnx" else example
    with pytest.raises(
        ConfigError, match=r"\[node\] warm_up: .*none.npz: a has no rows \(shape 0x1\)"
    ):
        make_engine(divide, max=2, warm_up="none.npz", batched=batched).warm_up()


@pytest.fixture
def example() -> Any:
    """Make TorchScriptTensor of the division."""
    torch = pytest.importorskip("torch")
    engine: Any = find_backend("TorchScriptTensor")

    def make_torch(path: Path, **params: Any) -> Any:
        ones = torch.ones(1, 1, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            torch.jit.trace(lambda a, b: a // b, (ones, ones)).save(str(path.parent / "div.pt"))
        backend = engine()
        context = Context(node="node", pipeline="pipe", directory=path.parent, device="cpu")
        backend.init(engine.parameters.model_validate({"model": "div.pt", **params}), context)
        return backend

    return make_torch


def test_a_lack_of_memory_is_no_refusal(divide: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "huge.onnx", "ConstantOfShape", [("s", INT64, [1])], (FLOAT, ["n"]))
    np.savez(tmp_path / "huge.npz", s=ints([1 << 43]))
    with pytest.raises(Exception, match="Failed to allocate memory"):
        make(path, warm_up="huge.npz", batched=False).warm_up()


def looked_up(path: Path, *, mixes: bool) -> Path:
    """Write y[n] = the table's row x[n] - 1000, which refuses random x; with `mixes` times the rows
    of the batch.
    """
    nodes = [
        helper.make_node("Sub", ["x", "thousand"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["row"]),
    ]
    if mixes:
        nodes += [
            helper.make_node("ReduceSum", ["row"], ["sum"], keepdims=1),
            helper.make_node("Add", ["row", "sum"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["row"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", INT64, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["m"])],
        [
            helper.make_tensor("thousand", INT64, [1], [1000]),
            helper.make_tensor("table", FLOAT, [3], [1, 2, 4]),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_rows_of_the_values_are_the_probe_of_a_model_that_refuses_random_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ran: list[int] = []

    class Spy:
        def run(self, names: Any, feed: Any, options: Any) -> Any:
            ran.append(len(feed["x"]))
            return session.run(names, feed, options)

    np.savez(tmp_path / "x.npz", x=ints([1000, 1001]))
    backend = make(looked_up(tmp_path / "apart.onnx", mixes=False), max=2, warm_up="x.npz")
    assert "refuses random rows" not in caplog.text
    session, backend.model.session = backend.model.session, Spy()
    batch: Any = [{"data": ints([1001])}, {"data": ints([1002])}]
    backend.forward(batch)
    assert [item["result"].tolist() for item in batch] == [[2], [4]] and ran == [2]

    backend = make(looked_up(tmp_path / "mixed.onnx", mixes=True), max=2, warm_up="x.npz")
    assert backend.max == 1
    assert "output y of a row changes with the other rows of its batch" in caplog.text


@pytest.mark.parametrize("values", [[1000], [1000, 1000]])
def test_values_of_one_row_prove_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[int]
) -> None:
    caplog.set_level(logging.INFO)
    np.savez(tmp_path / "x.npz", x=ints(values))
    make(looked_up(tmp_path / "apart.onnx", mixes=False), max=2, warm_up="x.npz")
    assert "refuses random rows" in caplog.text


def test_random_rows_find_what_the_values_do_not(tmp_path: Path) -> None:
    """The rows of a file may be too alike."""
    inputs = [("x", FLOAT, ["n", 1])]
    path = write(tmp_path / "clip.onnx", "Softmax", inputs, (FLOAT, ["n", 1]))
    graph = onnx.load(path)
    graph.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    onnx.save(graph, path)
    np.savez(tmp_path / "x.npz", x=floats([[np.nan], [-np.nan]]))
    assert make(path, max=2, warm_up="x.npz").max == 1
