"""Copies of answers, and their form as bytes."""

from __future__ import annotations

import datetime
import math
import pickle
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel

from penstock.pipelines.cache.answer import Answer, UnkeptAnswerError
from penstock.pipelines.cache.wire import (
    MAGIC,
    MalformedAnswerError,
    UnencodableAnswerError,
    decode,
    encode,
)

from .test_keys import SCALARS, VALUES, spelled

Box = namedtuple("Box", "x tags")


class Model(BaseModel):
    tags: list[str]


def parts_of(value: Any) -> list[Any]:
    """Return all that can be changed in a value, itself included."""
    if isinstance(value, dict):
        return [value, *(part for member in value.values() for part in parts_of(member))]
    if isinstance(value, list | tuple):
        inner = [part for member in value for part in parts_of(member)]
        return [value, *inner] if isinstance(value, list) else inner
    if isinstance(value, BaseModel):
        return [value, *parts_of(vars(value))]
    return [value] if isinstance(value, np.ndarray | bytearray | torch.Tensor) else []


@given(VALUES, st.booleans())
def test_a_copy_is_the_same_and_shares_nothing_that_can_be_changed(value: Any, reads: bool) -> None:
    asked = {"data": 1}
    answer = Answer({"data": 1, "result": value}, asked)
    copies = [answer.item(asked, reads_only=reads)["result"] for _ in range(2)]
    seen: set[int] = set()
    for each in (value, *copies):
        assert spelled(each) == spelled(value)
        parts = {id(part) for part in parts_of(each)}
        assert not parts & seen
        seen |= parts
        arrays = [part for part in parts_of(each) if isinstance(part, np.ndarray)]
        assert all(part.flags.writeable for part in arrays) or (reads and each is not value)
    assert answer.size > 0


@pytest.mark.parametrize(
    "value",
    [
        Box([1], ["a"]),
        Box(1, "a"),
        Model(tags=["a"]),
        {"x": bytearray(b"a")},
        [{"y": ([np.zeros(2)], Model(tags=[]))}],
        datetime.datetime(2026, 1, 1),
        np.array([b"a", "b", None], object),
        np.asfortranarray(np.zeros((2, 3))),
        {1: 2, None: [4]},
        np.float32(2),
    ],
)
def test_values_of_other_types_are_copied_too(value: Any) -> None:
    answer = Answer({"data": 1, "result": value}, {"data": 1})
    one, other = (answer.item({"data": 1}, reads_only=False)["result"] for _ in range(2))
    assert type(one) is type(value)
    assert str(one) == str(value)
    assert not {id(part) for part in parts_of(one)} & {id(part) for part in parts_of(other)}


def test_a_tensor_of_torch_is_copied() -> None:
    tensor = torch.zeros(2)
    answer = Answer({"data": 1, "result": tensor}, {"data": 1})
    tensor += 1
    for reads in (True, False):
        copy = answer.item({"data": 1}, reads_only=reads)["result"]
        assert copy.tolist() == [0, 0]
        copy += 1


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        [lambda: 1],
        np.array([[1], {}], object),
        {(): 1},
        torch.zeros(1, device="meta"),
        ValueError(),
    ],
)
def test_what_may_hold_anything_is_not_kept(value: Any) -> None:
    with pytest.raises(UnkeptAnswerError, match="'result'"):
        Answer({"data": 1, "result": value}, {"data": 1})


def test_an_answer_that_is_too_large_is_not_copied_to_its_end() -> None:
    for value in (bytes(2000), [1] * 2000, np.zeros(2000), ["x" * 100] * 20, {"a": "x" * 2000}):
        with pytest.raises(UnkeptAnswerError, match="larger"):
            Answer({"data": 1, "result": value}, {"data": 1}, 1500)
    assert 20_000 < Answer({"data": 1, "result": [1.0] * 1000}, {"data": 1}).size < 100_000


# as bytes


def encodable() -> st.SearchStrategy[Any]:
    numbers = arrays.arrays(st.sampled_from(["?", "i1", "u8", "f2", "f4", "f8", "c16"]), (2, 3))
    return st.recursive(
        SCALARS.filter(lambda value: type(value) is not int or value.bit_length() < 10_000)
        | numbers
        | numbers.map(lambda array: array[0, 0]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text() | st.integers() | st.none(), inner, max_size=3)
        ),
        max_leaves=12,
    )


@given(encodable())
def test_what_was_written_is_read(value: Any) -> None:
    item = {"data": 1, "text": "t", "result": value}
    content = encode(item, ("data", "text"))
    values, own = decode(content)
    assert own == ["data", "text"]
    assert list(values) == ["result"]
    assert spelled(values["result"]) == spelled(value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63),
        2**63 - 1,
        10**2000,
        math.nan,
        [1, 2**63],
        [True, 1],
        [1.5, 2],
        [],
        (),
        np.zeros((0, 3), "f2"),
        np.array(["a", b"b", None, 1.5], object).reshape(2, 2),
        np.array(5, "u8"),
        {"nested": {"deep": [(1,), {}]}},
        "\ud800",
    ],
)
def test_edges_are_read_as_they_were_written(value: Any) -> None:
    values, _ = decode(encode({"data": 1, "result": value}, ("data",)))
    assert spelled(values["result"]) == spelled(value) or repr(values["result"]) == repr(value)


@pytest.mark.parametrize(
    "value",
    [object(), {1}, np.zeros(1, ">f4"), np.zeros(1, "U3"), 1 << 20_000, Model(tags=[])],
    ids=range(6),
)
def test_other_values_have_no_form(value: Any) -> None:
    with pytest.raises(UnencodableAnswerError):
        encode({"data": 1, "result": value}, ("data",))
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(UnencodableAnswerError):
        encode({"data": 1, "result": nested}, ("data",))


GOOD = encode(
    {
        "data": 1,
        "result": {"a": [1, 2.5, "x", None, True], "b": np.arange(6.0).reshape(2, 3)},
        "more": [1.0] * 5,
        "objects": np.array(["a", "b"], object),
        "one": np.float32(1),
        "big": 2**80,
    },
    ("data",),
)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.sampled_from(["set", "cut", "add"]))
def test_bytes_from_elsewhere_are_read_or_refused(at: int, byte: int, how: str) -> None:
    changed = {
        "set": GOOD[:at] + bytes([byte]) + GOOD[at + 1 :],
        "cut": GOOD[:at],
        "add": GOOD[:at] + bytes([byte]) * 9 + GOOD[at:],
    }[how]
    try:
        values, own = decode(changed)
    except MalformedAnswerError:
        return
    assert "data" in own and all(type(key) is str for key in values)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for start in (b"", MAGIC, MAGIC + b"M" + bytes([1]) + bytes(7) + b"S"):
        try:
            decode(start + content)
        except MalformedAnswerError:
            continue


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({"data": 1}),
        MAGIC,
        GOOD + b"N",
        MAGIC + b"L*" + (1 << 62).to_bytes(8, "little"),
        MAGIC + b"S" + (1 << 62).to_bytes(8, "little"),
        MAGIC + b"L*\1\0\0\0\0\0\0\0" * 1000,
        GOOD.replace(b"\x03<f8\x02", b"\x03|O8\x02"),
        encode({"result": 1}, ()),
        encode({"error": 1, "data": 1}, ("data",)),
    ],
)
def test_what_is_no_answer_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedAnswerError):
        decode(content)
