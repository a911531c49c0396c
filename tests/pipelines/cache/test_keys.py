"""The digest of an item, and its sketch."""

from __future__ import annotations

import copy
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel

from penstock.pipelines.cache.keys import (
    LargeItemError,
    UnhashableItemError,
    digest_of,
    sketch_of,
)


class Point(BaseModel):
    x: float
    y: float = 0.0


class Other(BaseModel):
    x: float
    y: float = 0.0


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),  # surrogates too
    st.binary(max_size=40),
)
ARRAYS = arrays.arrays(
    st.sampled_from(["?", "i1", "u1", "i4", "f4", "f8", "c8", "S3", "U2", "M8[s]", "M8[ms]"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(SCALARS.filter(lambda key: key == key), inner, max_size=3)
    ),
    max_leaves=12,
)
ITEMS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


def spelled(value: Any) -> Any:
    """Return what says all of a value: two values are the same if this is equal for both."""
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()
    if kind in (list, tuple):
        return kind, [spelled(member) for member in value]
    if kind is dict:
        return kind, [(spelled(key), spelled(member)) for key, member in value.items()]
    if kind is float:
        return kind, np.float64(value).tobytes()
    if kind is complex:
        return kind, np.complex128(value).tobytes()
    return kind, value


@settings(max_examples=40)
@given(ITEMS, ITEMS)
def test_two_items_have_one_digest_if_and_only_if_they_are_the_same(
    first: Any, second: Any
) -> None:
    same = sorted((key, spelled(value)) for key, value in first.items()) == sorted(
        (key, spelled(value)) for key, value in second.items()
    )
    assert (digest_of(first, b"") == digest_of(second, b"")) is same
    if same:
        assert sketch_of(first) == sketch_of(second)


@settings(max_examples=30)
@given(ITEMS)
def test_a_copy_has_the_same_digest_in_whatever_order_its_keys_come(item: Any) -> None:
    twin = dict(reversed(copy.deepcopy(item).items()))
    assert digest_of(twin, b"s") == digest_of(item, b"s") != digest_of(item, b"t")
    assert sketch_of(twin) == sketch_of(item)
    assert len(digest_of(item, b"")) == 32


DIFFERENT = [
    [1, True, 1.0, "1", b"1", bytearray(b"1"), np.int64(1), np.float64(1), np.array(1), 1 + 0j],
    [np.zeros(4, "f4"), np.zeros(4, "i4"), np.zeros((2, 2), "f4"), np.zeros(2, "f8"), bytes(16)],
    [np.zeros(2, "f2"), np.zeros(2, ml_dtypes.bfloat16), torch.zeros(2, dtype=torch.float16)],
    [[1, 2], (1, 2), [1, 2.0], [[1], 2], [1, [2]], [12], {1: 2}, {2: 1}, [], (), {}, None],
    ["ab", ["ab"], ["a", "b"], "a", "b", [b"ab"], "AB"],
    [0.0, -0.0, math.nan, math.inf, 5e-324],
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}, {"a": 1}],
    [Point(x=1), Other(x=1), Point(x=2), {"x": 1.0, "y": 0.0}],
    [np.array(["a", "b"], object), np.array(["ab", ""], object), np.array([["a", "b"]], object)],
]


@pytest.mark.parametrize("values", DIFFERENT)
def test_values_that_differ_in_type_dtype_shape_or_place_differ(values: list[Any]) -> None:
    digests = {digest_of({"data": value}, b"") for value in values}
    assert len(digests) == len(values)


def test_what_is_under_which_key_counts() -> None:
    items: list[Any] = [
        {"data": 1, "x": 2},
        {"data": 2, "x": 1},
        {"data": 1, "y": 2},
        {"data": 1},
        {"data": 1, "x": 2, "node_name": "b"},
        {"data": 1, "x": 2, "request_size": 2},
    ]
    assert len({digest_of(item, b"") for item in items}) == len(items)


def test_the_layout_in_memory_does_not_count() -> None:
    plain = np.arange(6.0).reshape(2, 3)
    for same in (np.asfortranarray(plain), np.repeat(plain, 2, axis=1)[:, ::2]):
        assert digest_of({"data": same}, b"") == digest_of({"data": plain}, b"")
    assert digest_of({"data": math.nan}, b"") == digest_of({"data": float("nan")}, b"")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        np.ma.masked_array([1.0]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        [[object()]],
        {"a": {"b": iter([])}},
        torch.zeros(1, device="meta"),
    ],
)
def test_a_value_that_may_hold_anything_can_not_be_hashed(value: Any) -> None:
    with pytest.raises(UnhashableItemError, match="'data'"):
        digest_of({"data": value}, b"")
    with pytest.raises(UnhashableItemError):
        sketch_of({"data": value})


def test_nesting_without_end_can_not_be_hashed() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnhashableItemError, match="too deep"):
        digest_of({"data": value}, b"")
    with pytest.raises(UnhashableItemError):
        digest_of({1: 2, "a": 3}, b"")  # type: ignore[dict-item]  # a caller without types


@pytest.mark.parametrize(
    "value", [bytes(1001), "x" * 1001, np.zeros(1001, "u1"), list(range(1001)), [[b"x" * 501] * 2]]
)
def test_a_large_item_is_refused_before_it_is_read(value: Any) -> None:
    with pytest.raises(LargeItemError):
        digest_of({"data": value}, b"", 1000)
    assert digest_of({"data": value}, b"", 100_000) == digest_of({"data": value}, b"")


def test_a_sketch_samples_large_values() -> None:
    large = bytes(100_000)
    assert sketch_of({"data": large}) == sketch_of({"data": bytes(100_000)})
    assert sketch_of({"data": large}) != sketch_of({"data": bytes(100_001)})
    assert sketch_of({"data": large}) != sketch_of({"data": large[:-1] + b"x"})
    array = np.zeros((100, 1000), "f4")
    assert sketch_of({"data": array}) != sketch_of({"data": array.reshape(1000, 100)})
    assert sketch_of({"data": list(range(10_000))}) is None
