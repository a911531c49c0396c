"""Tensors from the protocol's encodings, where a server's answers would not show how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.v2.encoding import to_bytes
from penstock.app.v2.tensors import DATATYPES, datatype_of, from_bytes
from penstock.backends.errors import InvalidRequest

PLAIN = [name for name, each in DATATYPES.items() if name not in {"BF16", "BYTES"}]


@pytest.mark.parametrize("name", PLAIN)
def test_aligned_bytes_are_read_where_they_lie(name: Any) -> None:
    datatype = DATATYPES[name]
    buffer = np.zeros(64, np.uint8)
    found = from_bytes(memoryview(buffer), datatype, [64 // datatype.size], "x", "m")
    assert np.shares_memory(found, buffer) == (name != "BOOL") and found.flags.writeable
    odd = from_bytes(memoryview(buffer)[1 : 1 + 6 * datatype.size], datatype, [2, 3], "x", "m")
    assert odd.flags.aligned and odd.shape == (2, 3)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_strings_come_back(values: Any) -> None:
    array = np.empty(len(values), np.object_)
    array[:] = values
    blob = to_bytes(DATATYPES["BYTES"], array)
    assert (
        from_bytes(memoryview(blob), DATATYPES["BYTES"], [len(values)], "x", "m").tolist() == values
    )


@given(st.binary(max_size=40), st.integers(0, 6))
def test_whatever_claims_to_be_strings_is_read_or_refused(blob: Any, count: Any) -> None:
    try:
        found = from_bytes(memoryview(blob), DATATYPES["BYTES"], [count], "x", "m")
    except InvalidRequest:
        return
    assert to_bytes(DATATYPES["BYTES"], found) == blob


def test_names_of_both_worlds() -> None:
    assert datatype_of("FP32") is datatype_of("float32") is DATATYPES["FP32"]
    assert (
        datatype_of("bfloat16") is DATATYPES["BF16"] and datatype_of("string") is DATATYPES["BYTES"]
    )
    assert datatype_of("complex64") is None
