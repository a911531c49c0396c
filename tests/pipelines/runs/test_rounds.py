"""Pipelines that loop: an item that leaves with `restart` enters again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import penstock
from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
    UnknownRestart,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

from ..workshop import BOUND, Clock, Workshop, outcomes, queued, serve, turns, until

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


def tables(pipeline: dict[str, Any] | None = None, **nodes: Any) -> dict[str, Any]:
    nodes = nodes or {"count": {}}
    return {
        "pipeline": {"timeout": 1000.0, "loop": True, **(pipeline or {})},
        **{name: {"backend": "Work", **keys} for name, keys in nodes.items()},
    }


def count_to(last: int, node: str = "count") -> Any:
    def act(item: Item) -> Any:
        if item["data"] + 1 < last:
            item["restart"] = node
        return item["data"] + 1

    return act


async def test_restart_enters_again_with_the_result_as_data(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(4)
    async with serve(tables(), workshop=workshop) as pipeline:
        given = {"data": 0, "key": "kept"}
        assert await pipeline(given) == {"data": 0, "key": "kept", "result": 4}
        assert given == {"data": 0, "key": "kept"}
        assert workshop.inputs("count") == [0, 1, 2, 3]
        assert pipeline.in_flight == 0


async def test_it_may_name_any_node_that_can_be_entered(workshop: Workshop) -> None:
    workshop.acts |= {
        "begin": lambda item: 0,
        "count": lambda item: item["data"] + 1,
        "end": count_to(10),
    }
    async with serve(
        tables(begin={"next": "count"}, count={"next": "end"}, end={}), workshop=workshop
    ) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == 10
        assert [len(workshop.inputs(node)) for node in ("begin", "count", "end")] == [1, 5, 5]


async def test_keys_are_carried_from_round_to_round(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        item["seen"] = [*item.get("seen", []), item["data"]]
        return count_to(3)(item)

    workshop.acts["count"] = act
    async with serve(tables(), workshop=workshop) as pipeline:
        assert await pipeline({"data": 0}) == {"data": 0, "seen": [0, 1, 2], "result": 3}


async def test_a_graph_may_loop(workshop: Workshop) -> None:
    workshop.acts |= {
        "left": lambda item: item["data"],
        "right": lambda item: 1,
        "sum": lambda item: count_to(3, "first")(item),
    }
    nodes = {
        "first": {"next": "left,right"},
        "left": {"next": "sum"},
        "right": {"next": "sum"},
        "sum": {"map": "left[result:data],right[result:one]"},
    }
    async with serve(tables(**nodes), workshop=workshop) as pipeline:
        assert (await pipeline({"data": 0}))["result"] == 3
        assert workshop.inputs("first") == [0, 1, 2]


async def test_the_bound_of_rounds(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(1000)
    async with serve(tables({"max_rounds": 5}), workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError,
            match=r"'restart' names 'count' in round 5, which is the last one \(max_rounds = 5\)",
        ):
            await pipeline({"data": 0})
        assert workshop.inputs("count") == [0, 1, 2, 3, 4]
        assert (await pipeline({"data": 995}))["result"] == 1000
        assert pipeline.in_flight == 0


@pytest.mark.parametrize(
    ("name", "hint"), [("cuont", ", did you mean 'count'"), ("inner", ""), (3, ""), (["count"], "")]
)
async def test_a_name_that_can_not_be_entered(workshop: Workshop, name: Any, hint: str) -> None:
    def act(item: Item) -> Any:
        item["restart"] = name
        return 1

    workshop.acts["end"] = act
    nodes = {
        "count": {"next": "left,inner"},
        "left": {"next": "end"},
        "inner": {"next": "end"},
        "end": {"map": "left[result:data],inner[data:x]"},
    }
    async with serve(tables(**nodes), workshop=workshop) as pipeline:
        with pytest.raises(
            UnknownRestart, match="'restart' names .*, not a node that can be entered" + hint
        ) as caught:
            await pipeline({"data": 0})
        assert isinstance(caught.value, IndexError) and isinstance(caught.value, BackendError)
        assert pipeline.in_flight == 0


async def test_restart_without_a_result_is_the_end(workshop: Workshop) -> None:
    def act(item: Item) -> None:
        item["restart"] = "count"

    workshop.acts["count"] = act
    async with serve(tables(), workshop=workshop) as pipeline:
        assert await pipeline({"data": 0}) == {"data": 0}


async def test_without_loop_restart_is_a_key_like_others(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(4)
    async with serve(tables({"loop": False}), workshop=workshop) as pipeline:
        assert await pipeline({"data": 0}) == {"data": 0, "restart": "count", "result": 1}


async def test_failures_of_a_later_round(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        if item["data"] == 2:
            raise InvalidInput("no image") if "soft" in item else ValueError("as told")
        return count_to(5)(item)

    workshop.acts["count"] = act
    async with serve(tables(), workshop=workshop) as pipeline:
        with pytest.raises(BackendError, match="as told"):
            await pipeline({"data": 0})
        with pytest.raises(InvalidInput, match="no image"):
            await pipeline({"data": 0, "soft": True})
        good, bad = await pipeline([{"data": 3}, {"data": 0, "soft": True}])
        assert good["result"] == 5
        assert {**bad, "error": str(bad["error"])} == {"data": 0, "soft": True, "error": "no image"}
        assert pipeline.in_flight == 0


async def test_a_caller_that_leaves_in_a_later_round(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(100)
    async with serve(tables(count={"max": 1}, hold={}), workshop=workshop) as pipeline:
        work = pipeline.submit_nowait({"data": 0, "node_name": "count"})
        await until(lambda: len(workshop.inputs("count")) >= 3)
        workshop.hold("count")
        work.leave()
        workshop.release("count")
        await until(lambda: not any(node.scheduler.running for node in pipeline.nodes))
        assert work.future.cancelled()
        assert pipeline.in_flight == 0
        rounds = len(workshop.inputs("count"))
        await turns(50)
        assert len(workshop.inputs("count")) == rounds < 100


async def test_a_caller_that_leaves_while_a_later_round_queues(workshop: Workshop) -> None:
    workshop.acts |= {"first": lambda item: item["data"], "count": count_to(100)}
    workshop.hold("count")
    async with serve(
        tables({"entry": "first"}, first={"next": "count"}, count={"max": 1}), workshop=workshop
    ) as pipeline:
        holding = asyncio.ensure_future(pipeline({"data": 98, "node_name": "count"}))
        await workshop.begun("count")
        calling = asyncio.ensure_future(pipeline({"data": 0}))
        await until(lambda: queued(pipeline, "count") == 1)
        calling.cancel()
        await turns()
        assert (queued(pipeline, "count"), pipeline.in_flight) == (0, 1)
        workshop.release("count")
        assert (await holding)["result"] == 100


async def test_the_deadline_is_one_for_all_rounds(workshop: Workshop) -> None:
    clock = Clock()

    def act(item: Item) -> Any:
        clock.now += 1.0
        return count_to(1000)(item)

    workshop.acts["count"] = act
    async with serve(tables(), workshop=workshop, clock=clock) as pipeline:
        with pytest.raises(DeadlineExceeded):
            await pipeline({"data": 0}, timeout=5.0)
        assert len(workshop.inputs("count")) <= 5
        assert pipeline.in_flight == 0
        assert outcomes(pipeline, "count")["expired"] == 1


async def test_logic_in_a_loop(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        answer = await call("work", item)
        if answer["result"] < 5:
            item["restart"] = "think"
        return answer["result"]

    register_backend("Think", think)
    workshop.acts["work"] = lambda item: item["data"] + 1
    nodes = tables({"entry": "think"}, think={"backend": "Think"}, work={})
    async with serve(nodes, workshop=workshop) as pipeline:
        assert await pipeline({"data": 0}) == {"data": 0, "result": 5}


async def test_many_at_once(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(20)
    async with serve(tables(), workshop=workshop) as pipeline:
        answers = await asyncio.gather(*[pipeline({"data": number % 20}) for number in range(300)])
        assert [answer["result"] for answer in answers] == [20] * 300
        assert pipeline.in_flight == 0


async def test_close_midway(workshop: Workshop) -> None:
    workshop.acts["count"] = lambda item: item.update(restart="count") or 1
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline.load(tables({"max_rounds": 1_000_000_000}))
        await pipeline.start()
        calls = [asyncio.ensure_future(pipeline({"data": 0})) for _ in range(20)]
        await until(lambda: len(workshop.ran) > 10)
        await pipeline.close(timeout=0)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReady] * 20
        assert pipeline.in_flight == 0


def test_a_pipe_loops_too(workshop: Workshop) -> None:
    workshop.acts["count"] = count_to(4)
    with penstock.pipe(tables({"max_rounds": 3})) as p:
        item: Item = {"data": 1, "key": 2}
        p(item)
        assert item == {"data": 1, "key": 2, "result": 4}
        items: list[Item] = [{"data": 1}, {"data": 2}, {"data": 3}]
        p(items)
        assert [item["result"] for item in items] == [4, 4, 4]
        with pytest.raises(BackendError, match="in round 3, which is the last one"):
            p({"data": 0})
