"""scikit-learn's handwritten digits, as arrays for the training and as files for a client.

1797 images of 8×8 pixels with values 0 to 16, stored here as grey images of 0 to 255. Split once, by a fixed seed and
stratified by digit: three quarters train, 450 are held out and never seen by train.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 450
SEED = 0


def split() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Training images, held-out images (n×8×8, uint8), training labels, held-out labels."""
    digits = load_digits()
    images = np.clip(np.round(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=digits.target,
    )
    return train_images, test_images, train_labels, test_labels


def encode(image: NDArray[np.uint8], kind: str) -> bytes:
    """One image as a PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def heldout() -> Iterator[tuple[bytes, bytes, int]]:
    """(PNG file, JPEG file, digit) for each held-out image."""
    _, images, _, labels = split()
    for image, label in zip(images, labels, strict=True):
        yield encode(image, "PNG"), encode(image, "JPEG"), int(label)
