"""Every request is counted once, whichever way it takes through a pipeline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput, NotReady
from penstock.backends.item import Item
from penstock.pipelines.node.statistics import covered
from penstock.pipelines.pipeline import Pipeline

from ..workshop import Clock, Workshop, queued, serve, until

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


SHAPES: dict[str, dict[str, Any]] = {
    "node": {"last": {}},
    "chain": {"first": {"next": "last"}, "last": {}},
    "graph": {
        "first": {"next": "left,last"},
        "left": {"next": "join"},
        "last": {"next": "join"},
        "join": {"map": "last[result:data]"},
    },
    "loop": {"pipeline": {"loop": True}, "last": {}},
    "jump": {"first": {"backend": "Jump", "jump": "last"}, "last": {}},
    "each": {"first": {"backend": "MapReduce", "jump": "last"}, "last": {}},
}


@pytest.fixture(params=SHAPES)
def tables(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Pipelines whose requests pass the node `last`.

    Of a list, `each` sends every element there.
    """
    shape = SHAPES[request.param]
    tables = {
        node: keys if node == "pipeline" else {"backend": "Work", **keys}
        for node, keys in shape.items()
    }
    if request.param in {"jump", "each"}:
        tables["pipeline"] = {"entry": "first"}
    tables["pipeline"] = {"timeout": 1000.0, **tables.get("pipeline", {})}
    return tables


def failures(pipeline: Pipeline) -> dict[str, int]:
    return {how: count for how, count in pipeline.statistics.failures.items() if count}


def act(item: Item) -> Any:
    match item["data"]:
        case "unreadable" | ["unreadable"]:
            raise InvalidInput("no image")
        case "broken" | ["broken"]:
            raise RuntimeError("broken")
    return item["data"]


def takes_a_second(clock: Clock, item: Item) -> Any:
    if item["data"] == "good":
        clock.now += 1.0
    return act(item)


async def test_each_request_is_counted_once(tables: dict[str, Any], workshop: Workshop) -> None:
    workshop.acts["last"] = act
    async with serve(tables, workshop=workshop) as pipeline:
        given = [[word] for word in ("good", "unreadable", "good", "broken", "good")]
        await asyncio.gather(*[pipeline({"data": data}) for data in given], return_exceptions=True)
        statistics = pipeline.statistics
        assert (statistics.succeeded, statistics.rows) == (3, 3)
        assert failures(pipeline) == {"soft": 1, "failed": 1}
        assert statistics.seconds > 0 and statistics.failed_seconds > 0


async def test_rows_are_those_of_requests(workshop: Workshop) -> None:
    async with serve({"last": {"backend": "Work", "max": 8}}, workshop=workshop) as pipeline:
        await pipeline(
            [{"data": 1, "request_size": 3}, {"data": 2}, {"data": 3, "request_size": 4}]
        )
        assert (pipeline.statistics.succeeded, pipeline.statistics.rows) == (3, 8)
        sizes = pipeline.nodes[0].statistics.sizes
        assert sum(size * int(count) for size, (count, _) in sizes.items()) == 8


async def test_a_caller_that_leaves_counts_as_cancelled(
    tables: dict[str, Any], workshop: Workshop
) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        workshop.hold("last")
        running = asyncio.ensure_future(pipeline({"data": [1]}))
        await workshop.begun("last")
        queues = asyncio.ensure_future(pipeline({"data": [2]}))
        await until(lambda: queued(pipeline, "last"))
        running.cancel()
        queues.cancel()
        await asyncio.wait([running, queues])
        assert failures(pipeline) == {"cancelled": 2}
        workshop.release("last")
        await until(lambda: not pipeline.nodes[-1].scheduler.running)
        assert failures(pipeline) == {"cancelled": 2} and pipeline.statistics.succeeded == 0


async def test_a_late_request_counts_as_expired(tables: dict[str, Any], workshop: Workshop) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        workshop.hold("last")
        running = asyncio.ensure_future(pipeline({"data": [1]}))
        await workshop.begun("last")
        with pytest.raises(DeadlineExceeded):
            await pipeline({"data": [2]}, timeout=0.01)
        assert failures(pipeline) == {"expired": 1}
        workshop.release("last")
        await running
        assert (pipeline.statistics.succeeded, failures(pipeline)) == (1, {"expired": 1})


async def test_a_request_that_a_closing_pipeline_fails_counts_as_unready(
    tables: dict[str, Any], workshop: Workshop
) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        workshop.hold("last")
        running = asyncio.ensure_future(pipeline({"data": [1]}))
        await workshop.begun("last")
        pipeline.abandon("it is closed")
        with pytest.raises(NotReady):
            await running
        assert failures(pipeline) == {"unready": 1}
        workshop.release("last")


async def test_times_of_a_request_and_of_its_node(workshop: Workshop) -> None:
    """Two requests come together. The first one fails after four seconds, for which the second one
    has waited; that takes one second more.
    """
    clock = Clock()
    async with serve(
        {"last": {"backend": "Work", "max": 1}}, workshop=workshop, clock=clock
    ) as pipeline:
        workshop.acts["last"] = act
        workshop.hold("last")
        first = asyncio.ensure_future(pipeline({"data": "broken"}))
        await workshop.begun("last")
        second = asyncio.ensure_future(pipeline({"data": "good"}))
        await until(lambda: queued(pipeline, "last"))
        clock.now += 4.0
        workshop.acts["last"] = lambda item: takes_a_second(clock, item)
        workshop.release("last")
        await asyncio.wait([first, second])
        node = pipeline.nodes[0].statistics
        assert (pipeline.statistics.seconds, pipeline.statistics.failed_seconds) == (5.0, 4.0)
        assert (pipeline.statistics.queued, pipeline.statistics.computed) == (4.0, 1.0)
        assert node.sizes == {1: [2, 5.0]}
        assert node.last == clock.now


async def test_each_item_of_a_batch_takes_its_whole_time(workshop: Workshop) -> None:
    clock = Clock()
    async with serve(
        {"last": {"backend": "Work", "max": 2}}, workshop=workshop, clock=clock
    ) as pipeline:
        workshop.acts["last"] = lambda item: takes_a_second(clock, item)
        await pipeline([{"data": "good"}, {"data": "good"}])
        node = pipeline.nodes[0].statistics
        assert (pipeline.statistics.computed, node.sizes, pipeline.statistics.seconds) == (
            4.0,
            {2: [1, 2.0]},
            4.0,
        )


def takes(clock: Clock, seconds: float) -> Any:
    """Make an act that takes this long."""

    def act(item: Item) -> Any:
        clock.now += seconds
        return item["data"]

    return act


SERIAL: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "chain": ({"first": {"next": "last"}, "last": {}}, (0.0, 3.0)),
    "graph": ({"first": {"next": "last"}, "last": {"filter": "Run"}}, (0.0, 3.0)),
    "loop": ({"pipeline": {"loop": True}, "first": {"next": "last"}, "last": {}}, (0.0, 3.0)),
}


@pytest.mark.parametrize("shape", SERIAL)
async def test_times_of_nodes_one_after_another(shape: str, workshop: Workshop) -> None:
    """The first node takes a second, the last one two.

    A request that fails in the last node adds none of the time of the first one.
    """
    clock = Clock()
    tables, expected = SERIAL[shape]
    tables = {
        node: keys if node == "pipeline" else {"backend": "Work", **keys}
        for node, keys in tables.items()
    }
    async with serve(tables, workshop=workshop, clock=clock) as pipeline:
        workshop.acts |= {"first": takes(clock, 1.0), "last": act}
        with pytest.raises(BackendError):
            await pipeline({"data": "broken"})
        assert (pipeline.statistics.queued, pipeline.statistics.computed) == (0.0, 0.0)
        workshop.acts["last"] = takes(clock, 2.0)
        await pipeline({"data": 1})
        assert (pipeline.statistics.queued, pipeline.statistics.computed) == expected
        assert pipeline.statistics.seconds == 3.0


async def test_nodes_at_work_at_the_same_time_count_once(workshop: Workshop) -> None:
    clock = Clock()
    tables = {
        "pipeline": {"timeout": 1000.0},
        "first": {"backend": "Work", "next": "left,right"},
        "left": {"backend": "Work"},
        "right": {"backend": "Work"},
    }
    async with serve(tables, workshop=workshop, clock=clock) as pipeline:
        workshop.hold("left")
        workshop.hold("right")
        running = asyncio.ensure_future(pipeline({"data": 1}))
        await workshop.begun("left")
        await workshop.begun("right")
        clock.now += 5.0
        workshop.release("left")
        workshop.release("right")
        await running
        statistics = pipeline.statistics
        assert (statistics.queued, statistics.computed, statistics.seconds) == (0.0, 5.0, 5.0)


async def test_times_of_all_rounds(workshop: Workshop) -> None:
    clock = Clock()

    def again(item: Item) -> Any:
        clock.now += 1.0
        if item["data"] < 3:
            item["restart"] = "last"
        return item["data"] + 1

    async with serve(
        {"pipeline": {"loop": True}, "last": {"backend": "Work"}}, workshop=workshop, clock=clock
    ) as pipeline:
        workshop.acts["last"] = again
        await pipeline({"data": 1})
        assert (pipeline.statistics.computed, pipeline.statistics.seconds) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
        ([(5.0, 6.0), (1.0, 4.0), (2.0, 3.0)], 4.0),
        ([(1.0, 1.0)], 0.0),
    ],
)
def test_covered(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered(spans) == seconds
