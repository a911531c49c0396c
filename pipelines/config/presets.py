"""How images become what a bare model takes: colours, size, mean and std, by preset or singly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from penstock.backends.errors import ConfigError, Problem

COLORS = {1: ("gray",), 3: ("rgb", "bgr")}
"""For each number of channels of a model's input, the colours that it may have. The first is the
default.
"""


COLOR_NAMES = tuple(color for colors in COLORS.values() for color in colors)


@dataclass(frozen=True, slots=True)
class Preset:
    """The image preparation of a family of models. `mean` and `std` are for values of 0 to 255."""

    description: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int = 224
    """Height and width for models that leave them open."""
    resize: str = "ResizeMat"
    answers: str = ""
    """The backend that reads the model's output; "": a classifier's, if it gives scores."""


PRESETS = {
    "imagenet": Preset(
        "classifiers trained on ImageNet by torchvision, timm and their like",
        (123.675, 116.28, 103.53),
        (58.395, 57.12, 57.375),
    ),
    "yolo": Preset(
        "detectors of the YOLO family, exported without NMS: letterbox, values 0 to 1",
        std=(255.0,),
        size=640,
        resize="LetterBoxMat(pad_val=114)",
        answers="YoloTensor",
    ),
    "clip": Preset(
        "image encoders of CLIP",
        (122.7709383, 116.7460125, 104.0937362),
        (68.5005327, 66.6321579, 70.3231631),
        resize="PillowResizeMat(resample=bicubic)",
    ),
    "inception": Preset("values -1 to 1: Inception, MobileNet and EfficientNet of TensorFlow",
        (127.5,), (127.5,), 299,
    ),
    "unit": Preset("values 0 to 1: pixels divided by 255", std=(255.0,)),
    "raw": Preset("values 0 to 255, as in the image", (0.0,), (1.0,)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What a user says of a bare model's images. None, "": not said."""

    preset: str = ""
    size: tuple[int, int] | None = None
    """Height and width."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: str = ""

    @property
    def normalises(self) -> bool:
        """True if the user has said which values the model takes."""
        return bool(self.preset) or self.mean is not None or self.std is not None

    @property
    def preparation(self) -> Preset:
        """The preset, or that of a model whose user names none."""
        return PRESETS[self.preset] if self.preset else Preset("pixels as they are")


def read_size(text: str) -> tuple[int, int]:
    """Read `320x480`, height × width, or `320` for both. Raises ValueError."""
    match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*(?:[x×,]\s*([1-9]\d{0,4})\s*)?", text.lower())
    if match is None:
        raise ValueError(f"found {text!r}: expected height and width, as in 320x320, or one number")
    return int(match[1]), int(match[2] or match[1])


def read_numbers(text: str) -> tuple[float, ...]:
    """Read `123.675,116.28,103.53`. Raises ValueError."""
    try:
        return tuple(float(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"found {text!r}: expected numbers, as in 123.675,116.28,103.53") from None


def image_keys(
    options: ImageOptions, channels: int, size: tuple[int, int], file: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of the node that prepares images, and those of the model's node.

    Raises `ConfigError` for options that don't fit the model.
    """
    preset = options.preparation
    color = options.color or COLORS[channels][0]
    if color not in COLORS[channels]:
        expected = " or ".join(COLORS[channels])
        message = f"found {color!r}: the model takes {channels} channels: expected {expected}"
        raise ConfigError([Problem(message, file, key="color")])
    values: dict[str, Any] = {}
    for key in ("mean", "std"):
        given = getattr(options, key)
        numbers = getattr(preset, key) if given is None else given
        if numbers is None:
            continue
        if given is None and len(numbers) == 3 and channels == 1:
            numbers = (round(sum(numbers) / 3, 3),)
        if given is None and len(numbers) == 3 and color == "bgr":
            numbers = numbers[::-1]
        if len(numbers) not in (1, channels):
            message = f"found {len(numbers)} values: expected 1 or {channels}, one a channel"
            raise ConfigError([Problem(message, file, key=key)])
        values[key] = list(numbers) if len(numbers) > 1 else numbers[0]
    _check_unit(options, file)
    resize = preset.resize
    prepare = {
        "backend": f"S[DecodeMat,{resize},CvtColorMat,Mat2Tensor]",
        "resize_h": size[0],
        "resize_w": size[1],
        "color": color,
    }
    return prepare, values


def _check_unit(options: ImageOptions, file: str) -> None:
    """Refuse mean and std for values of 0 to 1, as most papers have them."""
    if options.std is None or not all(0 < number < 1 for number in options.std):
        return
    scaled = {
        key: ",".join(f"{round(number * 255, 4):g}" for number in numbers)
        for key in ("mean", "std")
        if (numbers := getattr(options, key)) is not None
    }
    instead = " ".join(f"{key} {numbers}" for key, numbers in scaled.items())
    found = ",".join(f"{number:g}" for number in options.std)
    message = (
        f"found {found}, which is for values of 0 to 1: Penstock's mean and std are for pixels of "
        f"0 to 255: expected {instead}"
    )
    raise ConfigError([Problem(message, file, key="std")])
