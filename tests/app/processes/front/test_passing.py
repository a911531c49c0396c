"""Requests whose front nodes run in the front process: what crosses, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.app.http.predict_call import PredictHead
from penstock.app.processes.control import Control
from penstock.app.processes.front.nodes import FrontNodes
from penstock.app.processes.messages import (
    ASK,
    BODY,
    CANCEL,
    FREE,
    GO,
    PASSED,
    PRESSURE,
    REQUEST,
    RESEND,
    TABLE,
    TUNNEL,
)
from penstock.app.settings import Settings
from penstock.pipelines.front_table import front_table
from penstock.pipelines.repository import Repository
from penstock.pipelines.runs.passed import Passed, unpack

from ...server.wire import until
from .stub import Model, Parent, front, request

OPERATORS = """
import threading
import numpy as np

entered, opened = threading.Semaphore(0), threading.Event()


def work(data):
    if data[:1] == b"h":
        entered.release()
        assert opened.wait(20)
    if data[:1] == b"l":
        return lambda: data  # nothing can pickle it
    return np.frombuffer(data, np.uint8).copy()
"""
PATH = "/predict/images"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passing")
    (folder / "ops.py").write_text(OPERATORS)
    path = folder / "images.toml"
    path.write_text(
        "[work]\nbackend = 'Python[ops.py:work]'\nfront = true\nnext = 'last'\n"
        "[last]\nbackend = 'Identity'\n"
    )
    return path


@asynccontextmanager
async def passing(file: Path, **settings: Any) -> AsyncIterator[tuple[Parent, Model, Repository]]:
    """Run a front with front nodes, linked to a stub. The repository makes the tables."""
    repository = Repository.read(file)
    await repository.start()
    nodes = FrontNodes(1, 1, Settings())
    try:
        async with front(nodes=nodes, **settings) as parent:
            model = await parent.link(answers=None)
            model.packets.send((TABLE, front_table(repository), True))
            await until(lambda: (Control.PREPARED, 1) in parent.told)
            assert nodes.pipelines()
            yield parent, model, repository
    finally:
        await nodes.close(5)
        await repository.close(1)


async def passed_by(model: Model) -> tuple[int, Passed]:
    """Return the number of the next request that crosses passed, and what crosses."""
    await until(lambda: PASSED in model.kinds())
    message = next(message for message in model.taken if message[0] == PASSED)
    model.taken.remove(message)
    bodies = [message[3], *message[4]]
    contents = [body if isinstance(body, bytes) else content(model, body) for body in bodies]
    return message[1], unpack(contents[0], contents[1:])


def content(model: Model, body: tuple[int, int]) -> bytes:
    assert model.mapping is not None
    copied = bytes(model.mapping.view(*body))
    model.packets.send((FREE, [body[0]]))
    return copied


async def press(parent: Parent, model: Model, token: str, on: bool) -> None:
    """Begin or end pressure, and wait until the front knows."""
    nodes = parent.front._nodes
    assert nodes is not None
    found = nodes.find(PredictHead("images", False, []))
    assert found is not None
    model.packets.send((PRESSURE, token, on))
    await until(lambda: found.under_pressure is on)


def module_of(parent: Parent) -> Any:
    assert parent.front._nodes is not None
    ((_, pipeline),) = parent.front._nodes.pipelines()
    function = pipeline.config.nodes["work"].instance_groups[0].spec.cls.function  # type: ignore[attr-defined]
    return function.__globals__


@pytest.mark.parametrize("size", [10, 100_000, 300_000, 3_000_000])
async def test_what_front_nodes_make_of_a_body_crosses_in_its_place(file: Path, size: int) -> None:
    async with passing(file) as (parent, model, repository):
        client = await parent.connect()
        body = b"a" * size
        client.send(request(PATH, body, b"X-Request-Id: mine"))
        if size > 1 << 18:
            await until(lambda: ASK in model.kinds())
            model.packets.send((GO, 1))
        number, passed = await passed_by(model)
        assert passed.token == repository.get("images").token
        assert passed.request_id == "mine"
        assert passed.item is not None
        assert bytes(passed.item["result"]) == body
        model.answer(number, b"done")
        assert (await client.answer()).endswith(b"\r\n\r\ndone")
        assert TUNNEL not in model.kinds()


async def test_bodies_that_front_nodes_do_not_take_cross_whole(file: Path) -> None:
    async with passing(file) as (parent, model, _):
        model.answers = lambda body: b"got " + body
        client = await parent.connect()
        for path, body, line in [
            (PATH, b'{"image": 1}', b"Content-Type: application/json"),
            (PATH, b"lambda", b"X-Request-Id: a"),  # what they make of it can't be pickled
            ("/predict/other", b"a", b"X-Request-Id: b"),
        ]:
            client.send(request(path, body, line))
            assert (await client.answer()).endswith(b"got " + body)
        assert model.kinds() == [REQUEST] * 3


async def test_a_large_body_that_they_do_not_take_goes_through_a_tunnel(file: Path) -> None:
    async with passing(file) as (parent, model, _):
        client = await parent.connect()
        whole = request(PATH, b'{"image": 1' + b" " * 300_000 + b"}", b"X-Request-Id: a")
        client.send(whole)
        await until(lambda: ASK in model.kinds())
        model.packets.send((GO, 1))
        end = await model.tunnel()
        received = b""
        loop = asyncio.get_running_loop()
        while len(received) < len(whole):
            received += await loop.sock_recv(end, 1 << 20)
        assert received == whole
        assert model.kinds() == [ASK, CANCEL, TUNNEL]


@pytest.mark.parametrize("asks", [False, True])
async def test_a_request_whose_pipeline_was_replaced_crosses_again_whole(
    file: Path, asks: bool
) -> None:
    async with passing(file) as (parent, model, repository):
        if asks:
            await press(parent, model, repository.get("images").token, True)
        client = await parent.connect()
        client.send(request(PATH, b"abc"))
        if asks:
            await until(lambda: ASK in model.kinds())
            model.packets.send((GO, 1))
        number, _passed = await passed_by(model)
        model.answers = lambda body: b"got " + body
        model.packets.send((RESEND, number))
        assert (await client.answer()).endswith(b"got abc")
        assert model.kinds() == [ASK] * asks + [REQUEST]


async def test_a_large_one_comes_again_through_a_tunnel(file: Path) -> None:
    async with passing(file) as (parent, model, _):
        client = await parent.connect()
        client.send(request(PATH, b"a" * 300_000))
        await until(lambda: ASK in model.kinds())
        model.packets.send((GO, 1))
        number, _passed = await passed_by(model)
        model.packets.send((RESEND, number))
        await model.tunnel()


async def test_under_pressure_fronts_ask_before_their_nodes_run(file: Path) -> None:
    async with passing(file) as (parent, model, repository):
        token = repository.get("images").token
        await press(parent, model, token, True)
        client = await parent.connect()
        client.send(request(PATH, b"abc"))
        await until(lambda: ASK in model.kinds())
        assert model.kinds() == [ASK]
        model.packets.send((GO, 1))
        number, _passed = await passed_by(model)
        model.answer(number, b"done")
        await client.answer()
        # One that they don't take was asked for too.
        client.send(request(PATH, b"{}"))
        await until(lambda: model.kinds().count(ASK) == 2)
        model.packets.send((GO, 2))
        await until(lambda: BODY in model.kinds())
        model.answer(2, b"done")
        await client.answer()
        await press(parent, model, token, False)
        model.taken.clear()
        client.send(request(PATH, b"abc"))
        number, _passed = await passed_by(model)
        assert ASK not in model.kinds()
        model.answer(number, b"done")
        await client.answer()


async def test_without_the_key_no_front_node_runs(file: Path) -> None:
    async with passing(file, api_key="sesame") as (parent, model, _):
        client = await parent.connect()
        model.answers = lambda body: b"got " + body
        for line in (b"X-Request-Id: a", b"Authorization: Bearer wrong"):
            client.send(request(PATH, b"abc", line))
            assert (await client.answer()).endswith(b"got abc")
        assert model.kinds() == [REQUEST, REQUEST]
        client.send(request(PATH, b"abc", b"Authorization: Bearer sesame"))
        await passed_by(model)


async def test_a_body_above_the_limit_is_not_decoded(file: Path) -> None:
    async with passing(file, max_body=1000) as (parent, model, _):
        model.answers = lambda body: b"refused"
        client = await parent.connect()
        client.send(request(PATH, b"a" * 1001))
        await client.answer()
        assert model.kinds() == [REQUEST]


async def test_a_client_that_leaves_while_front_nodes_run_is_told_of(file: Path) -> None:
    async with passing(file) as (parent, model, _):
        globals_ = module_of(parent)
        client = await parent.connect()
        client.send(request(PATH, b"hold"))
        await asyncio.to_thread(globals_["entered"].acquire)
        client.writer.transport.abort()
        _number, passed = await passed_by(model)
        assert passed.left
        await until(lambda: CANCEL in model.kinds())
        globals_["opened"].set()


async def test_what_finds_no_room_in_the_arena_goes_through_a_tunnel(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with passing(file) as (parent, model, _):
        link = parent.front._links.current
        assert link is not None
        monkeypatch.setattr(link, "extent", lambda content: None)
        monkeypatch.setattr(link, "body", lambda *pieces, align=0: None)
        client = await parent.connect()
        client.send(request(PATH, b"a" * 100_000))
        await model.tunnel()
        assert PASSED not in model.kinds()


async def test_requests_at_front_nodes_are_lost_with_the_model_process(file: Path) -> None:
    async with passing(file) as (parent, model, _):
        globals_ = module_of(parent)
        globals_["opened"].clear()
        client = await parent.connect()
        client.send(request(PATH, b"hold"))
        await asyncio.to_thread(globals_["entered"].acquire)
        model.packets.close()
        answer = await client.answer()
        assert answer.startswith(b"HTTP/1.1 503 ")
        globals_["opened"].set()
