"""CropTensor, CopyMakeBorderTensor, WarpAffineTensor."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.crop import CenterCropMat, CropResizeMat, PerspectiveTransformMat
from penstock.backends.image.tensor.crop import (
    CenterCropTensor,
    CopyMakeBorderTensor,
    CropResizeTensor,
    CropTensor,
    PerspectiveTransformTensor,
    WarpAffineTensor,
)

torch = pytest.importorskip("torch")

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32]


def pixels(result: Any) -> Any:
    return result[0].permute(1, 2, 0).numpy()


# crop


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 300, 400],
        (0, 0, 640, 427),
        np.array([639.9, 0.2, 640.0, 1.7]),
        [[10, 20], [30, 40]],
    ],
)
def test_the_part_within_the_box(run_tensor: Any, tensor: Any, box: Any, dtype: Any) -> None:
    x1, y1, x2, y2 = (int(value) for value in np.ravel(box))
    image = tensor.to(dtype)
    result = run_tensor(CropTensor, image, {"_box": box})["result"]
    assert result.dtype == dtype and torch.equal(result, image[:, :, y1:y2, x1:x2])
    assert result.untyped_storage().data_ptr() != image.untyped_storage().data_ptr() or box[2:] == (
        640,
        427,
    )


def test_the_part_of_several_images_in_nhwc(run_tensor: Any, photo: Any) -> None:
    both = torch.from_numpy(np.stack([photo, photo[::-1]]))
    result = run_tensor(CropTensor, both, {"_box": [1, 2, 30, 40], "data_format": "nhwc"})["result"]
    assert torch.equal(result, both[:, 2:40, 1:30])


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 641, 10],
        [-1, 0, 5, 5],
        [5, 5, 5, 9],
        [9, 5, 5, 9],
        [1, 2, 3],
        ["a"] * 4,
        [0, 0, np.nan, 5],
        None,
    ],
)
def test_boxes_out_of_range(run_tensor: Any, tensor: Any, box: Any) -> None:
    with pytest.raises(InvalidInput, match="CropTensor: _box is"):
        run_tensor(CropTensor, tensor, {"_box": box})


def test_a_missing_box(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"CropTensor: the item has no _box: expected \[x1, y1, x2, y2\]"
    ):
        run_tensor(CropTensor, tensor)


# as the Mat backends

SIZE = {"resize_h": 60, "resize_w": 80}
FORMS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "the middle": (CenterCropMat, CenterCropTensor, {"crop_h": 101, "crop_w": 200}, {}),
    "a larger middle": (CenterCropMat, CenterCropTensor, {"crop_h": 500, "crop_w": 201}, {}),
    "a box": (CropResizeMat, CropResizeTensor, SIZE, {"_box": [10, 20, 300, 400]}),
    "a larger box": (
        CropResizeMat,
        CropResizeTensor,
        {"enlarge_ratio": 0.5, **SIZE},
        {"_box": [10, 20, 500, 400]},
    ),
    "a relative box": (
        CropResizeMat,
        CropResizeTensor,
        {"relative": True, **SIZE},
        {"_box": [0.25, 0, 0.75, 1]},
    ),
    "a quadrilateral": (
        PerspectiveTransformMat,
        PerspectiveTransformTensor,
        {},
        {"_box": [(100.5, 50.25), (400, 80), (500, 300), (-30, 170)]},
    ),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("case", FORMS)
def test_the_pixels_are_those_of_the_mat_backend(
    make: Any, run_tensor: Any, photo: Any, case: str, dtype: Any
) -> None:
    mat, cls, params, keys = FORMS[case]
    image = photo.astype(dtype)
    item = {"data": image, **keys}
    make(mat, **params).forward([item])
    for data_format in ("nchw", "nhwc"):
        data = torch.from_numpy(image[None].copy())
        if data_format == "nchw":
            data = data.permute(0, 3, 1, 2).contiguous()
        result = run_tensor(cls, data, {"data_format": data_format, **keys}, **params)["result"]
        result = result[0].permute(1, 2, 0) if data_format == "nchw" else result[0]
        # One plane at a time, OpenCV's own optimisations round the last bit differently.
        assert np.abs(result.numpy().astype(float) - item["result"]).max() <= 1


def test_a_side_that_opencv_4_can_not_transform(run_tensor: Any) -> None:
    long = torch.zeros((1, 1, 4, 32768), dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="PerspectiveTransformTensor: expected an image with no"):
        run_tensor(PerspectiveTransformTensor, long, {"_box": [(0, 0), (3, 0), (3, 3), (0, 3)]})


# border

BORDER = {"top": 5, "bottom": 15, "left": 25, "right": 35}


@pytest.mark.parametrize("pad_value", [0, "7", "1,2,300"])
def test_bordered_as_by_opencv(run_tensor: Any, tensor: Any, photo: Any, pad_value: Any) -> None:
    value = [min(float(level), 255) for level in str(pad_value).split(",")]
    expected = cv2.copyMakeBorder(
        photo, 5, 15, 25, 35, cv2.BORDER_CONSTANT, value=value * 3 if len(value) == 1 else value
    )
    by_parameters = run_tensor(CopyMakeBorderTensor, tensor, pad_value=pad_value, **BORDER)[
        "result"
    ]
    assert np.array_equal(pixels(by_parameters), expected)
    by_item = run_tensor(CopyMakeBorderTensor, tensor, BORDER, pad_value=pad_value, top=9, left=0)[
        "result"
    ]
    assert np.array_equal(pixels(by_item), expected)


def test_no_border_is_a_copy(run_tensor: Any, tensor: Any) -> None:
    assert torch.equal(run_tensor(CopyMakeBorderTensor, tensor.float())["result"], tensor.float())


@pytest.mark.parametrize("value", [-1, 32768, "5", 1.5, None])
def test_an_invalid_border(run_tensor: Any, tensor: Any, value: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"CopyMakeBorderTensor: left is .*: expected a whole number from 0 to 32767",
    ):
        run_tensor(CopyMakeBorderTensor, tensor, {"left": value})


def test_a_border_that_is_too_large(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(
        TooLarge, match="the result would have 33407x33194 pixels: at most 100000000 are"
    ):
        run_tensor(CopyMakeBorderTensor, tensor, {"left": 32767, "top": 32767})


# affine

MATRIX = cv2.getRotationMatrix2D((300.0, 200.0), 30, 0.8)


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m,
        lambda m: m.tolist(),
        lambda m: m.ravel().tolist(),
        lambda m: m.astype(np.float32),
    ],
)
def test_warped_as_by_opencv(run_tensor: Any, tensor: Any, photo: Any, form: Any) -> None:
    result = run_tensor(
        WarpAffineTensor, tensor, {"affine_matrix": form(MATRIX)}, target_h=300, target_w=500
    )["result"]
    expected = cv2.warpAffine(photo, MATRIX, (500, 300))
    difference = np.abs(pixels(result).astype(int) - expected)
    assert (
        difference.max() <= 2 and difference.mean() < 0.05
    )  # plane by plane here, and OpenCV inverts the matrix itself


def test_a_move_by_whole_pixels_keeps_the_values(run_tensor: Any, tensor: Any) -> None:
    keys = {"affine_matrix": [1, 0, 20, 0, 1, -10]}
    result = run_tensor(
        WarpAffineTensor, tensor, keys, target_h=427, target_w=640, pad_value="1,2,3"
    )["result"]
    assert torch.equal(result[:, :, :417, 20:], tensor[:, :, 10:, :-20])
    assert result[0, :, 0, 0].tolist() == result[0, :, 426, 639].tolist() == [1, 2, 3]


def test_the_way_back(run_tensor: Any, tensor: Any) -> None:
    inverse = cv2.invertAffineTransform(MATRIX)
    warped = run_tensor(
        WarpAffineTensor, tensor, {"affine_matrix": MATRIX}, target_h=300, target_w=500
    )["result"]
    back = run_tensor(
        WarpAffineTensor,
        tensor,
        {"affine_matrix": inverse},
        target_h=300,
        target_w=500,
        inverse=True,
    )["result"]
    assert (warped.int() - back.int()).abs().max() <= 1


def test_the_size_of_the_item(run_tensor: Any, tensor: Any) -> None:
    keys = {"affine_matrix": [1, 0, 0, 0, 1, 0], "target_h": 10, "target_w": 20}
    assert torch.equal(
        run_tensor(WarpAffineTensor, tensor, keys, target_h=300, target_w=500)["result"],
        tensor[:, :, :10, :20],
    )
    with pytest.raises(TooLarge, match="20x10 pixels are asked for: at most 199 are allowed"):
        run_tensor(WarpAffineTensor, tensor, keys, target_h=3, target_w=5, max_pixels=199)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "expected 2 rows of 3, finite numbers"),
        ([1, 0, 0, 0, 1], "expected 2 rows of 3, finite numbers"),
        ([1, 0, np.inf, 0, 1, 0], "expected 2 rows of 3, finite numbers"),
        ([1, 2, 0, 2, 4, 0], "it can't be inverted"),
    ],
)
def test_an_invalid_matrix(run_tensor: Any, tensor: Any, matrix: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"WarpAffineTensor: affine_matrix is .*{message}"):
        run_tensor(WarpAffineTensor, tensor, {"affine_matrix": matrix}, target_h=3, target_w=5)


def test_a_missing_matrix_and_too_long_an_image(run_tensor: Any, tensor: Any) -> None:
    with pytest.raises(InvalidInput, match="the item has no affine_matrix"):
        run_tensor(WarpAffineTensor, tensor, target_h=3, target_w=5)
    long = torch.zeros((1, 1, 1, 32768), dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="expected an image with no side above 32767"):
        run_tensor(
            WarpAffineTensor, long, {"affine_matrix": [1, 0, 0, 0, 1, 0]}, target_h=3, target_w=5
        )


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (CropTensor, {"size": 1}),
        (CopyMakeBorderTensor, {"top": -1}),
        (WarpAffineTensor, {"target_h": 5}),
    ],
)
def test_wrong_parameters_are_a_load_error(cls: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.parameters(**params)
