"""Bounds, clients and levels of a pipeline whose backends a test holds.

tests/pipelines/overload has the rule and its simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import penstock
from penstock.backends.errors import (
    ConfigError,
    DeadlineExceeded,
    Overloaded,
    PenstockError,
    QueueFull,
)
from penstock.pipelines.pipeline import Pipeline

from .workshop import Workshop, queued, serve, turns, until


@pytest.fixture
def workshop(own_registry: None) -> Iterator[Workshop]:
    made = Workshop()
    yield made
    made.release_all()


def work(**keys: Any) -> dict[str, Any]:
    return {"backend": "Work", **keys}


def send(pipeline: Pipeline, *names: str, **options: Any) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(pipeline({"data": name}, **options)) for name in names]


async def results(calls: list[asyncio.Future[Any]]) -> list[Any]:
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return [answer.code if isinstance(answer, PenstockError) else "ok" for answer in answers]


async def test_queue_size_counts_what_waits_and_not_what_runs(workshop: Workshop) -> None:
    workshop.hold("n")
    tables = {"pipeline": {"queue_size": 3}, "n": work(max=2)}
    async with serve(tables, workshop=workshop) as pipeline:
        calls = send(pipeline, "a", "b")
        await workshop.begun("n")
        calls += send(pipeline, "c", "d", "e")
        await turns()
        with pytest.raises(QueueFull, match=r"^too many requests wait: 3 \(queue_size = 3\)$"):
            await pipeline({"data": "f"})
        with pytest.raises(QueueFull):
            pipeline.check_admission()
        calls[2].cancel()  # one who leaves makes room
        await turns()
        calls += send(pipeline, "g")
        await turns()
        assert queued(pipeline, "n") == 3
        workshop.release("n")
        del calls[2]
        assert await results(calls) == ["ok"] * 5
        assert pipeline.refused["queue_full"] == 2


async def test_what_idle_executors_take_at_once_does_not_wait(workshop: Workshop) -> None:
    workshop.hold("n")
    tables = {"pipeline": {"queue_size": 1}, "n": work(max=4)}
    async with serve(tables, workshop=workshop) as pipeline:
        calls = send(pipeline, *"abcdef")  # four run, one waits
        await until(lambda: calls[-1].done())
        workshop.release("n")
        assert await results(calls) == ["ok"] * 5 + ["queue_full"]


async def test_a_request_at_several_nodes_waits_once(workshop: Workshop) -> None:
    workshop.hold("a")
    workshop.hold("b")
    tables = {
        "pipeline": {"queue_size": 2},
        "root": work(max=1, next="a,b"),
        "a": work(max=1),
        "b": work(max=1),
    }
    async with serve(tables, workshop=workshop) as pipeline:
        calls = send(pipeline, *"xyz")  # the first runs at both, two wait at both
        await until(lambda: queued(pipeline, "a") == queued(pipeline, "b") == 2)
        with pytest.raises(QueueFull, match="too many requests wait: 2"):
            await pipeline({"data": "w"})
        workshop.release_all()
        assert await results(calls) == ["ok"] * 3


async def test_a_time_out_of_the_queue_does_not_count_what_runs(workshop: Workshop) -> None:
    workshop.hold("n")
    tables = {"pipeline": {"queue_timeout": 0.05}, "n": work(max=1)}
    async with serve(tables, workshop=workshop) as pipeline:
        (running,) = send(pipeline, "a")
        await workshop.begun("n")
        with pytest.raises(
            DeadlineExceeded,
            match=r"^node 'n': the request was queued for longer than 0\.05 s \(queue_timeout\)$",
        ):
            await pipeline({"data": "b"})
        assert not running.done()
        workshop.release("n")
        assert (await running)["result"] == "a"


async def test_the_deadline_may_come_before_the_time_out_of_the_queue(workshop: Workshop) -> None:
    workshop.hold("n")
    tables = {"pipeline": {"queue_timeout": 20.0}, "n": work(max=1)}
    async with serve(tables, workshop=workshop) as pipeline:
        (running,) = send(pipeline, "a")
        await workshop.begun("n")
        with pytest.raises(DeadlineExceeded, match="the deadline passed while"):
            await pipeline({"data": "b"}, timeout=0.05)
        workshop.release("n")
        await running


async def test_lower_levels_do_not_take_the_places_of_higher_ones(workshop: Workshop) -> None:
    workshop.hold("n")
    tables = {
        "pipeline": {"max_requests": 3, "queue_size": 2},
        "n": work(max=1, priority_levels=3),
    }
    async with serve(tables, workshop=workshop) as pipeline:
        calls = send(pipeline, "r", priority=3)
        await workshop.begun("n")
        calls += send(pipeline, "a", "b", "c", priority=3)
        calls += send(pipeline, "d", "e", "f", priority=1)
        calls += send(pipeline, "g", priority=2)
        await turns()
        workshop.release("n")
        full = "queue_full"
        assert await results(calls) == ["ok"] * 3 + [full] + ["ok"] * 2 + [full] * 2


def make_slow(pipeline: Pipeline) -> None:
    """Let the node have been busy for long, with a second for each row."""
    admission = pipeline._admission
    (node,) = pipeline.nodes
    node.estimate.observe(1, 1.0)
    node.scheduler._was_idle, node.scheduler._idle_at = False, 0.0
    admission.refresh(admission.requests.clock())
    assert admission.rates.best == 1.0


async def test_what_can_not_be_answered_in_time_is_refused(workshop: Workshop) -> None:
    workshop.hold("n")
    async with serve({"n": work(max=1)}, workshop=workshop) as pipeline:
        calls = send(pipeline, "first")
        await workshop.begun("n")
        make_slow(pipeline)
        calls += send(pipeline, *"abcdefghi", client="flood")
        await turns()
        with pytest.raises(Overloaded, match="max_wait") as caught:
            await pipeline({"data": "j"}, client="flood")
        assert caught.value.retry_after in (1, 2)
        with pytest.raises(Overloaded):
            pipeline.check_admission(client="flood")
        pipeline.check_admission(client="other")
        calls += send(pipeline, "other", client="other")
        await turns()
        assert pipeline.refused["overloaded"] == 2
        workshop.release("n")
        assert await results(calls) == ["ok"] * 11


@pytest.mark.parametrize("wait", ["none", 1000])
async def test_max_wait_may_be_none_or_seconds(workshop: Workshop, wait: Any) -> None:
    workshop.hold("n")
    tables = {"pipeline": {"max_wait": wait}, "n": work(max=1)}
    async with serve(tables, workshop=workshop) as pipeline:
        calls = send(pipeline, "first")
        await workshop.begun("n")
        make_slow(pipeline)
        calls += send(pipeline, *map(str, range(200)))
        await turns()
        assert pipeline.in_flight == 201
        if wait == "none":
            pipeline._admission.door.refused = 1000
            pipeline._admission.refresh(pipeline._admission.requests.clock())
            assert not pipeline.pressure
        workshop.release("n")
        assert await results(calls) == ["ok"] * 201


async def test_a_client_that_is_not_hashable_is_not_counted(workshop: Workshop) -> None:
    tables = {"n": work(priority_levels=2)}
    async with serve(tables, workshop=workshop) as pipeline:
        wrong: Any = ["a", "list"]
        with pytest.raises(TypeError, match="unhashable"):
            await pipeline({"data": "a"}, priority=1, client=wrong)
        doors = pipeline._admission.pressure.doors
        assert [(door.requests, door.rows) for door in doors] == [(0, 0)] * 2


async def test_under_pressure_clients_take_turns(workshop: Workshop) -> None:
    workshop.hold("n")
    async with serve({"n": work(max=1)}, workshop=workshop) as pipeline:
        calls = send(pipeline, "first")
        await workshop.begun("n")
        calls += send(pipeline, *"abc", client="flood")
        calls += send(pipeline, *"12", client="small")
        await turns()
        pipeline._admission.pressure.turn(True)
        assert pipeline.pressure
        workshop.release("n")
        assert await results(calls) == ["ok"] * 6
        assert workshop.inputs("n") == ["first", "a", "1", "b", "2", "c"]
        assert (pipeline._admission.pressure.on, pipeline.pressure) == (True, False)
        pipeline._admission.pressure.turn(False)


def test_the_thread_safe_face_takes_a_client(workshop: Workshop) -> None:
    with penstock.pipe({"n": work()}) as p:
        item: dict[str, Any] = {"data": 1}
        p(item, client="me")
        assert item["result"] == 1


@pytest.mark.parametrize("value", [0, -1, "soon", True, "nan", "inf"])
def test_a_wrong_max_wait_names_what_is_expected(value: Any) -> None:
    with pytest.raises(ConfigError, match="max_wait"):
        Pipeline.load({"pipeline": {"max_wait": value}, "n": {"backend": "Identity"}})


@pytest.mark.parametrize("keys", [{"queue_size": 0}, {"queue_timeout": 0}])
def test_bounds_of_the_queue_are_positive(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="queue_"):
        Pipeline.load({"pipeline": keys, "n": {"backend": "Identity"}})
