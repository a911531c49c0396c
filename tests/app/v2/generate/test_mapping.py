"""JSON objects as infer requests: which key becomes what, and in which shape."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.http.inputs.datatypes import DATATYPES
from penstock.app.http.inputs.declared import Tensor
from penstock.app.v2.generate.mapping import check_repeated, infer_document, shape_of
from penstock.app.v2.models.model import Model
from penstock.backends.errors import InvalidRequest

PROMPT = Tensor("PROMPT", DATATYPES["BYTES"], (1,), "text")
COUNT = Tensor("COUNT", DATATYPES["INT32"], (-1,))
ANY = Tensor("ANY", None, None)


def model(*tensors: Tensor) -> Model:
    return cast(
        "Model", SimpleNamespace(inputs_by_name={tensor.name: tensor for tensor in tensors})
    )


MODEL = model(PROMPT, COUNT, ANY)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
keys = st.sampled_from(["PROMPT", "COUNT", "ANY", "id", "temperature", "stop", "parameters"])
documents = st.dictionaries(
    keys,
    st.sampled_from(["hello", 1, 2.5, True, ["a", "b"], [1, 2], [[1], [2]]])
    | st.dictionaries(keys, scalars, max_size=3)
    | values,
    max_size=5,
)


@given(documents)
def test_every_key_is_an_input_or_a_parameter(document: dict[str, Any]) -> None:
    try:
        mapped = infer_document(document, MODEL)
    except InvalidRequest:
        return
    nested = document.get("parameters") or {}
    given = [*(key for key in document if key not in {"parameters", "id"}), *nested]
    inputs = [tensor["name"] for tensor in mapped["inputs"]]
    assert sorted(inputs) == sorted(key for key in given if key in MODEL.inputs_by_name)
    assert set(mapped["parameters"]) == set(given) - set(MODEL.inputs_by_name)
    assert mapped["id"] is document.get("id")
    for tensor in mapped["inputs"]:
        assert prod(tensor["shape"]) == len(tensor["data"])
        assert not any(isinstance(value, (list, dict)) for value in tensor["data"])


@given(st.lists(st.sampled_from([-1, -1, 1, 2, 3]), max_size=4), st.integers(0, 40))
def test_a_shape_holds_all_elements(wanted: list[int], count: int) -> None:
    try:
        shape = shape_of(count, wanted, "X")
    except InvalidRequest:
        fixed = prod(size for size in wanted if size != -1)
        assert count % fixed or (-1 not in wanted and count != fixed)
        return
    assert prod(shape) == count
    assert all(size in {own, -1} for own, size in zip(shape, wanted, strict=True))
    opened = [own for own, size in zip(shape, wanted, strict=True) if size == -1]
    assert all(size == 1 for size in opened[:-1])


@pytest.mark.parametrize(
    ("count", "wanted", "shape"),
    [
        (1, (-1, 1), [1, 1]),
        (1, (1,), [1]),
        (4, (-1, 4), [1, 4]),
        (4, (-1, -1), [1, 4]),
        (6, (-1, 3, -1), [1, 3, 2]),
        (0, (-1,), [0]),
        (1, (), []),
    ],
)
def test_shapes(count: int, wanted: tuple[int, ...], shape: list[int]) -> None:
    assert shape_of(count, wanted, "X") == shape


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        (b'{"PROMPT": "a", "PROMPT": "b"}', "PROMPT"),
        (b'{"COUNT": 1, "PROMPT": "PROMPT", "COUNT": 2}', "COUNT"),
        (b'{"PROMPT": "PROMPT"}', ""),
        (b'{"PROMPT": {"PROMPT": 1}}', ""),
        (b'{"x": 1, "x": 2, "PROMPT": "a"}', ""),
    ],
)
def test_an_input_that_is_named_twice(text: bytes, repeated: str) -> None:
    if not repeated:
        check_repeated(text, MODEL)
        return
    with pytest.raises(InvalidRequest, match=f"input '{repeated}' already exists in request"):
        check_repeated(text, MODEL)
