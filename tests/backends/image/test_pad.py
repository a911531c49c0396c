"""The backends that keep the aspect ratio and pad, against OpenCV's resize and copyMakeBorder."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput
from penstock.backends.image.pad import (
    FixHResizePadMat,
    LetterBoxMat,
    ResizeCenterPadMat,
    ResizePadMat,
    TopLeftResizeMat,
)

ALL = [ResizePadMat, ResizeCenterPadMat, LetterBoxMat, TopLeftResizeMat, FixHResizePadMat]
SIZES = {
    ResizePadMat: ("max_h", "max_w"),
    ResizeCenterPadMat: ("max_h", "max_w"),
    LetterBoxMat: ("resize_h", "resize_w"),
    TopLeftResizeMat: ("resize_h", "resize_w"),
    FixHResizePadMat: ("resize_h", "max_w"),
}


def size_of(cls: Any, height: int, width: int) -> Any:
    return dict(zip(SIZES[cls], (height, width), strict=True))


def by_opencv(image: Any, canvas: Any, size: Any, corner: Any, value: Any = (0, 0, 0)) -> Any:
    """Compute the result by OpenCV. `canvas` and `size` are (height, width)."""
    (top, left), (height, width) = corner, size
    small = cv2.resize(image, (width, height))
    padded = cv2.copyMakeBorder(
        small,
        top,
        canvas[0] - height - top,
        left,
        canvas[1] - width - left,
        cv2.BORDER_CONSTANT,
        value=[float(level) for level in value],
    )
    return padded.reshape(*canvas, image.shape[2])


# 640×427: wider than the canvas, narrower than it, enlarged, of the same size
CASES = [
    ((320, 320), (214, 320)),
    ((100, 640), (100, 150)),
    ((900, 1300), (867, 1300)),
    ((427, 640), (427, 640)),
    ((640, 640), (427, 640)),
    ((33, 1), (1, 1)),
]


@pytest.mark.parametrize(("canvas", "size"), CASES)
@pytest.mark.parametrize("cls", [ResizePadMat, ResizeCenterPadMat, LetterBoxMat, TopLeftResizeMat])
def test_as_opencv(run: Any, photo: Any, cls: Any, canvas: Any, size: Any) -> None:
    item = run(cls, photo, pad_value=[1, 2, 3], **size_of(cls, *canvas))
    centered = cls in (ResizeCenterPadMat, LetterBoxMat)
    corner = ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2) if centered else (0, 0)
    assert np.array_equal(item["result"], by_opencv(photo, canvas, size, corner, (1, 2, 3)))
    if cls in (LetterBoxMat, TopLeftResizeMat):
        assert item["offset"] == (corner[1], corner[0])
        assert item["scale"] == pytest.approx(min(canvas[0] / 427, canvas[1] / 640))


@pytest.mark.parametrize(
    ("canvas", "width"),
    [
        ((48, 320), 72),
        ((48, 72), 72),
        ((48, 71), 71),
        ((64, 640), 96),
        ((1, 1), 1),
        ((427, 640), 640),
    ],
)
def test_fixed_height_as_opencv(run: Any, photo: Any, canvas: Any, width: int) -> None:
    item = run(FixHResizePadMat, photo, resize_h=canvas[0], max_w=canvas[1], pad_value=127)
    assert np.array_equal(
        item["result"], by_opencv(photo, canvas, (canvas[0], width), (0, 0), (127, 127, 127))
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("cls", ALL)
def test_channels_and_dtypes(run: Any, cls: Any, channels: int, dtype: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, channels)).astype(dtype)
    result = run(cls, image, pad_value=7.6, **size_of(cls, 50, 90))["result"]
    assert result.dtype == dtype and result.shape == (50, 90, channels)
    value = 7.6 if dtype == np.float32 else 8
    assert result[-1, -1] == pytest.approx([value] * channels)
    assert np.array_equal(
        result[:, _left(cls) : _left(cls) + 67],
        cv2.resize(image, (67, 50)).reshape(50, 67, channels),
    )


def _left(cls: Any) -> Any:
    return 11 if cls in (ResizeCenterPadMat, LetterBoxMat) else 0


@pytest.mark.parametrize("cls", ALL)
def test_grey_without_a_channel_axis(run: Any, photo: Any, cls: Any) -> None:
    grey = photo[:, :, 1]
    item = run(cls, grey, **size_of(cls, 50, 90))
    assert np.array_equal(
        item["result"], run(cls, photo, **size_of(cls, 50, 90))["result"][:, :, 1:2]
    )


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (5000, 1, 3)])
def test_degenerate_images(run: Any, cls: Any, shape: Any) -> None:
    image = np.full(shape, 200, np.uint8)
    result = run(cls, image, **size_of(cls, 20, 30))["result"]
    assert result.shape == (20, 30, 3) and result.max() == 200


@pytest.mark.parametrize("cls", ALL)
def test_views_give_the_same_result_as_copies(run: Any, photo: Any, cls: Any) -> None:
    for view in (photo[::-1], photo[:, ::2], photo[50:100, 50:200, ::-1]):
        expected = run(cls, np.array(view), **size_of(cls, 64, 64))["result"]
        assert np.array_equal(run(cls, view, **size_of(cls, 64, 64))["result"], expected)


# padding values


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("114", [114] * 3),
        (114, [114] * 3),
        ("1, 2,3", [1, 2, 3]),
        ([0, 255, 300], [0, 255, 255]),
        (-5, [0] * 3),
    ],
)
@pytest.mark.parametrize("cls", ALL)
def test_padding(run: Any, photo: Any, cls: Any, written: Any, expected: Any) -> None:
    assert (
        run(cls, photo, pad_value=written, **size_of(cls, 100, 700))["result"][-1, -1].tolist()
        == expected
    )


def test_the_letterbox_takes_both_names_of_pad_value(run: Any, photo: Any) -> None:
    for name in ("pad_val", "pad_value"):
        assert run(LetterBoxMat, photo, resize_h=9, resize_w=90, **{name: "9,9,9"})["result"][
            0, 0
        ].tolist() == [9, 9, 9]


def test_padding_for_another_number_of_channels(run: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"LetterBoxMat: pad_value has 3 numbers, but the image has 1 channel"
    ):
        run(LetterBoxMat, np.zeros((3, 4, 1), np.uint8), resize_h=9, resize_w=9, pad_value="1,2,3")


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-1, 10), (10, 32768)])
def test_impossible_sizes_are_a_load_error(cls: Any, height: int, width: int) -> None:
    with pytest.raises(ValidationError):
        cls.parameters(**size_of(cls, height, width))


@pytest.mark.parametrize("value", ["", "red", [], "nan", [1, 2, 3, 4, 5]])
@pytest.mark.parametrize("cls", ALL)
def test_impossible_padding_is_a_load_error(cls: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        cls.parameters(**size_of(cls, 10, 10), pad_value=value)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(
    "data",
    [
        b"jpeg",
        np.zeros((2, 2, 3), np.int64),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((2, 2, 129), np.uint8),
    ],
)
def test_other_data_is_refused(run: Any, cls: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match=cls.__name__ + ".*image"):
        run(cls, data, **size_of(cls, 10, 10))


# coordinates, there and back

sides = st.integers(1, 300)


@st.composite
def boxes(draw: Any) -> Any:
    width, height = draw(sides), draw(sides)
    xs = sorted((draw(st.floats(0, width)), draw(st.floats(0, width))))
    ys = sorted((draw(st.floats(0, height)), draw(st.floats(0, height))))
    return np.zeros((height, width, 1), np.uint8), (xs[0], ys[0], xs[1], ys[1])


@pytest.mark.parametrize("cls", [ResizePadMat, ResizeCenterPadMat, FixHResizePadMat])
@given(case=boxes(), canvas_h=sides, canvas_w=sides)
def test_inverse_trans_there_and_back(
    run: Any, cls: Any, case: Any, canvas_h: int, canvas_w: int
) -> None:
    image, box = case
    image = image + np.uint8(255)
    item = run(cls, image, **size_of(cls, canvas_h, canvas_w))
    rows, columns = np.nonzero(item["result"][:, :, 0])  # where the pixels of the image are
    left, top = columns.min(), rows.min()
    width, height = columns.max() + 1 - left, rows.max() + 1 - top
    for x, y in (box[:2], box[2:], (0, 0), (image.shape[1], image.shape[0])):
        placed = left + x * width / image.shape[1], top + y * height / image.shape[0]
        assert item["inverse_trans"](*placed) == pytest.approx((x, y), abs=1e-6)
    if cls is ResizeCenterPadMat:
        assert item["inverse_trans"](-1000, -1000) == (0, 0)
        assert item["inverse_trans"](1000, 1000) == (image.shape[1], image.shape[0])
    else:
        assert item["inverse_trans"](-width, 2 * height) == pytest.approx(
            (-image.shape[1], 2 * image.shape[0])
        )


@pytest.mark.parametrize("cls", [LetterBoxMat, TopLeftResizeMat])
@given(case=boxes(), canvas_h=sides, canvas_w=sides)
def test_scale_and_offset_there_and_back(
    run: Any, cls: Any, case: Any, canvas_h: int, canvas_w: int
) -> None:
    image, box = case
    image = image + np.uint8(255)
    item = run(cls, image, **size_of(cls, canvas_h, canvas_w))
    rows, columns = np.nonzero(item["result"][:, :, 0])
    left, top = item["offset"]
    assert (left, top) == (columns.min(), rows.min())
    width, height = columns.max() + 1 - left, rows.max() + 1 - top
    scale = item["scale"]
    # The size is rounded to whole pixels, at least one, so the scale is off by at most that.
    tolerance = 0.5001 / scale if min(image.shape[:2]) * scale >= 0.5 else 1 / scale
    for x, y in (box[:2], box[2:], (0, 0), (image.shape[1], image.shape[0])):
        placed = left + x * width / image.shape[1], top + y * height / image.shape[0]
        back = (placed[0] - left) / scale, (placed[1] - top) / scale
        assert back == pytest.approx((x, y), abs=tolerance)
        again = back[0] * scale + left, back[1] * scale + top
        assert again == pytest.approx(placed, abs=1e-6)
