"""Tensors by name become the values that a pipeline declares."""

from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import InvalidRequest
from penstock.pipelines.config.load import load
from penstock.pipelines.named_tensors import item_of

TEXT = {
    "pipeline": {"inputs": {"data": {"kind": "text"}}},
    "node": {"backend": "Identity"},
}


def test_bytes_become_the_text_of_a_text_input() -> None:
    tensor = np.array(["é".encode()], object)
    assert item_of(load(TEXT), {"data": tensor})["data"] == "é"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.array([b"a\xff"], object), r"input 'data' is not valid UTF-8 \(byte 1\)"),
        (np.array([b"a", b"b"], object), "expected one element"),
    ],
)
def test_a_tensor_that_is_no_text_is_refused(tensor: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        item_of(load(TEXT), {"data": tensor})
