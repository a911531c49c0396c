"""torchpipe's Range, Random, Result2Other and KeyA2KeyB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.backends.base import UNBOUNDED, Backend, BatchRange, Context
from penstock.backends.errors import BackendError, ConfigError
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.backends.operators.compat import first_impossible

Make = Callable[..., Backend]
batches: list[int] = []


class Counts(Backend):
    def init(self, params: Any, context: Context) -> None: ...

    def forward(self, batch: list[Item]) -> None:
        batches.append(len(batch))
        for item in batch:
            item["result"] = item["data"] * 10


class TwoToNine(Counts):
    min, max = 2, 9


class Eight(Counts):
    min = max = 8


class LearnsEight(Counts):
    def init(self, params: Any, context: Context) -> None:
        self.min = self.max = 8


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    batches.clear()
    for backend in (Counts, TwoToNine, Eight, LearnsEight):
        register_backend(backend.__name__, backend)


@pytest.mark.parametrize(
    "child", [BatchRange(low, high) for low in range(1, 7) for high in range(low, 10)]
)
def test_the_first_impossible_size_is_the_one_that_counting_finds(child: BatchRange) -> None:
    reachable = {0}
    for _ in range(40):
        reachable |= {
            size + piece
            for size in reachable
            for piece in range(child.min, child.max + 1)
            if size + piece <= 40
        }
    for low in range(1, 12):
        missing = [size for size in range(low, 41) if size not in reachable]
        assert first_impossible(BatchRange(low, 40), child) == (missing[0] if missing else None)


def test_wide_ranges_take_no_time() -> None:
    assert first_impossible(BatchRange(1, UNBOUNDED), BatchRange(1, UNBOUNDED)) is None
    assert first_impossible(BatchRange(1, UNBOUNDED), BatchRange(1, 1)) is None
    assert first_impossible(BatchRange(8, UNBOUNDED), BatchRange(2, 9)) is None


def test_range_sums_its_childs_range(bound: Callable[..., Any]) -> None:
    spec = bound("Range[S[TwoToNine,SyncTensor]]", range="8,19")
    backend = spec.create(Context())
    assert spec.declared_range == (backend.min, backend.max) == (8, 19)
    for size in range(8, 20):
        batches.clear()
        items: list[Item] = [{"data": number} for number in range(size)]
        backend.forward(items)
        assert sum(batches) == size and all(2 <= piece <= 9 for piece in batches)
        assert [item["result"] for item in items] == [number * 10 for number in range(size)]


def test_range_runs_fewer_items_than_its_min(make: Make) -> None:
    make("Range('8,16')[TwoToNine]").forward([{"data": 1}])
    assert batches == [1]


@pytest.mark.parametrize("expression", ["Range('8,9')[Eight]", "Range('8,9')[LearnsEight]"])
def test_a_size_that_is_not_a_sum_is_an_error_at_load(make: Make, expression: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"Range: 9 of \[8, 9\] is not a sum of batch sizes that the child takes: "
        r"its range is \[8, 8\]",
    ):
        make(expression)


@pytest.mark.parametrize("text", ["8", "9,8", "0,8", "1,x", "1,2,3"])
def test_an_invalid_range_is_an_error_at_load(make: Make, text: str) -> None:
    with pytest.raises(ConfigError, match="range"):
        make("Range[Counts]", range=text)


@pytest.mark.parametrize(("p", "expected"), [("0", 1000), ("1", 10)])
def test_random_sends_all_or_none_at_its_ends(make: Make, p: str, expected: int) -> None:
    items: list[Item] = [{"data": 1} for _ in range(50)]
    make(f"Random({p})[Counts,S[Counts,Counts,Counts]]").forward(items)
    assert {item["result"] for item in items} == {expected}


def test_random_decides_for_each_item(make: Make) -> None:
    items: list[Item] = [{"data": 1} for _ in range(1000)]
    make("Random(0.5)[Counts,S[Counts,Counts]]").forward(items)
    assert 300 < sum(item["result"] == 10 for item in items) < 700
    assert len(batches) == 3, "one batch for A, and one for each member of the other Sequential"


@pytest.mark.parametrize(
    "expression",
    ["Random(1.5)[Counts,Counts]", "Random(0.5)[Counts]", "Random[Counts,Counts]", "KeyA2KeyB(a)"],
)
def test_invalid_arguments_are_an_error_at_load(make: Make, expression: str) -> None:
    with pytest.raises(ConfigError):
        make(expression)


@pytest.mark.parametrize(
    ("expression", "keys", "after"),
    [
        ("Result2Other[Counts]", {}, {"data": 1, "a": 2, "other": 10, "result": 1}),
        ("Result2Other[Counts]", {"other": "b"}, {"data": 1, "a": 2, "b": 10, "result": 1}),
        ("KeyA2KeyB", {"key_a": "a", "key_b": "b"}, {"data": 1, "a": 2, "b": 2, "result": 1}),
        ("KeyA2KeyB(a,b)[S[Counts,Counts]]", {}, {"data": 1, "a": 2, "b": 200, "result": 1}),
        ("S[KeyA2KeyB(a,b),Counts]", {}, {"data": 1, "a": 2, "b": 2, "result": 10}),
    ],
)
def test_a_result_goes_to_a_key(
    make: Make, expression: str, keys: dict[str, str], after: Item
) -> None:
    item: Item = {"data": 1, "a": 2}
    make(expression, **keys).forward([item])
    assert item == after


def test_a_missing_key_is_named(make: Make) -> None:
    with pytest.raises(
        BackendError, match="KeyA2KeyB needs the key 'a', but the item only has data"
    ):
        make("KeyA2KeyB(a,b)").forward([{"data": 1}])
