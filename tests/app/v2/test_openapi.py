"""The protocol in the OpenAPI document: valid, and true to the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    document = served.http.get("/openapi.json").json()
    validate(document)
    return document


def check(document: Any, operation: Any, answer: Any) -> None:
    content = operation["responses"][str(answer.status_code)]["content"]
    schema = {
        **content[answer.headers["content-type"]]["schema"],
        "components": document["components"],
    }
    jsonschema.Draft202012Validator(schema).validate(answer.json())


@pytest.mark.parametrize("model", ["simple", "digits", "text", "nope"])
def test_answers_match_the_document(served: Served, document: Any, model: str) -> None:
    for path, methods in document["paths"].items():
        if path.startswith("/v2") and "get" in methods and "{region}" not in path:
            check(document, methods["get"], served.http.get(path.format(model=model, version="1")))


def test_infer_matches_the_document(served: Served, document: Any) -> None:
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    request = {
        **infer["requestBody"]["content"]["application/json"]["schema"],
        "components": document["components"],
    }
    for good in (
        served.simple(),
        served.simple(id="x", parameters={"timeout": 9_000_000}, outputs=[{"name": "OUTPUT0"}]),
    ):
        jsonschema.Draft202012Validator(request).validate(good)
        check(document, infer, served.infer("simple", good))
    check(document, infer, served.infer("simple", {"inputs": []}))


def test_the_answer_to_an_unknown_encoding_matches_the_document(
    served: Served, document: Any
) -> None:
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    answer = served.infer("simple", served.simple(), headers={"Content-Encoding": "br"})
    assert answer.status_code == 501
    check(document, infer, answer)


@pytest.mark.parametrize(
    ("group", "path"),
    [
        ("health", "/v2/health/live"),
        ("health", "/v2/health/ready"),
        ("health", "/v2/models/{model}/ready"),
        ("metadata", "/v2"),
        ("metadata", "/v2/models/{model}"),
        ("model-config", "/v2/models/{model}/config"),
        ("inference", "/v2/models/{model}/infer"),
        ("statistics", "/v2/models/stats"),
        ("statistics", "/v2/models/{model}/stats"),
        ("model-repository", "/v2/repository/index"),
        ("logging", "/v2/logging"),
        ("trace", "/v2/trace/setting"),
        ("trace", "/v2/models/{model}/trace/setting"),
        ("shared-memory", "/v2/systemsharedmemory/status"),
        ("shared-memory", "/v2/systemsharedmemory/region/{region}/status"),
    ],
)
def test_restrictions_are_described(group: str, path: str) -> None:
    other = "logging" if group == "trace" else "trace"
    for rule, described in ((f"{group}:x=s3cret", True), (f"{other}:x=s3cret", False)):
        document = create_app(settings=Settings(restricted_api=SecretStr(rule))).openapi()
        validate(document)
        (operation,) = document["paths"][path].values()
        assert ("403" in operation["responses"]) == described
        assert "s3cret" not in str(document)


def test_the_key_is_described(running: Any) -> None:
    with running(create_app(settings=Settings(api_key=SecretStr("secret")))) as client:
        paths = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()[
            "paths"
        ]
        assert (
            paths["/v2"]["get"]["security"]
            == paths["/v2/models/{model}/infer"]["post"]["security"]
            == [{"key": []}]
        )
        for path in ("/v2/health/live", "/v2/health/ready"):
            operation = paths[path]["get"]
            assert "security" not in operation and "401" not in operation["responses"]
        assert client.get("/v2").status_code == 401 and "401" in paths["/v2"]["get"]["responses"]
    for methods in create_app().openapi()["paths"].values():
        assert not any(
            "security" in operation or "401" in operation["responses"]
            for operation in methods.values()
        )
