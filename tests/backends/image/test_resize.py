"""Resizing, against OpenCV, and PillowResizeMat bit by bit against Pillow."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from penstock.backends.errors import InvalidInput, TooLarge
from penstock.backends.image.resize import (
    AlignMat,
    DynamicResizeMat,
    FixRatioResizeMat,
    PillowResizeMat,
    ResizeMat,
)

FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


def by_opencv(image: Any, height: int, width: int) -> Any:
    return cv2.resize(image, (width, height)).reshape(height, width, -1)


# ResizeMat


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_fixed_size(run: Any, channels: int, dtype: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, channels), np.uint8).astype(dtype)
    result = run(ResizeMat, image, resize_h=11, resize_w=13)["result"]
    assert result.shape == (11, 13, channels) and result.dtype == dtype
    assert np.array_equal(result, by_opencv(image, 11, 13))


def test_resizing_by_half_pixel_centres(run: Any) -> None:
    ramp = np.arange(4, dtype=np.float32).reshape(1, 4, 1) * 10
    result = run(ResizeMat, ramp, resize_h=1, resize_w=2)["result"]
    assert result.ravel().tolist() == [5, 25]


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33)])
def test_the_shorter_side_as_torchvision_computes_it(run: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = run(PillowResizeMat, image, resize_short=25)["result"]
    height, width = (25 if side == min(size) else int(25 * max(size) / min(size)) for side in size)
    assert np.array_equal(result, np.asarray(Image.fromarray(image).resize((width, height), 2)))


def test_the_shorter_side_of_a_line_of_pixels(run: Any) -> None:
    with pytest.raises(TooLarge, match="a longer side of 256000"):
        run(
            PillowResizeMat,
            np.zeros((1, 1000, 3), np.uint8),
            resize_short=256,
            max_pixels=65_000_000,
        )
    for keys in ({}, {"resize_h": 4}, {"resize_h": 4, "resize_short": 4}):
        with pytest.raises(ValidationError, match="resize_h and resize_w, or resize_short alone"):
            run(PillowResizeMat, np.zeros((1, 1, 3), np.uint8), **keys)


# DynamicResizeMat


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (1, 224), (224, 1), (1, 1), (43, 99), (427, 640), (1000, 700)]
)
def test_the_size_of_the_request(run: Any, photo: Any, height: int, width: int) -> None:
    item = run(DynamicResizeMat, photo, {"resize_h": np.int64(height), "resize_w": width})
    assert np.array_equal(item["result"], by_opencv(photo, height, width))


@pytest.mark.parametrize("keys", [{}, {"resize_h": 4}, {"resize_w": 4}])
def test_a_missing_size(run: Any, photo: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"DynamicResizeMat: the item has no resize_[hw]: "
        "expected a whole number from 1 to 32767",
    ):
        run(DynamicResizeMat, photo, keys)


@pytest.mark.parametrize("size", [0, -1, 32768, 2**70, 3.5, "4", None, [4], float("nan")])
@pytest.mark.parametrize("key", ["resize_h", "resize_w"])
def test_an_invalid_size(run: Any, photo: Any, key: Any, size: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{key} is .*: expected a whole number from 1 to 32767"):
        run(DynamicResizeMat, photo, {"resize_h": 4, "resize_w": 4, key: size})


def test_a_request_can_not_ask_for_unlimited_memory(run: Any, photo: Any) -> None:
    with pytest.raises(
        TooLarge, match="32767x32767 pixels are asked for: at most 100000000 are allowed"
    ):
        run(DynamicResizeMat, photo, {"resize_h": 32767, "resize_w": 32767})
    assert run(DynamicResizeMat, photo, {"resize_h": 10, "resize_w": 10}, max_pixels=100)[
        "result"
    ].shape == (10, 10, 3)
    with pytest.raises(TooLarge):
        run(DynamicResizeMat, photo, {"resize_h": 10, "resize_w": 11}, max_pixels=100)


# FixRatioResizeMat, AlignMat


@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ((320, 320), (214, 320)),
        ((100, 640), (100, 150)),
        ((854, 1280), (854, 1280)),
        ((1, 1), (1, 1)),
        ((32, 9), (7, 9)),
    ],
)
def test_within_bounds(run: Any, photo: Any, bounds: Any, size: Any) -> None:
    item = run(FixRatioResizeMat, photo, max_h=bounds[0], max_w=bounds[1])
    assert np.array_equal(item["result"], by_opencv(photo, *size))
    assert item["inverse_trans"](size[1], size[0]) == pytest.approx((640, 427))


@pytest.mark.parametrize(
    ("params", "width"),
    [
        ({"max_w": 320}, 96),  # 71.9
        ({"max_w": 80}, 64),
        ({"max_w": 320, "align": 1}, 72),
        ({"max_w": 320, "align": 72}, 72),
        ({"max_w": 320, "align": 73}, 73),
        ({"max_w": 79}, 64),
        ({"max_w": 32}, 32),
        ({"max_w": 1, "align": 1}, 1),
    ],
)
def test_aligned(run: Any, photo: Any, params: dict[str, Any], width: int) -> None:
    item = run(AlignMat, photo, resize_h=48, **params)
    assert np.array_equal(item["result"], by_opencv(photo, 48, width))
    assert (item["resize_h"], item["resize_w"]) == (48, width)
    assert item["inverse_trans"](width, 48) == pytest.approx((640, 427))
    again = run(
        DynamicResizeMat, item["result"], {key: item[key] for key in ("resize_h", "resize_w")}
    )
    assert np.array_equal(again["result"], item["result"])


sides = st.integers(1, 200)


@given(
    width=sides, height=sides, bound_h=sides, bound_w=sides, x=st.floats(0, 1), y=st.floats(0, 1)
)
def test_inverse_trans_there_and_back(
    run: Any, width: int, height: int, bound_h: int, bound_w: int, x: Any, y: Any
) -> None:
    image = np.zeros((height, width, 1), np.uint8)
    for item in (
        run(FixRatioResizeMat, image, max_h=bound_h, max_w=bound_w),
        run(AlignMat, image, resize_h=bound_h, max_w=bound_w + 7, align=8),
    ):
        new_height, new_width, _ = item["result"].shape
        assert new_height <= bound_h and new_width <= bound_w + 7
        assert item["inverse_trans"](x * new_width, y * new_height) == pytest.approx(
            (x * width, y * height)
        )


# PillowResizeMat


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (1, 224), (224, 1), (1, 1), (43, 99), (2, 2), (427, 640), (500, 900)],
)
def test_bit_equal_to_pillow(run: Any, photo: Any, resample: str, height: int, width: int) -> None:
    result = run(PillowResizeMat, photo, resize_h=height, resize_w=width, resample=resample)[
        "result"
    ]
    assert np.array_equal(
        result,
        np.asarray(
            Image.fromarray(photo).resize((width, height), Image.Resampling[resample.upper()])
        ),
    )


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_bit_equal_in_every_mode(run: Any, photo: Any, mode: str, resample: str) -> None:
    image = Image.fromarray(photo)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(photo[:, ::-1, 0].copy()))
    image = image.convert(mode)
    result = run(PillowResizeMat, np.asarray(image), resize_h=50, resize_w=40, resample=resample)[
        "result"
    ]
    assert np.array_equal(
        result.squeeze(), np.asarray(image.resize((40, 50), Image.Resampling[resample.upper()]))
    )


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_floats_bit_equal_by_channel(run: Any, channels: int, resample: str) -> None:
    image = np.random.default_rng(0).normal(size=(60, 70, channels)).astype(np.float32)
    result = run(PillowResizeMat, image, resize_h=33, resize_w=90, resample=resample)["result"]
    for channel in range(channels):
        alone = Image.fromarray(np.ascontiguousarray(image[:, :, channel]))
        assert alone.mode == "F"
        assert np.array_equal(
            result[:, :, channel],
            np.asarray(alone.resize((90, 33), Image.Resampling[resample.upper()])),
        )


def test_pillows_default_is_bilinear_and_antialiased(run: Any, photo: Any) -> None:
    item = run(PillowResizeMat, photo, resize_h=20, resize_w=30)
    assert np.array_equal(
        item["result"],
        run(PillowResizeMat, photo, resize_h=20, resize_w=30, resample="bilinear")["result"],
    )
    assert not np.array_equal(item["result"], by_opencv(photo, 20, 30))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 5), np.uint8)])
def test_images_that_pillow_has_no_mode_for(run: Any, image: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"PillowResizeMat: expected uint8 with 1 to 4 channels, or float32, "
        r"found shape \(4, 4, [35]\)",
    ):
        run(PillowResizeMat, image, resize_h=2, resize_w=2)


# all of them

WITH_SIZES = {
    DynamicResizeMat: {},
    FixRatioResizeMat: {"max_h": 20, "max_w": 30},
    AlignMat: {"resize_h": 20, "max_w": 64},
    PillowResizeMat: {"resize_h": 20, "resize_w": 30},
}
RESIZE_KEYS = {"resize_h": 20, "resize_w": 30}


@pytest.mark.parametrize("cls", WITH_SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_grey_and_dtypes(run: Any, photo: Any, cls: Any, dtype: Any) -> None:
    if cls is PillowResizeMat and dtype == np.uint16:
        return
    image = photo.astype(dtype)
    result = run(cls, image[:, :, 1], RESIZE_KEYS, **WITH_SIZES[cls])["result"]
    assert result.dtype == dtype
    difference = (
        result.astype(float) - run(cls, image, RESIZE_KEYS, **WITH_SIZES[cls])["result"][:, :, 1:2]
    )
    assert np.abs(difference).max() < 1e-3


def test_the_other_byte_order(run: Any, photo: Any) -> None:
    expected = run(FixRatioResizeMat, photo.astype(np.uint16), max_h=20, max_w=30)["result"]
    assert np.array_equal(
        run(FixRatioResizeMat, photo.astype(">u2"), max_h=20, max_w=30)["result"], expected
    )


@pytest.mark.parametrize("cls", WITH_SIZES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (5000, 1, 3)])
def test_degenerate_images(run: Any, cls: Any, shape: Any) -> None:
    assert (
        run(cls, np.full(shape, 200, np.uint8), RESIZE_KEYS, **WITH_SIZES[cls])["result"] == 200
    ).all()


@pytest.mark.parametrize("cls", WITH_SIZES)
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
        run(cls, data, RESIZE_KEYS, **WITH_SIZES[cls])


@pytest.mark.parametrize(
    ("cls", "key"),
    [(cls, key) for cls, sizes in WITH_SIZES.items() for key in sizes] + [(AlignMat, "align")],
)
@pytest.mark.parametrize("value", [0, -1, 32768, "wide"])
def test_impossible_sizes_are_a_load_error(cls: Any, key: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        cls.parameters(**WITH_SIZES[cls] | {key: value})
