"""Allowed hosts and origins, in the app and before the API key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from penstock import create_app
from penstock.app.factory import _App
from penstock.app.http.hosts import EXPOSED_HEADERS, host_of
from penstock.app.settings import Settings

PATHS = ("/health/live", "/predict/echo", "/v2", "/openapi.json", "/nothing")
ECHO = {"backend": "Identity"}


def serve(running: Any, **settings: Any) -> Any:
    return running(
        create_app({"pipeline": {"name": "echo"}, "a": ECHO}, settings=Settings(**settings))
    )


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("a.example", True),
        ("A.Example:8000", True),
        ("a.example.", True),
        ("x.b.example", True),
        ("y.x.b.example:1", True),
        ("b.example", False),
        ("xb.example", False),
        ("a.example.evil", False),
        ("evil", False),
        ("127.0.0.1", False),
        ("[::1]:80", True),
        ("[::2]", False),
        ("", False),
    ],
)
def test_only_allowed_hosts_are_answered(running: Any, host: str, allowed: bool) -> None:
    with serve(running, allowed_hosts="A.example, *.b.example., [::1]") as client:
        for path in PATHS:
            answer = client.post(path, headers={"host": host}, content=b"x")
            assert (answer.status_code == 400) is not allowed, (path, answer.text)
            if not allowed:
                text = answer.json()["error" if path == "/v2" else "detail"]
                assert "allowed_hosts" in text and answer.headers["x-request-id"]


def test_without_the_setting_any_host_is_answered(running: Any) -> None:
    for settings in ({}, {"allowed_hosts": "*"}):
        with serve(running, **settings) as client:
            answer = client.get("/health/live", headers={"host": "any.example"})
            assert answer.status_code == 200


def test_the_host_is_checked_before_the_key(running: Any) -> None:
    with serve(running, allowed_hosts="a", api_key=SecretStr("k3y")) as client:
        assert client.get("/metrics", headers={"host": "b"}).status_code == 400
        assert client.get("/metrics", headers={"host": "a"}).status_code == 401


def preflight(client: httpx.Client, path: str, origin: str, method: str = "POST") -> Any:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,penstock-priority",
    }
    return client.options(path, headers=headers)


@pytest.mark.parametrize("path", PATHS)
def test_pages_of_allowed_origins_may_use_the_server(running: Any, path: str) -> None:
    allowed = "https://a.example"
    with serve(
        running, cors_origins=f"{allowed}, http://localhost:3000", api_key=SecretStr("k3y")
    ) as client:
        answer = preflight(client, path, allowed)
        assert answer.status_code == 200  # a browser sends no key with it
        assert answer.headers["access-control-allow-origin"] == allowed
        granted = answer.headers["access-control-allow-headers"].split(",")
        assert {"authorization", "penstock-priority"} <= set(granted)
        for method in ("GET", "PUT"):
            assert preflight(client, path, "http://localhost:3000", method).status_code == 200
        assert preflight(client, path, allowed, "DELETE").status_code == 400
        refused = preflight(client, path, "https://evil.example")
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        for headers in ({}, {"authorization": "Bearer k3y"}):
            answer = client.post(path, headers={"origin": allowed, **headers}, content=b"x")
            # Errors too: the page must be able to read why.
            assert answer.headers["access-control-allow-origin"] == allowed
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert exposed == [*EXPOSED_HEADERS] and answer.headers["vary"] == "Origin"
            answer = client.post(path, headers={"origin": "https://b.example", **headers})
            assert "access-control-allow-origin" not in answer.headers


def test_all_origins(running: Any) -> None:
    with serve(running, cors_origins="*") as client:
        assert preflight(client, "/predict/echo", "https://any.example").status_code == 200
        answer = client.post(
            "/predict/echo", headers={"origin": "https://any.example"}, content=b"x"
        )
        assert answer.headers["access-control-allow-origin"] == "*"


def test_without_the_settings_the_short_cut_stays_open(running: Any) -> None:
    for settings, is_open in (
        ({}, True),
        ({"cors_origins": "*"}, False),
        ({"allowed_hosts": "*"}, False),
    ):
        app = create_app(ECHO, settings=Settings.model_validate(settings))
        with running(app) as client:
            assert client.get("/health/live").status_code == 200
            assert isinstance(app, _App)
            assert (app._hot is not None) is is_open


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("A.example:80", "a.example"),
        ("a.example.", "a.example"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("", ""),
    ],
)
def test_the_name_of_a_host_header(value: str, name: str) -> None:
    assert host_of(value) == name


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("allowed_hosts", "https://a.example"),
        ("allowed_hosts", "a.example:80"),
        ("allowed_hosts", "a.*.example"),
        ("allowed_hosts", "a b"),
        ("cors_origins", "a.example"),
        ("cors_origins", "https://a.example/"),
        ("cors_origins", "https://*.example"),
        ("cors_origins", "null"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("trusted_proxies", "proxy"),
        ("trusted_proxies", "10.0.0.0/8, x"),
    ],
)
def test_malformed_settings(setting: str, value: str) -> None:
    with pytest.raises(ValidationError, match=r"is not a host|is not an origin|is not an address"):
        Settings.model_validate({setting: value})
