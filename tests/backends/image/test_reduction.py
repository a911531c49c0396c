"""JPEGs decoded at a part of their size: never too small, and everything behind is the same."""

from __future__ import annotations

import functools
import io
import pickle
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

import penstock
from penstock import register_backend
from penstock.backends.base import Backend, Context
from penstock.backends.errors import ConfigError, InvalidInput
from penstock.pipelines.config.load import load

RESIZERS = {
    "ResizeMat": {"resize_h": 60, "resize_w": 90},
    "PillowResizeMat": {"resize_short": 50},
    "FixRatioResizeMat": {"max_h": 80, "max_w": 80},
    "AlignMat": {"resize_h": 48, "max_w": 320, "align": 8},
    "ResizePadMat": {"max_h": 70, "max_w": 110},
    "ResizeCenterPadMat": {"max_h": 110, "max_w": 70},
    "LetterBoxMat": {"resize_h": 96, "resize_w": 96},
    "TopLeftResizeMat": {"resize_h": 96, "resize_w": 50},
    "FixHResizePadMat": {"resize_h": 40, "max_w": 300},
}
TENSOR_RESIZERS = {
    "ResizeTensor": {"resize_h": 60, "resize_w": 90},
    "ResizePadTensor": {"max_h": 70, "max_w": 110},
    "AlignTensor": {"resize_h": 48, "max_w": 320, "align": 8},
}
PLACES = ("inverse_trans", "scale", "offset", "resize_h", "resize_w")


def encode(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, **{"quality": 92, **options})
    return buffer.getvalue()


@functools.cache
def photo(width: int = 640, height: int = 427) -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


@pytest.mark.parametrize("backend", [*RESIZERS, *TENSOR_RESIZERS])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_and_coordinates_are_those_of_the_whole_image(backend: str, orientation: int) -> None:
    data = encode(photo(641, 427), orientation)  # 641: no part of it is a whole number
    keys = (RESIZERS | TENSOR_RESIZERS)[backend]
    if backend in TENSOR_RESIZERS:
        pytest.importorskip("torch")
        expression = f"S[DecodeTensor,CvtColorTensor,{backend},CpuTensor]"
    else:
        expression = f"S[DecodeMat,CvtColorMat,{backend}]"
    config = {"backend": expression, "color": "rgb", **keys}
    whole: dict[str, Any] = {"data": data}
    reduced: dict[str, Any] = {"data": data}
    with penstock.pipe(config) as model:
        model(whole)
    with penstock.pipe({**config, "reduce": True}) as model:
        model(reduced)
    assert reduced.keys() == whole.keys()
    assert all(reduced[key] == whole[key] for key in PLACES if key in whole)
    assert reduced["result"].shape == whole["result"].shape
    levels = np.abs(np.asarray(reduced["result"], int) - np.asarray(whole["result"], int))
    assert 0 < levels.mean() < 8


def test_libjpeg_gives_the_pixels() -> None:
    data = encode(photo())
    with penstock.pipe(
        {"backend": "S[DecodeMat,ResizeMat]", "resize_h": 100, "resize_w": 160, "reduce": True}
    ) as model:
        item: dict[str, Any] = {"data": data}
        model(item)
    fourth: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    assert fourth.shape == (107, 160, 3)
    assert np.array_equal(item["result"], cv2.resize(fourth, (160, 100)))


class LookAtSize(Backend):
    """Notes the size of the image that the resizer behind gets."""

    keeps_size = True

    def forward(self, batch: list[Any]) -> None:
        for item in batch:
            item["decoded"] = item["data"].shape[1::-1]
            item["result"] = item["data"]


@functools.cache
def chain() -> Backend:
    register_backend("LookAtSize", LookAtSize)
    config = {"backend": "S[DecodeMat,LookAtSize,DynamicResizeMat]", "reduce": True}
    return load(config).nodes["main"].instance_groups[0].spec.create(Context())


def resized(data: bytes, width: int, height: int) -> dict[str, Any]:
    """Decode a file and resize it. `decoded` is the (width, height) in between."""
    item: dict[str, Any] = {"data": data, "resize_w": width, "resize_h": height}
    chain().forward([item])
    return item


@settings(max_examples=60, deadline=20_000)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 8),
    st.booleans(),
)
def test_never_below_the_target(
    width: int,
    height: int,
    new_width: int,
    new_height: int,
    orientation: int,
    progressive: bool,
) -> None:
    data = encode(Image.new("RGB", (width, height), (200, 30, 90)), orientation)
    if orientation > 4:
        width, height = height, width
    item = resized(data, new_width, new_height)
    decoded_width, decoded_height = item["decoded"]
    assert item["result"].shape == (new_height, new_width, 3)
    assert (decoded_width, decoded_height) in {
        (-(-width // scale), -(-height // scale)) for scale in (1, 2, 4, 8)
    }
    assert decoded_width >= min(width, new_width) and decoded_height >= min(height, new_height)
    if min(width, height) >= 64 and width // 2 >= new_width and height // 2 >= new_height:
        assert decoded_width < width
    assert np.abs(item["result"].astype(int) - (90, 30, 200)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    buffer = io.BytesIO()
    photo().save(buffer, kind)
    assert resized(buffer.getvalue(), 30, 20)["decoded"] == (640, 427)


def test_an_item_that_comes_again() -> None:
    """What an earlier call has left in it does not count."""
    item = resized(encode(photo()), 100, 100)
    with penstock.pipe(
        {"backend": "S[DecodeMat,FixRatioResizeMat]", "max_h": 99, "max_w": 99}
    ) as p:
        item["data"], item["_whole_size"] = encode(photo(300, 600)), (640, 427)
        p(item)
    assert item["result"].shape == (99, 50, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_refused(progressive: bool) -> None:
    encoded = encode(photo(), progressive=progressive)
    cut = encoded[: len(encoded) * 2 // 3].rstrip(b"\xff") + b"\xff\xd9"
    item = resized(cut, 60, 40)
    assert isinstance(item["error"], InvalidInput) and "truncated" in str(item["error"])


RESIZE = {"backend": "S[ResizeMat]", "resize_h": 32, "resize_w": 32}
DECODE = {"backend": "DecodeMat", "reduce": True, "next": "b"}


@pytest.mark.parametrize(
    "config",
    [
        {"a": DECODE, "b": RESIZE},
        {"a": DECODE, "b": {**RESIZE, "filter": "swap"}},
        {"a": DECODE, "b": {"backend": "CvtColorMat", "color": "rgb", "next": "c"}, "c": RESIZE},
        {"a": DECODE, "b": {**RESIZE, "backend": "S[FloatMat,SyncTensor[ResizeMat],Mat2Tensor]"}},
        {"a": DECODE, "b": {**RESIZE, "resize_h": "32&32"}},
        {"a": DECODE, "b": RESIZE, "a.2": {"next": "b.2"}, "b.2": {}},
    ],
)
def test_found_in_the_node_after(config: dict[str, Any]) -> None:
    spec = load(config).nodes["a"].instance_groups[0].spec
    assert pickle.loads(pickle.dumps(spec)).params.resizing.resize_w == 32


@pytest.mark.parametrize(
    "config",
    [
        {"a": {"backend": "DecodeMat", "reduce": True}},
        {"a": {**RESIZE, "backend": "S[DecodeMat,CropMat,ResizeMat]", "reduce": True}},
        {"a": {**RESIZE, "backend": "S[DecodeMat,(or)ResizeMat]", "reduce": True}},
        {"a": {**DECODE, "next": "b,c"}, "b": RESIZE, "c": RESIZE},
        {"a": DECODE, "b": {**RESIZE, "map": "a[result:data]"}},
        {"a": DECODE, "b": {**RESIZE, "filter": "or"}},
        {"a": DECODE, "b": {**RESIZE, "resize_h": "32&48"}},
        {"a": DECODE, "b": RESIZE, "a.2": {"next": "c"}, "c": {**RESIZE, "resize_h": 48}},
        {"pipeline": {"expose": {"a": {}}}, "a": DECODE, "b": RESIZE},
    ],
)
def test_refused_where_the_size_is_not_known(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config)
    (problem,) = caught.value.problems
    assert problem.node == "a" and problem.key == "reduce"
    assert "DecodeMat finds no backend that resizes its image" in problem.message
