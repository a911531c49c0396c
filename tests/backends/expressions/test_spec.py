"""`force_range`: a file replaces the batch range of a backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock import pipe
from penstock.backends.base import UNBOUNDED, Backend, Context
from penstock.backends.errors import ConfigError
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item

MODEL = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


class One(Backend):
    max = 1

    def init(self, params: Any, context: Context) -> None: ...

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = len(batch)


class AnyKey(One):
    def init(self, params: Any, context: Context) -> None:
        self.min = self.max = 7


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register_backend("One", One)
    register_backend("AnyKey", AnyKey)


@pytest.mark.parametrize(
    ("expression", "keys", "expected"),
    [
        ("Identity", {"force_range": "2,4"}, (2, 4)),
        ("Identity", {"force_range": [2, 4]}, (2, 4)),
        ("Identity(force_range='2,4')", {}, (2, 4)),
        ("AnyKey", {"force_range": "2,4"}, (2, 4)),
        ("S[One,Identity]", {"force_range": "2,4"}, (2, 4)),
        ("S[One(force_range='1,3'),Identity]", {}, (1, 3)),
        ("S[One,Identity]", {"Identity::force_range": "1,5"}, (1, 5)),
        ("S[DecodeMat,OnnxTensor]", {"force_range": "2,4", "model": "x.onnx"}, (2, 4)),
        (
            "Range('4,12')[S[OnnxTensor,SyncTensor]]",
            {"force_range": "2,4", "model": "x.onnx"},
            (4, 12),
        ),
        ("Max[OnnxTensor]", {"force_range": "2,4", "model": "x.onnx"}, (2, UNBOUNDED)),
    ],
)
def test_the_declared_range(
    bound: Callable[..., Any], expression: str, keys: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert bound(expression, **keys).declared_range == expected


def test_a_forced_range_holds_after_init(make: Callable[..., Backend]) -> None:
    for expression, expected in (
        ("S[One(force_range='1,3'),Identity]", (1, 3)),
        ("AnyKey(force_range='2,4')", (2, 4)),
    ):
        backend = make(expression)
        assert (backend.min, backend.max) == expected


def test_a_chain_runs_a_member_with_a_forced_range_in_batches(
    make: Callable[..., Backend],
) -> None:
    items: list[Item] = [{"data": 0}, {"data": 0}]
    make("S[One(force_range='1,3'),Identity]").forward(items)
    assert [item["result"] for item in items] == [2, 2]


@pytest.mark.parametrize("text", ["4", "4,2", "0,2", "a,b", "1,2,3", ""])
@pytest.mark.parametrize("expression", ["Identity", "AnyKey"])
def test_an_invalid_range_is_an_error_at_load(
    bound: Callable[..., Any], expression: str, text: str
) -> None:
    with pytest.raises(ConfigError, match="force_range"):
        bound(expression, force_range=text)


def test_min_and_max_of_the_node_are_for_the_engines() -> None:
    keys = {
        "backend": "S[OnnxTensor,SyncTensor]",
        "model": str(MODEL),
        "max": "8",
        "force_range": "1,2",
    }
    with pipe(keys) as forced:
        assert (forced.min(), forced.max()) == (1, 2)
    summed = {
        "backend": "Range[S[OnnxTensor,SyncTensor]]",
        "model": str(MODEL),
        "range": "8,19",
        "max": 9,
        "min": 2,
    }
    with pipe(summed) as opened:
        assert (opened.min(), opened.max()) == (8, 19)
    with pytest.raises(
        ConfigError,
        match=r"9 of \[8, 9\] is not a sum of batch sizes that the child takes: "
        r"its range is \[8, 8\]",
    ):
        pipe(summed | {"range": "8,9", "max": 8, "min": 8})


def test_each_instance_group_has_its_own_range() -> None:
    with pipe({"backend": "Identity", "force_range": "1,2&1,6"}) as forced:
        assert (forced.min(), forced.max()) == (1, 6)
