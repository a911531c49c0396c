"""Public `config.pbtxt` files: the fields that they set, parsed and classified.

`scripts/triton_config corpus` reads the files. `corpus.json` has the names of their fields only.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.pipelines.triton.classify import classify, is_map, refusals
from penstock.pipelines.triton.fields import FIELDS
from penstock.pipelines.triton.messages import new_config
from penstock.pipelines.triton.reading import parse_config

CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_bytes())
FILES = {
    f"{repository.partition('@')[0]}:{path}": CORPUS["facts"][number]
    for repository, paths in CORPUS["files"].items()
    for path, number in paths.items()
}


def text_of(field: str, message: Any) -> str:
    """Write a `config.pbtxt` that sets one field of a message, as `corpus.json` names it."""
    path, _, value = field.partition("=")
    name, _, rest = path.partition(".")
    descriptor = message.fields_by_name[name]
    if is_map(descriptor):
        kind = descriptor.message_type.fields_by_name["value"]
        key, _, rest = (rest, "", "") if name == "parameters" else rest.partition(".")
        if kind.message_type is None:
            inner = f'value: "{value or "x"}"'
        elif name == "parameters":
            inner = f'value {{ string_value: "{value}" }}'
        else:
            inner = f"value {{ {text_of(rest, kind.message_type) if rest else ''} }}"
        number = descriptor.message_type.fields_by_name["key"].type != descriptor.TYPE_STRING
        return f"{name} {{ key: {1 if number else json.dumps(key)} {inner} }}"
    if descriptor.message_type is not None:
        inner = text_of(field.partition(".")[2], descriptor.message_type) if rest else ""
        return f"{name} {{ {inner} }}"
    if descriptor.enum_type is not None:
        return f"{name}: {value or descriptor.enum_type.values[-1].name}"
    if descriptor.type == descriptor.TYPE_STRING:
        return f"{name}: {json.dumps(value or 'x')}"
    return f"{name}: {value or 1}"


def classes_of(facts: dict[str, Any]) -> dict[str, str]:
    """Parse and classify each field that a file sets, one at a time."""
    found = {}
    for field in facts["fields"]:
        config = parse_config(text_of(field, new_config().DESCRIPTOR))
        (one,) = classify(config, facts["backend"])
        assert one.field in FIELDS
        found[field] = one.treatment.value
    return found


@pytest.fixture(scope="module")
def classes() -> dict[str, dict[str, str]]:
    known: dict[str, dict[str, str]] = {}
    for facts in FILES.values():
        key = json.dumps(facts)
        if key not in known:
            known[key] = classes_of(facts)
    return {file: known[json.dumps(facts)] for file, facts in FILES.items()}


def test_every_field_that_public_files_set_has_a_line(classes: dict[str, dict[str, str]]) -> None:
    assert len(classes) > 600
    assert len({file.partition(":")[0] for file in classes}) == 10
    assert {name for found in classes.values() for name in found.values()} == {
        "honoured",
        "approximated",
        "ignored",
        "refused",
    }


@pytest.mark.parametrize(
    ("repository", "refused"),
    [
        ("wenet-e2e/wenet", set()),
    ],
)
def test_users_files_are_served(
    repository: str, refused: set[str], classes: dict[str, dict[str, str]]
) -> None:
    assert refused == {
        field
        for file, found in classes.items()
        if file.startswith(repository)
        for field, treatment in found.items()
        if treatment == "refused"
    }


def test_a_refusal_says_where_and_why() -> None:
    for facts in CORPUS["facts"]:
        for field in facts["fields"]:
            config = parse_config(text_of(field, new_config().DESCRIPTOR))
            for problem in refusals(classify(config, facts["backend"]), "config.pbtxt"):
                assert str(problem).startswith(f"config.pbtxt {problem.key}: ")
