"""Tensors in the protocol's encodings, for what a server's answers would not show."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.app.http.inputs.datatypes import DATATYPES
from penstock.app.v2.encoding import as_tensor, to_bytes, to_flat_json, written_bytes
from penstock.app.v2.tensors import from_bytes, from_json
from penstock.backends.errors import BackendError, InvalidRequest
from penstock.backends.memory import MemoryBudget, Reservation, budget

PLAIN = [name for name in DATATYPES if name not in {"BF16", "BYTES"}]


def text_of(datatype: Any, array: Any) -> Any:
    return json.loads(to_flat_json(DATATYPES[datatype], array, "x", Reservation(budget)))


@pytest.mark.parametrize("name", PLAIN)
def test_arrays_are_written_from_their_own_memory(name: str) -> None:
    array = np.ones((2, 3), DATATYPES[name].dtype)
    assert np.shares_memory(to_bytes(DATATYPES[name], array), array)
    assert bytes(to_bytes(DATATYPES[name], array.T)) == array.T.tobytes()
    assert (
        bytes(to_bytes(DATATYPES[name], array.astype(array.dtype.newbyteorder(">"))))
        == array.tobytes()
    )


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
@example(
    [0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F817FFF, 0x3F818000, 0x3F818001]
)  # ties go to the even neighbour
def test_bf16_is_rounded_as_ml_dtypes_does(bits: Any) -> None:
    array = np.array(bits, np.uint32).view(np.float32)
    halves = np.frombuffer(bytes(to_bytes(DATATYPES["BF16"], array)), np.uint16)
    with np.errstate(invalid="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    nan = np.isnan(array)
    np.testing.assert_array_equal(halves[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(halves.view(ml_dtypes.bfloat16)[nan]).all()


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "elements"),
    [
        (3, "INT64", (1,), [3]),
        (True, "BOOL", (1,), [True]),
        (0.5, "FP64", (1,), [0.5]),
        ("text", "BYTES", (1,), ["text"]),
        (b"bytes", "BYTES", (1,), ["bytes"]),
        ([1, 2], "INT64", (2,), [1, 2]),
        ([[1.5], [2.5]], "FP64", (2, 1), [1.5, 2.5]),
        (["a", b"b"], "BYTES", (2,), ["a", "b"]),
        ([[1], [2, 3]], "BYTES", (1,), ["[[1],[2,3]]"]),
        ({"a": 1}, "BYTES", (1,), ['{"a":1}']),
        ([None, 1], "BYTES", (1,), ["[null,1]"]),
        (bytearray(b"bytes"), "BYTES", (1,), ["bytes"]),
        (memoryview(b"bytes"), "BYTES", (1,), ["bytes"]),
        (np.float32(2), "FP32", (1,), [2.0]),
        (np.array(["x", "y"]), "BYTES", (2,), ["x", "y"]),
        (np.array([b"x", b"y"]), "BYTES", (2,), ["x", "y"]),
        (np.array([["x"], [b"y"]], object), "BYTES", (2, 1), ["x", "y"]),
        (np.array(["x", "y"], np.dtypes.StringDType()), "BYTES", (2,), ["x", "y"]),
        (np.array([[1, 2]], ">i2"), "INT16", (1, 2), [1, 2]),
        (np.ones((2, 1), ml_dtypes.bfloat16), "BF16", (2, 1), [1.0, 1.0]),
    ],
)
def test_values_that_pipelines_answer(value: Any, datatype: str, shape: Any, elements: Any) -> None:
    actual, array = as_tensor(value, None, "x")
    assert (actual.name, array.shape) == (datatype, shape)
    assert array.dtype.newbyteorder("=") == actual.dtype.newbyteorder("=")
    assert text_of(datatype, array) == elements


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [("float32", "FP32"), ("bfloat16", "BF16"), ("int8", "INT8"), ("bool", "BOOL")],
)
def test_torch_tensors(dtype: str, datatype: str) -> None:
    torch = pytest.importorskip("torch")
    actual, array = as_tensor(
        torch.ones(2, 3, dtype=getattr(torch, dtype), requires_grad=dtype == "float32"), None, "x"
    )
    assert actual.name == datatype and text_of(datatype, array) == [1] * 6


def test_values_get_the_declared_datatype() -> None:
    assert as_tensor(3, DATATYPES["INT32"], "x")[1].dtype == np.int32
    assert as_tensor(np.ones(2), DATATYPES["FP16"], "x")[1].dtype == np.float16
    assert as_tensor(3, DATATYPES["BYTES"], "x")[1].tolist() == ["3"]
    for value, wanted in ((300, "UINT8"), (1.5, "INT32"), ("text", "FP32"), (-1, "UINT32")):
        with pytest.raises(BackendError, match=f"declared as {wanted}"):
            as_tensor(value, DATATYPES[wanted], "x")
    with pytest.raises(BackendError, match="which the protocol does not have"):
        as_tensor(np.ones(1, np.complex64), None, "x")


@pytest.mark.parametrize("odd", [[np.nan], [np.inf], [np.nan, np.inf, -np.inf]])
def test_many_numbers_with_nan_and_infinity(odd: Any) -> None:
    array = np.tile(np.array([0.1, *odd], np.float32), 40_000)
    text = to_flat_json(DATATYPES["FP32"], array, "x", Reservation(budget))
    assert text.startswith(
        b"[0.1," + {1: b"NaN", 3: b"NaN,Infinity"}[len(odd)]
        if np.isnan(odd[0])
        else b"[0.1,Infinity"
    )
    np.testing.assert_array_equal(np.array(json.loads(text), np.float32), array)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP32", "BYTES"])
def test_many_elements_are_read_from_json(datatype: str) -> None:
    odd: dict[str, list[Any]] = {"BOOL": [True, False, False], "BYTES": ["a", "", "é"]}
    several = odd.get(datatype, [7, 0, 1])
    nested = from_json([several] * 50_000, DATATYPES[datatype], [50_000, 3], "x")
    np.testing.assert_array_equal(
        nested, from_json(several * 50_000, DATATYPES[datatype], [50_000, 3], "x")
    )
    assert (
        nested.dtype == DATATYPES[datatype].dtype and text_of(datatype, nested) == several * 50_000
    )
    with pytest.raises(InvalidRequest, match="its data holds"):
        from_json([*several * 50_000, None], DATATYPES[datatype], [150_001], "x")


def test_many_strings_are_written() -> None:
    texts = np.array([b"a", b"", "é".encode()] * 50_000, np.object_)
    written = to_bytes(DATATYPES["BYTES"], texts)
    np.testing.assert_array_equal(
        from_bytes(memoryview(written), DATATYPES["BYTES"], [150_000], "x", "m"), texts
    )


def test_an_overflow_becomes_infinity() -> None:
    assert as_tensor(np.array([1e300]), DATATYPES["FP32"], "x")[1].tolist() == [np.inf]


@given(st.lists(st.floats(width=32), max_size=9))
def test_floats_go_through_json(values: Any) -> None:
    datatype = DATATYPES["FP32"]
    written = text_of("FP32", np.array(values, np.float32))
    assert written == pytest.approx(values, nan_ok=True)
    array = from_json(written, datatype, [len(values)], "x")
    np.testing.assert_array_equal(array, np.array(values, np.float32))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        "a" * 4_000_000 + "\U0001f600",
        ("a" * 4_000_000 + "\U0001f600").encode(),
        "\U0001f600" * 10**6,
    ],
    ids=["text", "bytes", "wide"],
)
def test_writing_texts_takes_no_more_memory_than_is_reserved(value: Any, binary: bool) -> None:
    array = np.array([value, None], np.object_)[:1]
    memory = Reservation(MemoryBudget(1 << 30))
    memory.resize(written_bytes(DATATYPES["BYTES"], array, binary=binary), "an answer")
    tracemalloc.start()
    try:
        if binary:
            bytes(to_bytes(DATATYPES["BYTES"], array))
        else:
            to_flat_json(DATATYPES["BYTES"], array, "x", memory)
        assert tracemalloc.get_traced_memory()[1] < memory.size + (1 << 20)
    finally:
        tracemalloc.stop()


CHARACTERS = ["a", "\n", '"', "\\", "\x01", "é", "日", "\U0001f600"]


@given(st.lists(st.text(st.sampled_from(CHARACTERS), max_size=9), max_size=9), st.booleans())
def test_long_texts_are_written_as_short_ones_are(texts: Any, encoded: bool) -> None:
    long = [text * 40_000 if index % 3 == 0 else text for index, text in enumerate(texts)]
    values = np.array([*[text.encode() if encoded else text for text in long], None], np.object_)
    assert text_of("BYTES", values[:-1]) == long


@pytest.mark.parametrize("content", [b"\xff", b"\xc3", b"a\xc3\xa9\xe6"])
def test_long_texts_that_are_no_utf_8_are_refused(content: bytes) -> None:
    for value in (content, b"a" * 500_000 + content):
        with pytest.raises(InvalidRequest, match="not valid UTF-8: ask for binary data"):
            text_of("BYTES", np.array([value, None], np.object_)[:1])
