"""examples/photograph as its users run it: a real photograph, over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "photograph"
PIPELINE = PHOTOGRAPH / "photograph.toml"


def test_a_cup_of_coffee(client: httpx.Client) -> None:
    answer = client.put("photograph", content=(PHOTOGRAPH / "coffee.jpg").read_bytes())
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "result": 967,
        "class": 967,
        "label": "espresso",
        "score": pytest.approx(0.89, abs=0.03),
    }
