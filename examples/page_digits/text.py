"""Digits and their boxes to text."""

from __future__ import annotations

from statistics import median
from typing import Any


class Text:
    """`data`: a digit for each of `boxes`. `result`: the text, "" without digits; `boxes` come in its order."""

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            digits, boxes = item["data"], item["boxes"]
            found = lines(boxes)
            item["result"] = "\n".join(
                "".join(str(digits[index]) for index in line) for line in found
            )
            item["boxes"] = [boxes[index] for line in found for index in line]


def lines(boxes: list[list[int]]) -> list[list[int]]:
    """The boxes' indices, line by line from the top and each from the left.

    A line ends where the next middle is half a digit lower.
    """
    middles = [(top + bottom) / 2 for _, top, _, bottom in boxes]
    found: list[list[int]] = []
    half = median(bottom - top for _, top, _, bottom in boxes) / 2 if boxes else 0
    for index in sorted(range(len(boxes)), key=middles.__getitem__):
        if not found or middles[index] - middles[found[-1][-1]] > half:
            found.append([])
        found[-1].append(index)
    return [sorted(line, key=lambda index: boxes[index][0]) for line in found]
