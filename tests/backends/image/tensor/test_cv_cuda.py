"""What CV-CUDA is given: the right memory, strides, sizes and values.

CV-CUDA can't be imported without a GPU. Here OpenCV stands in for it, on the memory that CV-CUDA
would be given; gpu_images.py runs CV-CUDA itself.
"""

from __future__ import annotations

import types
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.backends.image.tensor import cv_cuda, sampling  # noqa: E402
from penstock.backends.image.tensor.resize import ResizeTensor  # noqa: E402

TURN: Any = cv2.getRotationMatrix2D((30.0, 20.0), 30, 0.8)
QUAD: Any = np.array([[0.9, 0.1, 3.0], [-0.05, 1.1, 2.0], [1e-3, 5e-4, 1.0]])


class Memory:
    """NumPy's view of the memory that an object describes for CUDA."""

    def __init__(self, described: Any) -> None:
        interface = described.__cuda_array_interface__
        assert interface["version"] == 3 and interface["stream"] == -1
        self.__array_interface__ = interface | {"stream": None}
        self.described = described  # CV-CUDA too keeps the memory alive


def as_tensor(described: Any, layout: str) -> Any:
    assert layout == "NHWC"
    array: Any = np.asarray(Memory(described))
    assert array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.strides[3] == array.itemsize
    assert array.strides[2] == array.shape[3] * array.itemsize, "pixels lie together"
    return array


def resize_into(target: Any, source: Any, interpolation: Any, *, stream: Any) -> None:
    assert interpolation == 1 and stream == "a stream" and target.dtype == source.dtype
    for image, result in zip(source, target, strict=True):
        size = result.shape[1::-1]
        result[:] = cv2.resize(np.ascontiguousarray(image), size).reshape(result.shape)


def warp(operation: Any) -> Any:
    def warp_into(
        target: Any,
        source: Any,
        matrix: Any,
        flags: int,
        *,
        border_mode: int,
        border_value: Any,
        stream: Any,
    ) -> None:
        assert matrix.dtype == np.float32 and border_value.dtype == np.float32
        assert len(border_value) <= 4 and stream == "a stream"
        for image, result in zip(source, target, strict=True):
            result[:] = operation(
                np.ascontiguousarray(image),
                matrix.astype(float),
                result.shape[1::-1],
                flags=flags,
                borderMode=border_mode,
                borderValue=border_value.tolist(),
            ).reshape(result.shape)

    return warp_into


def cvtcolor_into(target: Any, source: Any, code: int, *, stream: Any) -> None:
    assert stream == "a stream"
    for image, result in zip(source, target, strict=True):
        result[..., 0] = cv2.cvtColor(np.ascontiguousarray(image), code)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = types.SimpleNamespace(
        as_tensor=as_tensor,
        resize_into=resize_into,
        warp_affine_into=warp(cv2.warpAffine),
        warp_perspective_into=warp(cv2.warpPerspective),
        cvtcolor_into=cvtcolor_into,
        Interp=types.SimpleNamespace(
            LINEAR=cv2.INTER_LINEAR, WARP_INVERSE_MAP=cv2.WARP_INVERSE_MAP
        ),
        Border=types.SimpleNamespace(CONSTANT=cv2.BORDER_CONSTANT, REPLICATE=cv2.BORDER_REPLICATE),
        ColorConversion=types.SimpleNamespace(
            RGB2GRAY=cv2.COLOR_RGB2GRAY, BGR2GRAY=cv2.COLOR_BGR2GRAY
        ),
    )
    monkeypatch.setattr(cv_cuda, "find_cvcuda", lambda: library)
    monkeypatch.setattr(cv_cuda, "_stream", lambda *_: "a stream")
    return library


def images() -> dict[str, Any]:
    """Return tensors N×C×H×W that lie in memory in different ways."""
    draw = torch.Generator().manual_seed(0)
    planes = torch.randint(0, 256, (2, 3, 41, 63), dtype=torch.uint8, generator=draw)
    return {
        "planes": planes,
        "pixels": planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "cut from planes": planes[:, :, 3:30, 5:50],
        "cut from pixels": planes.permute(0, 2, 3, 1)
        .contiguous()[:, 3:30, 5:50]
        .permute(0, 3, 1, 2),
        "grey": planes[:, :1],
        "grey as three": planes[:, :1].expand(-1, 3, -1, -1),
        "seven channels": torch.cat([planes, planes, planes[:, :1]], 1),
        "two channels": planes[:, 1:],
        "every other row": planes[:, :, ::2],
        "every other column": planes[:, :, :, ::2],
        "turned": planes.transpose(2, 3),
        "floats": planes.float(),
    }


@pytest.mark.parametrize("case", images())
def test_the_results_are_those_of_the_cpu(library: Any, case: str) -> None:
    image = images()[case]
    before = image.clone()
    channels = image.shape[1]
    fills: tuple[list[float] | None, ...] = (
        [7.0] * channels,
        [float(10 * number) for number in range(channels)],
        None,
    )
    pairs: list[Any] = [(cv_cuda.resized(image, 20, 31), sampling.resized(image, 20, 31))]
    pairs += [
        (operation(image, matrix, 25, 35, fill) for operation in (cv_cuda.warped, sampling.warped))
        for matrix in (TURN, QUAD)
        for fill in fills
    ]
    for result, expected in pairs:
        assert result is not None
        assert result.shape == expected.shape and result.dtype == image.dtype
        assert (result.float() - expected.float()).abs().max() <= 1  # the matrix is float32
        nbytes = result.untyped_storage().nbytes()
        assert nbytes == result.numel() * result.element_size()
    assert torch.equal(image, before)


@pytest.mark.parametrize("case", ["planes", "pixels", "cut from planes", "floats"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_grey(library: Any, case: str, order: str) -> None:
    image = images()[case]
    code = cv2.COLOR_RGB2GRAY if order == "rgb" else cv2.COLOR_BGR2GRAY
    result = cv_cuda.grey(image, order)
    assert result is not None and result.is_contiguous()
    for pixels, grey in zip(image.permute(0, 2, 3, 1).numpy(), result, strict=True):
        assert np.array_equal(grey[0].numpy(), cv2.cvtColor(pixels.copy(), code))


def test_what_cvcuda_can_not_do_is_left_to_torch(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images()["planes"]
    for other in (image.half(), image.bfloat16(), image[:, :, :1], image[..., :1]):
        assert cv_cuda.resized(other, 5, 5) is None
    assert cv_cuda.warped(image.half(), TURN, 5, 5, None) is None
    assert cv_cuda.grey(image.half(), "rgb") is None
    monkeypatch.setattr(cv_cuda, "MAX_BYTES", image.nbytes - 1)
    assert cv_cuda.resized(image, 5, 5) is None and cv_cuda.grey(image, "rgb") is None
    assert cv_cuda.resized(image[:1], 5000, 5) is None  # the result is too large
    monkeypatch.setattr(cv_cuda, "MAX_BYTES", 2**31)
    monkeypatch.setattr(cv_cuda, "MAX_IMAGES", 1)
    assert cv_cuda.resized(image, 5, 5) is None and cv_cuda.grey(image, "rgb") is None


def test_a_backend_that_is_closed_gives_its_tensors_back(
    library: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[str] = []
    library.clear_cache = cleared.append
    library.ThreadScope = types.SimpleNamespace(LOCAL="local")
    backend = make(ResizeTensor, resize_h=4, resize_w=4)
    monkeypatch.setattr(type(backend._half), "on_gpu", True)
    backend.close()
    backend.close()
    assert cleared == ["local"]


def test_without_cvcuda_torch_does_all() -> None:
    image = images()["planes"]
    cv_cuda.find_cvcuda.cache_clear()
    try:
        if cv_cuda.find_cvcuda() is not None:
            pytest.skip("CV-CUDA is installed")
        assert cv_cuda.resized(image, 5, 5) is None
        assert cv_cuda.warped(image, TURN, 5, 5, None) is None
        assert cv_cuda.grey(image, "rgb") is None
        assert cv_cuda.name() == "torch (CV-CUDA, extra cvcuda, is not installed)"
    finally:
        cv_cuda.find_cvcuda.cache_clear()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'nvcv'", name="nvcv"), "No module named 'nvcv'"),
        (ImportError("libcudart.so.13 is missing"), "libcudart.so.13 is missing"),
        (ModuleNotFoundError("No module named 'cvcuda'", name="cvcuda"), ""),
    ],
)
def test_a_cvcuda_that_can_not_be_imported_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, says: str
) -> None:
    def refuse(_: str) -> Any:
        raise error

    monkeypatch.setattr(cv_cuda, "import_module", refuse)
    cv_cuda.find_cvcuda.cache_clear()
    try:
        assert cv_cuda.find_cvcuda() is None
    finally:
        cv_cuda.find_cvcuda.cache_clear()
    assert (says in caplog.text) if says else not caplog.records
