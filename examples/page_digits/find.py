"""Where digits are on a page."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

FAINTEST = 50
"""How much darker than the paper ink is, of 255."""
SMALLEST = 8
"""Height in pixels of the smallest digit; what is lower is dust."""


class Boxes:
    """Dark digits on light paper.

    `data`: H×W×3, BGR, uint8. `result`: the ink, H×W×1, uint8, bright on dark ground as the classifier wants it. Sets `color` and `_box`:
    [[x1, y1, x2, y2], ...] in pixels of the page, in no order.
    """

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            grey = cv2.GaussianBlur(
                cv2.cvtColor(item["data"], cv2.COLOR_BGR2GRAY), (0, 0), 1.5
            )  # or the noise would have contours
            ink = cv2.subtract(np.full_like(grey, np.median(grey)), grey)
            digits = cv2.morphologyEx(
                (ink > FAINTEST).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 1), np.uint8)
            )
            contours, _ = cv2.findContours(digits, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            found = [cv2.boundingRect(contour) for contour in contours]
            item["_box"] = [
                [x, y, x + width, y + height] for x, y, width, height in found if height >= SMALLEST
            ]
            item["color"] = "gray"
            item["result"] = ink[:, :, np.newaxis]
