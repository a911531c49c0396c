"""Images to send: those of a folder, or generated JPEGs for when only the size matters."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def read_folder(folder: Path) -> list[bytes]:
    """Read the image files of a folder by name, without its subfolders; or the one file given.

    Raises ValueError if there are none.
    """
    files = (
        [folder]
        if folder.is_file()
        else sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    )
    if not files:
        raise ValueError(f"no image in {folder}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return [file.read_bytes() for file in files]


def synthetic_jpegs(
    count: int = 8, *, width: int = 640, height: int = 427, size: int = 100_000, seed: int = 0
) -> list[bytes]:
    """Generate JPEGs of about `size` bytes each; the same arguments give the same bytes.

    Their spectrum is roughly that of a photograph, so that they take as long to decode.
    """
    generator = np.random.default_rng(seed)
    return [_encode(_picture(generator, width, height), size) for _ in range(count)]


def _picture(
    generator: np.random.Generator, width: int, height: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    picture = np.zeros((height, width, 3), np.float32)
    cells = 3
    while cells < width:  # add octaves of noise, each twice as fine and weaker
        coarse = generator.normal(
            0, 150 / cells**0.7, (max(2, cells * height // width), cells, 3)
        ).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return np.clip(picture + 128, 0, 255).astype(np.uint8)


def _encode(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size: int) -> bytes:
    """Encode as JPEG, with the quality that comes nearest to `size` bytes."""
    low, high = 10, 98
    best = b""
    while low <= high:
        quality = (low + high) // 2
        jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if abs(len(jpeg) - size) < abs(len(best) - size):
            best = jpeg
        if len(jpeg) < size:
            low = quality + 1
        else:
            high = quality - 1
    return best
