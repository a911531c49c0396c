"""Answers as JSON, with every kind of value that backends give."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from penstock.app.http import render
from penstock.app.http.render import fields_of, to_json
from penstock.backends.errors import BackendError


def rendered(value: Any) -> Any:
    text = to_json({"result": value})
    return json.loads(text, parse_constant=pytest.fail)["result"]  # NaN and Infinity are not JSON


@pytest.mark.parametrize(
    "kind",
    [
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
    ],
)
def test_numpy_of_every_kind(kind: Any) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(kind)
    wanted = array.tolist()
    assert rendered(array) == wanted
    assert rendered(array.T) == array.T.tolist()
    assert rendered(array[:, ::-2]) == array[:, ::-2].tolist()
    assert rendered(array[1, 2]) == wanted[1][2]
    assert rendered(np.asfortranarray(array)) == wanted
    assert rendered(np.array(array[1, 2])) == wanted[1][2]  # no dimension
    assert rendered(array[:0]) == []
    assert rendered([{"a": array}, (array[0],)]) == [{"a": wanted}, [wanted[0]]]


def test_arrays_of_text_and_objects() -> None:
    assert rendered(np.array(["one", "zwölf"])) == ["one", "zwölf"]
    assert rendered(np.array([b"ab"])) == ["YWI="]
    assert rendered(np.array([1, "a", None, [2]], dtype=object)) == [1, "a", None, [2]]
    assert rendered(np.str_("a")) == "a"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_a_json_form_are_null(value: Any) -> None:
    assert rendered(value) is None
    assert rendered(np.float32(value)) is None
    for kind in ("float16", "float32", "float64"):
        array = np.array([[1, value], [value, 2]], dtype=kind)
        assert rendered(array) == rendered(array.T) == [[1, None], [None, 2]]


def test_bytes_are_base64() -> None:
    assert (
        rendered(b"\x00\xff")
        == rendered(bytearray(b"\x00\xff"))
        == rendered(memoryview(b"\x00\xff"))
        == "AP8="
    )
    assert rendered({"mask": [b""]}) == {"mask": [""]}
    assert rendered(memoryview(b"0a0b0c")[::2]) == "MDAw"  # of other strides


def test_keys_that_are_not_text() -> None:
    assert rendered({7: "a", 2.5: "b", None: "c", True: "d"}) == {
        "7": "a",
        "2.5": "b",
        "null": "c",
        "true": "d",
    }


def test_nested() -> None:
    value = {"boxes": [{"box": (1, 2.5), "label": "cat", "mask": None}], "ok": True}
    assert rendered(value) == {
        "boxes": [{"box": [1, 2.5], "label": "cat", "mask": None}],
        "ok": True,
    }


def test_floats_are_not_rounded() -> None:
    assert rendered(0.1 + 0.2) == 0.1 + 0.2
    assert np.float32(rendered(np.float32(0.1))) == np.float32(0.1)
    values = np.random.default_rng(0).random(100)
    assert rendered(values) == values.tolist()


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for tensor in (
        tensor,
        tensor.T,
        tensor.half(),
        tensor.bfloat16(),
        tensor.long(),
        tensor.bool(),
        tensor[1, 2],
        tensor[:, ::2],
    ):
        assert rendered(tensor) == tensor.tolist()
    assert rendered(tensor.requires_grad_()) == tensor.tolist()
    assert rendered({"a": [torch.tensor([1.0, math.nan])]}) == {"a": [[1.0, None]]}
    with pytest.raises(BackendError):
        to_json({"result": torch.empty(2, device="meta")})


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        2**70,
        "\ud800",
        endless(),
        np.array([1j]),
        np.array([1], dtype=">i4"),
        {(1, 2): 3},
        np.longdouble(1),
        lambda: 0,
        Exception("x"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_a_value_without_a_json_form_is_the_backends_error(value: Any) -> None:
    with pytest.raises(BackendError, match="can't be written as JSON") as caught:
        to_json({"result": value})
    assert caught.value.__cause__ is None


def test_fields_of_an_item() -> None:
    item = {"data": b"image", "result": 3, "label": "three", "hidden": 1}
    assert fields_of(item, ("result", "label", "absent")) == {"result": 3, "label": "three"}
    assert list(fields_of({"data": b"", "label": "a"}, ("result", "label"))) == ["result", "label"]
    assert fields_of({"data": b"", "label": "a"}, ("result", "label"))["result"] is None
    assert fields_of({"data": b"", "result": None}, ("result",)) == {"result": None}


LARGE = [
    {
        "text": "x\n\x01\u00e9\U0001f600" * 100,
        "numbers": [1, 2.5, None, True] * 300,
        3: b"ab" * 999,
    },
    ["a" * 3000, 1],
    [1, "b" * 9000],
    (1,) * 5000,
    [["n"]] * 5000,
    [{"box": (1, 2.5), "label": "cat"}] * 1000,
    np.random.default_rng(0).random((7, 3, 50)),
    np.random.default_rng(0).random((40, 100)).T,
    [np.arange(5000), np.zeros((2, 2))],
    memoryview(b"0a0b0c" * 2000)[::2],
    bytearray(b"q" * 5000),
]


@pytest.mark.parametrize("piece", [30, 1000])
@pytest.mark.parametrize("value", LARGE, ids=range(len(LARGE)))
def test_large_answers_are_written_in_pieces(
    value: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = to_json(value)
    monkeypatch.setattr(render, "PIECE_BYTES", piece)
    pieces = list(render.json_pieces(value))
    assert len(pieces) > 1 and b"".join(pieces) == whole


def test_arrays_without_elements() -> None:
    for shape in ((3, 0, 100_000), (0, 4), (4, 0)):
        array = np.zeros(shape)
        assert rendered(array) == array.tolist()


def test_large_answers_without_a_json_form() -> None:
    nested: Any = ["x" * (1 << 19)]
    for _ in range(300):
        nested = [nested, "x" * (1 << 19)]
    for value in (["x" * (1 << 19), object()], nested, ["x" * (1 << 19) + "\ud800"]):
        with pytest.raises(BackendError, match="can't be written as JSON"):
            to_json(value)
