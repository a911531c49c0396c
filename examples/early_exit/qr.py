"""Find and read QR codes with OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


class Find:
    """Finds the QR code on a picture.

    `data`: H×W×3, BGR, uint8. With a code it sets `result`, the same picture, and `corners`;
    without one it sets neither.
    """

    def init(self) -> None:
        self.detector = cv2.QRCodeDetector()

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            detected, corners = self.detector.detect(item["data"])
            if detected:
                item["corners"] = corners[0].tolist()
                item["result"] = item["data"]


class Read:
    """Reads the QR code on a picture.

    `data`: the picture, with the code at `corners`. `result`: its text; not set if unreadable.
    """

    def init(self) -> None:
        self.detector = cv2.QRCodeDetector()

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            text = self.detector.decode(item["data"], np.array([item["corners"]], np.float32))[0]
            if text:
                item["result"] = text
