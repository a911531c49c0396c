"""The key `postprocessor` outside of a network: the keys that it sets, for arrays of ONNX Runtime
and for torch's tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import Backend, Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions.registry import find_backend
from penstock.backends.item import Item

try:
    import torch
except ModuleNotFoundError:
    torch = None  # type: ignore[assignment]

SCORES = np.array([[1, 3, 2], [5, 4, 0]], np.float32)
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)


def write(path: Path, shape: tuple[Any, ...] = ("n", 3), outputs: int = 1) -> Path:
    """Save a model that returns its input."""
    names = [f"y{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name]) for name in names],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.fixture(
    params=[
        "OnnxTensor",
        pytest.param(
            "PythonTensor", marks=pytest.mark.skipif(torch is None, reason="torch is not here")
        ),
    ]
)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Make a backend whose model returns its input."""
    made: list[Backend] = []

    def make(**keys: Any) -> Backend:
        cls = find_backend(request.param)
        model = (
            str(write(tmp_path / "same.onnx"))
            if request.param == "OnnxTensor"
            else "torch.nn:Identity"
        )
        assert cls.parameters is not None
        backend = cls()
        made.append(backend)
        backend.init(
            cls.parameters.model_validate({"model": model, **keys}),
            Context(node="node", device="cpu"),
        )
        return backend

    yield make
    for backend in made:
        backend.close()


def run(backend: Backend, *data: Any, **keys: Any) -> list[Item]:
    batch: list[Item] = [{"data": value, **keys} for value in data]
    backend.forward(batch)
    return batch


@pytest.mark.parametrize("name", ["Softmax", "SoftmaxCpu"])
def test_probabilities(make: Any, name: str) -> None:
    backend = make(postprocessor=name)
    for rows in (
        run(backend, SCORES, request_size=2)[0]["result"],
        [item["result"][0] for item in run(backend, SCORES[:1], SCORES[1:])],
    ):
        assert np.allclose(np.stack([np.asarray(row) for row in rows]), PROBABILITIES, atol=1e-6)
    result = run(backend, SCORES[:1] + 1000)[0]["result"]
    assert str(result.dtype).endswith("float32") and np.allclose(
        np.asarray(result), PROBABILITIES[:1], atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [("ArgMax", SCORES), ("SoftmaxArgMax", PROBABILITIES), ("SoftmaxMax", PROBABILITIES)],
)
def test_classes_are_plain_values(make: Any, name: str, values: Any) -> None:
    backend = make(postprocessor=name)
    for batch in (
        run(backend, SCORES[:1], SCORES[1:]),
        [run(backend, SCORES[:1])[0], run(backend, SCORES[1:])[0]],
    ):
        for item, best, row in zip(batch, (1, 0), values, strict=True):
            assert (item["class"], type(item["class"]), type(item["score"])) == (best, int, float)
            assert item["score"] == pytest.approx(float(row[best]), abs=1e-6)
            assert item["result"] == (item["score"] if name == "SoftmaxMax" else best)
            assert "top" not in item
    (item,) = run(backend, SCORES, request_size=2)
    assert item["class"] == [1, 0] and item["score"] == pytest.approx(
        [float(values[0, 1]), float(values[1, 0])], abs=1e-6
    )
    assert item["result"] == (item["score"] if name == "SoftmaxMax" else [1, 0])


def test_the_best_classes_in_order(make: Any) -> None:
    (item,) = run(make(postprocessor="SoftmaxArgMax", top_k=2), SCORES[:1])
    assert [entry["class"] for entry in item["top"]] == [1, 2]
    assert item["top"][0] == {"class": item["class"], "score": item["score"]}


@pytest.mark.parametrize("name", [None, "", "split", "cpu"])
def test_post_processors_that_do_nothing(make: Any, name: str | None) -> None:
    result = run(make(postprocessor=name), SCORES[:1])[0]["result"]
    assert np.array_equal(np.asarray(result), SCORES[:1])


def test_scores_that_are_not_finite_fail_their_item_alone(make: Any) -> None:
    bad, good = run(
        make(postprocessor="ArgMax"), np.array([[1, np.nan, 2]], np.float32), SCORES[:1]
    )
    assert (
        isinstance(bad["error"], InvalidInput)
        and "not finite" in str(bad["error"])
        and "result" not in bad
    )
    assert good["class"] == 1


def test_a_model_without_scores_is_an_error(make: Any, tmp_path: Path) -> None:
    backend = make(postprocessor="ArgMax", top_k=3)
    if isinstance(backend, OnnxTensor):
        for path, keys, message in (
            (
                write(tmp_path / "two.onnx", outputs=2),
                {},
                r"postprocessor: ArgMax needs a model with one output, N×K scores; found one of 2",
            ),
            (
                write(tmp_path / "image.onnx", ("n", 3, 4, 4)),
                {},
                r"postprocessor: ArgMax needs .* found one of 4 axes$",
            ),
            (
                write(tmp_path / "few.onnx"),
                {"top_k": 4},
                r"top_k: is 4, but the model has only 3 scores",
            ),
        ):
            params = OnnxParams.model_validate(
                {"model": str(path), "postprocessor": "ArgMax", **keys}
            )
            with pytest.raises(ConfigError, match=message):
                OnnxTensor().init(params, Context(node="node"))
    else:
        with pytest.raises(
            BackendError,
            match=r"PythonTensor: ArgMax needs a model with one output, N×K scores; found one of 3",
        ):
            run(backend, SCORES[np.newaxis])
        with pytest.raises(BackendError, match=r"top_k is 3, but the model has only 2 scores"):
            run(backend, SCORES[:1, :2])
