"""CV-CUDA's operations on tensors of a GPU, where it is installed.

They run on the current stream of torch, and read and write its memory without copies. Each does in
one launch what takes torch four to eight. They return None for what CV-CUDA can't do: torch does
that.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger("penstock.backends.image")

TYPE_NAMES = {torch.uint8: "|u1", torch.float32: "<f4"}
MAX_BYTES = 2**31 - 1
"""The most bytes of a tensor: CV-CUDA counts them in 32 bits."""
MAX_IMAGES = 65_535
"""The most images of a tensor: CV-CUDA has a layer of blocks for each."""

_streams = threading.local()
"""`_streams.of[handle]`: CV-CUDA's object for a stream of torch."""


@functools.cache
def find_cvcuda() -> Any:
    """Return the module, or None if it isn't installed or can't be used.

    Only where there is a GPU: it can't be imported without one.
    """
    try:
        library = import_module("cvcuda")
        _try(library)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "cvcuda":
            logger.warning("CV-CUDA can't be used, torch does its work: %s", error)
        return None
    return library


def _try(library: Any) -> None:
    """Resize an image of one colour. Raises RuntimeError if the result is wrong."""
    image = torch.full((1, 1, 8, 8), 7, dtype=torch.uint8, device="cuda")
    result = _resized(library, image, 4, 4)
    if result is None or not bool((result == 7).all()):
        raise RuntimeError("it resizes an image of the colour 7 to another colour")


def name() -> str:
    """Return what works on a GPU, for the log."""
    library = find_cvcuda()
    return (
        "torch (CV-CUDA, extra cvcuda, is not installed)"
        if library is None
        else f"CV-CUDA {library.__version__}"
    )


def forget() -> None:
    """Give back the tensors that CV-CUDA still holds for this thread: those it used last."""
    library = find_cvcuda()
    if library is not None:
        library.clear_cache(library.ThreadScope.LOCAL)


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    """Resize N×C×H×W: bilinear, half-pixel centres, no antialiasing, as `cv2.resize`."""
    library = find_cvcuda()
    return None if library is None else _resized(library, image, height, width)


def _resized(library: Any, image: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    if min(image.shape[2:]) < 2:  # CV-CUDA reads a second pixel
        return None
    pair = _pair(image, height, width)
    if pair is None:
        return None
    source, target, result = pair
    library.resize_into(
        library.as_tensor(target, "NHWC"),
        library.as_tensor(source, "NHWC"),
        library.Interp.LINEAR,
        stream=_stream(library, image),
    )
    return result


def warped(
    image: torch.Tensor,
    inverse: NDArray[np.float64],
    height: int,
    width: int,
    fill: Sequence[float] | None,
) -> torch.Tensor | None:
    """Transform N×C×H×W by `inverse`, which maps (x, y) of the result to (x, y) of the image.

    2×3 is affine, 3×3 perspective. Bilinear. `fill`, a number per channel, is beyond the image;
    None: the image's edge is repeated.
    """
    library = find_cvcuda()
    if library is None or (pair := _pair(image, height, width)) is None:
        return None
    source, target, result = pair
    if fill is not None and len(set(fill)) > 1 and source.channels == 1:
        # Planes of one channel, each with a fill value of its own.
        pieces = [
            (source.every(image.shape[1], channel), target.every(image.shape[1], channel), [value])
            for channel, value in enumerate(fill)
        ]
    else:
        pieces = [(source, target, list(fill or [0.0])[: source.channels])]
    operation = library.warp_affine_into if len(inverse) == 2 else library.warp_perspective_into
    matrix = np.ascontiguousarray(inverse, np.float32)
    flags = int(library.Interp.LINEAR) | int(library.Interp.WARP_INVERSE_MAP)
    border = library.Border.REPLICATE if fill is None else library.Border.CONSTANT
    for part, into, values in pieces:
        operation(
            library.as_tensor(into, "NHWC"),
            library.as_tensor(part, "NHWC"),
            matrix,
            flags,
            border_mode=border,
            border_value=np.array(values, np.float32),
            stream=_stream(library, image),
        )
    return result


def grey(image: torch.Tensor, order: str) -> torch.Tensor | None:
    """Return N×3×H×W in rgb or bgr as N×1×H×W, as `cv2.cvtColor`."""
    library = find_cvcuda()
    if library is None or image.dtype not in TYPE_NAMES or image.nbytes > MAX_BYTES:
        return None
    count, _, height, width = image.shape
    if count > MAX_IMAGES:
        return None
    result = torch.empty((count, 1, height, width), dtype=image.dtype, device=image.device)
    pixels = image.permute(0, 2, 3, 1).contiguous()
    codes = library.ColorConversion
    library.cvtcolor_into(
        library.as_tensor(_Memory(result, (count, height, width, 1)), "NHWC"),
        library.as_tensor(_Memory(pixels, (count, height, width, 3)), "NHWC"),
        codes.RGB2GRAY if order == "rgb" else codes.BGR2GRAY,
        stream=_stream(library, image),
    )
    return result


def _pair(
    image: torch.Tensor, height: int, width: int
) -> tuple[_Memory, _Memory, torch.Tensor] | None:
    """Return N×C×H×W and a new image of another size as CV-CUDA sees them, and that new image.

    CV-CUDA takes images of 1, 3 or 4 channels whose pixels lie together. What lies in planes is
    taken as images of one channel. None: CV-CUDA can't take the image.
    """
    count, channels, old_height, old_width = image.shape
    pixel = count * channels * image.element_size()
    if (
        image.dtype not in TYPE_NAMES
        or pixel * max(old_height * old_width, height * width) > MAX_BYTES
        or count * channels > MAX_IMAGES
    ):
        return None
    strides = image.stride()
    if channels in (3, 4) and strides[1] == 1 and strides[3] == channels:
        result = torch.empty(
            (count, height, width, channels), dtype=image.dtype, device=image.device
        )
        source = _Memory(
            image,
            (count, old_height, old_width, channels),
            (strides[0], strides[2], channels, 1),
        )
        target = _Memory(result, (count, height, width, channels))
        return source, target, result.permute(0, 3, 1, 2)
    plane = strides[1] if channels > 1 else strides[0]
    if strides[3] != 1 or plane == 0 or (count > 1 and strides[0] != channels * plane):
        image = image.contiguous()
        strides, plane = image.stride(), old_height * old_width
    result = torch.empty((count, channels, height, width), dtype=image.dtype, device=image.device)
    images = count * channels
    source = _Memory(image, (images, old_height, old_width, 1), (plane, strides[2], 1, 1))
    return source, _Memory(result, (images, height, width, 1)), result


Sizes = tuple[int, int, int, int]
"""The numbers of images, rows, columns and channels."""


class _Memory:
    """Images N×H×W×C in a tensor's memory, described for CV-CUDA by the CUDA array interface.

    CV-CUDA holds it, and so the tensor, until its stream has used it.
    """

    __slots__ = ("__cuda_array_interface__", "_shape", "_strides", "_tensor")

    def __init__(
        self,
        tensor: torch.Tensor,
        shape: Sizes,
        strides: Sizes | None = None,
        offset: int = 0,
    ) -> None:
        """`strides` and `offset` count elements. Without strides the images are contiguous."""
        if strides is None:
            _, height, width, channels = shape
            strides = (height * width * channels, width * channels, channels, 1)
        size = tensor.element_size()
        self._tensor, self._shape, self._strides = tensor, shape, strides
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "strides": tuple(stride * size for stride in strides),
            "typestr": TYPE_NAMES[tensor.dtype],
            "data": (tensor.data_ptr() + offset * size, False),
            # In order already: the operation runs on the stream that wrote the tensor. Without
            # this, CV-CUDA waits for the whole device.
            "stream": -1,
        }

    @property
    def channels(self) -> int:
        return self._shape[3]

    def every(self, step: int, first: int) -> _Memory:
        """Return each `step`-th image from `first` on."""
        count, *size = self._shape
        stride, *inner = self._strides
        shape: Any = (count // step, *size)
        strides: Any = (step * stride, *inner)
        return _Memory(self._tensor, shape, strides, first * stride)


def _stream(library: Any, image: torch.Tensor) -> Any:
    """Return torch's current stream, on which the operation runs."""
    handle = torch.cuda.current_stream(image.device).cuda_stream
    known: dict[int, Any] = _streams.__dict__.setdefault("of", {})
    if handle not in known:
        known[handle] = library.as_stream(handle)
    return known[handle]
