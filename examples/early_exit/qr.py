"""QR codes by OpenCV: where one is, and what it says."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


class Find:
    """`data`: H×W×3, BGR, uint8. `result`: the same, and `corners`, where there is a code; neither where there is none."""

    def init(self) -> None:
        self.detector = cv2.QRCodeDetector()

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            found, corners = self.detector.detect(item["data"])
            if found:
                item["corners"] = corners[0].tolist()
                item["result"] = item["data"]


class Read:
    """`data`: the picture with the code at `corners`. `result`: its text, none where it can't be read."""

    def init(self) -> None:
        self.detector = cv2.QRCodeDetector()

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            text = self.detector.decode(item["data"], np.array([item["corners"]], np.float32))[0]
            if text:
                item["result"] = text
