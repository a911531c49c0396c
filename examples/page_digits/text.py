"""Join digits to text by their boxes."""

from __future__ import annotations

from statistics import median
from typing import Any


class Text:
    """Orders digits by lines.

    `data`: a digit for each of `boxes`. `result`: the text, "" without digits. `boxes` are sorted
    in the order of the text.
    """

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for item in batch:
            digits, boxes = item["data"], item["boxes"]
            order = lines(boxes)
            item["result"] = "\n".join(
                "".join(str(digits[index]) for index in line) for line in order
            )
            item["boxes"] = [boxes[index] for line in order for index in line]


def lines(boxes: list[list[int]]) -> list[list[int]]:
    """Return the indices of the boxes, line by line from the top, each from the left.

    A line ends if the middle of the next box is lower by half a digit.
    """
    middles = [(top + bottom) / 2 for _, top, _, bottom in boxes]
    rows: list[list[int]] = []
    half = median(bottom - top for _, top, _, bottom in boxes) / 2 if boxes else 0
    for index in sorted(range(len(boxes)), key=middles.__getitem__):
        if not rows or middles[index] - middles[rows[-1][-1]] > half:
            rows.append([])
        rows[-1].append(index)
    return [sorted(row, key=lambda index: boxes[index][0]) for row in rows]
