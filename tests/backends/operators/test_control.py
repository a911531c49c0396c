"""Backends that run others in pieces or depending on the item, and Sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from penstock.backends.base import UNBOUNDED, Backend, Context
from penstock.backends.errors import ConfigError, InvalidInput
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.backends.operators.compose import pieces

Make = Callable[..., Backend]
batches: list[list[Any]] = []


class Records(Backend):
    """`result` is ten times `data`. "bad" raises InvalidInput, "broken" a RuntimeError."""

    def init(self, params: Any, context: Context) -> None: ...

    def forward(self, batch: list[Item]) -> None:
        batches.append([item["data"] for item in batch])
        for item in batch:
            if item["data"] == "bad":
                raise InvalidInput("bad")
            if item["data"] == "broken":
                raise RuntimeError("broken")
            item["result"] = item["data"] * 10
        batch.clear()


class Some(Records):
    min, max = 2, 4


class One(Records):
    max = 1


class Learns(Records):
    """Knows its range only after `init`."""

    def init(self, params: Any, context: Context) -> None:
        self.min, self.max = 3, 5


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    batches.clear()
    for backend in (Records, Some, One, Learns):
        register_backend(backend.__name__, backend)


def items_of(*data: Any) -> list[Item]:
    return [{"data": value} for value in data]


def sizes() -> list[int]:
    return [len(batch) for batch in batches]


@pytest.mark.parametrize(
    ("rows", "max_rows", "full", "even"),
    [
        ([1] * 10, 4, [4, 4, 2], [4, 3, 3]),
        ([1] * 8, 4, [4, 4], [4, 4]),
        ([1] * 3, 4, [3], [3]),
        ([1] * 3, 1, [1, 1, 1], [1, 1, 1]),
        ([1, 3, 2, 2, 1], 4, [2, 2, 1], [1, 1, 1, 2]),
        ([1, 9, 1], 4, [1, 1, 1], [1, 1, 1]),
        ([1] * 3, UNBOUNDED, [3], [3]),
        ([], 4, [], []),
    ],
)
def test_pieces(rows: list[int], max_rows: int, full: list[int], even: list[int]) -> None:
    batch = [
        {"data": number, "request_size": size} if size != 1 else {"data": number}
        for number, size in enumerate(rows)
    ]
    for evenly, expected in ((False, full), (True, even)):
        cut = list(pieces(batch, max_rows, evenly=evenly))
        assert [len(piece) for piece in cut] == expected
        assert [item for piece in cut for item in piece] == batch


def test_parallel_takes_any_number(make: Make) -> None:
    items = items_of(*range(10))
    make("Parallel[Some]").forward(items)
    assert sizes() == [4, 4, 2]
    assert [item["result"] for item in items] == [number * 10 for number in range(10)]


def test_max_runs_its_child_in_pieces(make: Make) -> None:
    items = items_of(*range(10))
    make("Max(max=3)[Some]").forward(items)
    make("Max(3)[S[Records,Identity]]").forward(items)
    assert sizes() == [3, 3, 3, 1] * 2
    assert [item["result"] for item in items] == [number * 10 for number in range(10)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Max[Some]", [4, 1]),
        ("Max(9)[Some]", [4, 1]),
        ("Max[Records]", [5]),
        ("Max(9)[One]", [1] * 5),
    ],
)
def test_max_gives_its_child_no_more_than_it_takes(
    make: Make, expression: str, expected: list[int]
) -> None:
    make(expression).forward(items_of(*range(5)))
    assert sizes() == expected


def test_max_can_be_a_key_of_the_node_as_for_an_engine(make: Make) -> None:
    make("Max[Records]", max="2x3x224x224").forward(items_of(*range(5)))
    assert sizes() == [2, 2, 1]


def test_pieces_too_small_for_the_child_are_an_error_at_load(
    bound: Callable[..., Any], make: Make
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"Max: pieces of at most 1 rows are smaller than the child takes: "
        r"its range is \[2, 4\]",
    ):
        _ = bound("Max(1)[Some]").declared_range
    with pytest.raises(ConfigError, match=r"smaller than the child takes: its range is \[3, 5\]"):
        make("Max(2)[Learns]")


@pytest.mark.parametrize(
    ("expression", "declared", "known"),
    [
        ("Parallel[Some]", (2, UNBOUNDED), (2, UNBOUNDED)),
        ("Max(3)[Some]", (2, UNBOUNDED), (2, UNBOUNDED)),
        ("Max[Learns]", (1, UNBOUNDED), (3, UNBOUNDED)),
        ("HasKey(k)[One]", (1, 1), (1, 1)),
        ("HasKey(k)[One,One]", (1, 1), (1, 1)),
        ("HasKey(k)[Some]", (2, 4), (2, 4)),
        ("NotHasKey(k)[One,Some]", (1, 4), (1, 4)),
        ("HasKey(k)[Some,Learns]", (1, 4), (2, 4)),
        ("HasKey(k)[Records,Learns]", (1, UNBOUNDED), (1, 5)),
        ("S[Max(3)[Some],Learns]", (2, UNBOUNDED), (3, 5)),
        ("Sleep", (1, 1), (1, 1)),
        ("Empty", (1, UNBOUNDED), (1, UNBOUNDED)),
    ],
)
def test_ranges(
    bound: Callable[..., Any], expression: str, declared: tuple[int, int], known: tuple[int, int]
) -> None:
    spec = bound(expression)
    backend = spec.create(Context())
    assert (spec.declared_range, (backend.min, backend.max)) == (declared, known)


def test_has_key_sends_each_item_to_its_branch(make: Make) -> None:
    items: list[Item] = [{"data": 1, "k": None}, {"data": 2}, {"data": 3, "k": 0}]
    make("HasKey(k)[Records,S[Records,Records]]").forward(items)
    assert batches == [[1, 3], [2], [20]]
    assert [item["result"] for item in items] == [10, 200, 30]


def test_not_has_key_swaps_the_branches(make: Make) -> None:
    items: list[Item] = [{"data": 1, "k": None}, {"data": 2}]
    make("NotHasKey(k)[Records,S[Records,Records]]").forward(items)
    assert [item["result"] for item in items] == [100, 20]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("HasKey(k)[Records]", [10, 2]), ("NotHasKey(key=k)[Records]", [1, 20])],
)
def test_with_one_branch_the_other_items_stay_unchanged(
    make: Make, expression: str, expected: list[int]
) -> None:
    items: list[Item] = [{"data": 1, "k": None}, {"data": 2}]
    make(expression).forward(items)
    assert [item["result"] for item in items] == expected


def test_the_default_key_is_key(make: Make) -> None:
    items: list[Item] = [{"data": 1, "key": None}, {"data": 2}]
    make("HasKey[Records]").forward(items)
    assert [item["result"] for item in items] == [10, 2]


def test_a_branch_gets_no_more_than_it_takes_and_never_an_empty_batch(make: Make) -> None:
    make("HasKey(data)[One,Records]").forward(items_of(1, 2, 3))
    assert batches == [[1], [2], [3]]


@pytest.mark.parametrize(
    "expression",
    [
        "HasKey(k)",
        "HasKey(k)[One,One,One]",
        "Max",
        "Parallel[One,One]",
        "HasKey('')[One]",
        "Sleep(-1)",
        "Max(0)[One]",
    ],
)
def test_invalid_arguments_are_an_error_at_load(make: Make, expression: str) -> None:
    with pytest.raises(ConfigError):
        make(expression)


@pytest.mark.parametrize(
    "expression", ["Max(2)[Records]", "Parallel[One]", "HasKey(data)[One]", "HasKey(k)[Empty,One]"]
)
def test_an_error_in_a_child_names_it(make: Make, expression: str) -> None:
    with pytest.raises(RuntimeError, match="broken") as caught:
        make(expression).forward(items_of(1, "broken"))
    assert caught.value.penstock_backend in ("Records", "One")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "expression", ["Max(1)[Records]", "Parallel[One]", "HasKey(data)[One]", "HasKey(k)[Empty,One]"]
)
def test_invalid_input_of_a_piece_of_one_is_that_items_soft_failure(
    make: Make, expression: str
) -> None:
    items = items_of(1, "bad", 2)
    make(expression).forward(items)
    assert [item.get("result") for item in items] == [10, None, 20]
    assert isinstance(items[1]["error"], InvalidInput)
    assert batches == [[1], ["bad"], [2]], "nothing runs twice"


def test_invalid_input_of_a_larger_piece_fails_the_batch(make: Make) -> None:
    with pytest.raises(InvalidInput, match="bad") as caught:
        make("Max(2)[Records]").forward(items_of(1, "bad", 2))
    assert caught.value.penstock_backend == "Records"  # type: ignore[attr-defined]


def test_empty_leaves_the_item_unchanged(make: Make) -> None:
    item: Item = {"data": 1, "k": 2}
    make("S[Empty,Records]").forward([item])
    assert (item, batches) == ({"data": 1, "k": 2}, [])


@pytest.mark.parametrize(
    ("keys", "seconds"), [({}, 0.01), ({"Sleep::time": 30}, 0.03), ({"time": "2.5"}, 0.0025)]
)
def test_sleep_sleeps_for_its_time(
    monkeypatch: pytest.MonkeyPatch, make: Make, keys: dict[str, Any], seconds: float
) -> None:
    slept: list[float] = []
    backend = make("Sleep", **keys)
    monkeypatch.setattr(time, "sleep", slept.append)
    items = items_of(1, 2)
    backend.forward(items)
    assert slept == pytest.approx([seconds, seconds])
    assert [item["result"] for item in items] == [1, 2]
