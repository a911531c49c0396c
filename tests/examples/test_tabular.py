"""examples/tabular: every flower of the iris data, classified as by scikit-learn itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from sklearn.datasets import load_iris

from .conftest import Call, Load

TABULAR = Path(__file__).parents[2] / "examples" / "tabular"
PIPELINE = TABULAR / "iris.toml"
INPUTS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def test_all_flowers_are_classified_as_by_scikit_learn(client: httpx.Client, load: Load) -> None:
    iris: Any = load_iris()
    classifier = load(TABULAR / "train.py").train()
    classes = classifier.predict(iris.data)
    expected = [
        {
            "result": int(index),
            "label": iris.target_names[index],
            "score": pytest.approx(scores[index], abs=1e-5),
        }
        for index, scores in zip(classes, classifier.predict_proba(iris.data), strict=True)
    ]
    flowers = [dict(zip(INPUTS, row, strict=True)) for row in iris.data.tolist()]
    answer = client.post("iris/batch", json=flowers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"] == expected
    one = client.post("iris", json=flowers[100])
    assert (one.status_code, one.json()) == (200, expected[100])


def test_a_missing_length_is_named(client: httpx.Client) -> None:
    answer = client.post("iris", json=dict.fromkeys(INPUTS[:3], 1))
    assert answer.status_code == 400
    assert "petal_width" in answer.json()["detail"]


def test_penstock_call(call: Call, tmp_path: Path) -> None:
    flower = tmp_path / "flower.json"
    flower.write_text('{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}')
    assert call(PIPELINE, flower)["label"] == "setosa"
