"""examples/early_exit: a request without a QR code ends after the first node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from .conftest import Call

PIPELINE = Path(__file__).parents[2] / "examples" / "early_exit" / "early_exit.toml"
TEXT = "https://example.org/seat/42"


def picture(text: str, angle: float = 0, spoilt: bool = False) -> tuple[bytes, NDArray[Any]]:
    """Draw a PNG of 480×640 pixels with a code at (204, 124), and return its corners too.

    `angle`: degrees by which all is turned about the middle of the picture.
    """
    code = cv2.QRCodeEncoder.create().encode(text)[2:-2, 2:-2]
    if spoilt:  # only the patterns in three corners stay
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
    turned = cv2.warpAffine(page, turn, (640, 480), borderValue=230)
    return cv2.imencode(".png", turned)[1].tobytes(), corners


def nodes(answer: httpx.Response) -> list[str]:
    """Return the nodes that ran."""
    return re.findall(r"run\.(\w+);", answer.headers["server-timing"])


@pytest.mark.parametrize("angle", [0, 20, 90])
def test_a_code_is_found_and_read(client: httpx.Client, angle: float) -> None:
    file, corners = picture(TEXT, angle)
    answer = client.put("early_exit", content=file)
    assert answer.status_code == 200
    assert answer.json() == {"result": TEXT, "corners": answer.json()["corners"]}
    assert np.abs(answer.json()["corners"] - corners).max() < 4
    assert nodes(answer) == ["find", "read"]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_without_a_code_nothing_is_read(client: httpx.Client, name: str) -> None:
    photograph = cv2.imencode(".jpg", load_sample_image(name)[:, :, ::-1])[1].tobytes()
    answer = client.put("early_exit", content=photograph)
    assert (answer.status_code, answer.json()) == (200, {"result": None})
    assert nodes(answer) == ["find"]


def test_a_code_that_can_not_be_read_still_has_corners(client: httpx.Client) -> None:
    file, corners = picture(TEXT, spoilt=True)
    answer = client.put("early_exit", content=file)
    assert answer.status_code == 200
    assert answer.json()["result"] is None
    assert np.abs(answer.json()["corners"] - corners).max() < 4


def test_penstock_call_with_the_sample(call: Call) -> None:
    assert call(PIPELINE, PIPELINE.with_name("code.png"))["result"] == TEXT
