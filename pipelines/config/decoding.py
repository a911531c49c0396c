"""The key `decode` of an input: images that clients send encoded, to a model that takes pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.backends.errors import ConfigError

from .presets import COLORS, PRESETS, ImageOptions, image_keys


@dataclass(frozen=True, slots=True)
class Decoding:
    """The steps that make a tensor of pixels of encoded images.

    `preset`: its name. `keys`: those of a node that makes 1×C×H×W (`channels_last`: 1×H×W×C) of one
    image, values 0 to 255. `shape`: that of one image in the tensor. Each pixel becomes
    (x - mean) / std.
    """

    preset: str
    keys: dict[str, Any]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool


def decoding_of(preset: str, dtype: str | None, shape: Sequence[int] | None) -> Decoding:
    """Return how images become an input of this dtype (NumPy's name) and shape, by a preset.

    The shape is C×H×W or H×W×C, perhaps with the batch in front; an open height and width are the
    preset's. Raises ValueError, which says what is expected.
    """
    if preset not in PRESETS:
        raise ValueError(f"found {preset!r}: expected one of {', '.join(PRESETS)}")
    if dtype is None or shape is None:
        raise ValueError("a decoded input needs its dtype and its shape")
    inner = [*shape[-3:]]
    channels_last = len(inner) == 3 and inner[0] not in COLORS and inner[2] in COLORS
    if channels_last:
        inner = [inner[2], *inner[:2]]
    if len(inner) != 3 or len(shape) > 4 or inner[0] not in COLORS:
        raise ValueError(
            f"found shape {list(shape)}: images need CxHxW or HxWxC with 1 or 3 channels, perhaps "
            "with the batch in front"
        )
    channels, height, width = inner
    size = PRESETS[preset].size
    height, width = (size if side == -1 else side for side in (height, width))
    try:
        keys, values = image_keys(ImageOptions(preset), channels, (height, width), "")
    except ConfigError as error:
        raise ValueError(error.problems[0].message) from None
    mean, std = (_numbers(values.get(key, default)) for key, default in (("mean", 0), ("std", 1)))
    changes = mean != (0.0,) or std != (1.0,)
    if not dtype.startswith("float") and (changes or dtype != "uint8"):
        raise ValueError(
            f"{preset!r} gives floats, and the dtype is {dtype}: expected float32 or float16, or "
            "uint8 with 'raw'"
        )
    if channels_last:
        keys["data_format"] = "nhwc"
    whole = (height, width, channels) if channels_last else (channels, height, width)
    return Decoding(preset, keys, whole, mean, std, channels_last)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)
