"""SetTensorRequestSize, CatTensor, SplitTensor, ArgMaxTensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from penstock import pipe
from penstock.backends.base import UNBOUNDED
from penstock.backends.errors import InvalidInput
from penstock.backends.image.tensor.rows import (
    ArgMaxTensor,
    CatTensor,
    SetTensorRequestSize,
    SplitTensor,
)
from penstock.backends.item import Item

torch = pytest.importorskip("torch")

MODEL = Path(__file__).parents[4] / "examples" / "digits" / "digits.onnx"


@pytest.mark.parametrize(
    "data",
    [torch.zeros(5, 2), np.zeros((5, 2)), [torch.zeros(5, 2), torch.zeros(1)]],
    ids=["tensor", "array", "list"],
)
def test_the_rows_are_the_request_size(make: Any, data: Any) -> None:
    item: Item = {"data": data}
    make(SetTensorRequestSize).forward([item])
    assert item["request_size"] == 5 and item["result"] is data


def test_an_engine_after_it_takes_the_rows() -> None:
    images = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 1, 8, 8)
    with pipe(
        {"backend": "S[SetTensorRequestSize,OnnxTensor]", "model": str(MODEL), "max": 4}
    ) as model:
        item = {"data": images}
        model(item)
    assert item["result"].shape == (3, 10) and item["request_size"] == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_joined_and_split(run_tensor: Any, dtype: Any) -> None:
    pieces = [torch.arange(rows * 6).reshape(rows, 2, 3).to(dtype) for rows in (1, 3, 2)]
    item = run_tensor(CatTensor, pieces)
    assert torch.equal(item["result"], torch.cat(pieces)) and item["request_size"] == 6
    split = run_tensor(SplitTensor, item["result"], {"request_size": 6})
    assert "request_size" not in split
    assert [tuple(piece.shape) for piece in split["result"]] == [(1, 2, 3)] * 6
    assert torch.equal(torch.cat(split["result"]), item["result"])
    assert [
        len(piece) for piece in run_tensor(SplitTensor, item["result"], split_size=4)["result"]
    ] == [4, 2]


def test_one_tensor_stays(run_tensor: Any) -> None:
    item = run_tensor(CatTensor, torch.ones(4, 2)[1:])
    assert item["result"].shape == (3, 2) and item["request_size"] == 3


@pytest.mark.parametrize(
    "data",
    [
        [torch.zeros(1, 2), torch.zeros(1, 3)],
        [torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int32)],
        [torch.tensor(1), torch.tensor(2)],
        torch.zeros(0, 2),
        [],
        "abc",
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_together(run_tensor: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match="CatTensor: expected"):
        run_tensor(CatTensor, data)


@pytest.mark.parametrize("cls", [SetTensorRequestSize, SplitTensor])
@pytest.mark.parametrize("data", [torch.tensor(1.0), torch.zeros(0, 3), b""])
def test_data_without_rows(run_tensor: Any, cls: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{cls.__name__}: expected"):
        run_tensor(cls, data)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_the_best_of_each_row(run_tensor: Any, shape: Any) -> None:
    scores = torch.rand(shape)
    for data in (scores, scores.half(), scores.numpy()):
        result = run_tensor(ArgMaxTensor, data)["result"]
        assert (
            result.dtype == torch.int64 and result.tolist() == np.asarray(data).argmax(-1).tolist()
        )


@pytest.mark.parametrize(
    "data", [torch.tensor(1.0), torch.zeros(3, 0), torch.zeros(2, dtype=torch.complex64), [1, 2]]
)
def test_other_data_than_scores(run_tensor: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match="ArgMaxTensor: expected"):
        run_tensor(ArgMaxTensor, data)


def test_any_number_of_items(make: Any) -> None:
    for cls in (SetTensorRequestSize, CatTensor, SplitTensor, ArgMaxTensor):
        backend = make(cls)
        assert backend.max == UNBOUNDED
        batch: list[Item] = [{"data": torch.ones(2, 3)}, {"data": b""}, {"data": torch.ones(2, 3)}]
        backend.forward(batch)
        assert ["result" in item for item in batch] == [True, False, True] and isinstance(
            batch[1]["error"], InvalidInput
        )


def test_wrong_parameters_are_a_load_error(make: Any) -> None:
    with pytest.raises(ValidationError):
        make(SplitTensor, split_size=0)
