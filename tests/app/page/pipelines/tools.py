"""Backends of the pipelines that the tests of the page try."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


def length(data: str) -> dict[str, Any]:
    """Count words and letters."""
    return {"words": len(data.split()), "letters": sum(map(str.isalpha, data))}


def total(data: dict[str, Any]) -> float:
    return float(sum(data["numbers"]))


def boxes(data: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Find two things: one fills the upper left quarter of the image, one the lower half."""
    height, width = data.shape[:2]
    upper_left = [0, 0, width / 2, height / 2]
    lower = [0, height / 2, width, height]
    return [
        {"box": upper_left, "score": 0.9, "class": 0, "label": "quarter"},
        {"box": lower, "score": 0.6, "class": 1, "label": "half"},
    ]


def mask(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mark the left half of the image."""
    height, width = data.shape[:2]
    marked = np.zeros((height, width), np.uint8)
    marked[:, : width // 2] = 1
    return marked


def wait(data: str) -> str:
    """Take as many milliseconds as the text says."""
    time.sleep(float(data) / 1000)
    return f"waited {data} ms"


def fail(data: str) -> str:
    raise ValueError(f"no one can read {data!r}")
