"""SoftmaxArgMaxTensor: from scores to a class, a probability and a label."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import UNBOUNDED, Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.item import Item
from penstock.backends.operators.classify import SoftmaxArgMaxParams, SoftmaxArgMaxTensor


def make(directory: Path | None = None, **params: Any) -> SoftmaxArgMaxTensor:
    backend = SoftmaxArgMaxTensor()
    backend.init(
        SoftmaxArgMaxParams(**params), Context(directory=directory) if directory else Context()
    )
    return backend


def classify(data: Any, backend: Any = None) -> Any:
    item = {"data": data}
    (backend or make()).forward([item])
    del item["data"]
    return item


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("cat\ndog \nÄffin\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("shape", [(1, 3), (3,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_softmax_and_argmax(shape: tuple[int, ...], dtype: Any) -> None:
    answer = classify(np.array([1, 3, 2], dtype).reshape(shape))
    assert answer == {
        "result": 1,
        "class": 1,
        "score": pytest.approx(math.e**3 / (math.e + math.e**2 + math.e**3)),
    }
    assert type(answer["result"]) is type(answer["class"]) is int
    assert type(answer["score"]) is float


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_tensors_of_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        scores = torch.tensor([[1, 3, 2]], dtype=getattr(torch, dtype), device=device)
        if scores.is_floating_point():
            scores.requires_grad_()
        assert classify(scores) == classify(np.array([[1, 3, 2]]))
        with pytest.raises(InvalidInput, match="expected numbers of shape 1xK or K"):
            classify(scores.expand(2, 3))
    with pytest.raises(InvalidInput, match="expected numbers"):
        classify(torch.zeros(2, dtype=torch.complex64))


def test_large_logits_do_not_overflow() -> None:
    assert classify(np.array([[1e4, 0]], np.float32))["score"] == 1.0


def test_probabilities_stay_as_they_are() -> None:
    assert classify(np.array([[0.25, 0.5, 0.25]]), make(softmax=False))["score"] == 0.5


def test_labels_are_relative_to_the_pipelines_file(animals: Path) -> None:
    answer = classify(np.array([[0, 0, 9.0]]), make(animals, labels="labels.txt"))
    assert answer["label"] == "Äffin" and "top" not in answer
    assert classify(np.array([[0, 9.0, 0]]), make(animals, labels="labels.txt"))["label"] == "dog"


def test_top_k_lists_the_best_classes(animals: Path) -> None:
    answer = classify(np.array([[1.0, 3, 2]]), make(animals, labels="labels.txt", top_k=2))
    assert [(entry["class"], entry["label"]) for entry in answer["top"]] == [
        (1, "dog"),
        (2, "Äffin"),
    ]
    assert answer["top"][0] == {key: answer[key] for key in ("class", "score", "label")}
    assert len(classify(np.ones((1, 3)), make(top_k=5))["top"]) == 3


def test_equal_scores_keep_the_order_of_classes() -> None:
    scores = np.tile([0.0, 1.0], 200)
    answer = classify(scores[np.newaxis], make(top_k=400))
    assert answer["class"] == 1
    assert [entry["class"] for entry in answer["top"]] == [*range(1, 400, 2), *range(0, 400, 2)]


@pytest.mark.parametrize(
    "data",
    [
        np.ones((2, 3)),
        np.ones((1, 1, 3)),
        np.ones((1, 0)),
        np.array(1.0),
        np.array(["a"]),
        [1.0, 2.0],
        np.array([[np.nan, 1]]),
        np.array([np.inf, 1]),
    ],
    ids=str,
)
def test_other_data_than_a_row_of_scores(data: Any) -> None:
    with pytest.raises(InvalidInput, match="SoftmaxArgMaxTensor"):
        classify(data)


def test_labels_that_do_not_match(animals: Path) -> None:
    with pytest.raises(BackendError, match=r"labels\.txt has 3 labels, but the model gives 4"):
        classify(np.ones((1, 4)), make(animals, labels="labels.txt"))


def test_labels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing\.txt can't be read"):
        make(tmp_path, labels="nothing.txt")


def test_a_bad_item_fails_alone() -> None:
    batch: list[Item] = [
        {"data": np.array([0.0, 1])},
        {"data": np.ones((2, 2))},
        {"data": np.array([1.0, 0])},
    ]
    make().forward(batch)
    assert [item.get("result") for item in batch] == [1, None, 0]
    assert isinstance(batch[1]["error"], InvalidInput) and "error" not in batch[0]


def test_it_takes_any_batch() -> None:
    assert make().max == UNBOUNDED
