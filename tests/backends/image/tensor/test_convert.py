"""CvtColorTensor, FloatTensor, NCHWTensor, GpuTensor, CpuTensor."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput
from penstock.backends.image.tensor.convert import (
    CpuTensor,
    CvtColorTensor,
    FloatTensor,
    GpuTensor,
    NCHWTensor,
)

torch = pytest.importorskip("torch")

CODES = {
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("bgr", "gray"): cv2.COLOR_BGR2GRAY,
    ("rgb", "gray"): cv2.COLOR_RGB2GRAY,
    ("gray", "bgr"): cv2.COLOR_GRAY2BGR,
    ("gray", "rgb"): cv2.COLOR_GRAY2RGB,
}

# colours


@pytest.mark.parametrize(("source", "target"), CODES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_converted_as_by_opencv(
    run_tensor: Any, photo: Any, source: str, target: str, dtype: Any
) -> None:
    image = photo[:, :, :1] if source == "gray" else photo
    image = image.astype(np.float32) if dtype == torch.float32 else image
    expected = cv2.cvtColor(image, CODES[source, target]).reshape(*photo.shape[:2], -1)
    item = run_tensor(
        CvtColorTensor,
        torch.from_numpy(image.transpose(2, 0, 1)[None].copy()),
        {"color": source},
        color=target,
    )
    result = item["result"][0].permute(1, 2, 0).numpy()
    assert (
        item["color"] == target and result.shape == expected.shape and item["result"].dtype == dtype
    )
    assert (
        np.array_equal(result, expected)
        if dtype == torch.uint8
        else np.allclose(result, expected, atol=0.02)
    )


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_the_same_color_changes_nothing(run_tensor: Any, tensor: Any, color: str) -> None:
    image = tensor[:, :1].clone() if color == "gray" else tensor
    item = run_tensor(CvtColorTensor, image, {"color": color}, color=color)
    assert torch.equal(item["result"], image) and item["color"] == color


def test_the_layout_is_kept(run_tensor: Any, photo: Any) -> None:
    item = run_tensor(
        CvtColorTensor,
        torch.from_numpy(photo[None].copy()),
        {"color": "bgr", "data_format": "nhwc"},
        color="rgb",
    )
    assert np.array_equal(item["result"][0].numpy(), photo[:, :, ::-1])


def test_one_channel_is_gray(run_tensor: Any, tensor: Any) -> None:
    assert (
        run_tensor(CvtColorTensor, tensor[:, :1].clone(), color="rgb")["result"].shape
        == tensor.shape
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "the item has no color: expected rgb or bgr for its 3 channels"),
        (
            {"color": "gray"},
            "color 'gray' does not fit an image of 3 channels: expected one of rgb, bgr, gray",
        ),
        ({"color": "hsv"}, "color 'hsv' does not fit"),
    ],
)
def test_a_color_that_does_not_fit(
    run_tensor: Any, tensor: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=f"CvtColorTensor: {message}"):
        run_tensor(CvtColorTensor, tensor, keys, color="rgb")


def test_wrong_parameters_are_a_load_error(make: Any) -> None:
    with pytest.raises(ValidationError):
        make(CvtColorTensor, color="hsv")
    with pytest.raises(ValidationError):
        make(CvtColorTensor)


# floats


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.float32,
        torch.bool,
    ],
)
def test_floats_keep_the_values(run_tensor: Any, dtype: Any) -> None:
    data = torch.tensor([[0, 1, 1], [0, 0, 1]]).to(dtype)
    result = run_tensor(FloatTensor, data)["result"]
    assert result.dtype == torch.float32 and result.tolist() == data.tolist()


def test_the_result_for_a_view_keeps_no_larger_tensor_alive(run_tensor: Any, tensor: Any) -> None:
    result = run_tensor(FloatTensor, tensor.float()[:, :1])["result"]
    assert torch.equal(result, tensor[:, :1].float())


def test_arrays_are_tensors(run_tensor: Any, photo: Any) -> None:
    assert np.array_equal(run_tensor(FloatTensor, photo)["result"].numpy(), photo)
    assert np.array_equal(
        run_tensor(FloatTensor, photo.astype(">f4")[::-1])["result"].numpy(), photo[::-1]
    )


@pytest.mark.parametrize(
    "data",
    [
        b"jpeg",
        [1.0],
        np.array([b"x"]),
        np.zeros(2, np.complex64),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=str,
)
def test_other_data_than_numbers(run_tensor: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match="FloatTensor: expected"):
        run_tensor(FloatTensor, data)


# layout


@pytest.mark.parametrize(
    ("shape", "keys", "order"),
    [
        ((4, 5, 3), {}, (2, 0, 1)),
        ((4, 5), {}, (0, 1)),
        ((2, 4, 5, 3), {"data_format": "nhwc"}, (0, 3, 1, 2)),
        ((2, 3, 4, 5), {"data_format": "nchw"}, (0, 1, 2, 3)),
        ((2, 3, 4, 5), {}, (0, 1, 2, 3)),
    ],
)
def test_nchw(run_tensor: Any, shape: Any, keys: dict[str, Any], order: Any) -> None:
    data = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    item = run_tensor(NCHWTensor, data, keys)
    assert item["data_format"] == "nchw" and item["result"].ndim == 4
    assert torch.equal(item["result"].reshape(data.permute(order).shape), data.permute(order))


# devices


@pytest.mark.parametrize("cls", [CpuTensor, GpuTensor])
def test_tensors_and_lists_of_them(run_tensor: Any, tensor: Any, cls: Any) -> None:
    result = run_tensor(cls, tensor[:, :, 5:])["result"]
    assert torch.equal(result, tensor[:, :, 5:])
    first, second = run_tensor(cls, [np.arange(3), torch.arange(4)])["result"]
    assert first.tolist() == [0, 1, 2] and second.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("cls", [CpuTensor, GpuTensor])
@pytest.mark.parametrize("data", [[], ["a"], b""])
def test_other_data_is_refused(run_tensor: Any, cls: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{cls.__name__}: expected a "):
        run_tensor(cls, data)
