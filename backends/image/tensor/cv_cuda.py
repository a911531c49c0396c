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
    except ModuleNotFoundError as error:
        if error.name != "cvcuda":
            raise
        return None
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
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


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    """Resize N×C×H×W: bilinear, half-pixel centres, no antialiasing, as `cv2.resize`."""
    library = find_cvcuda()
    return None if library is None else _resized(library, image, height, width)


def _resized(library: Any, image: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    if min(image.shape[2:]) < 2:  # CV-CUDA reads a second pixel
        return None
    views = _views(image, height, width)
    if views is None:
        return None
    source, target, result = views
    library.resize_into(
        _wrapped(library, target),
        _wrapped(library, source),
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
    if library is None or (views := _views(image, height, width)) is None:
        return None
    source, target, result = views
    if fill is not None and len(set(fill)) > 1 and source.shape[3] == 1:
        # Planes of one channel, each with a fill value of its own.
        channels = image.shape[1]
        pieces = [
            (source[channel::channels], target[channel::channels], [fill[channel]])
            for channel in range(channels)
        ]
    else:
        pieces = [(source, target, list(fill or [0.0])[: source.shape[3]])]
    operation = library.warp_affine_into if len(inverse) == 2 else library.warp_perspective_into
    matrix = np.ascontiguousarray(inverse, np.float32)
    flags = int(library.Interp.LINEAR) | int(library.Interp.WARP_INVERSE_MAP)
    border = library.Border.REPLICATE if fill is None else library.Border.CONSTANT
    for part, into, values in pieces:
        operation(
            _wrapped(library, into),
            _wrapped(library, part),
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
    codes = library.ColorConversion
    library.cvtcolor_into(
        _wrapped(library, result.view(count, height, width, 1)),
        _wrapped(library, image.permute(0, 2, 3, 1).contiguous()),
        codes.RGB2GRAY if order == "rgb" else codes.BGR2GRAY,
        stream=_stream(library, image),
    )
    return result


def _views(
    image: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Return N×C×H×W and a new image of another size as CV-CUDA sees them, and that new image.

    CV-CUDA takes images of 1, 3 or 4 channels whose pixels lie together. What lies in planes is
    taken as images of one channel.
    """
    count, channels, old_height, old_width = image.shape
    pixel = count * channels * image.element_size()
    if (
        image.dtype not in TYPE_NAMES
        or pixel * max(old_height * old_width, height * width) > MAX_BYTES
        or count * channels > MAX_IMAGES
    ):
        return None
    if channels in (3, 4) and image.stride(1) == 1 and image.stride(3) == channels:
        pixels = torch.empty(
            (count, height, width, channels), dtype=image.dtype, device=image.device
        )
        return image.permute(0, 2, 3, 1), pixels, pixels.permute(0, 3, 1, 2)
    planes = image.flatten(0, 1)  # a view where that is possible
    if planes.stride(2) != 1:
        planes = planes.contiguous()
    result = torch.empty((count, channels, height, width), dtype=image.dtype, device=image.device)
    return planes.unsqueeze(3), result.flatten(0, 1).unsqueeze(3), result


class _Memory:
    """What CV-CUDA reads of a tensor, by the CUDA array interface."""

    __slots__ = ("__cuda_array_interface__", "_tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self._tensor = tensor
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "typestr": TYPE_NAMES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            # In order already: the operation runs on the stream that wrote the tensor. Without
            # this, CV-CUDA waits for the whole device.
            "stream": -1,
        }


def _wrapped(library: Any, tensor: torch.Tensor) -> Any:
    """Return N×H×W×C as CV-CUDA's tensor. It holds the memory until its stream has used it."""
    return library.as_tensor(_Memory(tensor), "NHWC")


def _stream(library: Any, image: torch.Tensor) -> Any:
    """Return torch's current stream, on which the operation runs."""
    handle = torch.cuda.current_stream(image.device).cuda_stream
    known: dict[int, Any] = _streams.__dict__.setdefault("of", {})
    if handle not in known:
        known[handle] = library.as_stream(handle)
    return known[handle]
