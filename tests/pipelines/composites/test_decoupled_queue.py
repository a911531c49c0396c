"""The queue for the instances of a decoupled model: its bounds, its time-outs, its priorities."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from penstock import Pipeline
from penstock.backends.base import Context
from penstock.backends.errors import DeadlineExceeded, QueueFull
from penstock.backends.expressions.composite import Decoupled
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.backends.server import HANDLE, Response
from penstock.pipelines.composites.decoupled import DecoupledNode

from ..workshop import BOUND, turns, until

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")
LOOPS = ("debug",)


class Held(Decoupled):
    """Answers once `gate` is open. `ran` has what it was given, in order."""

    parameters = None
    gate: threading.Event
    ran: list[Any]

    def init(self, params: Any, context: Context) -> None:
        assert context.server is not None
        self.server = context.server

    def forward(self, batch: list[Item]) -> None:
        (item,) = batch
        with self.server.running(batch, responds=True):
            self.ran.append(item["data"])
            assert self.gate.wait(BOUND)
            self.server.respond(item[HANDLE], Response({"result": item["data"]}, final=True))


@pytest.fixture(autouse=True)
def held(own_registry: None) -> type[Held]:
    Held.gate, Held.ran = threading.Event(), []
    register_backend("Held", Held)
    return Held


def tables_of(keys: dict[str, Any]) -> dict[str, Any]:
    node = {key: value for key, value in keys.items() if key != "pipeline"}
    return {
        "pipeline": {"timeout": 1000.0, **keys.get("pipeline", {})},
        "held": {"backend": "Held", **node},
    }


async def ask_all(keys: dict[str, Any], *priorities: int | None, late: bool = False) -> list[Any]:
    """Ask once for each priority, one after another, while the first request runs.

    The data are numbers from 0 on. `late`: the first one that waits has waited for too long.
    Return what each gets: a result or an error.
    """
    Held.gate.clear()
    Held.ran.clear()
    async with Pipeline.load(tables_of(keys)) as pipeline:
        (node,) = pipeline.composites
        assert isinstance(node, DecoupledNode)
        tasks = []
        for number, priority in enumerate(priorities):
            tasks.append(asyncio.ensure_future(pipeline({"data": number}, priority=priority)))
            await until(lambda: Held.ran)
            await turns()
        if late:
            place = node._queue[0]
            node._be_late(place, node._policies[place.level])
        Held.gate.set()
        answers: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        answer[0]["result"]["result"] if isinstance(answer, list) else answer for answer in answers
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"pipeline": {"queue_size": 2}},
        {"queue_policies": {"default": {"max_queue_size": 2}}},
        {"queue_policies": {"default": {"max_queue_size": 2}}, "priority_levels": 2},
    ],
)
async def test_the_queue_is_bounded(keys: dict[str, Any]) -> None:
    *answers, refused = await ask_all(keys, *[None] * 4)
    assert answers == [0, 1, 2] and isinstance(refused, QueueFull)


async def test_higher_levels_go_first_and_late_requests_last() -> None:
    policies = {"default": {"timeout": 1000, "on_timeout": "delay"}}
    keys = {"priority_levels": 3, "queue_policies": policies}
    assert await ask_all(keys, None, 2, 3, None, 1, late=True) == [0, 1, 2, 3, 4]
    assert Held.ran == [0, 4, 3, 1, 2]  # the first one behind the others of its level


@pytest.mark.parametrize(
    "keys",
    [
        {"pipeline": {"queue_timeout": 0.01}},
        {"queue_policies": {"default": {"timeout": 0.01}}},
    ],
)
async def test_a_request_that_waits_for_too_long_fails(keys: dict[str, Any]) -> None:
    Held.gate.clear()
    async with Pipeline.load(tables_of(keys)) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": 0}))
        await until(lambda: Held.ran)
        with pytest.raises(DeadlineExceeded, match=r"queued for longer than 0\.01 s"):
            await pipeline({"data": 1})
        Held.gate.set()
        await first
    assert Held.ran == [0]
