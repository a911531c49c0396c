"""The OpenAPI document: valid, typed, stable, true to the answers, and current."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from penstock import create_app
from penstock.app.openapi.document import operations_of
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load

EVERY_KIND = {
    "photo": {"kind": "image"},
    "raw": {"kind": "bytes"},
    "words": {"kind": "text", "description": "What it says."},
    "count": {"kind": "integer"},
    "share": {"kind": "number"},
    "found": {"kind": "boolean"},
    "scores": {"kind": "tensor", "dtype": "float32", "shape": [-1, 3]},
    "any": {"kind": "tensor"},
    "mask": {"kind": "tensor", "dtype": "BOOL", "shape": [2]},
    "rest": {"kind": "json"},
    "result": {"kind": "tensor", "dtype": "int64", "shape": [2]},
}


def kinds(name: Any = "kinds") -> Any:
    return load(
        {
            "pipeline": {"name": name, "outputs": EVERY_KIND},
            "node": {"backend": "Identity", "priority_levels": 3},
        }
    )


def document_of(client: Any) -> Any:
    text = client.get("/openapi.json").text
    check_openapi(text)
    return json.loads(text)


@functools.cache  # it takes a second, and several tests ask for the same document
def check_openapi(text: str) -> None:
    validate(json.loads(text))


def check(document: Any, schema: Any, value: Any) -> None:
    """Assert that a value matches a schema of the document."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
        value
    )


def responses_of(document: Any, path: str, method: str = "post") -> Any:
    """Return an operation's responses, with those that it refers to in their place."""
    shared = document["components"]["responses"]
    return {
        status: shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
        for status, response in document["paths"][path][method]["responses"].items()
    }


def test_operations_and_names(running: Any, digits: Path) -> None:
    with running(create_app([digits, kinds()])) as client:
        document = document_of(client)
    assert document["openapi"].startswith("3.1")
    identifiers = {
        operation["operationId"]: (path, method)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(identifiers) == sum(map(len, document["paths"].values()))
    assert identifiers["predict_digits"] == ("/predict/digits", "post")
    assert identifiers["put_digits"] == ("/predict/digits", "put")
    assert identifiers["batch_digits"] == ("/predict/digits/batch", "post")
    assert {"health_live", "health_ready", "metrics", "list_pipelines"} < set(
        identifiers
    ) and "load_pipeline" not in identifiers
    assert list(document["paths"])[:2] == ["/predict/digits", "/predict/digits/batch"]


def test_request_bodies_and_headers(running: Any, digits: Path) -> None:
    with running(create_app([digits, kinds()])) as client:
        document = document_of(client)
    paths = document["paths"]
    body = paths["/predict/digits"]["post"]["requestBody"]["content"]
    assert list(body) == ["application/octet-stream", "multipart/form-data", "application/json"]
    assert body["application/octet-stream"]["schema"]["description"].startswith("A bright digit")
    assert "A bright digit" in paths["/predict/digits"]["put"]["requestBody"]["description"]
    assert document["components"]["schemas"]["ImageBase64"]["properties"] == {
        "image": {"type": "string", "contentEncoding": "base64"}
    }
    assert list(paths["/predict/digits/batch"]["post"]["requestBody"]["content"]) == [
        "multipart/form-data",
        "application/json",
    ]

    def headers(name: Any) -> Any:
        return [parameter["name"] for parameter in paths[f"/predict/{name}"]["post"]["parameters"]]

    assert headers("digits") == ["X-Request-Id", "Penstock-Deadline-Ms"]
    assert headers("kinds") == ["X-Request-Id", "Penstock-Deadline-Ms", "Penstock-Priority"]


def test_urls_are_in_the_document_if_they_are_allowed(running: Any, digits: Path) -> None:
    with running(create_app(digits, settings=Settings(allow_url=True))) as client:
        document = document_of(client)
    content = document["paths"]["/predict/digits"]["post"]["requestBody"]["content"]
    check(document, content["application/json"]["schema"], {"url": "https://example.com/three.png"})
    check(document, content["application/json"]["schema"], {"image": "AAAA"})
    with pytest.raises(jsonschema.ValidationError):
        check(document, content["application/json"]["schema"], {})
    with running(create_app(digits)) as client:
        assert "ImageURL" not in json.dumps(document_of(client))


def test_answers_match_the_document(running: Any, digits: Path, digit: bytes) -> None:
    with running(create_app(digits)) as client:
        document = document_of(client)
        single, batch = (
            responses_of(document, path) for path in ("/predict/digits", "/predict/digits/batch")
        )
        answer = client.post("/predict/digits", content=digit)
        check(document, single["200"]["content"]["application/json"]["schema"], answer.json())
        assert set(answer.json()) == set(
            document["components"]["schemas"]["Prediction_digits"]["properties"]
        )
        assert {name.lower() for name in single["200"]["headers"]} <= set(answer.headers)
        files = [("images", digit), ("images", b"no image"), ("images", digit)]
        answer = client.post("/predict/digits/batch", files=files)
        schema = batch["200"]["content"]["application/json"]["schema"]
        check(document, schema, answer.json())
        assert [result.get("label", result.get("code")) for result in answer.json()["results"]] == [
            "three",
            "invalid_input",
            "three",
        ]
        with pytest.raises(jsonschema.ValidationError):
            check(document, schema, {"results": [{}]})
        for sent, status in (
            ({"content": b""}, "400"),
            ({"content": b"x"}, "422"),
            ({"content": b"x", "headers": {"Content-Type": "text/html"}}, "415"),
        ):
            answer = client.post("/predict/digits", **sent)
            assert str(answer.status_code) == status
            check(
                document,
                single[status]["content"]["application/problem+json"]["schema"],
                answer.json(),
            )
        for path, name in (
            ("/health/ready", "200"),
            ("/health/live", "200"),
            ("/pipelines", "200"),
        ):
            check(
                document,
                document["paths"][path]["get"]["responses"][name]["content"]["application/json"][
                    "schema"
                ],
                client.get(path).json(),
            )


def test_every_kind_has_a_type(running: Any) -> None:
    with running(create_app(kinds())) as client:
        prediction = document_of(client)["components"]["schemas"]["Prediction_kinds"]
    types = {name: schema.get("type") for name, schema in prediction["properties"].items()}
    assert types == {
        "result": None,
        "photo": "string",
        "raw": "string",
        "words": "string",
        "count": "integer",
        "share": "number",
        "found": "boolean",
        "scores": "array",
        "any": "array",
        "mask": "array",
        "rest": None,
    }
    assert (
        prediction["required"] == ["result"]
        and prediction["properties"]["words"]["description"] == "What it says."
    )
    row = prediction["properties"]["scores"]["items"]
    assert (row["minItems"], row["maxItems"], row["items"]["type"]) == (3, 3, ["number", "null"])
    assert prediction["properties"]["result"]["anyOf"][0]["items"] == {"type": "integer"}


def test_errors_have_an_example_for_each_code(running: Any, digits: Path) -> None:
    with running(create_app(digits)) as client:
        document = document_of(client)
    responses = responses_of(document, "/predict/digits")
    assert list(responses) == ["200", "400", "404", "413", "415", "422", "429", "500", "503", "504"]
    assert (
        "Retry-After" in responses["429"]["headers"]
        and "Retry-After" in responses["503"]["headers"]
    )
    for status, response in list(responses.items())[1:]:
        content = response["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"} and content["examples"]
        for code, example in content["examples"].items():
            check(document, content["schema"], example["value"])
            assert example["value"]["code"] == code and str(example["value"]["status"]) == status
        reference = document["paths"]["/predict/digits"]["post"]["responses"][status]
        others = document["paths"]["/predict/digits/batch"]["post"]["responses"]
        assert others.get(status, reference) == reference  # written once, however many pipelines
        assert list(reference) == ["$ref"]


def test_keys_and_tokens(running: Any, digits: Path) -> None:
    settings = Settings(
        api_key=SecretStr("k3y"), admin_token=SecretStr("t0k3n"), allow_model_control=True
    )
    with running(create_app(digits, settings=settings)) as client:
        client.headers["Authorization"] = "Bearer k3y"
        document = document_of(client)
    assert set(document["components"]["securitySchemes"]) == {"key", "admin"}
    paths = document["paths"]
    assert (
        paths["/predict/digits"]["put"]["security"]
        == paths["/metrics"]["get"]["security"]
        == [{"key": []}]
    )
    assert (
        paths["/pipelines/{name}/load"]["post"]["security"] == [{"admin": []}]
        and "security" not in paths["/health/live"]["get"]
    )
    assert "401" in paths["/predict/digits"]["post"]["responses"] and "k3y" not in json.dumps(
        document
    ).replace("t0k3n", "")


@pytest.mark.parametrize(
    ("entry", "levels"), [({"entry": "go"}, 5), ({"entry": "far"}, 3), ({}, 5)]
)
def test_the_priorities_are_those_of_the_entry_node(entry: Any, levels: int) -> None:
    config = load(
        {
            "pipeline": {"name": "p", **entry},
            "far": {"backend": "Identity", "priority_levels": 3},
            "go": {"backend": "Jump", "jump": "far", "priority_levels": 5},
        }
    )
    (operation,) = [
        operations["post"]
        for path, operations in operations_of(config, False, False).items()
        if path == "/predict/p"
    ]
    (priority,) = [
        parameter["schema"]
        for parameter in operation["parameters"]
        if parameter.get("name") == "Penstock-Priority"
    ]
    assert priority["maximum"] == levels


def test_only_loading_and_unloading_change_the_document(running: Any, tmp_path: Path) -> None:
    for name in ("b", "a.x-y"):
        (tmp_path / f"{name}.toml").write_text('[n]\nbackend = "Identity"\n')
    app = create_app(
        tmp_path, settings=Settings(admin_token=SecretStr("t"), allow_model_control=True)
    )
    with running(app) as client:
        client.headers["Authorization"] = "Bearer t"
        first = document_of(client)
        assert app.openapi() is app.openapi()
        assert [path for path in first["paths"] if re.fullmatch("/predict/[^/]+", path)] == [
            "/predict/a.x-y",
            "/predict/b",
        ]
        client.post("/pipelines/b/unload")
        without = document_of(client)
        assert (
            "/predict/b" not in without["paths"]
            and "Prediction_b" not in without["components"]["schemas"]
        )
        assert without["paths"]["/predict/a.x-y"] == first["paths"]["/predict/a.x-y"]
        client.post("/pipelines/b/load")
        assert client.get("/openapi.json").json() == first
        assert json.dumps(document_of(client)) == json.dumps(first)


def test_names_do_not_collide(running: Any) -> None:
    names = ["x", "batch_x", "x_batch", "put_x", "x_put", "predict_x", "Prediction_x"]
    with running(create_app([kinds(name) for name in names])) as client:
        document = document_of(client)
    identifiers = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(identifiers) == len(set(identifiers))
    assert len(
        [
            name
            for name in document["components"]["schemas"]
            if name.startswith(("Prediction_", "Batch_"))
        ]
    ) == 2 * len(names)


async def words(item: Any, call: Any) -> Any:
    yield 1


def test_a_pipeline_that_streams(running: Any, digits: Path) -> None:
    register_backend("OpenApiStream", words)
    table = {"name": "words", "outputs": {"result": {"kind": "integer"}, "note": {"kind": "text"}}}
    config = load({"pipeline": table, "words": {"backend": "OpenApiStream"}})
    with running(create_app([digits, config])) as client:
        document = document_of(client)
        whole = client.post("/predict/words", content=b"x").json()
        part, _ = client.post(
            "/predict/words", content=b"x", headers={"Accept": "text/event-stream"}
        ).text.split("\n\n", 1)
    content = {
        name: document["paths"][f"/predict/{name}"]["post"]["responses"]["200"]["content"]
        for name in ("words", "digits")
    }
    assert list(content["words"]) == ["application/json", "text/event-stream"] and list(
        content["digits"]
    ) == ["application/json"]
    assert "Part_words" in content["words"]["text/event-stream"]["schema"]["description"]
    check(document, content["words"]["application/json"]["schema"], whole)
    check(
        document,
        {"$ref": "#/components/schemas/Part_words"},
        json.loads(part.removeprefix("data: ")),
    )
    schemas = document["components"]["schemas"]
    assert list(schemas["Part_words"]["properties"]) == ["result", "note"] and list(
        schemas["Prediction_words"]["properties"]
    ) == ["result"]
    assert "Part_digits" not in schemas


@pytest.mark.parametrize("key", [None, "k3y"])
def test_traces_are_in_the_document_if_they_are_allowed(
    running: Any, digits: Path, key: str | None
) -> None:
    with running(
        create_app(
            digits,
            settings=Settings(
                api_key=SecretStr(key) if key else None,
                admin_token=SecretStr("t0k3n"),
                allow_trace=True,
            ),
        )
    ) as client:
        client.headers["Authorization"] = "Bearer t0k3n"
        document = document_of(client)
    operation = document["paths"]["/predict/digits"]["post"]
    assert operation["parameters"][-1]["name"] == "Penstock-Trace"
    assert operation["security"] == [{"key": []} if key else {}, {"admin": []}] and {
        "401",
        "403",
    } <= set(operation["responses"])
    assert "Penstock-Trace" not in json.dumps(document["paths"]["/predict/digits/batch"])
    assert "admin" in document["components"]["securitySchemes"]


def test_request_bodies_by_kind(running: Any, digits: Path) -> None:
    """What is sent to a pipeline is what its inputs are."""
    ports: dict[str, Any] = {
        "text": {"data": {"kind": "text", "description": "What to say."}},
        "sound": {"data": {"kind": "bytes", "media_types": ["audio/*"]}},
        "rows": {"data": {"kind": "tensor", "dtype": "int32", "shape": [-1, 2]}},
        "scores": {"data": {"kind": "tensor", "dtype": "float32", "shape": [-1]}},
        "lines": {"data": {"kind": "list", "items": {"kind": "text"}}},
        "asked": {
            "photo": {"kind": "image"},
            "question": {"kind": "text"},
            "count": {"kind": "integer", "optional": True},
        },
    }
    pipelines = [
        load({"pipeline": {"name": name, "inputs": inputs}, "node": {"backend": "Identity"}})
        for name, inputs in ports.items()
    ]
    with running(create_app([digits, *pipelines])) as client:
        document = document_of(client)

    def content(name: str, path: str = "") -> Any:
        return document["paths"][f"/predict/{name}{path}"]["post"]["requestBody"]["content"]

    assert list(content("text")) == ["text/plain", "multipart/form-data", "application/json"]
    assert list(content("sound"))[:2] == ["application/octet-stream", "audio/*"]
    assert list(content("rows")) == list(content("rows", "/batch")) == ["application/json"]
    assert list(content("asked")) == ["multipart/form-data", "application/json"]
    assert content("text")["application/json"]["schema"] == {
        "type": "string",
        "description": "What to say.",
    }
    # Null stands for NaN in an answer; a request may not have it.
    assert content("scores")["application/json"]["schema"]["items"] == {"type": "number"}
    assert "Image" not in json.dumps([content(name) for name in ports])
    samples = {
        "text": "a",
        "sound": "eA==",
        "rows": [[1, 2]],
        "lines": ["a"],
        "asked": {"photo": "eA==", "question": "why?"},
    }
    for name, sample in samples.items():
        check(document, content(name)["application/json"]["schema"], sample)
        check(document, content(name, "/batch")["application/json"]["schema"], [sample])
        for wrong in (7, [7], {"question": 7}):
            with pytest.raises(jsonschema.ValidationError):
                check(document, content(name)["application/json"]["schema"], wrong)
    form = document["components"]["schemas"]["Form_asked"]
    assert form["required"] == ["photo", "question"]
    assert form["properties"]["photo"] == {"type": "string", "format": "binary"}
    assert form["properties"]["count"] == {"type": "integer"}


def test_steps_of_sequences_have_their_query() -> None:
    kept = {"sequence": True, "sequence_start": False, "sequence_end": False}
    tables: list[tuple[dict[str, Any], Any]] = [({}, {}), ({"sequence": {}}, kept)]
    for table, expected in tables:
        node = {"backend": "Identity", **table}
        paths = operations_of(load({"pipeline": {"name": "one"}, "node": node}), protected=False)
        operations = [*paths["/predict/one"].values(), *paths["/predict/one/batch"].values()]
        for operation in operations:
            query = {
                one["name"]: one.get("required", False)
                for one in operation["parameters"]
                if one["in"] == "query"
            }
            assert query == expected
