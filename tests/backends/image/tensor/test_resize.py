"""Resizing, against OpenCV, the Mat backends, and torch itself."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.pad import ResizePadMat
from penstock.backends.image.resize import AlignMat
from penstock.backends.image.tensor.resize import (
    AlignTensor,
    DynamicResizeTensor,
    ResizePadTensor,
    ResizeTensor,
)
from penstock.backends.item import Item

torch = pytest.importorskip("torch")

SIZES = [(224, 224), (100, 900), (1, 1), (427, 640), (854, 1280)]


def pixels(result: Any) -> Any:
    """Return 1×C×H×W as H×W×C."""
    return result[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_as_by_opencv(
    run_tensor: Any, tensor: Any, photo: Any, height: int, width: int, dtype: Any
) -> None:
    result = run_tensor(ResizeTensor, tensor.to(dtype), resize_h=height, resize_w=width)["result"]
    assert result.dtype == dtype and result.shape == (1, 3, height, width)
    expected = cv2.resize(
        photo.astype(np.float32) if dtype == torch.float32 else photo, (width, height)
    )
    assert (
        np.array_equal(pixels(result), expected)
        if dtype == torch.uint8
        else np.allclose(pixels(result), expected, atol=1e-3)
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resized_as_by_torch(run_tensor: Any, tensor: Any, height: int, width: int) -> None:
    result = run_tensor(ResizeTensor, tensor.float(), resize_h=height, resize_w=width)["result"]
    expected = torch.nn.functional.interpolate(
        tensor.float(), (height, width), mode="bilinear", align_corners=False, antialias=False
    )
    assert (result - expected).abs().max() < 0.01


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.1), (torch.bfloat16, 0.6)])
def test_half_precision_is_kept(run_tensor: Any, tensor: Any, dtype: Any, error: Any) -> None:
    result = run_tensor(ResizeTensor, tensor.to(dtype), resize_h=50, resize_w=60)["result"]
    expected = run_tensor(ResizeTensor, tensor.float(), resize_h=50, resize_w=60)["result"]
    assert result.dtype == dtype and (result.float() - expected).abs().max() <= error


def test_half_pixel_centres(run_tensor: Any) -> None:
    ramp = torch.tensor([[[[0.0, 10, 20, 30]]]])
    assert run_tensor(ResizeTensor, ramp, resize_h=1, resize_w=2)["result"].ravel().tolist() == [
        5,
        25,
    ]


@pytest.mark.parametrize("channels", [1, 4, 128])
def test_any_number_of_images_and_channels(run_tensor: Any, channels: int) -> None:
    images = torch.randint(0, 256, (3, channels, 20, 30), dtype=torch.uint8)
    result = run_tensor(ResizeTensor, images, resize_h=7, resize_w=9)["result"]
    assert result.shape == (3, channels, 7, 9)
    for image, small in zip(images, result, strict=True):
        for plane, small_plane in zip(image, small, strict=True):
            assert np.array_equal(small_plane.numpy(), cv2.resize(plane.numpy(), (9, 7)))


def test_the_layout_stays(run_tensor: Any, photo: Any) -> None:
    expected = cv2.resize(photo, (60, 50))
    keys = {"data_format": "nhwc"}
    item = run_tensor(
        ResizeTensor, torch.from_numpy(photo.copy())[None], keys, resize_h=50, resize_w=60
    )
    assert np.array_equal(item["result"][0].numpy(), expected) and item["data_format"] == "nhwc"


def test_three_and_two_dimensions_are_an_image(run_tensor: Any, photo: Any) -> None:
    expected = cv2.resize(photo, (60, 50))
    for data in (photo, torch.from_numpy(photo.copy())):
        result = run_tensor(ResizeTensor, data, resize_h=50, resize_w=60)["result"]
        assert result.shape == (1, 3, 50, 60) and np.array_equal(pixels(result), expected)
    mirrored = run_tensor(ResizeTensor, photo[:, ::-1], resize_h=50, resize_w=60)["result"]
    assert np.array_equal(pixels(mirrored), cv2.resize(photo[:, ::-1].copy(), (60, 50)))
    grey = run_tensor(ResizeTensor, photo[:, :, 0], resize_h=50, resize_w=60)["result"]
    assert grey.shape == (1, 1, 50, 60) and np.array_equal(grey[0, 0].numpy(), expected[:, :, 0])


def test_a_tensor_that_requires_a_gradient(run_tensor: Any, tensor: Any) -> None:
    run_tensor(ResizeTensor, tensor.float().requires_grad_(), resize_h=5, resize_w=6)


# input that does not fit


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"jpeg", "found bytes"),
        (None, "found NoneType"),
        (np.array(["a"]), "found an array of <U1"),
        (np.zeros((1, 3, 4, 4), np.int64), "dtype int64"),
        (np.zeros((1, 3, 4, 4), np.float64), "dtype float64"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (np.zeros((1, 3, 0, 4), np.uint8), r"shape \(1, 3, 0, 4\)"),
        (np.zeros((1, 1, 3, 4, 4), np.uint8), r"shape \(1, 1, 3, 4, 4\)"),
        (
            np.zeros((1, 200, 200, 3), np.uint8),
            r"read as NxCxHxW, has more than 128 channels: is it another layout",
        ),
        (
            np.zeros((3, 200, 200), np.uint8),
            r"read as HxWxC, has more than 128 channels: is it another layout",
        ),
    ],
    ids=str,
)
def test_other_data_is_refused(run_tensor: Any, data: Any, problem: Any) -> None:
    with pytest.raises(InvalidInput, match=f"ResizeTensor: .*{problem}"):
        run_tensor(ResizeTensor, data, resize_h=2, resize_w=2)


def test_an_invalid_layout(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(
        InvalidInput, match="the item's data_format is 'chw': expected nchw or nhwc"
    ):
        run_tensor(ResizeTensor, tensor, {"data_format": "chw"}, resize_h=2, resize_w=2)


def test_a_bad_item_fails_alone(make: Any, tensor: Any) -> None:
    batch: list[Item] = [{"data": tensor}, {"data": b""}, {"data": tensor}]
    make(ResizeTensor, resize_h=2, resize_w=2).forward(batch)
    assert [sorted(item) for item in batch] == [
        ["data", "result"],
        ["data", "error"],
        ["data", "result"],
    ]


@pytest.mark.parametrize(
    "params", [{}, {"resize_h": 0, "resize_w": 1}, {"resize_h": 1, "resize_w": 32768}]
)
def test_wrong_parameters_are_a_load_error(make: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(ResizeTensor, **params)


# sizes of the item


def test_the_size_of_the_item(run_tensor: Any, tensor: Any, photo: Any) -> None:
    result = run_tensor(DynamicResizeTensor, tensor, {"resize_h": 50, "resize_w": np.int64(60)})[
        "result"
    ]
    assert np.array_equal(pixels(result), cv2.resize(photo, (60, 50)))


@pytest.mark.parametrize("size", [0, -1, 32768, "5", 2.5, None])
def test_an_invalid_size(run_tensor: Any, tensor: Any, size: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"DynamicResizeTensor: resize_w is .*: expected a whole number from 1 to 32767",
    ):
        run_tensor(DynamicResizeTensor, tensor, {"resize_h": 5, "resize_w": size})


def test_a_missing_or_too_large_size(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(InvalidInput, match="the item has no resize_h"):
        run_tensor(DynamicResizeTensor, tensor, {"resize_w": 5})
    with pytest.raises(TooLarge, match="6x5 pixels are asked for: at most 29 are allowed"):
        run_tensor(DynamicResizeTensor, tensor, {"resize_h": 5, "resize_w": 6}, max_pixels=29)


# fitted and padded


@pytest.mark.parametrize("bounds", [(224, 224), (300, 100), (10, 500)])
@pytest.mark.parametrize("pad_value", [0, "114.5", "1,2,300"])
def test_fitted_and_padded_as_resizepadmat(
    run: Any, run_tensor: Any, tensor: Any, photo: Any, bounds: Any, pad_value: Any
) -> None:
    params = {"max_h": bounds[0], "max_w": bounds[1], "pad_value": pad_value}
    expected, item = (
        run(ResizePadMat, photo, **params),
        run_tensor(ResizePadTensor, tensor, **params),
    )
    assert np.array_equal(pixels(item["result"]), expected["result"])
    assert item["inverse_trans"] == expected["inverse_trans"]


def test_floats_are_padded_with_floats(run_tensor: Any, tensor: Any) -> None:
    result = run_tensor(ResizePadTensor, tensor.float(), max_h=10, max_w=100, pad_value=-1.5)[
        "result"
    ]
    assert result[0, :, :, -1].unique().tolist() == [-1.5]


def test_a_padding_that_does_not_fit(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(InvalidInput, match=r"pad_value has 2 numbers, but the image has 3 channel"):
        run_tensor(ResizePadTensor, tensor, max_h=10, max_w=100, pad_value="1,2")


# aligned


@pytest.mark.parametrize(("max_w", "align"), [(1000, 32), (100, 1), (99, 32)])
def test_aligned_as_alignmat(
    run: Any, run_tensor: Any, tensor: Any, photo: Any, max_w: int, align: int
) -> None:
    params = {"resize_h": 48, "max_w": max_w, "align": align}
    expected, item = run(AlignMat, photo, **params), run_tensor(AlignTensor, tensor, **params)
    assert np.array_equal(pixels(item["result"]), expected["result"])
    for key in ("resize_h", "resize_w", "inverse_trans"):
        assert item[key] == expected[key]
    with pytest.raises(ValidationError, match="no multiple of align"):
        run_tensor(AlignTensor, tensor, resize_h=48, max_w=9, align=10)
