"""Exposed nodes: a node of a pipeline that is called directly, through its own queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.backends.errors import ConfigError, DeadlineExceeded, NotReady, QueueFull
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .workshop import Clock, Workshop, outcomes, queued, serve, until

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

CHAIN = {
    "pipeline": {"expose": {"middle": {}}},
    "first": {"backend": "Work", "next": "middle"},
    "middle": {"backend": "Work", "next": "last", "max": 8},
    "last": {"backend": "Work"},
}


async def test_only_that_node_runs() -> None:
    work = Workshop()
    work.acts = {
        "first": lambda item: item["data"] + 1,
        "middle": lambda item: item["data"] * 10,
        "last": lambda item: -item["data"],
    }
    async with serve(CHAIN, workshop=work) as pipeline:
        (middle,) = pipeline.exposed
        assert (middle.name, middle.state, middle.composites) == ("p.middle", "ready", ())
        assert [node.name for node in middle.nodes] == ["middle"]
        assert await middle({"data": 5, "other": 1}) == {"data": 5, "result": 50, "other": 1}
        assert work.ran == [("middle", [5])]
        assert (await pipeline({"data": 5}))["result"] == -60


async def test_requests_to_the_node_and_to_the_pipeline_share_batches() -> None:
    work = Workshop()
    async with serve(CHAIN, workshop=work) as pipeline:
        (middle,) = pipeline.exposed
        work.hold("middle")
        calls = [asyncio.ensure_future(pipeline({"data": 0}))]
        await work.begun("middle")
        calls += [
            asyncio.ensure_future(middle({"data": 1})),
            asyncio.ensure_future(pipeline({"data": 2})),
        ]
        await until(lambda: queued(pipeline, "middle") == 2)
        work.release("middle")
        assert [answer["result"] for answer in await asyncio.gather(*calls)] == [0, 1, 2]
        assert work.batches("middle") == [[0], [1, 2]]


async def test_a_request_counts_where_it_came_in_and_an_item_where_it_ran() -> None:
    work = Workshop()

    def fail(item: Item) -> Any:
        if item["data"] == "bad":
            raise ValueError("bad")
        return item["data"]

    work.acts["middle"] = fail
    async with serve(CHAIN, workshop=work) as pipeline:
        (middle,) = pipeline.exposed
        await asyncio.gather(
            *[middle({"data": data}) for data in (1, 2, "bad")],
            pipeline({"data": 3}),
            return_exceptions=True,
        )
        assert (middle.statistics.succeeded, middle.statistics.failures["failed"]) == (2, 1)
        assert (pipeline.statistics.succeeded, sum(pipeline.statistics.failures.values())) == (1, 0)
        assert outcomes(pipeline, "middle") == {"ok": 3, "failed": 1}


async def test_the_bound_on_requests_in_flight_holds_for_both_together() -> None:
    work = Workshop()
    async with serve(
        {**CHAIN, "pipeline": {"expose": {"middle": {}}, "max_requests": 2}}, workshop=work
    ) as pipeline:
        (middle,) = pipeline.exposed
        work.hold("middle")
        calls = [asyncio.ensure_future(model({"data": 0})) for model in (pipeline, middle)]
        await until(lambda: pipeline.in_flight == 2)
        for model in (pipeline, middle):
            with pytest.raises(QueueFull, match="max_requests"):
                await model({"data": 1})
        assert (pipeline.refused["queue_full"], middle.refused["queue_full"]) == (1, 1)
        work.release("middle")
        await asyncio.gather(*calls)


async def test_the_estimate_counts_requests_to_the_pipeline_too() -> None:
    work, clock = Workshop(), Clock()
    tables = {**CHAIN, "middle": {"backend": "Work", "next": "last", "max": 1}}
    async with serve(tables, workshop=work, clock=clock) as pipeline:
        (middle,) = pipeline.exposed
        work.hold("middle")
        first = asyncio.ensure_future(middle({"data": 0}))
        await work.begun("middle")
        clock.now += 1.0  # the seconds that the batch ran
        work.release("middle")
        await first
        work.hold("middle")
        calls = [asyncio.ensure_future(pipeline({"data": data})) for data in range(3)]
        await until(lambda: queued(pipeline, "middle") == 2)
        with pytest.raises(Exception, match="rows ahead at node 'middle'"):
            await middle({"data": 3}, timeout=2.0)
        last = asyncio.ensure_future(middle({"data": 3}, timeout=20.0))
        await until(lambda: queued(pipeline, "middle") == 3)
        work.release("middle")
        await asyncio.gather(last, *calls)


async def test_deadlines_hold_and_callers_may_leave() -> None:
    work, clock = Workshop(), Clock()
    async with serve(CHAIN, workshop=work, clock=clock) as pipeline:
        (middle,) = pipeline.exposed
        work.hold("middle")
        running = asyncio.ensure_future(middle({"data": 0}))
        await work.begun("middle")
        left = asyncio.ensure_future(middle({"data": 1}))
        late = asyncio.ensure_future(middle({"data": 2}, timeout=0.001))
        await until(lambda: queued(pipeline, "middle") == 2)
        left.cancel()
        clock.now += 1
        with pytest.raises(DeadlineExceeded):
            await late
        with pytest.raises(asyncio.CancelledError):
            await left
        work.release("middle")
        assert (await running)["result"] == 0
        assert work.inputs("middle") == [0]


async def test_closing_waits_for_requests_in_flight_and_refuses_new_ones() -> None:
    work = Workshop()
    async with serve(CHAIN, workshop=work) as pipeline:
        (middle,) = pipeline.exposed
        work.hold("middle")
        inside = asyncio.ensure_future(middle({"data": 1}))
        await work.begun("middle")
        closing = asyncio.ensure_future(pipeline.close())
        await until(lambda: pipeline.state == "draining")
        with pytest.raises(NotReady, match=r"'p.middle' is draining"):
            await middle({"data": 2})
        work.release("middle")
        assert (await inside)["result"] == 1
        await closing
        assert middle.state == "closed"


async def test_requests_in_flight_fail_if_the_pipeline_closes_at_once() -> None:
    work = Workshop()
    pipeline = Pipeline.load(CHAIN, name="p")
    await pipeline.start()
    (middle,) = pipeline.exposed
    work.hold("middle")
    calls = [asyncio.ensure_future(middle({"data": 1}))]
    await work.begun("middle")
    calls.append(asyncio.ensure_future(middle({"data": 2})))
    await until(lambda: queued(pipeline, "middle") == 1)
    closing = asyncio.ensure_future(pipeline.close(0))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [NotReady, NotReady]
    work.release("middle")
    await closing
    assert pipeline.in_flight == 0


async def test_composites_and_nodes_that_share_may_be_exposed() -> None:
    work = Workshop()
    work.acts = {"far": lambda item: item["data"] * 2}
    tables = {
        "pipeline": {"expose": {"go": {}, "far.1": {}}},
        "go": {"backend": "Jump", "jump": "far", "next": "end"},
        "far": {"backend": "Work"},
        "end": {"backend": "Work", "next": "far.1"},
        "far.1": {},
    }
    async with serve(tables, workshop=work) as pipeline:
        exposed = {model.name: model for model in pipeline.exposed}
        assert (await exposed["p.go"]({"data": 3}))["result"] == 6
        assert (await exposed["p.far.1"]({"data": 4}))["result"] == 8
        assert work.inputs("end") == []
        assert exposed["p.go"].statistics.succeeded == 1
        assert ([node.name for node in exposed["p.go"].composites], exposed["p.go"].nodes) == (
            ["go"],
            (),
        )
        assert (
            [node.name for node in exposed["p.far.1"].nodes],
            exposed["p.far.1"].composites,
        ) == (["far"], ())


async def test_an_exposed_node_does_not_loop() -> None:
    work = Workshop()

    def again(item: Item) -> Any:
        item["restart"] = "middle"
        return item["data"] + 1

    work.acts["middle"] = again
    async with serve(
        {**CHAIN, "pipeline": {"expose": {"middle": {}}, "loop": True, "max_rounds": 3}},
        workshop=work,
    ) as pipeline:
        (middle,) = pipeline.exposed
        assert (await middle({"data": 1}))["result"] == 2
        assert work.inputs("middle") == [1]


def broken(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load({"pipeline": {"expose": table}, "node": {"backend": "Identity"}})
    return str(caught.value)


def test_problems_of_expose() -> None:
    assert "there is no node 'noode', did you mean 'node'?" in broken({"noode": {}})
    text = broken({"node": {"input": {}}})
    assert "[pipeline] expose.node.input" in text and "'inputs'" in text
    assert "'result' can't be an input" in broken({"node": {"inputs": {"result": {}}}})
    assert "expose.node.inputs.data.kind" in broken(
        {"node": {"inputs": {"data": {"kind": "picture"}}}}
    )


async def test_the_models_of_a_repository_are_its_pipelines_and_their_exposed_nodes() -> None:
    table = {"pipeline": {"name": "p", "expose": {"node": {}}}, "node": {"backend": "Identity"}}
    repository = Repository([load(table)])
    await repository.start()
    try:
        assert list(repository.models) == ["p", "p.node"]
        assert list(repository.pipelines) == ["p"]
        old = repository.models["p.node"]
        await repository.load(load({**table, "pipeline": {"name": "p"}}))
        assert list(repository.models) == ["p"]
        await repository.load(load(table))
        assert repository.models["p.node"] is not old
        with pytest.raises(ConfigError, match=r"another pipeline has the name 'p.node'"):
            await repository.load(
                load({"pipeline": {"name": "p.node"}, "node": {"backend": "Identity"}})
            )
    finally:
        await repository.close(0)
    assert repository.models == {}


def test_the_name_of_an_exposed_node_may_not_be_that_of_a_pipeline() -> None:
    first = load({"pipeline": {"name": "p.node"}, "node": {"backend": "Identity"}})
    second = load(
        {"pipeline": {"name": "p", "expose": {"node": {}}}, "node": {"backend": "Identity"}}
    )
    with pytest.raises(ConfigError, match=r"another pipeline has the name 'p.node'"):
        Repository([first, second])
