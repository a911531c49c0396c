from __future__ import annotations

from typing import Any

import pytest

from penstock.backends.base import UNBOUNDED, Backend, BatchRange, Context, Params
from penstock.backends.compose import Identity, Sequential, SyncTensor, Torch, chain_range
from penstock.backends.errors import ConfigError, InvalidInput
from penstock.backends.item import Item
from penstock.backends.spec import Spec


class Double(Backend):
    batches: list[int]

    def init(self, params: Any, context: Context) -> None:
        self.batches = []

    def forward(self, batch: list[Item]) -> None:
        self.batches.append(len(batch))
        for item in batch:
            item["result"] = item["data"] * 2


class One(Double):
    max = 1


class Learns(Double):
    """Knows its range only after `init`."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.min, self.max = 2, 4


class Silent(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if item["data"] != "silent":
                item["result"] = item["data"]


class Soft(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = item["data"]
            if item["data"] == "bad":
                item["error"] = InvalidInput("bad")


class Raises(Backend):
    max = 1

    def forward(self, batch: list[Item]) -> None:
        (item,) = batch
        if item["data"] == "bad":
            raise InvalidInput("bad")
        if item["data"] == "broken":
            raise RuntimeError("broken")
        item["result"] = item["data"]


def spec(cls: type[Backend], *children: Spec) -> Spec:
    return Spec(cls.__name__, cls, Params(), children)


def chain(*members: type[Backend]) -> Sequential:
    found = spec(Sequential, *map(spec, members)).create(Context())
    assert isinstance(found, Sequential)
    return found


def test_identity() -> None:
    items: list[Item] = [{"data": 1}, {"data": None}]
    Identity().forward(items)
    assert [item["result"] for item in items] == [1, None]


def test_result_moves_to_data_between_members() -> None:
    item: Item = {"data": 3, "kept": True}
    chain(Double, Double, Double).forward([item])
    assert item == {"data": 12, "result": 24, "kept": True}


def test_an_item_without_result_leaves_the_chain_and_the_others_go_on() -> None:
    items: list[Item] = [{"data": "a"}, {"data": "silent"}, {"data": "b"}]
    sequence = chain(Silent, Double)
    sequence.forward(items)
    assert [item.get("result") for item in items] == ["aa", None, "bb"]
    assert items[1] == {"data": "silent"}
    assert sequence.children[1].batches == [2]  # type: ignore[attr-defined]


def test_an_item_with_error_leaves_the_chain() -> None:
    items: list[Item] = [{"data": "bad"}, {"data": "a"}]
    sequence = chain(Soft, Double)
    sequence.forward(items)
    assert sequence.children[1].batches == [1]  # type: ignore[attr-defined]
    assert isinstance(items[0]["error"], InvalidInput)
    assert items[1]["result"] == "aa"


def test_the_result_of_an_earlier_member_is_no_answer() -> None:
    item: Item = {"data": "silent"}
    chain(Identity, Silent).forward([item])
    assert item == {"data": "silent"}


def test_later_members_do_not_run_when_nobody_is_left() -> None:
    sequence = chain(Silent, Double)
    sequence.forward([{"data": "silent"}])
    assert sequence.children[1].batches == []  # type: ignore[attr-defined]


def test_a_member_with_max_1_is_looped_and_the_others_get_the_batch() -> None:
    sequence = chain(One, Double)
    items: list[Item] = [{"data": n} for n in range(3)]
    sequence.forward(items)
    assert [item["result"] for item in items] == [0, 4, 8]
    assert [child.batches for child in sequence.children] == [[1, 1, 1], [3]]  # type: ignore[attr-defined]


def test_invalid_input_in_a_looped_member_is_that_items_soft_failure() -> None:
    items: list[Item] = [{"data": "a"}, {"data": "bad"}, {"data": "b"}]
    chain(Raises, Double).forward(items)
    assert [item.get("result") for item in items] == ["aa", None, "bb"]
    assert isinstance(items[1]["error"], InvalidInput)


def test_another_exception_fails_the_batch() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        chain(Raises, Double).forward([{"data": "a"}, {"data": "broken"}])


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(1, 1), (1, 1)], (1, 1)),
        ([(1, 1), (2, 8)], (2, 8)),
        ([(1, 8), (2, 16), (1, 1)], (2, 8)),
        ([(1, UNBOUNDED), (1, 4)], (1, 4)),
        ([(1, UNBOUNDED)], (1, UNBOUNDED)),
    ],
)
def test_range_rule(members: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert chain_range(BatchRange(*member) for member in members) == expected


def test_an_empty_intersection_is_a_load_error() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 8\], \[1, 2\]"):
        chain_range([BatchRange(4, 8), BatchRange(1, 2)])


def test_range_is_declared_before_init_and_known_after() -> None:
    declared = spec(Torch, spec(Sequential, spec(One), spec(Learns)))
    assert declared.declared_range == (1, UNBOUNDED)
    backend = declared.create(Context())
    assert (backend.min, backend.max) == (2, 4)


@pytest.mark.parametrize("wrapper", [SyncTensor, Torch])
def test_wrappers_run_their_child(wrapper: type[Backend]) -> None:
    backend = spec(wrapper, spec(One)).create(Context())
    item: Item = {"data": 2}
    backend.forward([item])
    assert item["result"] == 4
    assert backend.max == 1


def test_sync_tensor_alone_passes_on() -> None:
    assert spec(SyncTensor).declared_range == (1, UNBOUNDED)
    assert spec(SyncTensor).shape_key is None
    backend = spec(Sequential, spec(Double), spec(SyncTensor)).create(Context())
    item: Item = {"data": 2}
    backend.forward([item])
    assert item["result"] == 4
    assert backend.max == spec(Sequential, spec(Double)).create(Context()).max


def test_shape_key_is_the_first_members() -> None:
    class Shaped(Backend):
        @staticmethod
        def shape_key(item: Item) -> int:  # type: ignore[override]
            return len(item["data"])

    assert spec(Shaped).shape_key is Shaped.shape_key
    key = spec(Torch, spec(Sequential, spec(Shaped), spec(Double))).shape_key
    assert key is not None
    assert key({"data": "abc"}) == 3
    assert spec(Sequential, spec(Double), spec(Shaped)).shape_key is None


def test_a_member_that_empties_its_list_ends_no_chain() -> None:
    class Consumer(Backend):
        def forward(self, batch: list[Item]) -> None:
            while batch:
                item = batch.pop()
                item["result"] = item["data"] + 1

    chain = Spec("Sequential", Sequential, Sequential.parameters, tuple(Spec("Consumer", Consumer, None) for _ in range(2))).create(
        Context()
    )
    items = [{"data": 1}, {"data": 5}]
    chain.forward(items)
    assert [item["result"] for item in items] == [3, 7]
