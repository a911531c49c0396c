"""Types and defaults of parameters in words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from penstock.backends.expressions.type_names import type_name, value_name


class Model(BaseModel):
    plain: int
    ranged: int = Field(ge=1, le=32767)
    above: float = Field(gt=0)
    optional: str | None = None
    choice: Literal["nchw", "nhwc"] = "nchw"
    maybe_choice: Literal["a", "b"] | None = None
    numbers: Annotated[tuple[FiniteFloat, ...], BeforeValidator(str), Field(min_length=1)] = ()
    names: tuple[str, ...] = ()
    maybe_numbers: Annotated[tuple[float, ...], BeforeValidator(str)] | None = None
    inner: Annotated[int, Field(ge=0)] | None = None
    anything: Any = None
    pair: tuple[int, str] = (1, "")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("plain", "int"),
        ("ranged", "int, 1 to 32767"),
        ("above", "float, above 0"),
        ("optional", "str | None"),
        ("choice", "nchw | nhwc"),
        ("maybe_choice", "a | b | None"),
        ("numbers", "numbers"),
        ("names", "names"),
        ("maybe_numbers", "numbers | None"),
        ("inner", "int, at least 0 | None"),
        ("anything", "Any"),
        ("pair", "tuple[int, str]"),
    ],
)
def test_types_in_words(field: str, expected: str) -> None:
    info = Model.model_fields[field]
    assert type_name(info.annotation, info.metadata) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "true"),
        (0.0, "0"),
        (0.5, "0.5"),
        ((), ""),
        ((1.0, 2.5), "1, 2.5"),
        ("nchw", "nchw"),
        (32, "32"),
    ],
)
def test_defaults_as_in_a_file(value: Any, expected: str) -> None:
    assert value_name(value) == expected
