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
from ...server.doors import Door, normal
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
    with running(app, http=connections, proxy_headers=False, server_header=False) as client:
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
