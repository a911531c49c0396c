"""Streams: each value that a node yields is a part, and a reader sets the pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
)
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

from ..workshop import BOUND, Clock, Workshop, outcomes, queued, serve, turns, until

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


def pages_of(log: list[Any]) -> Any:
    async def pages(item: Item, call: Any) -> AsyncIterator[Any]:
        try:
            for page in item["data"]:
                log.append(page)
                if isinstance(page, Exception):
                    raise page
                yield page
        finally:
            await asyncio.sleep(0)
            log.append("ended")

    return pages


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


@pytest.fixture
def log(workshop: Workshop) -> list[Any]:
    """The values that the node `pages` was asked for, and "ended" after them."""
    events: list[Any] = []
    register_backend("Pages", pages_of(events))
    return events


def tables(**nodes: Any) -> dict[str, Any]:
    """Make the tables of `pages`, which yields, and of nodes after it."""
    first = next(iter(nodes), None)
    return {
        "pipeline": {"timeout": 1000.0},
        "pages": {"backend": "Pages", **({"next": first} if first else {})},
        **{name: {"backend": "Work", **keys} for name, keys in nodes.items()},
    }


def text(item: Item) -> str:
    return f"<{item['data']}>"


async def call(pipeline: Pipeline, item: Any) -> Any:
    """Call the pipeline. The answer of one that streams is a list, which its type does not say."""
    return await pipeline(item)


async def read(pipeline: Pipeline, item: Item, **given: Any) -> list[Any]:
    return [part async for part in pipeline.stream(item, **given)]


async def results(pipeline: Pipeline, item: Item) -> list[Any]:
    parts: Any = await pipeline(item)
    return [part["result"] for part in parts]


async def results_read(pipeline: Pipeline, item: Item) -> list[Any]:
    return [part["result"] for part in await read(pipeline, item)]


# parts


async def test_each_value_is_a_part_and_passes_the_nodes_that_follow(
    workshop: Workshop, log: list[Any]
) -> None:
    workshop.acts["read"] = text
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        assert pipeline.streams
        expected = [{"data": ["a", "b"], "key": 1, "result": f"<{page}>"} for page in "ab"]
        assert await read(pipeline, {"data": ["a", "b"], "key": 1}) == expected
        assert await call(pipeline, {"data": ["a", "b"], "key": 1}) == expected
        assert await call(pipeline, [{"data": ["a", "b"], "key": 1}, {"data": []}]) == [
            expected,
            [],
        ]
        assert sorted(log) == ["a"] * 3 + ["b"] * 3 + ["ended"] * 4
        assert outcomes(pipeline, "read") == {"ok": 6}


async def test_the_last_node_may_be_the_one_that_yields(log: list[Any]) -> None:
    async with serve(tables()) as pipeline:
        assert await results_read(pipeline, {"data": [1, 2, 3]}) == [1, 2, 3]
        assert await results(pipeline, {"data": [1, 2, 3]}) == [1, 2, 3]


async def test_without_values_there_are_no_parts(workshop: Workshop, log: list[Any]) -> None:
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        assert await read(pipeline, {"data": []}) == []
        assert await call(pipeline, {"data": []}) == []
        assert workshop.ran == []


async def test_a_value_of_none_is_a_value(log: list[Any]) -> None:
    async with serve(tables()) as pipeline:
        assert await results(pipeline, {"data": [None, 1]}) == [None, 1]


async def test_a_pipeline_that_does_not_stream_has_one_part(workshop: Workshop) -> None:
    workshop.acts["read"] = lambda item: 1 if item["data"] else item["missing"]
    async with serve({"read": {"backend": "Work"}}, workshop=workshop) as pipeline:
        assert not pipeline.streams
        assert await read(pipeline, {"data": 1}) == [{"data": 1, "result": 1}]
        with pytest.raises(BackendError):
            await read(pipeline, {"data": 0})


@pytest.mark.parametrize("items", [[{"data": [1]}], ({"data": [1]},)])
async def test_it_takes_one_item(log: list[Any], items: Any) -> None:
    async with serve(tables()) as pipeline:
        with pytest.raises(
            TypeError,
            match=f"stream takes one item, a dict with 'data'; found a {type(items).__name__}",
        ):
            await read(pipeline, items)


async def test_the_node_goes_on_only_when_the_next_part_is_wanted(
    workshop: Workshop, log: list[Any]
) -> None:
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        reader = pipeline.stream({"data": list(range(5))})
        for number in range(5):
            assert (await anext(reader))["result"] == number
            await turns(50)
            assert log == list(range(number + 1))
            assert workshop.inputs("read") == list(range(number + 1))
        assert await anext(reader, "end") == "end"
        assert log == [*range(5), "ended"]


async def test_without_a_reader_it_goes_on_by_itself(log: list[Any]) -> None:
    async with serve(tables(read={"max": 1})) as pipeline:
        assert len(await pipeline({"data": list(range(100))})) == 100


async def test_many_streams_at_once(workshop: Workshop, log: list[Any]) -> None:
    workshop.acts["read"] = text
    async with serve(tables(read={"max": 8}), workshop=workshop) as pipeline:
        answers = await asyncio.gather(
            *[
                read(pipeline, {"data": [f"{reader}.{page}" for page in range(5)]})
                for reader in range(100)
            ]
        )
        assert [[part["result"] for part in parts] for parts in answers] == [
            [f"<{r}.{p}>" for p in range(5)] for r in range(100)
        ]


# the nodes that follow


async def test_a_join_after_the_stream_takes_results_from_before_it(
    workshop: Workshop, log: list[Any]
) -> None:
    workshop.acts |= {
        "first": lambda item: ["a", "b"],
        "join": lambda item: (item["data"], item["page"], item["whole"]),
    }
    nodes = {
        "first": {"backend": "Work", "next": "pages,join"},
        "pages": {"backend": "Pages", "next": "left,right"},
        "left": {"backend": "Work", "next": "join"},
        "right": {"backend": "Work", "next": "join"},
        "join": {
            "backend": "Work",
            "map": "left[result:data],right[result:page],first[data:whole]",
        },
    }
    async with serve(nodes, workshop=workshop) as pipeline:
        expected = [("a", "a", "in"), ("b", "b", "in")]
        assert await results_read(pipeline, {"data": "in"}) == expected
        assert await results(pipeline, {"data": "in"}) == expected


async def test_filters_after_the_stream_are_asked_for_each_part(
    workshop: Workshop, log: list[Any]
) -> None:
    register_filter(
        "odd", lambda item: {0: Status.SKIP, 1: Status.RUN, 2: Status.BREAK}[item["result"] % 3]
    )
    workshop.acts |= {"read": lambda item: "read", "end": lambda item: "end"}
    nodes = tables(read={"filter": "odd", "next": "end"}, end={"filter": "Run"})
    async with serve(nodes, workshop=workshop) as pipeline:
        parts = await read(pipeline, {"data": [0, 1, 2, 3]})
        assert [part["result"] for part in parts] == ["end", "end", 2, "end"]
        assert [node for node, _ in workshop.ran] == ["end", "read", "end", "end"]


async def test_a_break_in_a_part_leaves_nothing_to_the_next_one(
    workshop: Workshop, log: list[Any]
) -> None:
    """The branch beside it runs on, and its result does not go to the next part."""

    def stop(item: Item) -> Status:
        if item["result"] == "break":
            return Status.BREAK
        item["data"] = item.pop("result")
        return Status.RUN

    register_filter("stop", stop)
    workshop.acts["join"] = lambda item: (item["data"], item["other"])
    nodes = tables(
        slow={"next": "join"},
        quick={"next": "after"},
        after={"filter": "stop", "next": "join"},
        join={},
    )
    nodes["pages"]["next"] = "slow,quick"
    nodes["join"]["map"] = "slow[result:data],after[result:other]"
    workshop.hold("slow")
    workshop.hold("quick")
    async with serve(nodes, workshop=workshop) as pipeline:
        reader = pipeline.stream({"data": ["break", "a", "b"]})
        first = asyncio.ensure_future(anext(reader))
        await workshop.begun("slow")
        workshop.release("quick")
        assert (await first)["result"] == "break"  # while `slow` still runs
        second = asyncio.ensure_future(anext(reader))
        await until(lambda: queued(pipeline, "slow") == 1)
        workshop.release("slow")
        assert [(await second)["result"], (await anext(reader))["result"]] == [
            ("a", "a"),
            ("b", "b"),
        ]
        assert outcomes(pipeline, "slow") == {"ok": 2, "cancelled": 1}
        assert await anext(reader, None) is None


async def test_a_break_ends_branches_that_have_not_begun(
    workshop: Workshop, log: list[Any]
) -> None:
    register_filter("stop", lambda item: Status.BREAK)
    nodes = tables(first={"next": "second,third"}, second={"filter": "stop"}, third={})
    async with serve(nodes, workshop=workshop) as pipeline:
        assert await results(pipeline, {"data": [1, 2]}) == [1, 2]
        assert workshop.inputs("third") == []


async def test_an_item_that_never_reaches_the_stream_is_the_only_part(
    workshop: Workshop, log: list[Any]
) -> None:
    """A plain call of such a pipeline returns a list, whatever the filters return."""
    said = Status.BREAK
    register_filter("maybe", lambda item: said)
    nodes = {"first": {"backend": "Work", "next": "pages"}, **tables(read={"filter": "Run"})}
    nodes["pages"]["filter"] = "maybe"
    workshop.acts["read"] = lambda item: "read"
    async with serve(nodes, workshop=workshop) as pipeline:
        assert await call(pipeline, {"data": 1}) == [{"data": 1, "result": 1}]
        assert await read(pipeline, {"data": 1}) == [{"data": 1, "result": 1}]
        assert await call(pipeline, [{"data": 1}]) == [[{"data": 1, "result": 1}]]
        said = Status.SKIP
        assert await call(pipeline, {"data": 1}) == [{"data": 1, "result": "read"}]
        assert await read(pipeline, {"data": 1}) == [{"data": 1, "result": "read"}]
        assert log == []


# failures


async def test_a_failure_midway_comes_after_the_parts_before_it(
    workshop: Workshop, log: list[Any]
) -> None:
    workshop.acts["read"] = lambda item: item["missing"] if item["data"] == 2 else item["data"]
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        got: list[Any] = []
        with pytest.raises(BackendError, match="node 'read': backend Work raised KeyError"):
            async for part in pipeline.stream({"data": [0, 1, 2, 3]}):
                got += [part["result"]]
        await turns()
        assert got == [0, 1]
        assert log == [0, 1, 2, "ended"]
        with pytest.raises(BackendError, match="node 'read'"):
            await pipeline({"data": [0, 1, 2, 3]})


async def test_the_node_itself_fails_midway(log: list[Any]) -> None:
    async with serve(tables()) as pipeline:
        got: list[Any] = []
        with pytest.raises(BackendError, match="node 'pages': backend Pages raised OSError: torn"):
            async for part in pipeline.stream({"data": [0, OSError("torn"), 2]}):
                got += [part["result"]]
        assert got == [0]
        with pytest.raises(BackendError, match="torn"):
            await pipeline({"data": [0, OSError("torn"), 2]})


@pytest.mark.parametrize("where", ["pages", "read"])
async def test_a_part_that_can_not_be_read_is_the_end(
    workshop: Workshop, log: list[Any], where: str
) -> None:
    """Either the stream itself can't be read on, or one of its parts."""

    def act(item: Item) -> Any:
        if item["data"] == "bad":
            raise InvalidInput("no image")
        return item["data"]

    workshop.acts["read"] = act
    data = [0, 1, InvalidInput("no image") if where == "pages" else "bad", 3]
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        got: list[Any] = []
        with pytest.raises(InvalidInput, match="no image"):
            async for part in pipeline.stream({"data": data}):
                got += [part]
        assert [part["result"] for part in got] == [0, 1]
        with pytest.raises(InvalidInput, match="no image"):
            await pipeline({"data": data})
        answers: list[Any] = await pipeline([{"data": [7]}, {"data": data}])
        good, bad = answers
        assert [part["result"] for part in good] == [7]
        assert type(bad["error"]) is InvalidInput
        assert "result" not in bad
        await turns()
        assert 3 not in log


async def test_a_node_before_the_stream_fails(workshop: Workshop, log: list[Any]) -> None:
    def act(item: Item) -> Any:
        raise InvalidInput("no document") if item["data"] == "soft" else ValueError("as told")

    workshop.acts["first"] = act
    nodes = {"first": {"backend": "Work", "next": "pages"}, **tables()}
    async with serve(nodes, workshop=workshop) as pipeline:
        for call in (read, lambda pipeline, item: pipeline(item)):
            with pytest.raises(InvalidInput, match="no document"):
                await call(pipeline, {"data": "soft"})
            with pytest.raises(BackendError, match="node 'first'"):
                await call(pipeline, {"data": "hard"})


# streams that end early


async def test_a_reader_that_leaves_ends_the_node(workshop: Workshop, log: list[Any]) -> None:
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        async with contextlib.aclosing(pipeline.stream({"data": list(range(5))})) as reader:
            async for part in reader:
                if part["result"] == 1:
                    break
        assert pipeline.in_flight == 0
        await turns()
        assert log == [0, 1, "ended"]
        assert outcomes(pipeline, "pages") == {"cancelled": 1}


async def test_a_reader_that_is_cancelled_while_it_waits(
    workshop: Workshop, log: list[Any]
) -> None:
    workshop.hold("read")
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        reading = asyncio.ensure_future(read(pipeline, {"data": [0, 1]}))
        await workshop.begun("read")
        reading.cancel()
        await turns()
        assert reading.cancelled()
        assert (pipeline.in_flight, log) == (0, [0, "ended"])


async def test_a_caller_that_leaves_a_plain_call(workshop: Workshop, log: list[Any]) -> None:
    workshop.hold("read")
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": [0, 1]}))
        await workshop.begun("read")
        calling.cancel()
        await turns()
        assert (pipeline.in_flight, log) == (0, [0, "ended"])


async def test_the_deadline_holds_for_the_whole_stream(workshop: Workshop, log: list[Any]) -> None:
    clock = Clock()
    async with serve(tables(read={}), workshop=workshop, clock=clock) as pipeline:
        reader = pipeline.stream({"data": [0, 1, 2]}, timeout=0.01)
        assert (await anext(reader))["result"] == 0
        clock.now += 0.01
        with pytest.raises(DeadlineExceeded):
            await anext(reader)
        await turns()
        assert log[-1] == "ended"
        assert 2 not in log


async def test_the_deadline_ends_the_node_even_without_a_reader(
    workshop: Workshop, log: list[Any]
) -> None:
    """The reader may leave without asking again: the loop reports no exception as not retrieved."""
    clock = Clock()
    async with serve(tables(read={}), workshop=workshop, clock=clock) as pipeline:
        reader = pipeline.stream({"data": [0, 1, 2]}, timeout=0.01)
        assert (await anext(reader))["result"] == 0
        clock.now += 0.01
        await until(lambda: log[-1] == "ended")
        assert pipeline.in_flight == 0
        await reader.aclose()


async def test_a_node_that_swallows_its_cancellation_is_cancelled_again(workshop: Workshop) -> None:
    ended: list[str] = []
    waits = asyncio.Event()

    async def stubborn(item: Item, call: Any) -> AsyncIterator[Any]:
        try:
            waits.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield "ignored"
        finally:
            ended.append("ended")

    register_backend("Pages", stubborn)
    async with serve(tables(read={}), workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await waits.wait()
        calling.cancel()
        await turns()
        assert ended == ["ended"]
        assert workshop.ran == []


@pytest.mark.parametrize("reads", [True, False])
async def test_close_midway(workshop: Workshop, log: list[Any], reads: bool) -> None:
    workshop.hold("read")
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline.load(tables(read={}))
        await pipeline.start()
        reading = asyncio.ensure_future(
            read(pipeline, {"data": [0, 1]}) if reads else pipeline({"data": [0, 1]})
        )
        await workshop.begun("read")
        closing = asyncio.ensure_future(pipeline.close(timeout=0))
        with pytest.raises(NotReady):
            await reading
        workshop.release("read")
        await closing
        assert (log, pipeline.in_flight) == ([0, "ended"], 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_lets_a_stream_that_is_read_end(workshop: Workshop, log: list[Any]) -> None:
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline.load(tables(read={}))
        await pipeline.start()
        reader = pipeline.stream({"data": [0, 1, 2]})
        got = [await anext(reader)]
        closing = asyncio.ensure_future(pipeline.close(timeout=BOUND))
        await turns()
        got += [part async for part in reader]
        await closing
        assert [part["result"] for part in got] == [0, 1, 2]


# streams within other graphs


async def test_logic_that_calls_a_stream_gets_the_list(workshop: Workshop, log: list[Any]) -> None:
    workshop.acts["read"] = text

    async def think(item: Item, call: Any) -> Any:
        one = await call("pages", item)
        several = await call("pages", [item, item])
        return [[part["result"] for part in parts] for parts in (one, *several)]

    register_backend("Think", think)
    nodes = tables(read={}) | {"think": {"backend": "Think"}}
    nodes["pipeline"]["entry"] = "think"
    async with serve(nodes, workshop=workshop) as pipeline:
        assert not pipeline.streams
        assert (await pipeline({"data": ["a", "b"]}))["result"] == [["<a>", "<b>"]] * 3


@pytest.mark.parametrize(
    ("composite", "result"), [("Jump", ["<a>", "<b>"]), ("MapReduce", [["<a>"], ["<b>"]])]
)
async def test_a_jump_into_a_stream_gets_the_results(
    workshop: Workshop, log: list[Any], composite: str, result: Any
) -> None:
    workshop.acts["read"] = text
    async with serve(
        tables(read={}) | {"go": {"backend": composite, "jump": "pages"}}, workshop=workshop
    ) as pipeline:
        assert await pipeline({"data": ["a", "b"]}) == {"data": ["a", "b"], "result": result}


async def test_a_part_may_be_split_again(workshop: Workshop, log: list[Any]) -> None:
    workshop.acts["read"] = text
    nodes = tables() | {
        "all": {"backend": "MapReduce", "jump": "read"},
        "read": {"backend": "Work"},
    }
    nodes["pages"]["next"] = "all"
    nodes["pipeline"]["entry"] = "pages"
    async with serve(nodes, workshop=workshop) as pipeline:
        parts = await read(pipeline, {"data": [["a", "b"], [], ["c"]]})
        assert [part["result"] for part in parts] == [["<a>", "<b>"], [], ["<c>"]]


async def test_a_loop_around_a_stream(workshop: Workshop, log: list[Any]) -> None:
    nodes = tables(read={})
    nodes["pipeline"]["loop"] = True
    async with serve(nodes, workshop=workshop) as pipeline:
        assert await results(pipeline, {"data": [1, 2]}) == [1, 2]
        assert await results_read(pipeline, {"data": [1, 2]}) == [1, 2]


# configurations that are refused


def problems(nodes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Pipeline.load(nodes)
    return [str(problem) for problem in caught.value.problems]


def test_two_streams_on_one_path(log: list[Any]) -> None:
    nodes = tables(second={"backend": "Pages"})
    assert problems(nodes) == [
        "[second]: node 'pages' yields several results too: only one node of a graph may"
    ]


async def test_a_logical_node_of_a_node_that_yields_does_too(
    workshop: Workshop, log: list[Any]
) -> None:
    nodes = tables() | {
        "first": {"backend": "Work", "next": "pages.2"},
        "pages.2": {"next": "read"},
        "read": {"backend": "Work"},
    }
    nodes["pipeline"]["entry"] = "first"
    async with serve(nodes, workshop=workshop) as pipeline:
        assert pipeline.streams
        assert await results_read(pipeline, {"data": ["a", "b"]}) == ["a", "b"]
    nodes["pages"]["next"] = "pages.2"
    nodes["first"].pop("next")
    assert len(problems(nodes)) == 1


def test_a_branch_beside_a_stream(log: list[Any]) -> None:
    nodes = {
        "first": {"backend": "Work", "next": "pages,beside"},
        "pages": {"backend": "Pages", "next": "join"},
        "beside": {"backend": "Work", "next": "join"},
        "join": {"backend": "Work", "map": "pages[result:data],beside[result:x]"},
    }
    assert problems(nodes) == [
        "[pages]: it yields several results, so no other branch may run beside it; 'beside' does"
    ]


def test_several_graphs_may_have_a_stream_each(log: list[Any]) -> None:
    register_backend("Other", pages_of([]))
    Pipeline.load(
        {
            **tables(read={}),
            "other": {"backend": "Other", "next": "more"},
            "more": {"backend": "Work"},
        }
    )
