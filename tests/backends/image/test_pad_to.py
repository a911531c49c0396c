"""Padding to a multiple and to the widest of a batch, also with a value after the normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from penstock import Pipeline
from penstock.backends.errors import InvalidInput
from penstock.backends.image.pad_to import PadToMultipleMat, PadToWidestTensor

from ..engines.test_onnx import FLOAT, write

IMAGENET: dict[str, Any] = {"mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"}


def widen(make: Any, *arrays: Any, **params: Any) -> list[Any]:
    batch = [{"data": array} for array in arrays]
    make(PadToWidestTensor, **params).forward(batch)
    return [item.get("result", item.get("error")) for item in batch]


# PadToMultipleMat


@pytest.mark.parametrize("multiple", [1, 7, 32, 427, 1000])
def test_an_image_keeps_its_place(run: Any, photo: Any, multiple: int) -> None:
    result = run(PadToMultipleMat, photo, multiple=multiple, pad_value="1,2,3")["result"]
    height, width, _ = result.shape
    assert 0 <= height - 427 < multiple > width - 640 >= 0 == height % multiple == width % multiple
    assert np.array_equal(result[:427, :640], photo) and result.dtype == np.uint8
    assert (result[427:] == (1, 2, 3)).all() and (result[:, 640:] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("params", "dtype", "expected"),
    [
        ({}, "uint8", 0),
        ({"pad_value": 114}, "uint8", 114),
        ({"pad_value": 127.6}, "uint8", 128),
        ({"pad_value": 300}, "uint8", 255),
        ({"pad_value": 127.6}, "float32", np.float32(127.6)),
        ({"mean": 128, "std": 64}, "uint8", 128),
        ({"mean": 128, "std": 64, "pad_normalised": 0.5}, "uint8", 160),
        ({"std": 255, "pad_normalised": 1}, "uint8", 255),
        ({"pad_normalised": 7}, "uint16", 7),
    ],
)
def test_the_value_of_the_padding(
    run: Any, photo: Any, params: Any, dtype: str, expected: Any
) -> None:
    result = run(PadToMultipleMat, photo.astype(dtype), **params)["result"]
    assert result.dtype == dtype and (result[427:] == expected).all()


@pytest.mark.parametrize("normalised", [None, 0, -1.5, "0,1,-1"])
def test_a_mean_that_is_no_whole_number_makes_floats(run: Any, photo: Any, normalised: Any) -> None:
    params = {**IMAGENET, **({} if normalised is None else {"pad_normalised": normalised})}
    result = run(PadToMultipleMat, photo, **params)["result"]
    assert result.dtype == np.float32 and np.array_equal(result[:427, :640], photo)
    mean, std = (np.array(text.split(","), np.float32) for text in IMAGENET.values())
    expected = [0, 1, -1] if normalised == "0,1,-1" else [normalised or 0] * 3
    after = (result[427:] - mean) / std
    np.testing.assert_allclose(after, np.broadcast_to(expected, after.shape), atol=1e-5)
    if not normalised:
        assert (after == 0).all()


def test_values_that_do_not_fit(run: Any, photo: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"PadToMultipleMat: the padding has 3 values .* 427x640"
    ):
        run(PadToMultipleMat, photo[:, :, :1], **IMAGENET)
    for wrong in (
        {"pad_value": 1, "pad_normalised": 1},
        {"multiple": 0},
        {"pad_normalised": "inf"},
        {"mean": "1,2", "std": "1,2,3"},
    ):
        with pytest.raises(ValidationError):
            PadToMultipleMat.parameters(**wrong)  # type: ignore[misc]


# PadToWidestTensor


@pytest.mark.parametrize(
    ("params", "size"),
    [({}, 9), ({"multiple": 4}, 12), ({"least": 20}, 20), ({"least": 20, "multiple": 8}, 24)],
)
def test_items_of_a_batch_become_as_wide(make: Any, params: Any, size: int) -> None:
    arrays = [np.full((1, 3, 2, width), width, np.uint8) for width in (5, 9, 1)]
    for array, result in zip(arrays, widen(make, *arrays, pad_value=7, **params), strict=True):
        width = array.shape[3]
        assert result.shape == (1, 3, 2, size) and result.dtype == np.uint8
        assert (result[..., :width] == array).all() and (result[..., width:] == 7).all()
        assert result.flags.c_contiguous and result.flags.owndata


def test_only_what_fits_otherwise_is_padded_together(make: Any) -> None:
    shapes = [(1, 4, 3), (1, 6, 3), (1, 5, 2), (2, 9, 3)]
    results = widen(make, *(np.ones(shape, np.float32) for shape in shapes), axis=1)
    assert [result.shape for result in results] == [(1, 6, 3), (1, 6, 3), (1, 5, 2), (2, 9, 3)]


def test_channels_are_the_second_axis_or_the_last(make: Any) -> None:
    value = [np.float32(each) for each in (123.675, 116.28, 103.53)]
    first = np.zeros((1, 3, 4, 2), np.uint8)
    (result,) = widen(make, first, least=3, **IMAGENET)
    assert result.dtype == np.float32 and (value == result[0, :, :, 2].T).all()
    (result,) = widen(make, np.zeros((1, 4, 2, 3), np.uint8), axis=2, least=3, **IMAGENET)
    assert (result[0, :, 2] == value).all()
    with pytest.raises(InvalidInput, match=r"PadToWidestTensor: the padding has 3 values"):
        widen(make, np.zeros((1, 4, 5, 3), np.uint8), **IMAGENET)


def test_tensors_of_torch(make: Any) -> None:
    torch = pytest.importorskip("torch")
    results = widen(make, torch.ones(1, 2, 3), torch.ones(1, 2, 5, dtype=torch.bfloat16))
    assert [result.shape for result in results] == [(1, 2, 5)] * 2
    assert results[0].tolist() == [[[1, 1, 1, 0, 0]] * 2]


@pytest.mark.parametrize("data", [[1, 2], "text", np.zeros(3), np.array([["a"]]), np.float32(1)])
def test_a_bad_item_fails_alone(make: Any, data: Any) -> None:
    good = np.ones((1, 2), np.float32)
    with pytest.raises(InvalidInput, match="PadToWidestTensor: expected"):
        widen(make, data)
    results = widen(make, good, data, good)
    assert isinstance(results[1], InvalidInput) and np.array_equal(results[0], good)


async def test_the_model_sees_zeros_beside_a_narrow_line(tmp_path: Path) -> None:
    """With mean 127.5 no whole number of a pixel is that."""
    model = write(
        tmp_path / "sum.onnx",
        [("ReduceSum", ["x", "axes"], ["sum"], {"keepdims": 0})],
        [("x", FLOAT, ["N", 3, 2, "W"])],
        [("sum", FLOAT, ["N"])],
        [("axes", np.array([1, 2, 3]))],
    )
    node = {
        "backend": "S[Mat2Tensor,PadToWidestTensor,OnnxTensor]",
        "model": str(model),
        "mean": 127.5,
        "std": 127.5,
        "max": 8,
        "batching_timeout": 1000,
        "executor": "process",
    }
    images = [np.full((2, width, 3), 255, np.uint8) for width in range(1, 9)]
    async with Pipeline.load(node) as pipeline:
        answers = await pipeline([{"data": image} for image in images])
    assert [answer["result"].item() for answer in answers] == [6.0 * each for each in range(1, 9)]
