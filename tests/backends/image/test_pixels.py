"""The common part of the OpenCV image backends: refused data, and whose memory is whose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import InvalidInput
from penstock.backends.image.convert import CvtColorMat, Mat2Tensor
from penstock.backends.image.decode import DecodeMat
from penstock.backends.image.resize import ResizeMat
from penstock.backends.item import Item


@pytest.fixture(
    params=[
        (ResizeMat, {"resize_h": 4, "resize_w": 5}),
        (Mat2Tensor, {}),
        (Mat2Tensor, {"data_format": "nhwc"}),
        (CvtColorMat, {"color": "rgb"}),
        (CvtColorMat, {"color": "gray"}),
        (CvtColorMat, {"color": "bgr"}),
    ],
    ids=["resize", "nchw", "nhwc", "to rgb", "to gray", "to bgr"],
)
def backend(request: pytest.FixtureRequest, make: Any) -> Any:
    cls, params = request.param
    return make(cls, **params)


@pytest.mark.parametrize(
    "data",
    [
        b"jpeg",
        np.zeros((2, 2, 3), np.int64),
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
    ],
    ids=["bytes", "int64", "four dimensions", "no rows"],
)
def test_other_data_is_refused(backend: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match="image"):
        backend.forward([{"data": data}])


def test_no_backend_writes_to_its_input(backend: Any, photo: Any) -> None:
    image = photo.copy()
    image.flags.writeable = False  # a write raises
    item: Item = {"data": image, "color": "bgr"}
    backend.forward([item])
    assert item["data"] is image
    assert np.array_equal(image, photo)


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((20, 9, 1), np.uint8)[:9]],
    ids=["color", "grey", "view"],
)
def test_results_own_their_memory(backend: Any, image: Any) -> None:
    item: Item = {"data": image}
    backend.forward([item])
    assert item["result"].base is None


def test_each_works_on_one_image_at_a_time() -> None:
    assert {cls.max for cls in (DecodeMat, CvtColorMat, ResizeMat, Mat2Tensor)} == {1}
