"""Find the digits on a page."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

MIN_CONTRAST = 50
"""The least by which ink is darker than the paper, of 255."""
MIN_HEIGHT_PIXELS = 8
"""Height of the smallest digit. Anything lower is dust."""


class Boxes:
    """Finds dark digits on light paper.

    `data`: H×W×3, BGR, uint8. `result`: the ink, H×W×1, uint8, bright on dark, as the classifier
    needs it. Also sets `color`, and `_box`: [[x1, y1, x2, y2], ...] in pixels of the page, in no
    particular order.
    """

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            grey = cv2.cvtColor(item["data"], cv2.COLOR_BGR2GRAY)
            grey = cv2.GaussianBlur(grey, (0, 0), 1.5)  # otherwise noise has contours too
            ink = cv2.subtract(np.full_like(grey, np.median(grey)), grey)
            digits = cv2.morphologyEx(
                (ink > MIN_CONTRAST).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 1), np.uint8)
            )
            contours, _ = cv2.findContours(digits, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            item["_box"] = [
                [x, y, x + width, y + height]
                for x, y, width, height in map(cv2.boundingRect, contours)
                if height >= MIN_HEIGHT_PIXELS
            ]
            item["color"] = "gray"
            item["result"] = ink[:, :, np.newaxis]
