"""A front with a model process against one process: the same bytes come back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from penstock import create_app
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings
from penstock.pipelines.config.load import load

from ...server import test_direct, test_direct_infer
from ...server.doors import Door, normal, request
from .door import front_door

PIPELINES = [*test_direct.PIPELINES, *test_direct_infer.PIPELINES]
SETTINGS: dict[str, Any] = {
    "max_body": 3_000_000,
    "max_images": 3,
    "admin_token": SecretStr("admin"),
    "allow_trace": True,
    "allow_shared_memory": True,
    "max_json_depth": 20,
}
CASES = {**test_direct.CASES, **test_direct_infer.LARGE}
LAST = test_direct.LAST

Doors = tuple[Door, Door]


@contextlib.contextmanager
def one_process(running: Any, app: Any, settings: Settings) -> Iterator[Door]:
    connections = Connections(settings)
    with running(
        app,
        http=connections,
        proxy_headers=False,
        server_header=False,
        root_path=settings.root_path,
    ) as client:
        yield Door(client.base_url.port, connections)


@pytest.fixture(scope="module")
def doors(running: Any) -> Iterator[Doors]:
    settings = Settings(**SETTINGS)
    app = create_app([load(pipeline) for pipeline in PIPELINES], settings=settings)
    with (
        front_door(*PIPELINES, **SETTINGS) as (front, _),
        one_process(running, app, settings) as door,
    ):
        yield front, door


@pytest.mark.parametrize("name", CASES)
def test_same_answer(doors: Doors, name: str) -> None:
    two, one = (normal(door.exchange(CASES[name] * 2 + LAST)) for door in doors)
    assert two == one
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in one)


@pytest.mark.parametrize("name", ["raw", "json", "passed deadline", "v2 binary", "chunked"])
def test_same_answer_to_pieces(doors: Doors, name: str) -> None:
    two, one = (normal(door.exchange(CASES[name] + LAST, 7)) for door in doors)
    assert two == one


@pytest.mark.parametrize("seed", range(12))
def test_same_answers_to_spoilt_requests(doors: Doors, seed: int) -> None:
    data = test_direct.spoilt(seed)
    two, one = (normal(door.exchange(data)) for door in doors)
    assert two == one


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": SecretStr("key"), "body_timeout": 0.1, "discard_timeout": 0.1},
        {"restricted_api": SecretStr("inference:secret=word"), "root_path": "/root"},
        {"allowed_hosts": "elsewhere"},
        {"cors_origins": "https://page", "trusted_proxies": "*"},
    ],
)
def test_same_answer_with_settings(running: Any, settings: dict[str, Any]) -> None:
    given = Settings(**settings)
    app = create_app([load(pipeline) for pipeline in test_direct.PIPELINES], settings=given)
    with (
        front_door(*test_direct.PIPELINES, **settings) as (front, _),
        one_process(running, app, given) as door,
    ):
        for lines in (
            [],
            ["Authorization: Bearer key"],
            ["Authorization: Bearer wrong"],
            ["Secret: word"],
            ["Origin: https://page", "X-Forwarded-For: 192.0.2.7"],
        ):
            for data in (
                request("/predict/one", b"data", *lines),
                request("/predict/one", bytes(1500), *lines),
                request("/root/predict/chain", b"data", *lines),
                request("/predict/nothing", b"data", *lines),
                test_direct.tensors([1, 2], *lines),
            ):
                assert normal(front.exchange(data + LAST)) == normal(door.exchange(data + LAST))
        if "body_timeout" in settings:
            late = request("/predict/one", b"data", "Authorization: Bearer key")[:-1]
            assert normal(front.exchange(late)) == normal(door.exchange(late))
