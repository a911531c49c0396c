"""Backends that change the keys of an item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import UNBOUNDED, Backend
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item

Make = Callable[..., Backend]


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def run(backend: Backend, **item: Any) -> Item:
    backend.forward([item])
    return item


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        ("Copy[a:b]", {"data": 1, "a": 2}, {"data": 1, "a": 2, "b": 2, "result": 1}),
        ("Copy(a:b)", {"data": 1, "a": 2}, {"data": 1, "a": 2, "b": 2, "result": 1}),
        ("cp[a:b, b:c]", {"data": 1, "a": 2}, {"data": 1, "a": 2, "b": 2, "c": 2, "result": 1}),
        ("Copy[a:result]", {"data": 1, "a": 2}, {"data": 1, "a": 2, "result": 2}),
        ("Copy[a:data]", {"data": 1, "a": 2}, {"data": 2, "a": 2, "result": 2}),
        ("Copy[data:a]", {"data": 1, "a": 2}, {"data": 1, "a": 1, "result": 1}),
        ("Move[a:b]", {"data": 1, "a": 2}, {"data": 1, "b": 2, "result": 1}),
        ("mv[a:b,c:a]", {"data": 1, "a": 2, "c": 3}, {"data": 1, "a": 3, "b": 2, "result": 1}),
        ("Move[a:result]", {"data": 1, "a": 2}, {"data": 1, "result": 2}),
        ("Move[a:data]", {"data": 1, "a": 2}, {"data": 2, "result": 2}),
        ("Move[data:a]", {"data": 1}, {"a": 1, "result": 1}),
        ("Move[data:result]", {"data": 1}, {"result": 1}),
        ("Add(a:x)", {"data": 1}, {"data": 1, "a": "x", "result": 1}),
        ("Add['a:x, y','b: z']", {"data": 1}, {"data": 1, "a": "x, y", "b": " z", "result": 1}),
        ("Add[a:http://x,b:]", {"data": 1}, {"data": 1, "a": "http://x", "b": "", "result": 1}),
        ("Add[data:x]", {"data": 1}, {"data": "x", "result": "x"}),
        ("Add[result:x]", {"data": 1}, {"data": 1, "result": "x"}),
        ("AddInt[a:1,b:-2]", {"data": 1}, {"data": 1, "a": 1, "b": -2, "result": 1}),
        ("AddInt[request_size:4]", {"data": 1}, {"data": 1, "request_size": 4, "result": 1}),
        ("Remove[a,b]", {"data": 1, "a": 2, "c": 3}, {"data": 1, "c": 3, "result": 1}),
        ("del(a)", {"data": 1, "a": 2}, {"data": 1, "result": 1}),
        ("Remove[data]", {"data": 1}, {"result": 1}),
        ("Remove[result]", {"data": 1, "result": 2}, {"data": 1}),
        ("Keep[a,b]", {"data": 1, "a": 2, "c": 3, "_box": 4}, {"data": 1, "a": 2, "result": 1}),
        ("Keep[_box]", {"data": 1, "_box": 4, "result": 2}, {"data": 1, "_box": 4, "result": 1}),
    ],
)  # fmt: skip
def test_the_item_after_one_backend(make: Make, expression: str, before: Item, after: Item) -> None:
    assert run(make(expression), **before) == after


def test_keep_keeps_the_keys_that_steer_penstock(make: Make) -> None:
    steering = {
        "filter": "skip",
        "node_name": "n",
        "restart": "n",
        "request_size": 2,
        "event": object(),
        "context": {},
    }
    assert run(make("Keep[a]"), data=1, other=2, **steering) == {"data": 1, "result": 1, **steering}


@pytest.mark.parametrize(
    ("expression", "keys", "after"),
    [
        ("Copy", {"copy": "a : b, data: c"}, {"data": 1, "a": 2, "b": 2, "c": 1, "result": 1}),
        ("Move", {"Move::move": ["a:b"]}, {"data": 1, "b": 2, "result": 1}),
        ("Add", {"add": "x:y, z:w"}, {"data": 1, "a": 2, "x": "y", "z": "w", "result": 1}),
        ("AddInt", {"add_int": "x:3"}, {"data": 1, "a": 2, "x": 3, "result": 1}),
        ("Remove", {"remove": "a, b"}, {"data": 1, "result": 1}),
        ("Keep", {"keep": "b"}, {"data": 1, "result": 1}),
    ],
)
def test_the_keys_can_be_given_as_a_key_of_the_node(
    make: Make, expression: str, keys: dict[str, Any], after: Item
) -> None:
    assert run(make(expression, **keys), data=1, a=2) == after


@pytest.mark.parametrize("name", ["Copy", "Move"])
def test_a_missing_source_is_named(make: Make, name: str) -> None:
    with pytest.raises(
        BackendError,
        match=f"{name} needs the key 'a', but the item only has data, x",
    ):
        run(make(f"{name}[a:b]"), data=1, x=2)


@pytest.mark.parametrize(
    "expression",
    [
        "Copy[a:b]",
        "Move[a:b]",
        "Add[a:b]",
        "AddInt[a:1]",
        "Remove[a]",
        "Keep[a]",
        "Result2Key[Identity]",
    ],
)
def test_missing_data_is_named(make: Make, expression: str) -> None:
    with pytest.raises(BackendError, match="needs the key 'data', but the item only has a"):
        run(make(expression), a=2)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Copy[a]", r"expected a key, a colon and its value, as in a:b, found 'a'"),
        ("Copy[a:]", r"expected two keys with a colon between them, as in a:b, found 'a:'"),
        ("Move[:b]", r"expected a key, a colon and its value, as in a:b, found ':b'"),
        ("Copy[a:a]", r"'a' is routed to itself"),
        ("Copy[a:b,c:b]", r"'b' is set twice"),
        ("Add[a:b,a:c]", r"'a' is set twice"),
        ("AddInt[a:x]", r"invalid literal for int.*'x'"),
        ("Copy", r"Copy needs copy"),
        ("Keep", r"Keep needs keep"),
        ("Result2Key(result)", r"'result' holds the value that the item goes on with"),
        ("Result2Key(data)", r"'data' holds the value that the item goes on with"),
    ],
)
def test_invalid_arguments_are_an_error_at_load(make: Make, expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(expression)


def test_a_value_is_passed_on_and_not_copied(make: Make) -> None:
    image = np.zeros((2, 2))
    item = run(make("S[Copy[data:a],Move[a:b]]"), data=image)
    assert item["b"] is item["data"] is item["result"] is image


def test_every_item_of_a_batch_is_changed(make: Make) -> None:
    items: list[Item] = [{"data": 1, "a": 2}, {"data": 3, "a": 4}]
    make("Copy[a:b]").forward(items)
    assert [(item["b"], item["result"]) for item in items] == [(2, 1), (4, 3)]


def test_result2key_keeps_the_result_apart(make: Make) -> None:
    register_backend("double", lambda data: data * 2)
    assert run(make("Result2Key(twice)[double]"), data=3) == {"data": 3, "twice": 6, "result": 3}
    assert run(make("Result2Key[S[double,double]]"), data=3) == {"data": 3, "key": 12, "result": 3}
    assert run(make("Result2Key(key=same)"), data=3) == {"data": 3, "same": 3, "result": 3}


def test_result2key_leaves_soft_failures_alone(make: Make) -> None:
    @register_backend("picky")
    def picky(data: int) -> int:
        if data < 0:
            raise InvalidInput("negative")
        return data

    class Both(Backend):
        def forward(self, batch: list[Item]) -> None:
            batch[0].update(result=1, error=InvalidInput("negative"))

    items: list[Item] = [{"data": -1}, {"data": 1}]
    make("Result2Key(k)[picky]").forward(items)
    assert isinstance(items[0].pop("error"), InvalidInput)
    assert items == [{"data": -1}, {"data": 1, "k": 1, "result": 1}]
    assert run(make("Result2Key(k)[Empty]"), data=1) == {"data": 1}
    register_backend("Both", Both)
    assert "k" not in run(make("Result2Key(k)[Both]"), data=1)


def test_result2key_has_its_childs_range(make: Make, bound: Callable[..., Any]) -> None:
    class Some(Backend):
        min, max = 2, 4

        def forward(self, batch: list[Item]) -> None: ...

    class Learns(Some):
        def init(self, params: Any, context: Any) -> None:
            self.max = 3

    register_backend("Some", Some)
    register_backend("Learns", Learns)
    assert (
        bound("Result2Key[Some]").declared_range
        == bound("S[Result2Key[Some],Identity]").declared_range
        == (2, 4)
    )
    assert bound("Result2Key").declared_range == (1, UNBOUNDED)
    backend = make("Result2Key[Learns]")
    assert (backend.min, backend.max) == (2, 3)


def test_an_error_in_the_child_names_it(make: Make) -> None:
    class Broken(Backend):
        def forward(self, batch: list[Item]) -> None:
            raise RuntimeError("broken")

    register_backend("Broken", Broken)
    with pytest.raises(RuntimeError, match="broken") as caught:
        run(make("Result2Key[Broken]"), data=1)
    assert caught.value.penstock_backend == "Broken"  # type: ignore[attr-defined]
