"""Public `config.pbtxt` files: the fields that they set, parsed and classified.

`scripts/triton_config corpus` reads the files. `corpus.json` has the names of their fields only.
"""

import json
import sys
from pathlib import Path

import pytest

from penstock.pipelines.triton.fields.classify import Classified, refusals
from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.fields.treatments import Treatment

ROOT = Path(__file__).parents[4]
sys.path.append(str(ROOT / "scripts" / "triton"))

from triton_corpus import classes_of, files_of_corpus  # noqa: E402
from triton_page import PAGE, page_of  # noqa: E402

Classes = dict[str, dict[str, Classified]]


@pytest.fixture(scope="module")
def classes() -> Classes:
    known: Classes = {}
    for facts in (files := files_of_corpus()).values():
        if (key := json.dumps(facts)) not in known:
            known[key] = classes_of(facts)
    return {file: known[json.dumps(facts)] for file, facts in files.items()}


def test_every_field_that_public_files_set_has_a_line(classes: Classes) -> None:
    assert len(classes) > 600
    assert len({file.partition(":")[0] for file in classes}) == 10
    found = [one for fields in classes.values() for one in fields.values()]
    assert {one.field for one in found} <= set(FIELDS)
    assert {one.treatment for one in found} == set(Treatment)


@pytest.mark.parametrize(
    "repository",
    [
        "wenet-e2e/wenet",
        "triton-inference-server/python_backend",
        "levipereira/triton-server-yolo",
        "rushai-dev/licence-plate-triton-server-ensemble",
    ],
)
def test_users_files_have_no_refused_field(repository: str, classes: Classes) -> None:
    own = {file: fields for file, fields in classes.items() if file.startswith(f"{repository}:")}
    assert own
    refused = {
        (file, path)
        for file, fields in own.items()
        for path, one in fields.items()
        if one.treatment is Treatment.REFUSED
    }
    assert refused == set()


def test_a_refusal_says_where_and_why(classes: Classes) -> None:
    found = [one for fields in classes.values() for one in fields.values()]
    for problem in refusals(found, "config.pbtxt"):
        assert str(problem).startswith(f"config.pbtxt {problem.key}: ")
        assert len(problem.message) > 20


def test_the_page_has_the_tables_of_the_code() -> None:
    """`scripts/triton_config page` writes it."""
    text = PAGE.read_text()
    assert page_of(text) == text
