"""Whose share of the server a request takes under overload, at every door."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock import Pipeline, create_app, create_router
from penstock.app.http.auth import client_of
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings

ECHO = {
    "pipeline": {"name": "echo", "inputs": {"data": {"kind": "bytes"}}},
    "node": {"backend": "Identity"},
}
TENSORS = {
    "pipeline": {
        "name": "tensors",
        "inputs": {"X": {"kind": "tensor", "dtype": "FP64", "shape": [-1]}},
        "outputs": {"result": {"kind": "tensor", "dtype": "FP64", "shape": [-1]}},
    },
    "node": {"backend": "Identity"},
}
IMAGES = json.dumps({"images": [base64.b64encode(b"data").decode()] * 2}).encode()
INFER = {"inputs": [{"name": "X", "shape": [1], "datatype": "FP64", "data": [1.0]}]}
EVENTS = {"accept": "text/event-stream"}
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "predict": ("/predict/echo", {"content": b"data"}),
    "version": ("/predict/echo/versions/1", {"content": b"data"}),
    "batch": (
        "/predict/echo/batch",
        {"content": IMAGES, "headers": {"content-type": "application/json"}},
    ),
    "events": ("/predict/echo", {"content": b"data", "headers": EVENTS}),
    "infer": ("/v2/models/tensors/infer", {"json": INFER}),
    "infer a version": ("/v2/models/tensors/versions/1/infer", {"json": INFER}),
}
KEYS = Settings(api_key=SecretStr("key"), admin_token=SecretStr("token"))


class Untouched:
    """Middleware that changes nothing, and keeps requests from the direct way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The clients that pipelines were told, before the body and with it."""
    seen: list[Any] = []
    submit, check = Pipeline.submit_nowait, Pipeline.check_admission
    parameters = signature(submit)

    def submitted(self: Pipeline, *arguments: Any, **more: Any) -> Any:
        seen.append(parameters.bind(self, *arguments, **more).arguments.get("client"))
        return submit(self, *arguments, **more)

    def checked(
        self: Pipeline,
        timeout: float | None = None,
        priority: int | None = None,
        client: Any = None,
    ) -> None:
        seen.append(client)
        check(self, timeout, priority, client)

    monkeypatch.setattr(Pipeline, "submit_nowait", submitted)
    monkeypatch.setattr(Pipeline, "check_admission", checked)
    return seen


@contextmanager
def served(running: Any, way: str, settings: Settings, **server: Any) -> Iterator[httpx.Client]:
    """Serve the pipelines: directly, behind middleware, or as routes of a host."""
    app: Any
    if way == "router":
        app = FastAPI()
        app.include_router(create_router([ECHO, TENSORS], settings=settings))
    else:
        middleware = [Middleware(Untouched)] if way == "middleware" else []
        app = create_app([ECHO, TENSORS], settings=settings, middleware=middleware)
    server = {"proxy_headers": False} | server
    with running(app, http=Connections(settings), **server) as client:
        yield client


def ask(client: httpx.Client, door: str, address: str = "127.0.0.1", **headers: str) -> None:
    path, request = DOORS[door]
    headers = {**request.get("headers", {}), **headers}
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(transport=transport, base_url=client.base_url, timeout=30) as other:
        answer = other.post(path, **{**request, "headers": headers})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("way", ["direct", "middleware", "router"])
@pytest.mark.parametrize("door", DOORS)
def test_a_client_is_its_address(running: Any, clients: list[Any], way: str, door: str) -> None:
    with served(running, way, Settings()) as client:
        ask(client, door, "127.0.0.2", **{"x-forwarded-for": "192.0.2.1"})
    assert set(clients) == {"127.0.0.2"}


@pytest.mark.parametrize("way", ["direct", "middleware", "router"])
@pytest.mark.parametrize("door", DOORS)
def test_a_client_is_its_key_if_the_server_has_one(
    running: Any, clients: list[Any], way: str, door: str
) -> None:
    with served(running, way, KEYS) as client:
        for address in ("127.0.0.1", "127.0.0.2"):
            ask(client, door, address, authorization="Bearer key")
        assert set(clients) == {"api_key"}
        clients.clear()
        ask(client, door, authorization="Bearer token")
        assert set(clients) == {"admin_token"}


def test_a_key_that_nobody_checks_is_no_client(running: Any, clients: list[Any]) -> None:
    with served(running, "direct", Settings()) as client:
        ask(client, "predict", authorization="Bearer forged")
    assert set(clients) == {"127.0.0.1"}


@pytest.mark.parametrize("door", DOORS)
def test_a_trusted_proxy_names_the_client(running: Any, clients: list[Any], door: str) -> None:
    proxies = {"proxy_headers": True, "forwarded_allow_ips": "127.0.0.1"}
    with served(running, "direct", Settings(), **proxies) as client:
        ask(client, door, **{"x-forwarded-for": "192.0.2.1, 198.51.100.7"})
        assert set(clients) == {"198.51.100.7"}
        clients.clear()
        ask(client, door, "127.0.0.2", **{"x-forwarded-for": "198.51.100.7"})  # not trusted
        assert set(clients) == {"127.0.0.2"}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("settings", [Settings(), KEYS])
def test_a_host_may_name_the_client(
    running: Any, clients: list[Any], door: str, settings: Settings
) -> None:
    class Tenants:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, "penstock.client": "tenant 7"}, receive, send)

    app = create_app([ECHO, TENSORS], settings=settings, middleware=[Middleware(Tenants)])
    with running(app, http=Connections(settings), proxy_headers=False) as client:
        ask(client, door, authorization="Bearer key")
    assert set(clients) == {"tenant 7"}


def test_requests_without_an_address_are_of_one_client() -> None:
    assert client_of({"client": None}) is client_of({}) is None  # as on a Unix socket
