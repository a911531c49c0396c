"""Between the models of single lines, and after them."""

from __future__ import annotations

from typing import Any

import cv2

SURE = 0.9
"""Probability from which a line that looks upside down is turned."""
MIN_SCORE = 0.5
"""Lines that are read with a lower score are left out."""


class Turn:
    """Turns lines that are upside down: `class` 1 of the classifier. `data`, `result`: H×W×3."""

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            upside_down = item["class"] == 1 and item["score"] > SURE
            item["result"] = (
                cv2.rotate(item["data"], cv2.ROTATE_180) if upside_down else item["data"]
            )


class Answer:
    """Joins the lines of a page.

    `data`: their texts; `scores`, `boxes`. `result`: the text of the page. Also sets `lines`.
    """

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            item["lines"] = [
                {"text": text, "score": score, "box": box}
                for text, score, box in zip(
                    item["data"], item["scores"], item["boxes"], strict=True
                )
                if text.strip() and score >= MIN_SCORE
            ]
            item["result"] = "\n".join(line["text"] for line in item["lines"])
