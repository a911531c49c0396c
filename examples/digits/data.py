"""The handwritten digits of scikit-learn, as arrays for training and as files for a client.

They are 1797 images of 8×8 pixels with values from 0 to 16, here scaled to 0 to 255. A fixed seed
splits them, with equal shares of each digit: three quarters are for training, and 450 are held out,
so that train.py never sees them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 450
SEED = 0


def split() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return training images, held-out images (n×8×8, uint8), training labels, held-out labels."""
    digits: Any = load_digits()
    images = np.clip(np.round(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    parts: Any = train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=digits.target,
    )
    train_images, held_out_images, train_labels, held_out_labels = parts
    return train_images, held_out_images, train_labels, held_out_labels


def encode(image: NDArray[np.uint8], kind: str) -> bytes:
    """Encode an image as a PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def heldout() -> Iterator[tuple[bytes, bytes, int]]:
    """Yield a PNG file, a JPEG file and the digit for each held-out image."""
    _, images, _, labels = split()
    for image, label in zip(images, labels, strict=True):
        yield encode(image, "PNG"), encode(image, "JPEG"), int(label)
