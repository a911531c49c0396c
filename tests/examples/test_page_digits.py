"""examples/page_digits: pages of digits that the model was not trained on, from many clients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from .conftest import Call, Load

FOLDER = Path(__file__).parents[2] / "examples" / "page_digits"
PIPELINE = FOLDER / "page_digits.toml"
PAGES = 200


@pytest.fixture(scope="module")
def pages(load: Load) -> ModuleType:
    return load(FOLDER / "pages.py")


def right(text: str, expected: str) -> int:
    """Count the characters that are right; in a line of the wrong length none is."""
    lines = text.split("\n"), expected.split("\n")
    if len(lines[0]) != len(lines[1]):
        return 0
    return sum(
        sum(map(str.__eq__, *pair))
        for pair in zip(*lines, strict=True)
        if len(pair[0]) == len(pair[1])
    )


def test_200_pages_from_16_clients(client: httpx.Client, pages: ModuleType) -> None:
    written = [pages.page(number) for number in range(PAGES)]

    def ask(page: Any) -> Any:
        answer = client.put("page_digits", content=page[0])
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, written))
    for answer in answers:
        assert set(answer) == {"result", "boxes"}
        assert len(answer["boxes"]) == len(answer["result"].replace("\n", ""))
    characters = sum(len(text.replace("\n", "")) for _, text, _ in written)
    share = (
        sum(
            right(answer["result"], text)
            for answer, (_, text, _) in zip(answers, written, strict=True)
        )
        / characters
    )
    print(f"{share:.2%} of {characters} characters right")
    assert share >= 0.95


def overlap(one: list[int], other: list[int]) -> float:
    """Return the intersection over union of two boxes."""
    (left, top), (right, bottom) = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common: float = max(right - left, 0) * max(bottom - top, 0)
    return common / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - common)


def test_the_boxes_are_where_the_digits_are_in_the_order_of_the_text(
    client: httpx.Client, pages: ModuleType
) -> None:
    for number in range(10):
        file, text, boxes = pages.page(number)
        answer = client.put("page_digits", content=file).json()
        assert right(answer["result"], text) >= 0.8 * len(boxes)
        for box, expected in zip(answer["boxes"], boxes, strict=True):
            assert overlap(box, expected) > 0.5


def test_a_blank_page_has_an_empty_text(client: httpx.Client, pages: ModuleType) -> None:
    answer = client.put("page_digits", content=pages.blank(0))
    assert (answer.status_code, answer.json()) == (200, {"result": "", "boxes": []})


def test_a_file_that_is_not_an_image(client: httpx.Client) -> None:
    answer = client.put("page_digits", content=b"no image")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def test_a_batch_request_gives_the_same(client: httpx.Client, pages: ModuleType) -> None:
    files = [pages.page(number)[0] for number in range(4)] + [pages.blank(1)]
    results = client.post("page_digits/batch", files=[("images", file) for file in files]).json()[
        "results"
    ]
    assert results == [client.put("page_digits", content=file).json() for file in files]


def test_penstock_call_with_the_sample_page(
    call: Call, client: httpx.Client, pages: ModuleType
) -> None:
    sample = FOLDER / "page.png"
    answer = call(PIPELINE, sample, "--full")
    assert answer == client.put("page_digits", content=sample.read_bytes()).json()
    text = pages.page(1)[1]
    assert right(answer["result"], text) >= len(answer["boxes"]) - 1  # one digit is misread
