"""Queue policies of priority levels, and nodes that put no requests together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.backends.errors import ConfigError, DeadlineExceeded, QueueFull
from penstock.pipelines.config.definition import QueuePolicy
from penstock.pipelines.config.load import load

from ..workshop import Clock, Workshop, serve
from .test_scheduler import Harness

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

DELAY = QueuePolicy(timeout=1.0, delays=True)
REJECT = QueuePolicy(timeout=1.0)


def test_late_requests_go_behind_the_others_of_their_level() -> None:
    harness = Harness([1], priority_levels=2, queue_policies=[DELAY, REJECT], queue_timeout=10.0)
    harness.put("x", priority=0)
    harness.decide()
    harness.put("a", priority=0)
    harness.put("c", priority=2)
    assert harness.decide(0.5) == 1.0
    harness.decide(1.0)
    assert harness.expired == ["c"]
    harness.put("b", priority=0)
    harness.put("d", priority=2)
    for _ in range(3):
        harness.finish()
        harness.decide()
    assert harness.ran == [["x", "b", "a", "d"]]  # late ones before those of lower levels


def test_a_late_request_still_has_its_deadline_and_the_pipelines_time_out() -> None:
    harness = Harness([1], queue_policies=[DELAY], queue_timeout=5.0)
    harness.put("x")
    harness.decide()
    harness.put("a", deadline=2.0)
    harness.put("b")
    left = harness.put("c")
    assert harness.decide(1.0) == 2.0  # all three are late, and none has failed
    assert harness.scheduler.discard(left)
    assert harness.decide(2.0) == 5.0
    assert harness.expired == ["a"]
    harness.decide(5.0)
    assert harness.expired == ["a", "b"] and not harness.scheduler.buckets


def test_requests_that_are_not_put_together_run_alone() -> None:
    harness = Harness([8], [8], combine=False)
    harness.put_all("ab", size=2)
    harness.put("c").future.gone = True  # type: ignore[attr-defined]
    harness.put("d")
    harness.decide()
    assert harness.ran == [["b"], ["a"]] or harness.ran == [["a"], ["b"]]
    harness.finish()
    harness.decide()
    assert harness.ran[0][-1] == "d" and not harness.scheduler.queued


def tables(**keys: Any) -> dict[str, Any]:
    return {"pipeline": {"timeout": 1000.0}, "work": {"backend": "Work", "max": 8, **keys}}


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


async def test_a_node_puts_no_requests_together(workshop: Workshop) -> None:
    batches: list[int] = []
    workshop.acts["work"] = lambda item: batches.append(1)
    async with serve(tables(combine=False), workshop=workshop) as pipeline:
        await pipeline([{"data": number} for number in range(5)])
        (node,) = pipeline.nodes
        assert node.statistics.batches == 5


async def test_each_level_bounds_its_own_queue(workshop: Workshop) -> None:
    policies = {"default": {"max_queue_size": 2}, "1": {"max_queue_size": 1}}
    workshop.hold("work")
    table = tables(priority_levels=3, queue_policies=policies, max=1)
    async with serve(table, workshop=workshop) as pipeline:
        running = asyncio.ensure_future(pipeline({"data": 0}))
        await workshop.begun("work")
        waiting = [
            asyncio.ensure_future(pipeline({"data": priority}, priority=priority))
            for priority in (1, 2, 2)
        ]
        await asyncio.sleep(0)
        for priority, most in ((1, 1), (2, 2)):
            with pytest.raises(QueueFull, match=rf"wait at node 'work': {most} \(max_queue_size"):
                await pipeline({"data": 9}, priority=priority)
        waiting.append(asyncio.ensure_future(pipeline({"data": 3}, priority=3)))
        await asyncio.sleep(0)
        workshop.release("work")
        await asyncio.gather(running, *waiting)


async def test_the_error_of_a_late_request_names_its_policy(workshop: Workshop) -> None:
    clock = Clock()
    workshop.hold("work")
    table = tables(queue_policies={"default": {"timeout": 2.0}}, max=1)
    async with serve(table, workshop=workshop, clock=clock) as pipeline:
        running = asyncio.ensure_future(pipeline({"data": 0}))
        await workshop.begun("work")
        late = asyncio.ensure_future(pipeline({"data": 1}))
        await asyncio.sleep(0)
        clock.now += 2.0
        pipeline.nodes[0]._changed()
        with pytest.raises(
            DeadlineExceeded, match=r"longer than 2 s \(timeout in queue_policies\)"
        ):
            await late
        workshop.release("work")
        await running


async def test_a_node_without_levels_follows_one_that_has_them(workshop: Workshop) -> None:
    table = tables(priority_levels=3, next="rest") | {"rest": {"backend": "Work"}}
    async with serve(table, workshop=workshop) as pipeline:
        assert (await pipeline({"data": 1}, priority=3))["result"] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"queue_policies": {"1": {}}}, "queue_policies.1: found '1': expected 'default'"),
        (
            {"queue_policies": {"4": {}}, "priority_levels": 3},
            "found '4': expected 'default' or a priority level from 1 to 3",
        ),
        ({"queue_policies": {"default": {"on_timeout": "drop"}}}, "'reject' or 'delay'"),
        ({"priority_levels": 1 << 40}, "less than or equal to 65536"),
    ],
)
def test_policies_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tables(**keys))
    assert message in str(refused.value)
