"""Schemas that ports carry: JSON Schema and pydantic models, at every door and in the document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from penstock import create_app
from penstock.app.openapi.document import operations_of
from penstock.backends.errors import ConfigError
from penstock.pipelines.config.json_schema import read_schema
from penstock.pipelines.config.load import load

MODELS = """
from __future__ import annotations

from pydantic import BaseModel, Field


class Line(BaseModel):
    text: str = Field(min_length=2)
    score: float = 1.0


class Page(BaseModel):
    lines: list[Line]
    inner: Page | None = None


def answer(page):
    return {"seen": page}


def returned(page):
    return Page(**page)
"""
OTHER_LINE = {
    "title": "Line",
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"type": "integer"}},
}
PIPELINES: dict[str, dict[str, Any]] = {
    "model": {
        "pipeline": {
            "inputs": {"data": {"kind": "json", "schema": "models.py:Page"}},
            "outputs": {
                "result": {"kind": "json", "schema": "models.py:Page"},
                "others": {"kind": "list", "items": {"kind": "json", "schema": OTHER_LINE}},
            },
        },
        "node": {"backend": "Python[models.py:returned]"},
    },
    "table": {
        "pipeline": {"inputs": {"data": {"kind": "json", "schema": OTHER_LINE}}},
        "node": {"backend": "Python[models.py:answer]"},
    },
    "file": {
        "pipeline": {
            "inputs": {
                "data": {"kind": "list", "items": {"kind": "json", "schema": "line.schema.json"}},
                "more": {"kind": "text", "optional": True},
            }
        },
        "node": {"backend": "Python[models.py:answer]"},
    },
}


def build(directory: Path, name: str) -> Any:
    (directory / "models.py").write_text(MODELS)
    (directory / "line.schema.json").write_text(json.dumps(OTHER_LINE))
    config = PIPELINES[name]
    return load({**config, "pipeline": {"name": name, **config["pipeline"]}})


@pytest.fixture(scope="module")
def client(running: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("schemas")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)  # where a dict's files are looked for
        configs = [build(directory, name) for name in PIPELINES]
    with running(create_app(configs)) as client:
        yield client


PAGE = {"lines": [{"text": "one"}]}
WHOLE_PAGE = {"lines": [{"text": "one", "score": 1.0}], "inner": None}


def test_a_model_fills_in_defaults_and_is_written(client: httpx.Client) -> None:
    assert client.post("/predict/model", json=PAGE).json()["result"] == WHOLE_PAGE
    results = client.post("/predict/model/batch", json=[PAGE, PAGE]).json()["results"]
    assert [result["result"] for result in results] == [WHOLE_PAGE, WHOLE_PAGE]
    inputs = [{"name": "data", "shape": [1], "datatype": "BYTES", "data": [json.dumps(PAGE)]}]
    answer = client.post("/v2/models/model/infer", json={"inputs": inputs}).json()
    assert json.loads(answer["outputs"][0]["data"][0]) == WHOLE_PAGE


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("model", {"lines": [{"text": "one"}, {"text": "x"}]}, 'data.lines[1].text: found "x": '),
        ("model", {}, "data.lines: found an object: Field required"),
        ("table", {"n": "x" * 10_000}, f'data.n: found "{"x" * 59}…, expected type = "integer"'),
        ("table", [], 'data: found an array, expected type = "object"'),
        ("file", {"data": [{"n": 1}, {}]}, 'data[1]: found an object, expected required = ["n"]'),
    ],
)
def test_what_does_not_fit_is_named(
    client: httpx.Client, name: str, value: Any, place: str
) -> None:
    answer = client.post(f"/predict/{name}", json=value)
    assert answer.status_code == 400
    assert "does not fit its schema: " in answer.json()["detail"]
    assert place in answer.json()["detail"] and len(answer.content) < 1000
    several = client.post(f"/predict/{name}/batch", json=[value])
    assert several.status_code == 400 and "does not fit its schema" in several.json()["detail"]
    if name != "file":
        tensor = {"name": "data", "shape": [1], "datatype": "BYTES", "data": [json.dumps(value)]}
        infer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
        assert infer.status_code == 400 and "does not fit its schema" in infer.json()["error"]


def test_an_error_names_three_places(client: httpx.Client) -> None:
    value = {"lines": [{"text": "x"}] * 1000}
    detail = client.post("/predict/model", json=value).json()["detail"]
    assert detail.count("found") == 3 and detail.endswith("; and more")


def test_the_document_has_each_as_a_component(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    validate(document)
    schemas = document["components"]["schemas"]
    page = schemas["Page_model"]
    assert page["properties"]["lines"]["items"] == {"$ref": "#/components/schemas/Line_model"}
    assert page["properties"]["inner"]["anyOf"][0] == {"$ref": "#/components/schemas/Page_model"}
    assert schemas["Line_model"]["properties"]["score"]["type"] == "number"
    prediction = schemas["Prediction_model"]["properties"]
    assert prediction["result"]["anyOf"][0] == {"$ref": "#/components/schemas/Page_model"}
    # The same title, and another schema.
    assert prediction["others"]["items"] == {"$ref": "#/components/schemas/Line_2_model"}
    assert schemas["Line_2_model"]["required"] == ["n"]
    body = document["paths"]["/predict/table"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"] == {"$ref": "#/components/schemas/Line_table"}


def test_an_example_is_made_of_what_a_schema_says(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    schema = read_schema("models.py:Page", tmp_path, "validation")
    assert schema.example() == {"lines": [{"text": "hello"}]}
    assert read_schema({"minimum": 3}, tmp_path, "validation").example() is None
    itself = {"type": "array", "items": {"$ref": "#"}}
    assert read_schema(itself, tmp_path, "validation").example() is None


def test_a_schema_within_itself_is_written_for_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's document has no components of ours."""
    monkeypatch.chdir(tmp_path)
    operations = operations_of(build(tmp_path, "model"), protected=False)
    assert "$ref" not in json.dumps(operations)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("nothing.json", "can't be read: No such file or directory"),
        ("models.py:Pages", "has no 'Pages', did you mean 'Page'?"),
        ("models.py:answer", "is not a pydantic model"),
        ("Page", "expected a table, a JSON Schema file"),
        (3, "expected a table, a JSON Schema file"),
        ({"type": "objekt"}, "is not a JSON Schema: 'objekt' is not valid"),
    ],
)
def test_a_schema_that_can_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: Any, message: str
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    port = {"kind": "json", "schema": schema}
    with pytest.raises(ConfigError) as raised:
        load({"pipeline": {"inputs": {"data": port}}, "node": {"backend": "Identity"}})
    (problem,) = raised.value.problems
    assert message in problem.message
    assert (problem.node, problem.key) == ("pipeline", "inputs.data.schema")


def test_only_json_has_a_schema() -> None:
    port = {"kind": "text", "schema": "models.py:Page"}
    with pytest.raises(ConfigError, match='only kind = "json" has a schema'):
        load({"pipeline": {"inputs": {"data": port}}, "node": {"backend": "Identity"}})
