"""examples/early_exit: most requests end after the first node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

PIPELINE = Path(__file__).parents[2] / "examples" / "early_exit" / "early_exit.toml"
TEXT = "https://example.org/seat/42"


def picture(text: Any, angle: Any = 0, spoilt: Any = False) -> Any:
    """A PNG file of 480×640 pixels with a code at (204, 124), turned about the picture's middle; and the code's corners."""
    code = cv2.QRCodeEncoder.create().encode(text)[2:-2, 2:-2]
    if spoilt:  # the patterns in three corners stay, what is between them goes
        code[9:-9] = 255
        code[:, 9:-9] = 255
    code = np.kron(code, np.ones((9, 9), np.uint8))
    page = np.full((480, 640), 230, np.uint8)
    side = len(code)
    page[100 : 148 + side, 180 : 228 + side] = 255
    page[124 : 124 + side, 204 : 204 + side] = code
    turn = cv2.getRotationMatrix2D((320, 240), angle, 1)
    corners = (
        np.array(
            [[204, 124, 1], [204 + side, 124, 1], [204 + side, 124 + side, 1], [204, 124 + side, 1]]
        )
        @ turn.T
    )
    return cv2.imencode(".png", cv2.warpAffine(page, turn, (640, 480), borderValue=230))[
        1
    ].tobytes(), corners


def nodes(answer: Any) -> Any:
    """Those that ran."""
    return re.findall(r"run\.(\w+);", answer.headers["server-timing"])


@pytest.mark.parametrize("angle", [0, 20, 90])
def test_a_code_is_found_and_read(client: Any, angle: Any) -> None:
    file, corners = picture(TEXT, angle)
    answer = client.put("early_exit", content=file)
    assert answer.status_code == 200
    assert answer.json() == {"result": TEXT, "corners": answer.json()["corners"]}
    assert np.abs(answer.json()["corners"] - corners).max() < 4
    assert nodes(answer) == ["find", "read"]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_without_a_code_nothing_is_read(client: Any, name: Any) -> None:
    photograph = cv2.imencode(".jpg", load_sample_image(name)[:, :, ::-1])[1].tobytes()
    answer = client.put("early_exit", content=photograph)
    assert (answer.status_code, answer.json()) == (200, {"result": None})
    assert nodes(answer) == ["find"]


def test_a_code_that_cannot_be_read_has_corners_still(client: Any) -> None:
    file, corners = picture(TEXT, spoilt=True)
    answer = client.put("early_exit", content=file)
    assert answer.status_code == 200
    assert answer.json()["result"] is None
    assert np.abs(answer.json()["corners"] - corners).max() < 4


def test_the_sample_is_called_from_the_command_line(call: Any) -> None:
    assert call(PIPELINE, PIPELINE.with_name("code.png"))["result"] == TEXT
