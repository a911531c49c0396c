"""Images at another size or place: resized, and transformed by a matrix.

On the CPU, OpenCV does the work, plane by plane on the tensor's own memory. There it is up to 200
times as fast as torch (3000×4000 to 224×224: 0.2 ms instead of 45), and the result equals that of
the OpenCV backends to the bit. On a GPU CV-CUDA does it where it is installed, else torch, by the
same conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ...allocation import empty_array
from . import cv_cuda
from .operations import as_type


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize N×C×H×W: bilinear, half-pixel centres, no antialiasing, as `cv2.resize`.

    Always a new tensor, of the same dtype.
    """
    if image.is_cuda:
        result = cv_cuda.resized(image, height, width)
        return interpolated(image, height, width) if result is None else result

    def resize(plane: NDArray[Any], result: NDArray[Any], _: int) -> None:
        cv2.resize(plane, (width, height), dst=result, interpolation=cv2.INTER_LINEAR)

    return _by_opencv(image, height, width, resize)


def interpolated(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize by torch.

    Whole numbers are rounded, at most 1 from OpenCV's result, which is computed in 11 bits.
    """
    return as_type(
        functional.interpolate(
            image.float(), (height, width), mode="bilinear", align_corners=False
        ),
        image.dtype,
    )


def warped(
    image: torch.Tensor,
    inverse: NDArray[np.float64],
    height: int,
    width: int,
    fill: Sequence[float] | None,
) -> torch.Tensor:
    """Transform an image by `inverse`, which maps (x, y) of the result to (x, y) of the image.

    2×3 is affine, 3×3 perspective. Pixel centres are at whole numbers, as in `cv2.warpAffine` and
    `cv2.warpPerspective` with WARP_INVERSE_MAP. Bilinear. `fill`, a number per channel, is beyond
    the image; None: the image's edge is repeated.
    """
    if image.is_cuda:
        result = cv_cuda.warped(image, inverse, height, width, fill)
        return sampled(image, inverse, height, width, fill) if result is None else result

    def warp(plane: NDArray[Any], result: NDArray[Any], channel: int) -> None:
        operation: Any = cv2.warpAffine if len(inverse) == 2 else cv2.warpPerspective
        operation(
            plane,
            inverse,
            (width, height),
            dst=result,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
            borderValue=0 if fill is None else fill[channel],
        )

    return _by_opencv(image, height, width, warp)


def sampled(
    image: torch.Tensor,
    inverse: NDArray[np.float64],
    height: int,
    width: int,
    fill: Sequence[float] | None,
) -> torch.Tensor:
    """Do the work of `warped` by torch."""
    count, _, old_height, old_width = image.shape
    x = torch.arange(width, dtype=torch.float32, device=image.device)
    y = torch.arange(height, dtype=torch.float32, device=image.device).unsqueeze(1)
    (xx, xy, x0), (yx, yy, y0) = inverse[:2].tolist()
    at_x, at_y = xx * x + xy * y + x0, yx * x + yy * y + y0
    if len(inverse) == 3:
        zx, zy, z0 = inverse[2].tolist()
        depth = zx * x + zy * y + z0
        at_x, at_y = at_x / depth, at_y / depth
    # To grid_sample's coordinates: -1 and 1 are the outer edges of the image, and the centres of
    # its outer pixels lie half a pixel inside them.
    places = torch.stack(
        [(at_x + 0.5) * (2 / old_width) - 1, (at_y + 0.5) * (2 / old_height) - 1], dim=-1
    ).expand(count, -1, -1, -1)
    pixels = image.float()
    if fill is None:
        result = functional.grid_sample(pixels, places, padding_mode="border", align_corners=False)
        return as_type(result, image.dtype)
    values = torch.tensor(fill, dtype=torch.float32, device=image.device).view(1, -1, 1, 1)
    # grid_sample fills with 0, so the fill value is shifted to 0.
    result = functional.grid_sample(
        pixels - values, places, padding_mode="zeros", align_corners=False
    )
    return as_type(result + values, image.dtype)


def _by_opencv(
    image: torch.Tensor,
    height: int,
    width: int,
    change: Callable[[NDArray[Any], NDArray[Any], int], None],
) -> torch.Tensor:
    """Call `change(plane, result, channel)` for each plane of an image on the CPU.

    The results are in memory of their own.
    """
    native = image if image.dtype in (torch.uint8, torch.float32) else image.float()
    planes = native.contiguous().numpy()
    result = empty_array((*planes.shape[:2], height, width), planes.dtype)
    for number in range(planes.shape[0]):
        for channel in range(planes.shape[1]):
            change(planes[number, channel], result[number, channel], channel)
    return torch.from_numpy(result).to(image.dtype)
