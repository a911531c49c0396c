"""Restricted APIs: a rule holds on every route that reaches the same thing, in apps and routers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.factory import create_router, lifespan
from penstock.app.http.restriction import Restriction
from penstock.app.settings import API_GROUPS, Settings

ADMIN = "adm1n"

Routes = list[tuple[str, str]]
RULED: dict[str, Routes] = {
    "health": [
        ("GET", "/health/live"), ("GET", "/health/ready"), ("HEAD", "/health/ready"),
        ("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("GET", "/v2/models/echo/ready"),
    ],
    "metadata": [("GET", "/v2"), ("GET", "/v2/models/echo"), ("GET", "/v2/models/echo/versions/1")],
    "model-config": [
        ("GET", "/v2/models/echo/config"), ("GET", "/v2/models/echo/versions/1/config"),
    ],
    "inference": [
        ("POST", "/predict/echo"), ("PUT", "/predict/echo"), ("POST", "/predict/echo/batch"),
        ("POST", "/v2/models/echo/infer"),
    ],
    "shared-memory": [
        ("GET", "/v2/systemsharedmemory/status"), ("GET", "/v2/systemsharedmemory/region/r/status"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/systemsharedmemory/region/r/unregister"),
        ("POST", "/v2/systemsharedmemory/unregister"),
    ],
    "model-repository": [
        ("GET", "/pipelines"), ("POST", "/pipelines/echo/load"), ("POST", "/pipelines/echo/unload"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/echo/load"), ("POST", "/v2/repository/models/echo/unload"),
    ],
    "statistics": [
        ("GET", "/metrics"), ("GET", "/status"), ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/echo/versions/1/stats"),
    ],
}  # fmt: skip
APP_ONLY: dict[str, Routes] = {"metadata": [("GET", "/openapi.json"), ("GET", "/docs")]}


@pytest.fixture(params=["app", "router", "mounted"])
def served(request: Any, running: Any, tmp_path: Path) -> Any:
    """A function that serves an app, a router below a prefix, or a mounted app, with settings.

    Its `routes` are those of each group, below its `prefix`.
    """
    (tmp_path / "echo.toml").write_text('[a]\nbackend = "Identity"\n')

    def serve(**more: Any) -> Any:
        settings = Settings(
            admin_token=SecretStr(ADMIN),
            allow_model_control=True,
            allow_shared_memory=True,
            allow_trace=True,
            **more,
        )
        if request.param == "app":
            return running(create_app(tmp_path, settings=settings))
        host = FastAPI()
        if request.param == "router":
            host.include_router(create_router(tmp_path, settings=settings, prefix="/models"))
        else:
            models = create_app(tmp_path, settings=settings)
            host = FastAPI(lifespan=lambda host: lifespan(models))
            host.mount("/models", models)
        return running(host)

    start: Any = serve
    start.prefix = "" if request.param == "app" else "/models"
    start.routes = {
        group: routes + APP_ONLY.get(group, []) * (request.param != "router")
        for group, routes in RULED.items()
    }
    return start


def ask(client: httpx.Client, served: Any, method: str, path: str, **headers: Any) -> Any:
    return client.request(
        method,
        served.prefix + path,
        headers=headers,
        content=b"x" if method in {"POST", "PUT"} else None,
    )


@pytest.mark.parametrize("group", RULED)
def test_a_group_needs_its_header(served: Any, group: str) -> None:
    with served(restricted_api=f"{group}:X-Secret=s3cret") as client:
        for method, path in served.routes[group]:
            for headers in (
                {},
                {"x-secret": "wrong"},
                {"x-secret": "s3cret "[:-2]},
                {"other": "s3cret"},
            ):
                answer = ask(client, served, method, path, **headers)
                assert answer.status_code == 403, (method, path, headers)
                if method != "HEAD":
                    detail = (
                        answer.json()["error"]
                        if path.startswith("/v2")
                        else answer.json()["detail"]
                    )
                    assert detail == "This API is restricted, expecting header 'x-secret'"
            assert ask(client, served, method, path, **{"X-SECRET": "s3cret"}).status_code != 403, (
                method,
                path,
            )
        for other in RULED.keys() - {group}:
            for method, path in served.routes[other]:
                assert ask(
                    client, served, method, path, authorization=f"Bearer {ADMIN}"
                ).status_code not in {403, 500}, (method, path)


@pytest.mark.parametrize("group", RULED)
def test_a_group_is_off(served: Any, group: str) -> None:
    with served(restricted_api=f"{group}:off") as client:
        for method, path in served.routes[group]:
            assert (
                ask(
                    client, served, method, path, off="off", authorization=f"Bearer {ADMIN}"
                ).status_code
                == 403
            ), (method, path)


def test_a_header_that_comes_twice_is_refused(served: Any) -> None:
    with served(restricted_api="statistics:x-secret=s3cret") as client:
        twice = [("x-secret", "s3cret"), ("x-secret", "s3cret")]
        assert client.get(served.prefix + "/metrics", headers=twice).status_code == 403


def test_a_trace_belongs_to_the_group_trace(served: Any) -> None:
    with served(restricted_api="trace:x-secret=s3cret") as client:
        admin = {"authorization": f"Bearer {ADMIN}"}
        assert ask(client, served, "POST", "/predict/echo").status_code == 200
        assert (
            ask(
                client, served, "POST", "/predict/echo", **admin, **{"penstock-trace": "1"}
            ).status_code
            == 403
        )
        traced = ask(
            client,
            served,
            "POST",
            "/predict/echo",
            **admin,
            **{"penstock-trace": "1", "x-secret": "s3cret"},
        )
        assert traced.status_code == 200 and "trace" in traced.json()


def test_several_rules(served: Any) -> None:
    with served(
        restricted_api="health, statistics : x-a = 1 ; shared-memory:off; inference:x-b=a=b"
    ) as client:
        assert ask(client, served, "GET", "/health/live", **{"x-a": "1"}).status_code == 200
        assert ask(client, served, "GET", "/metrics", **{"x-a": "2"}).status_code == 403
        assert (
            ask(client, served, "GET", "/v2/systemsharedmemory/status", **{"x-a": "1"}).status_code
            == 403
        )
        assert ask(client, served, "POST", "/predict/echo", **{"x-b": "a=b"}).status_code == 200


def test_triton_clients_send_it(running: Any) -> None:
    app = create_app(
        {"backend": "Identity"},
        settings=Settings(restricted_api=SecretStr("health,metadata:triton-secret=s3cret")),
    )
    with (
        running(app) as client,
        tritonclient.http.InferenceServerClient(client.base_url.netloc.decode()) as triton,
    ):
        with pytest.raises(
            InferenceServerException,
            match=r"\[403\] This API is restricted, expecting header 'triton-secret'",
        ):
            triton.get_server_metadata()
        assert not triton.is_server_live()
        headers = {"triton-secret": "s3cret"}
        assert triton.get_server_metadata(headers=headers)["name"]
        assert triton.is_server_live(headers=headers)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("statistics", "rule 1: expected APIs:header=secret or APIs:off"),
        ("statistics:x", "rule 1: expected"),
        ("statistics:x=", "rule 1: expected"),
        ("statistics:=s3cret", "rule 1: expected"),
        ("statistics:x y=s3cret", "rule 1: expected"),
        (
            "health:off;statistic:x=s3cret",
            "rule 2: API 1: expected one of health, .*, logging, did you mean 'statistics'",
        ),
        (":x=s3cret", "rule 1: API 1: expected one of health"),
        ("x=s3cret:health", "rule 1: expected"),
        ("health,x=s3cret:off", "rule 1: API 2: expected one of health"),
        ("health:x=s3;s3cret:off", "rule 2: API 1: expected one of health"),
        ("health:off;health:x=s3cret", "rule 2: an earlier rule covers health already"),
        ("health:x=s3crét", "rule 1: expected only visible ASCII"),
    ],
)
def test_malformed_rules(rules: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Restriction(rules)
    assert "s3cr" not in str(caught.value)
    with pytest.raises(ValidationError, match=reason) as caught:
        Settings(restricted_api=SecretStr(rules))
    assert "s3cr" not in str(caught.value) and "s3cr" not in repr(caught.value)


def test_no_rules() -> None:
    assert not Restriction("") and not Restriction(" ; ")
    assert repr(Restriction()) == "<Restriction none>"
    assert (
        repr(Restriction("health,trace:x=s3cret;logging:off"))
        == "<Restriction health: x, trace: x, logging: off>"
    )
    for group in API_GROUPS:
        Restriction().check(group, {"headers": []})
