"""The API key and the admin token, and what each of them allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from penstock import create_app
from penstock.app.factory import create_router
from penstock.app.settings import Settings

KEY, ADMIN = "k3y", "adm1n"
ALL: dict[str, Any] = {"api_key": KEY, "admin_token": ADMIN, "allow_model_control": True}


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("pipelines")
    (directory / "echo.toml").write_text('[a]\nbackend = "Identity"\n')
    return directory


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_needs_no_key(running: Any, files: Any, path: str) -> None:
    with running(create_app(files, settings=Settings(**ALL))) as client:
        assert client.get(path).status_code == 200


PROTECTED = [
    ("POST", "/predict/echo"),
    ("PUT", "/predict/echo"),
    ("POST", "/predict/echo/batch"),
    ("POST", "/predict/none"),
    ("GET", "/pipelines"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("GET", "/status/"),
    ("GET", "/openapi.json"),
    ("GET", "/nonsense"),
    ("GET", "/health/live/"),
    ("GET", "/health/live/../../metrics"),
    ("GET", "//health/live"),
    ("POST", "/pipelines/echo/load"),
]


def test_all_else_needs_the_key(running: Any, files: Any) -> None:
    with running(create_app(files, settings=Settings(**ALL))) as client:
        for method, path in PROTECTED:
            for headers in (
                {},
                bearer("wrong"),
                {"Authorization": "Bearer"},
                {"Authorization": KEY},
                bearer(KEY + "x"),
                {"Authorization": f"Basic {KEY}"},
                {"Authorization": b"Bearer \xe9"},
            ):
                answer = client.request(
                    method, path, headers=headers, content=b"x" if method != "GET" else None
                )
                assert answer.status_code == 401, (method, path, headers)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["content-type"] == "application/problem+json"
                assert (
                    answer.json()["code"] == "unauthorized"
                    and answer.json()["request_id"] == answer.headers["x-request-id"]
                )
        twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer wrong")]
        assert client.get("/pipelines", headers=twice).status_code == 401


@pytest.mark.parametrize("token", [KEY, ADMIN])
def test_the_key_and_the_admin_token_open(running: Any, files: Any, token: str | None) -> None:
    with running(create_app(files, settings=Settings(**ALL))) as client:
        client.headers.update(bearer(token))
        assert client.post("/predict/echo", content=b"x").status_code == 200
        for path in ("/pipelines", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert (
            client.get("/metrics", headers={"Authorization": f"bearer  {token}"}).status_code == 200
        )


def test_no_key_is_needed_where_none_is_set(running: Any, files: Any) -> None:
    with running(create_app(files, settings=Settings())) as client:
        assert client.post("/predict/echo", content=b"x").status_code == 200


@pytest.mark.parametrize(
    ("settings", "token", "status"),
    [
        ({}, None, 403),
        ({}, "wrong", 403),
        ({"admin_token": ADMIN}, ADMIN, 403),
        ({"allow_model_control": True}, None, 403),
        ({"allow_model_control": True, "api_key": KEY}, KEY, 403),
        ({"admin_token": ADMIN, "allow_model_control": True}, None, 401),
        ({"admin_token": ADMIN, "allow_model_control": True}, "wrong", 401),
        ({"admin_token": ADMIN, "allow_model_control": True}, ADMIN, 200),
        (ALL, KEY, 403),
        (ALL, None, 401),
        (ALL, "wrong", 401),
        (ALL, ADMIN, 200),
    ],
)
def test_loading_and_unloading_need_the_admin_token(
    running: Any, files: Any, settings: Any, token: str | None, status: Any
) -> None:
    with running(create_app(files, settings=Settings(**settings))) as client:
        for verb in ("unload", "load"):
            answer = client.post(f"/pipelines/echo/{verb}", headers=bearer(token))
            assert answer.status_code == status, answer.text
            if status != 200:
                assert answer.headers["content-type"] == "application/problem+json"
            if status == 401 and "api_key" not in settings:
                wrong = "the admin token is wrong"
                missing = "expected the header Authorization: Bearer <admin token>"
                assert answer.json()["detail"] == (wrong if token else missing)
        assert (
            client.post(
                "/predict/echo", content=b"x", headers=bearer(settings.get("api_key"))
            ).status_code
            == 200
        )


def test_load_and_unload_change_what_is_served(running: Any, tmp_path: Path) -> None:
    file = tmp_path / "echo.toml"
    file.write_text('[a]\nbackend = "Identity"\n')
    with running(
        create_app(
            tmp_path, settings=Settings(admin_token=SecretStr(ADMIN), allow_model_control=True)
        )
    ) as client:
        client.headers.update(bearer(ADMIN))
        assert client.post("/pipelines/echo/unload").json() == {"name": "echo", "state": "unloaded"}
        assert client.post("/predict/echo", content=b"x").status_code == 404
        assert client.post("/pipelines/echo/unload").status_code == 404
        assert client.get("/health/ready").status_code == 200
        (tmp_path / "more.toml").write_text('[a]\nbackend = "Identity"\n')
        assert client.post("/pipelines/more/load").json()["state"] == "ready"
        assert client.post("/predict/more", content=b"x").status_code == 200
        answer = client.post("/pipelines/moore/load")
        assert answer.status_code == 404 and "did you mean 'more'" in answer.json()["detail"]
        file.write_text('[a]\nbackend = "Identiti"\n')
        answer = client.post("/pipelines/echo/load")
        assert (answer.status_code, answer.json()["code"]) == (
            422,
            "config",
        ) and "did you mean 'Identity'" in answer.json()["detail"]
        file.write_text('[a]\nbackend = "OnnxTensor"\nmodel = "absent.onnx"\n')
        answer = client.post("/pipelines/echo/load")
        assert (answer.status_code, answer.json()["code"]) == (
            500,
            "load_failed",
        ) and "absent.onnx" in answer.json()["detail"]
        states = {
            pipeline["name"]: pipeline["state"]
            for pipeline in client.get("/pipelines").json()["pipelines"]
        }
        assert (
            states == {"echo": "failed", "more": "ready"}
            and "absent.onnx" not in client.get("/pipelines").text
        )


def test_the_key_protects_a_router_too(running: Any, files: Any) -> None:
    from fastapi import FastAPI

    host = FastAPI()
    host.include_router(create_router(files, settings=Settings(**ALL), prefix="/models"))
    with running(host) as client:
        for path in ("/models/predict/echo", "/models/predict/echo/batch", "/models/predict/none"):
            answer = client.post(path, content=b"x")
            assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
        assert (
            client.get("/models/metrics").status_code
            == client.get("/models/pipelines").status_code
            == 401
        )
        assert client.get("/models/health/ready").status_code == 200
        assert (
            client.post("/models/predict/echo", content=b"x", headers=bearer(KEY)).status_code
            == 200
        )
        assert client.post("/models/pipelines/echo/unload", headers=bearer(KEY)).status_code == 403


def test_a_key_that_could_not_be_sent_is_refused() -> None:
    for key in ("", "two words", "né", "line\nend"):
        with pytest.raises(ValueError, match="visible ASCII"):
            Settings(api_key=SecretStr(key))
    assert "k3y" not in repr(Settings(**ALL))
