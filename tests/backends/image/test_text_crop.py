"""TextCropMat against PaddleOCR's own function, as the package rapidocr has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rapidocr.utils.process_img import get_rotate_crop_image

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.crop import TextCropMat


def turned(width: float, height: float, degrees: float) -> Any:
    """Return a rectangle around the middle of the photograph, turned: 4×2, float64."""
    angle = np.deg2rad(degrees)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2 * (width, height)
    return corners @ axes + (320, 213)


@pytest.mark.parametrize(
    "box",
    [
        turned(200, 40, 0),
        turned(200, 40, 17.3),
        turned(40, 59, 5),  # just lies
        turned(40, 60, 0),  # just stands
        turned(40, 200, -8),
        turned(700, 80, 30),  # beyond the edges
        [(100, 100), (300, 120), (290, 160), (110, 130)],
        [(10, 10), (200, 10), (200, 40), (10, 40.999)],
    ],
)
def test_pixels_are_paddles(run: Any, photo: Any, box: Any) -> None:
    expected = get_rotate_crop_image(np.array(photo), np.array(box, np.float32))
    for image in (photo, photo.astype(np.float32)):
        result = run(TextCropMat, image, {"_box": box})["result"]
        assert result.shape == expected.shape and result.dtype == image.dtype
        if image.dtype == np.uint8:
            assert np.array_equal(result, expected)
    grey = photo[:, :, :1]
    assert run(TextCropMat, grey, {"_box": box})["result"].shape == (*expected.shape[:2], 1)


@pytest.mark.parametrize(
    "box", [[(0, 0), (0, 5), (0, 5), (0, 0)], [(5, 5)] * 4, [(0, 0), (0.9, 0), (0.9, 9), (0, 9)]]
)
def test_boxes_without_a_pixel(run: Any, photo: Any, box: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"TextCropMat: _box is .* clockwise from the upper left"
    ):
        run(TextCropMat, photo, {"_box": box})


@pytest.mark.parametrize("box", [None, [1, 2, 3, 4], "line", [(0, 0), (1, 0), (1, 1), (0, np.nan)]])
def test_what_is_no_box(run: Any, photo: Any, box: Any) -> None:
    with pytest.raises(InvalidInput, match=r"TextCropMat: _box is .*: expected 4 points"):
        run(TextCropMat, photo, {"_box": box})
    with pytest.raises(InvalidInput, match=r"TextCropMat: the item has no _box"):
        run(TextCropMat, photo)


@pytest.mark.parametrize("far", [40_000, 1e30, 1e300])
def test_results_that_are_too_large(run: Any, photo: Any, far: float) -> None:
    with pytest.raises(TooLarge, match=r"TextCropMat: _box gives \d+x\d+ pixels"):
        run(TextCropMat, photo, {"_box": [(0, 0), (far, 0), (far, 9), (0, 9)]})
    with pytest.raises(TooLarge, match=r"at most 100 pixels"):
        run(TextCropMat, photo, {"_box": turned(20, 10, 0)}, max_pixels=100)
