"""Channel orders, tensors, floats and files, each against OpenCV or NumPy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.image.convert import (
    CvtColorMat,
    FloatMat,
    Mat2Tensor,
    SaveMat,
    Tensor2Mat,
)
from penstock.backends.item import Item

# CvtColorMat


def test_a_conversion_reads_and_sets_the_items_color(run: Any) -> None:
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    item = run(CvtColorMat, bgr, {"color": "bgr"}, color="rgb")
    assert item["result"].tolist() == [[[3, 2, 1]]] and item["color"] == "rgb"
    again = run(CvtColorMat, item["result"], {"color": "rgb"}, color="rgb")
    assert again["result"].tolist() == [[[3, 2, 1]]]
    back = run(CvtColorMat, item["result"], {"color": "rgb"}, color="bgr")
    assert back["result"].tolist() == bgr.tolist()
    assert bgr.tolist() == [[[1, 2, 3]]]


def test_three_channels_without_a_color_are_bgr(run: Any) -> None:
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    assert run(CvtColorMat, bgr, color="rgb")["result"].tolist() == [[[3, 2, 1]]]


@pytest.mark.parametrize(
    ("source", "weights"), [("bgr", (0.114, 0.587, 0.299)), ("rgb", (0.299, 0.587, 0.114))]
)
def test_grey_keeps_the_channel_axis(run: Any, source: str, weights: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    item = run(CvtColorMat, image, {"color": source}, color="gray")
    assert item["result"].shape == (5, 7, 1) and item["color"] == "gray"
    assert np.abs(item["result"][:, :, 0] - image @ np.array(weights)).max() <= 1
    wide = run(CvtColorMat, item["result"], {"color": "gray"}, color="rgb")
    assert wide["result"].shape == (5, 7, 3) and wide["color"] == "rgb"


def test_two_dimensions_are_grey(run: Any) -> None:
    item = run(CvtColorMat, np.zeros((5, 7), np.uint8), color="bgr")
    assert item["result"].shape == (5, 7, 3)


@pytest.mark.parametrize("color", ["gray", "hsv"])
def test_a_color_that_does_not_fit(run: Any, color: str) -> None:
    with pytest.raises(InvalidInput, match=r"does not fit.*\(2, 2, 3\): expected one of rgb"):
        run(CvtColorMat, np.zeros((2, 2, 3), np.uint8), {"color": color}, color="rgb")


# Mat2Tensor


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_becomes_a_tensor(make: Any, channels: int, dtype: Any) -> None:
    image = np.random.default_rng(0).integers(0, 200, (5, 7, channels)).astype(dtype)
    image.flags.writeable = False
    for data in (image, image[:, ::-1], image[::2]):
        results = {}
        for data_format in ("nchw", "nhwc"):
            item = {"data": data}
            make(Mat2Tensor, data_format=data_format).forward([item])
            result = results[data_format] = item["result"]
            assert result.dtype == dtype
            assert result.flags.c_contiguous and result.flags.owndata
            assert not np.shares_memory(result, data)
        assert results["nchw"].shape == (1, channels, *data.shape[:2])
        assert np.array_equal(results["nchw"][0], data.transpose(2, 0, 1))
        assert np.array_equal(results["nhwc"][0], data)


def test_a_grey_image_becomes_a_tensor(make: Any) -> None:
    item: Item = {"data": np.zeros((5, 7), np.uint8)}
    make(Mat2Tensor).forward([item])
    assert item["result"].shape == (1, 1, 5, 7)


# Tensor2Mat


@pytest.mark.parametrize("data_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_way_back_from_mat2tensor(
    run: Any, make: Any, photo: Any, dtype: Any, data_format: str
) -> None:
    image = photo.astype(dtype)
    for original in (image, image[:, :, :1]):
        item = {"data": original}
        make(Mat2Tensor, data_format=data_format).forward([item])
        result = run(Tensor2Mat, item["result"], data_format=data_format)["result"]
        assert result.dtype == dtype and np.array_equal(result, original)


def test_three_and_two_dimensions_are_an_image(run: Any, photo: Any) -> None:
    assert np.array_equal(run(Tensor2Mat, photo)["result"], photo)
    assert np.array_equal(run(Tensor2Mat, photo[:, :, 0])["result"], photo[:, :, :1])
    assert np.array_equal(run(Tensor2Mat, photo[::-1, ::2])["result"], photo[::-1, ::2])


class FakeTensor:
    """The part of torch.Tensor that Tensor2Mat uses, for machines without torch."""

    def __init__(self, array: Any, error: Any = None) -> None:
        self.array, self.error = array, error

    def detach(self) -> Any:
        return self

    cpu = detach

    def numpy(self) -> Any:
        if self.error:
            raise self.error
        return self.array


FakeTensor.__module__ = "torch"


def test_a_tensor_without_torch_installed(make: Any, photo: Any) -> None:
    item: Item = {"data": FakeTensor(photo.transpose(2, 0, 1)[np.newaxis])}
    make(Tensor2Mat).forward([item])
    assert np.array_equal(item["result"], photo) and item["result"].base is None
    with pytest.raises(
        InvalidInput, match=r"expected a dense tensor of dtype uint8, uint16 or float32.*BFloat16"
    ):
        make(Tensor2Mat).forward(
            [{"data": FakeTensor(photo, TypeError("Got unsupported ScalarType BFloat16"))}]
        )


def test_a_tensor_of_torch(make: Any, photo: Any) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float().requires_grad_()
    item: Item = {"data": tensor}
    make(Tensor2Mat).forward([item])
    assert np.array_equal(item["result"], photo) and item["result"].base is None
    with pytest.raises(InvalidInput, match="expected a dense tensor of dtype"):
        make(Tensor2Mat).forward([{"data": tensor.bfloat16()}])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (0, 3, 4, 4), (1, 1, 3, 4, 4), (4,), (1, 3, 0, 4)])
def test_other_shapes_than_a_tensor_of_one_image(run: Any, shape: Any) -> None:
    with pytest.raises(InvalidInput, match=r"Tensor2Mat: expected .*found shape "):
        run(Tensor2Mat, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "data", [b"jpeg", None, np.zeros((1, 3, 4, 4), np.float64), np.zeros((1, 3, 4, 4), np.int32)]
)
def test_other_data_than_an_image(run: Any, data: Any) -> None:
    with pytest.raises(InvalidInput, match=r"Tensor2Mat: .*image"):
        run(Tensor2Mat, data)


# FloatMat


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_keep_the_values(run: Any, dtype: Any, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels)).astype(dtype)
    for data in (image, image[:, ::-1]):
        result = run(FloatMat, data)["result"]
        assert (
            result.dtype == np.float32
            and np.array_equal(result, data)
            and not np.shares_memory(result, data)
        )
    assert run(FloatMat, image[:, :, 0])["result"].shape == (20, 30, 1)


def test_the_other_byte_order(run: Any, photo: Any) -> None:
    assert np.array_equal(run(FloatMat, photo.astype(">u2"))["result"], photo)
    assert np.array_equal(run(Tensor2Mat, photo.astype(">f4"))["result"], photo)


# SaveMat


def save(make: Any, directory: Any, images: Any, instance: int = 0, **keys: Any) -> Any:
    backend = make(SaveMat, Context(node="look", instance=instance), save_dir=str(directory))
    for image in images:
        item = {"data": image, **keys}
        backend.forward([item])
        assert np.array_equal(item["result"], item["data"].reshape(item["result"].shape))
    return sorted(path.name for path in directory.iterdir())


def test_rgb_is_saved_in_its_true_colours(run: Any, photo: Any, tmp_path: Path) -> None:
    item = run(SaveMat, photo, {"color": "rgb"}, save_dir=str(tmp_path))
    assert item["result"] is photo
    assert np.array_equal(np.asarray(Image.open(tmp_path / "test_0_000000.png")), photo)


def read(path: Path) -> Any:
    """Read a file unchanged: its dtype and its channels."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def test_bgr_is_saved_in_opencvs_order(make: Any, photo: Any, tmp_path: Path) -> None:
    save(make, tmp_path, [photo])
    assert np.array_equal(read(tmp_path / "look_0_000000.png"), photo)


def test_nothing_is_overwritten(make: Any, photo: Any, tmp_path: Path) -> None:
    assert save(make, tmp_path, [photo[:9], photo[:8]]) == [
        "look_0_000000.png",
        "look_0_000001.png",
    ]
    save(make, tmp_path, [photo[:7]], instance=1)
    assert save(make, tmp_path, [photo[:6]]) == [
        "look_0_000000.png",
        "look_0_000001.png",
        "look_0_000002.png",
        "look_1_000000.png",
    ]
    assert [len(read(path)) for path in sorted(tmp_path.iterdir())] == [9, 8, 6, 7]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_dtypes_are_kept(make: Any, tmp_path: Path, dtype: Any, channels: int) -> None:
    image = (np.random.default_rng(0).random((5, 7, channels)) * 255).astype(dtype)
    (name,) = save(make, tmp_path, [image])
    assert name.endswith(".tiff" if dtype == np.float32 else ".png")
    saved = read(tmp_path / name)
    assert saved.dtype == dtype and np.array_equal(saved.reshape(image.shape), image)


def test_the_result_for_a_view_keeps_no_larger_array_alive(
    run: Any, photo: Any, tmp_path: Path
) -> None:
    assert run(SaveMat, photo[:100], save_dir=str(tmp_path))["result"].base is None


def test_the_directory_is_relative_to_the_pipelines_file(
    make: Any, photo: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "seen").mkdir()
    with caplog.at_level(logging.WARNING, "penstock"):
        backend = make(SaveMat, Context(node="n", directory=tmp_path), save_dir="seen")
    assert f"writing every image to {tmp_path / 'seen'}" in caplog.text
    backend.forward([{"data": photo}])
    assert (tmp_path / "seen" / "n_0_000000.png").exists()


def test_a_missing_directory(make: Any, tmp_path: Path, photo: Any) -> None:
    (tmp_path / "file").touch()
    for name in ("nothing", "file"):
        with pytest.raises(BackendError, match="not an existing directory: create it first"):
            make(SaveMat, Context(directory=tmp_path), save_dir=name)
    (tmp_path / "gone").mkdir()
    backend = make(SaveMat, save_dir=str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    with pytest.raises(BackendError, match="SaveMat: can't write to"):
        backend.forward([{"data": photo}])


def test_two_channels_can_not_be_saved(run: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"expected an image of 1, 3 or 4 channels, found shape \(4, 4, 2\)"
    ):
        run(SaveMat, np.zeros((4, 4, 2), np.uint8), save_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cls", "params"),
    [(Tensor2Mat, {"data_format": "chw"}), (SaveMat, {}), (FloatMat, {"scale": 1})],
)
def test_wrong_parameters_are_a_load_error(cls: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.parameters(**params)


@pytest.mark.parametrize(
    "data", [b"jpeg", np.zeros((2, 2, 3), np.int64), np.zeros((0, 2, 3), np.uint8)]
)
def test_other_data_is_refused(run: Any, data: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"FloatMat.*image"):
        run(FloatMat, data)
    with pytest.raises(InvalidInput, match=r"SaveMat.*image"):
        run(SaveMat, data, save_dir=str(tmp_path))
