"""Draw pages of handwritten digits, with their text and boxes.

    python pages.py 7 page.png   # writes page 7 and prints its text

A page has scikit-learn's digits that are held out from training. Each has a size and an angle of
its own; the lines are not quite straight, and dark ink is on light, noisy paper. The same number
gives the same page.
"""

from __future__ import annotations

import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NOISE = 8
"""Standard deviation of a pixel of the paper, of 255."""
MAX_ANGLE_DEGREES = 12
"""The largest angle by which a digit may lean to either side."""

Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n×8×8 pixels, bright on dark) and the digits that they show."""


@cache
def digits() -> tuple[Digits, Digits]:
    """Return the digits to train on and those held out."""
    train, held_out, train_labels, labels = runpy.run_path(
        str(Path(__file__).parents[1] / "digits" / "data.py")
    )["split"]()
    return (train, train_labels), (held_out, labels)


def page(number: int, *, held_out: bool = True) -> tuple[bytes, str, list[list[int]]]:
    """Draw a page of 2 to 5 lines with 4 to 10 digits each.

    Returns a PNG file, the text with newlines between lines, and the boxes, [x1, y1, x2, y2].
    """
    random = np.random.default_rng(number)
    images, labels = digits()[held_out]
    lines = [
        random.integers(len(labels), size=random.integers(4, 11))
        for _ in range(random.integers(2, 6))
    ]
    boxes: list[list[int]] = []
    ink = np.zeros((40 + 48 * len(lines), 400), np.float32)
    for row, line in enumerate(lines):
        left = 16 + int(random.integers(40))
        for chosen in line:
            digit = _written(images[chosen], random)
            top = 24 + 48 * row + int(random.integers(-4, 5))
            height, width = digit.shape
            ink[top : top + height, left : left + width] = digit
            boxes.append([left, top, left + width, top + height])
            left += width + int(random.integers(2, 6))
    text = "\n".join("".join(str(labels[chosen]) for chosen in line) for line in lines)
    return _file(ink, random), text, boxes


def blank(number: int) -> bytes:
    """Draw a page without digits, as a PNG file."""
    return _file(np.zeros((136, 400), np.float32), np.random.default_rng(number))


def _written(digit: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
    """Draw a digit 20 to 28 pixels high, leaning, without its empty margins; ink from 0 to 1."""
    size = int(random.integers(20, 29))
    large: Any = cv2.resize(
        np.pad(digit, 2).astype(np.float32) / 255,
        (size * 12 // 8,) * 2,
        interpolation=cv2.INTER_CUBIC,
    )
    middle = (large.shape[1] / 2 - 0.5, large.shape[0] / 2 - 0.5)
    turned = cv2.warpAffine(
        large,
        cv2.getRotationMatrix2D(middle, random.uniform(-MAX_ANGLE_DEGREES, MAX_ANGLE_DEGREES), 1),
        large.shape[::-1],
    )
    inked = np.clip(turned, 0, 1)
    columns, rows = (np.flatnonzero(inked.max(axis=axis) > 0.05) for axis in (0, 1))
    return np.ascontiguousarray(
        inked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.float32
    )


def _file(ink: NDArray[np.float32], random: np.random.Generator) -> bytes:
    paper, pen = random.uniform(215, 245), random.uniform(10, 60)
    pixels = paper + (pen - paper) * ink + random.normal(0, NOISE, ink.shape)
    return cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1].tobytes()


def main() -> None:
    number, path = int(sys.argv[1]), Path(sys.argv[2])
    file, text, _ = page(number)
    path.write_bytes(file)
    print(text)


if __name__ == "__main__":
    main()
