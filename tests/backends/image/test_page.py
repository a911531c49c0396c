"""docs/reference/image-backends.md lists every image backend and its parameters."""

from __future__ import annotations

import re
from pathlib import Path

from penstock.backends.base import Params
from penstock.backends.expressions.registry import BUILTINS, describe
from penstock.backends.image.tensor.backend import TensorParams

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "image-backends.md"


def test_the_table_is_complete() -> None:
    rows = [
        line.split("|")[1:4] for line in PAGE.read_text().splitlines() if line.startswith("| `")
    ]
    listed = {
        name: set(re.findall(r"`(\w+)`", parameters))
        for names, parameters, _ in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    everywhere = {
        *Params.model_fields,
        *TensorParams.model_fields,
    }  # described once, above the table
    expected = {
        name: {parameter.name for parameter in describe(name).parameters or ()} - everywhere
        for name, target in BUILTINS.items()
        if target.startswith("penstock.backends.image.")
    }
    assert listed == expected
