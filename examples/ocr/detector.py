"""Before and after PaddleOCR's text detector: differentiable binarization (DB), arXiv:1911.08947.

The numbers and formulas are those of PaddleOCR and RapidOCR (Apache-2.0). RapidOCR shrinks images
above 2000 pixels and pads very flat ones first, which is left out here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pyclipper  # comes with rapidocr
from numpy.typing import NDArray

clipper: Any = pyclipper  # it has no types
SHORT_SIDE_PIXELS = 736
"""Smaller images are enlarged to this shorter side."""
MULTIPLE = 32
"""The detector takes sides that are multiples of this."""
INK = 0.3
"""Probability from which a pixel is text."""
MIN_SCORE = 0.5
"""Mean probability within a box, below which it is no text."""
UNCLIP = 1.6
"""The detector finds the core of a line. It grows by this times its area / circumference."""
MIN_SIDE_PIXELS = 3
MAX_BOXES = 1000
LINE_PIXELS = 10
"""Boxes whose tops differ by less are in one line, and go from left to right."""

Box = NDArray[np.float32]
"""4×2: four points (x, y)."""


class Size:
    """Sets `resize_h` and `resize_w`: the size that the detector takes. `result` is `data`."""

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            height, width = item["data"].shape[:2]
            ratio = max(SHORT_SIDE_PIXELS / min(height, width), 1)
            for key, side in (("resize_h", height), ("resize_w", width)):
                item[key] = max(round(int(side * ratio) / MULTIPLE), 1) * MULTIPLE
            item["result"] = item["data"]


class Boxes:
    """Finds lines of text in the detector's map.

    `data`: the page, H×W×3. `map`: 1×1×h×w, probabilities of text. Sets `_box`: for each line, from
    the top, 4 points [x, y] in pixels of the page, clockwise from the upper left. `result` is
    `data`.
    """

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            height, width = item["data"].shape[:2]
            item["_box"] = [box.tolist() for box in boxes_of(item["map"][0, 0], width, height)]
            item["result"] = item["data"]


def boxes_of(probabilities: NDArray[np.float32], width: int, height: int) -> list[Box]:
    """Return the lines of text of a map, in an image of this size."""
    ink = cv2.dilate((probabilities > INK).astype(np.uint8), np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(ink * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / ink.shape[1], height / ink.shape[0]], np.float32)
    boxes = []
    for outline in outlines[:MAX_BOXES]:
        core, side = smallest_box(outline)
        if side < MIN_SIDE_PIXELS or score_of(core, probabilities) < MIN_SCORE:
            continue
        grown, side = smallest_box(grow(core))
        if side < MIN_SIDE_PIXELS + 2:
            continue
        box = clockwise(np.clip(np.round(grown * scale), 0, (width, height)))
        box = np.clip(box, 0, (width - 1, height - 1)).astype(np.float32)
        if min(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[0] - box[3])) >= 4:
            boxes.append(box)
    return in_reading_order(boxes)


def smallest_box(points: NDArray[Any]) -> tuple[Box, float]:
    """Return the smallest rectangle, turned anyhow, around points, and its shorter side."""
    rectangle = cv2.minAreaRect(points)
    left, right = np.split(
        np.array(sorted(cv2.boxPoints(rectangle), key=lambda point: point[0])), 2
    )
    (upper_left, lower_left), (upper_right, lower_right) = (
        sorted(pair, key=lambda point: point[1]) for pair in (left, right)
    )
    box = np.array([upper_left, upper_right, lower_right, lower_left], np.float32)
    return box, min(rectangle[1])


def score_of(box: Box, probabilities: NDArray[np.float32]) -> float:
    """Return the mean probability within a box."""
    limits = np.array(probabilities.shape[::-1]) - 1
    left, top = np.clip(np.floor(box.min(0)).astype(int), 0, limits)
    right, bottom = np.clip(np.ceil(box.max(0)).astype(int), 0, limits)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(box - (left, top)).astype(np.int32)], 1)
    return cv2.mean(probabilities[top : bottom + 1, left : right + 1], inside)[0]


def grow(box: Box) -> NDArray[np.int32]:
    """Return the outline of a box that grew by UNCLIP."""
    x, y = box.astype(np.float64).T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    circumference = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
    offset = clipper.PyclipperOffset()
    offset.AddPath(box, clipper.JT_ROUND, clipper.ET_CLOSEDPOLYGON)
    outlines = offset.Execute(area * UNCLIP / circumference)
    return np.array([point for outline in outlines for point in outline], np.int32)


def clockwise(box: NDArray[Any]) -> NDArray[Any]:
    """Return the points of a box, clockwise from the upper left."""
    left, right = np.split(box[np.argsort(box[:, 0])], 2)
    upper_left, lower_left = left[np.argsort(left[:, 1])]
    upper_right, lower_right = right[np.argsort(right[:, 1])]
    return np.array([upper_left, upper_right, lower_right, lower_left])


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Sort boxes from the top, and those of one line from the left."""
    boxes = sorted(boxes, key=lambda box: box[0, 1])
    line, keys = 0, []
    for index, box in enumerate(boxes):
        line += index > 0 and box[0, 1] - boxes[index - 1][0, 1] >= LINE_PIXELS
        keys.append((line, box[0, 0], index))
    return [boxes[index] for _, _, index in sorted(keys)]
