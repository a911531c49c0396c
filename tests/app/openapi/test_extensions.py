"""The protocol's extensions in the OpenAPI document: true to the answers, and listed if allowed."""

from __future__ import annotations

import os
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings

ON: dict[str, Any] = {
    "admin_token": "adm1n",
    "allow_model_control": True,
    "allow_shared_memory": True,
    "allow_log_settings": True,
    "allow_trace_settings": True,
}
HEADERS = {"Authorization": "Bearer adm1n"}
PATHS = {
    "/v2/models/stats",
    "/v2/models/{model}/stats",
    "/v2/models/{model}/versions/{version}/stats",
    "/v2/repository/index",
    "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/region/{region}/status",
    "/v2/cudasharedmemory/status",
    "/v2/cudasharedmemory/region/{region}/status",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
}
ADMINISTRATIVE = {
    "allow_model_control": {
        "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/unload",
    },
    "allow_shared_memory": {
        "/v2/systemsharedmemory/region/{region}/register",
        "/v2/systemsharedmemory/region/{region}/unregister",
        "/v2/systemsharedmemory/unregister",
        "/v2/cudasharedmemory/region/{region}/register",
        "/v2/cudasharedmemory/region/{region}/unregister",
        "/v2/cudasharedmemory/unregister",
    },
}


@pytest.fixture
def region() -> Any:
    memory = shared_memory.SharedMemory(f"penstock_openapi_{os.getpid()}", create=True, size=64)
    yield memory.name
    memory.close()
    memory.unlink()


def test_answers_match_the_document(running: Any, digits: Path, digit: bytes, region: str) -> None:
    with running(create_app(digits, settings=Settings(**ON))) as client:
        document = client.get("/openapi.json").json()
        validate(document)

        def check(method: Any, path: Any, status: Any, json: Any = None, **names: Any) -> None:
            operation = document["paths"][path][method]
            answer = client.request(method, path.format(**names), headers=HEADERS, json=json)
            assert answer.status_code == status, answer.text
            response = operation["responses"][str(status)]
            if "content" not in response:
                assert answer.content == b""
                return
            schema = {
                **response["content"]["application/json"]["schema"],
                "components": document["components"],
            }
            jsonschema.Draft202012Validator(schema).validate(answer.json())
            if json is not None and status == 200:
                wanted = operation["requestBody"]["content"]["application/json"]["schema"]
                jsonschema.Draft202012Validator(
                    {**wanted, "components": document["components"]}
                ).validate(json)

        client.post("/predict/digits", content=digit).raise_for_status()
        model = "/v2/models/{model}/trace/setting"
        check("get", "/v2/trace/setting", 200)
        check("get", model, 400, model="none")
        check("post", model, 200, {"trace_rate": "7", "trace_level": None}, model="digits")
        check("post", "/v2/trace/setting", 400, {"trace_level": ["TIMESTAMPS"]})
        check("post", "/v2/trace/setting", 501, {"trace_file": "x"})
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
        wanted = {"raw_handle": {"b64": "A" * 86 + "=="}, "device_id": 99, "byte_size": 64}
        check("post", "/v2/cudasharedmemory/region/{region}/register", 400, wanted, region="r")
        check("get", "/v2/cudasharedmemory/status", 200)
        check("get", "/v2/cudasharedmemory/region/{region}/status", 404, region="x")
        check("post", "/v2/cudasharedmemory/region/{region}/unregister", 200, region="r")
        check("post", "/v2/cudasharedmemory/unregister", 200)
        check("get", "/v2/logging", 200)
        check("post", "/v2/logging", 200, {"log_info": None})
        check("post", "/v2/logging", 400, {"log_info": 1})


@pytest.mark.parametrize(
    "allowed",
    [
        (),
        ("allow_model_control",),
        ("allow_shared_memory",),
        ("allow_model_control", "allow_shared_memory"),
    ],
)
def test_operations_are_described_if_they_are_allowed(allowed: Any) -> None:
    allow: dict[str, Any] = dict.fromkeys(allowed, True)
    app = create_app(settings=Settings(admin_token=SecretStr("adm1n"), **allow))
    document = app.openapi()
    assert document["paths"].keys() >= PATHS
    for setting, paths in ADMINISTRATIVE.items():
        assert (document["paths"].keys() & paths) == (paths if setting in allowed else set())
        for path in paths & document["paths"].keys():
            operation = document["paths"][path]["post"]
            assert operation["security"] == [{"admin": []}]
            assert ("requestBody" in operation) != path.endswith("/unregister")
    assert ("admin" in document["components"].get("securitySchemes", {})) == bool(allowed)


def test_without_an_admin_token_nothing_that_needs_it_is_described() -> None:
    paths = (
        create_app(settings=Settings(allow_model_control=True, allow_shared_memory=True))
        .openapi()["paths"]
        .keys()
    )
    assert paths >= PATHS and not paths & set().union(*ADMINISTRATIVE.values())


def test_every_operation_requires_the_key() -> None:
    paths = create_app(settings=Settings(api_key=SecretStr("k3y"))).openapi()["paths"]
    for path in PATHS:
        assert all(operation["security"] == [{"key": []}] for operation in paths[path].values()), (
            path
        )
