"""Shapes and orders, as files write them and as messages show them."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.backends.base import Context
from penstock.backends.engines.shapes import (
    parse_order,
    reorder,
    shape_key,
    shape_text,
    shapes_of_last_profile,
)
from penstock.backends.errors import ConfigError


class Array:
    shape, dtype = (2, 3, 4), "uint8"


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (Array(), ((3, 4), "uint8")),
        ([Array(), "text"], (((3, 4), "uint8"), None)),
        ([Array(), None], (((3, 4), "uint8"), None)),
        ({"image": Array(), "b": None}, (("image", ((3, 4), "uint8")), ("b", None))),
        ("text", None),
    ],
    ids=["array", "list", "left_out", "dict", "text"],
)
def test_a_shape_key_has_shapes_after_the_batch_dimension_and_dtypes(data: Any, key: Any) -> None:
    assert shape_key({"data": data}) == key


def test_an_item_without_data_has_no_shape_key() -> None:
    assert shape_key({}) is None


@pytest.mark.parametrize(
    ("text", "order"),
    [("1,0", [1, 0]), ("0, 1", [0, 1]), (None, None), ("1,2", None), ("0,0", None), ("a", None)],
)
def test_an_order_holds_each_index_once(text: str | None, order: list[int] | None) -> None:
    assert parse_order(text) == order


def test_reordering_needs_an_index_for_each_port() -> None:
    context = Context(node="node")
    assert reorder(["a", "b"], "1,0", "input_reorder", context) == ("b", "a")
    assert reorder(["a", "b"], None, "input_reorder", context) == ("a", "b")
    with pytest.raises(ConfigError, match="input_reorder: '0' must hold each of 0 to 1 once"):
        reorder(["a", "b"], "0", "input_reorder", context)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [("1x3,1x10;4x3,4x10", [(4, 3), (4, 10)]), ("8", [(8,)]), (None, [])],
)
def test_the_last_profile_gives_the_shapes(text: str | None, shapes: list[tuple[int, ...]]) -> None:
    assert shapes_of_last_profile(text) == shapes


def test_shapes_in_messages() -> None:
    assert shape_text((None, 3, 224)) == "Nx3x224" and shape_text(()) == "()"
