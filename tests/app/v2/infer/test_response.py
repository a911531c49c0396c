"""Answers that are written on a helper thread: those that would delay others on the event loop.

The contents of answers are in test_handler.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.app.http.inputs.datatypes import DATATYPES
from penstock.app.http.inputs.declared import Tensor
from penstock.app.v2.infer.response import CONVERT_OFF_LOOP_ELEMENTS, takes_long
from penstock.app.v2.infer.wanted import Wanted

BINARY = Wanted("Y", binary=True)
JSON = Wanted("Y")
RANKED = Wanted("Y", binary=True, classes=1)


@pytest.mark.parametrize(
    ("datatype", "value", "wanted", "long"),
    [
        ("FP32", np.empty(CONVERT_OFF_LOOP_ELEMENTS, np.float32), JSON, False),
        ("FP32", np.empty((1, CONVERT_OFF_LOOP_ELEMENTS + 1), np.float32), JSON, True),
        ("FP32", np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.float32), BINARY, False),
        ("FP32", np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.float32), RANKED, True),
        ("FP32", [0.5] * (CONVERT_OFF_LOOP_ELEMENTS + 1), JSON, True),
        ("BOOL", np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.bool_), BINARY, True),
        ("BYTES", np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.object_), BINARY, True),
        (None, np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.float32), BINARY, False),
        (None, np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.uint8), BINARY, False),
        (None, np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.float32), JSON, True),
        (None, np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.float32), RANKED, True),
        (None, np.empty(CONVERT_OFF_LOOP_ELEMENTS + 1, np.object_), BINARY, True),
        (None, "x" * (CONVERT_OFF_LOOP_ELEMENTS + 1), BINARY, True),
        (None, 1.5, JSON, False),
    ],
)
def test_conversions_take_long_and_copies_do_not(
    datatype: str | None, value: Any, wanted: Any, long: bool
) -> None:
    tensor = Tensor("Y", None if datatype is None else DATATYPES[datatype], None)
    assert takes_long([(tensor, value, wanted)]) == long


def test_outputs_count_together() -> None:
    tensor = Tensor("Y", DATATYPES["FP32"], None)
    half = (tensor, np.empty(CONVERT_OFF_LOOP_ELEMENTS // 2 + 1, np.float32), JSON)
    assert takes_long([half, half]) and not takes_long([half, (*half[:2], BINARY)])
