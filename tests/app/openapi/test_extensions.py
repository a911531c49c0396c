"""The extensions in the OpenAPI document: valid, true of what is answered, and there only where they are allowed."""

from __future__ import annotations

import os
from multiprocessing import shared_memory
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from penstock import create_app
from penstock.app.settings import Settings

ON = {"admin_token": "adm1n", "allow_model_control": True, "allow_shared_memory": True}
HEADERS = {"Authorization": "Bearer adm1n"}
PATHS = {
    "/v2/models/stats", "/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats", "/v2/repository/index",
    "/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/{region}/status",
}  # fmt: skip
ADMINISTRATIVE = {
    "allow_model_control": {"/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"},
    "allow_shared_memory": {
        "/v2/systemsharedmemory/region/{region}/register", "/v2/systemsharedmemory/region/{region}/unregister",
        "/v2/systemsharedmemory/unregister",
    },
}  # fmt: skip


@pytest.fixture
def region() -> Any:
    found = shared_memory.SharedMemory(f"penstock_openapi_{os.getpid()}", create=True, size=64)
    yield found.name
    found.close()
    found.unlink()


def test_answers_are_as_described(running: Any, digits: Any, digit: Any, region: Any) -> None:
    with running(create_app(digits, settings=Settings(**ON))) as client:
        document = client.get("/openapi.json").json()
        validate(document)

        def check(method: Any, path: Any, status: Any, json: Any = None, **names: Any) -> None:
            operation = document["paths"][path][method]
            answer = client.request(method, path.format(**names), headers=HEADERS, json=json)
            assert answer.status_code == status, answer.text
            found = operation["responses"][str(status)]
            if "content" not in found:
                assert answer.content == b""
                return
            schema = {
                **found["content"]["application/json"]["schema"],
                "components": document["components"],
            }
            jsonschema.Draft202012Validator(schema).validate(answer.json())
            if json is not None and status == 200:
                wanted = operation["requestBody"]["content"]["application/json"]["schema"]
                jsonschema.Draft202012Validator(
                    {**wanted, "components": document["components"]}
                ).validate(json)

        client.post("/predict/digits", content=digit).raise_for_status()
        check("get", "/v2/models/stats", 200)
        check("get", "/v2/models/{model}/stats", 200, model="digits")
        check("get", "/v2/models/{model}/stats", 400, model="none")
        check(
            "get", "/v2/models/{model}/versions/{version}/stats", 200, model="digits", version="1"
        )
        check("post", "/v2/repository/index", 200, {"ready": True})
        check("post", "/v2/repository/index", 400, {"ready": 1})
        check("post", "/v2/repository/models/{model}/load", 404, model="none")
        check("post", "/v2/repository/models/{model}/load", 200, {"parameters": {}}, model="digits")
        check(
            "post",
            "/v2/repository/models/{model}/unload",
            200,
            {"parameters": {"unload_dependents": True}},
            model="digits",
        )
        wanted = {"key": region, "offset": 0, "byte_size": 64}
        check("post", "/v2/systemsharedmemory/region/{region}/register", 200, wanted, region="r")
        check("post", "/v2/systemsharedmemory/region/{region}/register", 400, wanted, region="r")
        check("get", "/v2/systemsharedmemory/status", 200)
        check("get", "/v2/systemsharedmemory/region/{region}/status", 200, region="r")
        check("get", "/v2/systemsharedmemory/region/{region}/status", 404, region="x")
        check("post", "/v2/systemsharedmemory/region/{region}/unregister", 200, region="r")
        check("post", "/v2/systemsharedmemory/unregister", 200)


@pytest.mark.parametrize(
    "allowed",
    [
        (),
        ("allow_model_control",),
        ("allow_shared_memory",),
        ("allow_model_control", "allow_shared_memory"),
    ],
)
def test_what_is_allowed_is_described(allowed: Any) -> None:
    app = create_app(settings=Settings(admin_token="adm1n", **dict.fromkeys(allowed, True)))
    found = app.openapi()
    assert found["paths"].keys() >= PATHS
    for setting, paths in ADMINISTRATIVE.items():
        assert (found["paths"].keys() & paths) == (paths if setting in allowed else set())
        for path in paths & found["paths"].keys():
            operation = found["paths"][path]["post"]
            assert operation["security"] == [{"admin": []}]
            assert ("requestBody" in operation) != path.endswith("/unregister")
    assert ("admin" in found["components"].get("securitySchemes", {})) == bool(allowed)


def test_without_the_admins_token_nothing_of_his_is_described() -> None:
    found = (
        create_app(settings=Settings(allow_model_control=True, allow_shared_memory=True))
        .openapi()["paths"]
        .keys()
    )
    assert found >= PATHS and not found & set().union(*ADMINISTRATIVE.values())


def test_the_key_is_asked_for() -> None:
    paths = create_app(settings=Settings(api_key="k3y")).openapi()["paths"]
    for path in PATHS:
        assert all(operation["security"] == [{"key": []}] for operation in paths[path].values()), (
            path
        )
