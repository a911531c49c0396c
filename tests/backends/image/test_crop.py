"""Parts of an image, against NumPy's slices and OpenCV's warpPerspective."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.crop import (
    CenterCropMat,
    CropMat,
    CropResizeMat,
    PerspectiveTransformMat,
)

SIZE = {"resize_h": 20, "resize_w": 30}
BOXES = [(CropMat, {}), (CropResizeMat, SIZE)]


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 640, 427),
        (10, 20, 11, 21),
        (639, 426, 640, 427),
        (100.9, 50.2, 300.9, 60.999),
        (-0.9, 0, 640.5, 427.9),
    ],
)
def test_crop(run: Any, photo: Any, box: Any) -> None:
    x1, y1, x2, y2 = map(int, box)
    for form in (list(box), tuple(box), np.array(box), np.array(box, np.float32), np.array([box])):
        assert np.array_equal(run(CropMat, photo, {"_box": form})["result"], photo[y1:y2, x1:x2])
    item = run(CropResizeMat, photo, {"_box": box}, **SIZE)
    assert np.abs(item["result"].astype(int) - cv2.resize(photo[y1:y2, x1:x2], (30, 20))).max() <= 1


@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 5, 5),
        (0, -1, 5, 5),
        (0, 0, 641, 5),
        (0, 0, 5, 428),
        (5, 0, 5, 5),
        (0, 5, 5, 5),
        (6, 0, 5, 5),
        (0, 6, 5, 5),
        (1e300, 0, 2e300, 5),
    ],
)
@pytest.mark.parametrize(("cls", "params"), BOXES)
def test_out_of_range(run: Any, photo: Any, cls: Any, params: dict[str, Any], box: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=cls.__name__
        + r": _box is \[.*\]: expected 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 427",
    ):
        run(cls, photo, {"_box": box}, **params)


@pytest.mark.parametrize(
    "box",
    [
        None,
        "box",
        (1, 2, 3),
        (1, 2, 3, 4, 5),
        (0, 0, math.nan, 5),
        (0, 0, math.inf, 5),
        [[1], [2, 3]],
        {},
        (None,) * 4,
    ],
)
@pytest.mark.parametrize(("cls", "params"), [*BOXES, (PerspectiveTransformMat, {})])
def test_an_invalid_box(run: Any, photo: Any, cls: Any, params: dict[str, Any], box: Any) -> None:
    with pytest.raises(
        InvalidInput, match=cls.__name__ + ": _box is .*: expected .*, finite numbers"
    ):
        run(cls, photo, {"_box": box}, **params)


@pytest.mark.parametrize(("cls", "params"), [*BOXES, (PerspectiveTransformMat, {})])
def test_a_missing_box(run: Any, photo: Any, cls: Any, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=cls.__name__ + ": the item has no _box: expected "):
        run(cls, photo, **params)


def test_the_result_keeps_no_larger_array_alive(run: Any, photo: Any) -> None:
    assert run(CropMat, photo, {"_box": (0, 0, 640, 100)})["result"].base is None


@pytest.mark.parametrize(
    ("ratio", "box", "grown"),
    [
        (0, (100, 200, 140, 220), (100, 200, 140, 220)),
        (0.5, (100, 200, 140, 220), (80, 190, 160, 230)),
        (1, (1, 1, 639, 400), (0, 0, 640, 427)),
    ],
)
def test_a_box_that_grows(run: Any, photo: Any, ratio: Any, box: Any, grown: Any) -> None:
    x1, y1, x2, y2 = grown
    item = run(CropResizeMat, photo, {"_box": box}, enlarge_ratio=ratio, **SIZE)
    assert np.array_equal(item["result"], cv2.resize(photo[y1:y2, x1:x2], (30, 20)))


def test_a_relative_box(run: Any, photo: Any) -> None:
    item = run(CropResizeMat, photo, {"_box": (0.25, 0, 0.75, 1)}, relative=True, **SIZE)
    assert np.array_equal(item["result"], cv2.resize(photo[:, 160:480], (30, 20)))


# PerspectiveTransformMat


@given(
    x=st.integers(0, 600),
    y=st.integers(0, 400),
    width=st.integers(1, 40),
    height=st.integers(1, 27),
)
def test_an_upright_quadrilateral_is_a_crop(
    run: Any, photo: Any, x: Any, y: Any, width: int, height: int
) -> None:
    box = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    result = run(PerspectiveTransformMat, photo, {"_box": box})["result"]
    assert np.abs(result.astype(int) - photo[y : y + height, x : x + width]).max() <= 1


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([(100, 50), (400, 80), (390, 200), (90, 170)], (120, 301)),
        ([(100.5, 50.25), (400, 80), (500, 300), (90, 170)], (120, 300)),
        ([(300, 100), (300, 300), (200, 300), (200, 100)], (100, 200)),  # a quarter turn
        ([(-30, -20), (100, -20), (100, 60), (-30, 60)], (80, 130)),  # beyond the image
    ],
)
def test_as_opencv(run: Any, photo: Any, box: Any, size: Any) -> None:
    height, width = size
    matrix = cv2.getPerspectiveTransform(
        np.array(box, np.float32),
        np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32),
    )
    expected = cv2.warpPerspective(
        photo, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    for form in (box, np.array(box), np.array(box, np.float32), np.ravel(box)):
        result = run(PerspectiveTransformMat, photo, {"_box": form})["result"]
        assert result.shape == (*size, 3)
        assert np.abs(result.astype(int) - expected).max() <= 1


def test_a_quarter_turn(run: Any, photo: Any) -> None:
    result = run(
        PerspectiveTransformMat, photo, {"_box": [(300, 100), (300, 300), (200, 300), (200, 100)]}
    )["result"]
    # Its corners are the centres of pixels, as in OpenCV.
    assert np.abs(result.astype(int) - np.rot90(photo[100:300, 201:301])).max() <= 1


@pytest.mark.parametrize(
    "box",
    [
        [(0, 0), (0, 50), (50, 50), (50, 0)],  # counter-clockwise
        [(0, 0), (50, 50), (50, 0), (0, 50)],  # crossed
        [(0, 0), (50, 0), (10, 10), (0, 50)],  # dented
        [(0, 0), (50, 0), (100, 0), (150, 0)],  # a line
        [(0, 0), (50, 0), (50, 50), (25, 25)],  # a triangle
        [(0, 0), (0, 0), (50, 50), (0, 50)],
        [(0, 0), (0.9, 0), (0.9, 50), (0, 50)],
        [(0, 0), (50, 0), (50, 0.9), (0, 0.9)],
    ],
)
def test_other_points_than_a_convex_quadrilateral(run: Any, photo: Any, box: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"_box is \[\[.*\]\]: expected the corners of a convex quadrilateral, clockwise",
    ):
        run(PerspectiveTransformMat, photo, {"_box": box})


def test_a_box_can_not_ask_for_unlimited_memory(run: Any, photo: Any) -> None:
    for side in (20000, 1e7, 1e30):
        with pytest.raises(TooLarge, match="at most 100000000 pixels"):
            run(
                PerspectiveTransformMat,
                photo,
                {"_box": [(0, 0), (side, 0), (side, side), (0, side)]},
            )
    with pytest.raises(TooLarge, match="a side of 32767 are allowed"):
        run(PerspectiveTransformMat, photo, {"_box": [(0, 0), (40000, 0), (40000, 400), (0, 400)]})
    with pytest.raises(TooLarge):
        run(
            PerspectiveTransformMat,
            photo,
            {"_box": [(0, 0), (9, 0), (9, 9), (0, 9)]},
            max_pixels=80,
        )


def test_an_image_that_opencv_refuses_is_invalid_input(
    run: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        error = cv2.error("assertion")
        error.err = "assertion"
        raise error

    monkeypatch.setattr(cv2, "warpPerspective", refuse)
    with pytest.raises(
        InvalidInput, match=r"can't transform an image of shape \(427, 640, 3\): assertion"
    ):
        run(PerspectiveTransformMat, photo, {"_box": [(0, 0), (9, 0), (9, 9), (0, 9)]})


# All

QUADRILATERAL = [(2, 2), (30, 2), (30, 20), (2, 20)]


@pytest.mark.parametrize(
    ("cls", "params", "box"),
    [
        (CropMat, {}, (2, 2, 30, 20)),
        (CropResizeMat, SIZE, (2, 2, 30, 20)),
        (PerspectiveTransformMat, {}, QUADRILATERAL),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_and_dtypes(
    run: Any, cls: Any, params: dict[str, Any], box: Any, dtype: Any, channels: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels)).astype(dtype)
    result = run(cls, image, {"_box": box}, **params)["result"]
    assert result.dtype == dtype and result.shape[2] == channels
    alone = run(cls, image[:, :, 0], {"_box": box}, **params)["result"]
    assert np.abs(result[:, :, :1].astype(float) - alone).max() <= 1


@pytest.mark.parametrize(("cls", "params"), [*BOXES, (PerspectiveTransformMat, {})])
@pytest.mark.parametrize(
    "data", [b"jpeg", np.zeros((2, 2, 3), np.int64), np.zeros((0, 2, 3), np.uint8)]
)
def test_other_data_is_refused(run: Any, cls: Any, params: dict[str, Any], data: Any) -> None:
    with pytest.raises(InvalidInput, match=cls.__name__ + ".*image"):
        run(cls, data, {"_box": (0, 0, 1, 1)}, **params)


def test_one_pixel(run: Any) -> None:
    pixel = np.full((1, 1, 3), 9, np.uint8)
    assert run(CropMat, pixel, {"_box": (0, 0, 1, 1)})["result"].tolist() == [[[9, 9, 9]]]
    assert (run(CropResizeMat, pixel, {"_box": (0, 0, 1, 1)}, **SIZE)["result"] == 9).all()
    assert run(PerspectiveTransformMat, pixel, {"_box": [(0, 0), (1, 0), (1, 1), (0, 1)]})[
        "result"
    ].tolist() == [[[9, 9, 9]]]


@pytest.mark.parametrize(
    "params",
    [
        {"resize_h": 0},
        {"resize_w": 0},
        {"resize_w": 32768},
        {"enlarge_ratio": -1},
        {"relative": "maybe"},
    ],
)
def test_impossible_parameters_are_a_load_error(make: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(CropResizeMat, **SIZE | params)


@pytest.mark.parametrize("height", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("width", [4, 6, 7])
def test_the_middle(run: Any, height: int, width: int) -> None:
    """As torchvision: pads by half the rest, rounded down, then rounds to the even neighbour."""
    image = np.arange(1, height * width + 1, dtype=np.uint8).reshape(height, width, 1)
    pads = [(max(4 - side, 0) // 2, (max(4 - side, 0) + 1) // 2) for side in (height, width)]
    padded = np.pad(image, [*pads, (0, 0)])
    top, left = (round((side - 4) / 2.0) for side in padded.shape[:2])
    result = run(CenterCropMat, image, crop_h=4, crop_w=4)["result"]
    assert np.array_equal(result, padded[top : top + 4, left : left + 4])
