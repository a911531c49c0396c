"""The GPU's operations do the same as the CPU's.

They are plain torch, and run here on the CPU, too.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.backends.errors import InvalidInput  # noqa: E402
from penstock.backends.image.tensor import operations, sampling  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TURN: Any = cv2.getRotationMatrix2D((300.0, 200.0), 30, 0.8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 900), (1, 1), (854, 1280)])
def test_resizing_by_torch_is_as_by_opencv(
    tensor: Any, photo: Any, height: int, width: int, device: str
) -> None:
    result = sampling.interpolated(tensor.to(device), height, width)
    assert result.dtype == torch.uint8 and result.device.type == device
    difference = np.abs(
        result[0].permute(1, 2, 0).cpu().numpy().astype(int) - cv2.resize(photo, (width, height))
    )
    assert difference.max() <= 1 and difference.mean() < 0.3
    floats = (
        sampling.interpolated(tensor.to(device).float(), height, width)[0]
        .permute(1, 2, 0)
        .cpu()
        .numpy()
    )
    assert np.allclose(floats, cv2.resize(photo.astype(np.float32), (width, height)), atol=0.01)


def exact(photo: Any, inverse: Any, height: int, width: int, fill: Any) -> Any:
    """Warp by the definition, in double precision: bilinear between pixel centres."""
    y, x = np.mgrid[:height, :width].astype(float)
    at_x = inverse[0][0] * x + inverse[0][1] * y + inverse[0][2]
    at_y = inverse[1][0] * x + inverse[1][1] * y + inverse[1][2]
    result = np.zeros((height, width, photo.shape[2]))
    left, top = np.floor(at_x).astype(int), np.floor(at_y).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - np.abs(at_x - left - dx)) * (1 - np.abs(at_y - top - dy))
            inside = (
                (left + dx >= 0)
                & (left + dx < photo.shape[1])
                & (top + dy >= 0)
                & (top + dy < photo.shape[0])
            )
            values = photo[
                np.clip(top + dy, 0, photo.shape[0] - 1), np.clip(left + dx, 0, photo.shape[1] - 1)
            ].astype(float)
            result += weight[..., None] * np.where(inside[..., None], values, fill)
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operation", [sampling.warped, sampling.sampled])
@pytest.mark.parametrize(
    "inverse",
    [
        np.eye(2, 3),
        TURN,
        np.array([[1.0, 0, -20.5], [0, 1, -10.25]]),
        np.array([[-2.0, 0, 700], [0, 3, 5]]),
    ],
)
def test_warping_is_bilinear_between_centres(
    tensor: Any, photo: Any, inverse: Any, operation: Any, device: str
) -> None:
    fill = [10.0, 200.0, 30.0]
    expected = exact(photo, inverse.tolist(), 300, 500, fill)
    result = (
        operation(tensor.to(device).float(), inverse, 300, 500, fill)[0]
        .permute(1, 2, 0)
        .cpu()
        .numpy()
    )
    # OpenCV 4 rounds coordinates to 1/32 of a pixel.
    difference = np.abs(result - expected)
    assert difference.mean() < 0.5 and np.quantile(difference, 0.999) < 8
    if operation is sampling.sampled:
        assert difference.max() < 0.1
    whole = operation(tensor.to(device), inverse, 300, 500, fill)[0].permute(1, 2, 0).cpu().numpy()
    assert whole.dtype == np.uint8 and np.abs(whole - result).max() <= 1.01


@pytest.mark.parametrize("device", DEVICES)
def test_several_images_are_warped_alike(tensor: Any, device: str) -> None:
    both = torch.cat([tensor, tensor.flip(3)]).to(device)
    for operation in (sampling.warped, sampling.sampled):
        result = operation(both, TURN, 40, 50, [0.0] * 3)
        for index in range(2):
            assert torch.equal(
                result[index : index + 1],
                operation(both[index : index + 1].contiguous(), TURN, 40, 50, [0.0] * 3),
            )


@pytest.mark.parametrize(
    "data", [np.arange(6, dtype=">i4"), np.arange(6)[::-1], np.arange(12)[::2], np.arange(12)[:6]]
)
def test_arrays_that_torch_can_not_share_are_copied(data: Any) -> None:
    tensor = operations.tensor_of(data, "Test")
    assert tensor.tolist() == data.tolist()
    assert not np.shares_memory(tensor.numpy(), data)  # nor does it keep a larger array alive


def test_an_array_is_shared_and_a_read_only_one_copied() -> None:
    data = np.arange(6)
    assert operations.tensor_of(data, "Test").data_ptr() == data.ctypes.data
    data.flags.writeable = False
    assert operations.tensor_of(data, "Test").data_ptr() != data.ctypes.data


def test_an_array_of_a_dtype_that_torch_lacks_is_invalid_input() -> None:
    with pytest.raises(
        InvalidInput,
        match="Any: expected a tensor or an array of numbers, found an array of float128",
    ):
        operations.tensor_of(np.zeros(3, np.longdouble), "Any")
