"""examples/digits as its users run it: the held-out images over HTTP, from many clients at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Load

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
PIPELINE = DIGITS / "digits.toml"
WORDS = (DIGITS / "labels.txt").read_text().split()
HeldOut = list[tuple[bytes, bytes, int]]


@pytest.fixture(scope="module")
def heldout(load: Load) -> HeldOut:
    return list(load(DIGITS / "data.py").heldout())


@pytest.mark.parametrize(("kind", "column"), [("png", 0), ("jpeg", 1)])
def test_the_held_out_images_from_32_clients(
    client: httpx.Client, heldout: HeldOut, kind: str, column: int
) -> None:
    files = [row[column] for row in heldout]

    def ask(file: Any) -> tuple[Any, str]:
        answer = client.post("digits", content=file, headers={"Content-Type": f"image/{kind}"})
        assert answer.status_code == 200, answer.text
        return answer.json(), answer.headers["server-timing"]

    singles = [ask(file) for file in files]
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(ask, files))
    assert len(answers) == 450
    assert {timing.partition("desc=")[2] for _, timing in singles} == {'"batch 1"'}
    # There were batches; otherwise the comparison would show nothing.
    assert any('"batch 1"' not in timing for _, timing in answers)
    for (answer, _), (single, _) in zip(answers, singles, strict=True):
        assert answer["label"] == single["label"] == WORDS[answer["class"]]
        assert set(answer) == {"result", "label", "class", "score"}
        assert answer["result"] == answer["class"]
        assert answer["score"] == pytest.approx(single["score"], abs=1e-4)
    right = sum(
        answer["class"] == digit for (answer, _), (*_, digit) in zip(answers, heldout, strict=True)
    )
    assert right >= 0.97 * len(heldout)


def test_a_batch_request_gives_the_same(client: httpx.Client, heldout: HeldOut) -> None:
    files = [png for png, _, _ in heldout[:64]]
    answer = client.post("digits/batch", files=[("images", file) for file in files])
    for file, result in zip(files, answer.json()["results"], strict=True):
        single = client.put("digits", content=file).json()
        assert result["label"] == single["label"]
        assert result["score"] == pytest.approx(single["score"], abs=1e-4)
