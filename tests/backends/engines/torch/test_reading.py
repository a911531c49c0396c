from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.errors import InvalidInput

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from penstock.backends.engines.torch.reading import as_tensor, as_texts, widens


def test_arrays_are_copied_only_where_torch_can_not_share_them() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert as_tensor(array, "x").data_ptr() == array.ctypes.data
    frozen = array.copy()
    frozen.flags.writeable = False
    for other in (array[:, ::-1], array.astype(">f4"), frozen):
        assert as_tensor(other, "x").tolist() == other.tolist()
    tensor = torch.zeros(1)
    assert as_tensor(tensor, "x") is tensor


LONG = pytest.mark.skipif(
    np.dtype(np.longdouble) == np.float64, reason="long doubles are doubles here"
)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.array(["a"]), "an array of <U1"),
        ([1.0], "list"),
        pytest.param(np.zeros(1, np.longdouble), "an array of float", marks=LONG),
        (None, "NoneType"),
    ],
)
def test_values_that_are_not_tensors_are_refused(value: Any, kind: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"input 0: expected a tensor or an array of numbers, found {kind}"
    ):
        as_tensor(value, "input 0")


def test_texts() -> None:
    assert as_texts(np.array([["a"], ["b"]]), "x") == ["a", "b"]
    assert as_texts(("a", b"b"), "x") == ["a", "b"]
    with pytest.raises(InvalidInput, match="x: expected a list of texts, found an array of int64"):
        as_texts(np.zeros(1, np.int64), "x")


@pytest.mark.parametrize(
    ("given", "expected", "fits"),
    [
        ("uint8", "float32", True),
        ("float64", "float32", True),
        ("float16", "float32", True),
        ("int32", "int64", True),
        ("bool", "uint8", True),
        ("float32", "float64", True),
        ("float32", "float16", False),
        ("int64", "float32", False),
        ("int64", "int32", False),
        ("float32", "int64", False),
        ("bfloat16", "float16", False),
        ("uint32", "int64", False),
    ],
)
def test_dtypes_that_widen_without_loss(given: str, expected: str, fits: bool) -> None:
    assert widens(getattr(torch, given), getattr(torch, expected)) is fits
