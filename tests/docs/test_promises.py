"""docs/promises.md: each promise names the tests that keep it, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| promise ")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_each_promise_names_tests_that_exist(row: str) -> None:
    promise, kept_by = (cell.strip() for cell in row.strip("|").split("|"))
    tests = TEST.findall(kept_by)
    assert promise and tests, f"no test keeps this promise: {row}"
    assert not TEST.sub("", kept_by).strip(", "), f"what is not a test: {row}"
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text())
        functions = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert name in functions, f"{file} has no test {name}"


def test_the_page_has_promises_of_every_kind() -> None:
    kinds = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert kinds == ["Memory", "Time", "Fairness", "Endings", "Versions", "Restrictions", "Triton"]
    assert len(ROWS) > 5 * len(kinds)
