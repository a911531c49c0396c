"""Tensors from the protocol's encodings, for what a server's answers would not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.http.inputs.datatypes import DATATYPES, datatype_of
from penstock.app.v2.encoding import to_bytes
from penstock.app.v2.tensors import from_bytes
from penstock.backends.errors import InvalidRequest

PLAIN = [name for name in DATATYPES if name not in {"BF16", "BYTES"}]


@pytest.mark.parametrize("name", PLAIN)
def test_aligned_bytes_are_read_in_place(name: str) -> None:
    datatype = DATATYPES[name]
    buffer = np.zeros(64, np.uint8)
    array = from_bytes(buffer.data, datatype, [64 // datatype.size], "x", "m")
    assert np.shares_memory(array, buffer) == (name != "BOOL") and array.flags.writeable
    odd = from_bytes(buffer.data[1 : 1 + 6 * datatype.size], datatype, [2, 3], "x", "m")
    assert odd.flags.aligned and odd.shape == (2, 3)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_strings_are_read_as_they_were_written(values: Any) -> None:
    array = np.empty(len(values), np.object_)
    array[:] = values
    blob = to_bytes(DATATYPES["BYTES"], array)
    assert (
        from_bytes(memoryview(blob), DATATYPES["BYTES"], [len(values)], "x", "m").tolist() == values
    )


@given(st.binary(max_size=40), st.integers(0, 6))
def test_any_bytes_are_strings_or_refused(blob: Any, count: Any) -> None:
    try:
        array = from_bytes(memoryview(blob), DATATYPES["BYTES"], [count], "x", "m")
    except InvalidRequest:
        return
    assert to_bytes(DATATYPES["BYTES"], array) == blob


def test_datatypes_by_the_names_of_the_protocol_and_numpy() -> None:
    assert datatype_of("FP32") is datatype_of("float32") is DATATYPES["FP32"]
    assert (
        datatype_of("bfloat16") is DATATYPES["BF16"] and datatype_of("string") is DATATYPES["BYTES"]
    )
    assert datatype_of("complex64") is None
