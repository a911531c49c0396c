"""When `penstock serve` collects garbage: not while a request is in flight."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn

from penstock.app.server import serve
from penstock.app.settings import Settings
from penstock.backends.base import Backend, Context
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository
from penstock.testing import Gate

GATE = Gate()


@register_backend("FreezingGate")
class Held(Backend):
    def init(self, params: Any, context: Context) -> None:
        GATE.reset()

    def forward(self, batch: list[Item]) -> None:
        GATE.wait()
        for item in batch:
            item["result"] = item["data"]


async def test_a_load_collects_once_no_request_is_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collections: list[int] = []
    monkeypatch.setattr(serve, "QUIET_SECONDS", 0.001)
    monkeypatch.setattr(serve, "tune_process", lambda: None)  # it would tune the tests' process
    monkeypatch.setattr(serve, "collect_and_freeze", lambda: collections.append(1))
    repository = Repository([load("FreezingGate", name="gate")])
    server = serve.Server(uvicorn.Config("unused"), repository, Settings())
    await server._load()
    assert collections == [1]  # before any request
    request = asyncio.create_task(repository.get("gate")({"data": 1}))
    await GATE.entered()
    await repository.load(load("Identity", name="other"))
    await repository.unload("other")
    await asyncio.sleep(0.01)
    assert collections == [1]
    GATE.open()
    await request
    freezing = server._freezing
    assert freezing is not None
    await freezing
    assert collections == [1, 1]  # both changes in one
    await repository.close(1)
    assert server._freezing is freezing  # a server that ends need not collect


async def test_a_request_of_an_exposed_node_delays_the_collection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "collect_and_freeze", lambda: None)
    tables = {"pipeline": {"expose": {"a": {}}}, "a": {"backend": "Identity"}}
    repository = Repository([load(tables, name="p")])
    await repository.start()
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:  # the second is not quiet
            await repository.models["p.a"]({"data": 1})

    server = serve.Server(uvicorn.Config("unused"), repository, Settings())
    monkeypatch.setattr(asyncio, "sleep", wait)
    await server._freeze_when_quiet()
    monkeypatch.undo()
    assert waits == [serve.QUIET_SECONDS] * 2
    await repository.close(1)
