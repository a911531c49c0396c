"""Jump, MapReduce and CopySplit: their results, what queues meanwhile, and what is left if a part
or its parent ends early.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    NotReady,
)
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

from ..workshop import (
    BOUND,
    Clock,
    Workshop,
    assert_empty,
    outcomes,
    queued,
    serve,
    turns,
    until,
    waiting,
)

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


@pytest.fixture
def workshop(own_registry: None) -> Workshop:
    return Workshop()


def map_reduce(target: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """Make the tables of a MapReduce `all` over `each`, a node of the workshop."""
    return {
        "pipeline": {"timeout": 1000.0},
        "all": {"backend": "MapReduce", "jump": "each", **keys},
        "each": {"backend": "Work", "max": 2, **(target or {})},
    }


def text(item: Item) -> str:
    return f"<{item['data']}>"


# results


@pytest.mark.parametrize(
    "data",
    [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])],
    ids=["list", "tuple", "array"],
)
async def test_each_element_takes_its_own_way_and_the_results_keep_their_order(
    workshop: Workshop, data: Any
) -> None:
    workshop.acts["each"] = text
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        answer = await pipeline({"data": data, "other": 7})
        assert answer == {"data": answer["data"], "other": 7, "result": ["<a>", "<b>", "<c>"]}
        assert answer["data"] is data
        assert outcomes(pipeline, "all") == {"ok": 1}
        assert outcomes(pipeline, "each") == {"ok": 3}


async def test_an_array_is_split_by_its_first_axis(workshop: Workshop) -> None:
    workshop.acts["each"] = lambda item: item["data"].shape
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        assert (await pipeline({"data": np.zeros((3, 4, 5))}))["result"] == [(4, 5)] * 3


@pytest.mark.parametrize("data", [[], (), np.zeros((0, 3))], ids=["list", "tuple", "array"])
async def test_no_elements_give_an_empty_list(workshop: Workshop, data: Any) -> None:
    async with serve(map_reduce(merge="result,score"), workshop=workshop) as pipeline:
        answer = await pipeline({"data": data})
        assert (answer["result"], answer["score"]) == ([], [])
        assert workshop.ran == []


async def test_results_keep_the_order_of_the_elements(workshop: Workshop) -> None:
    gates = {number: threading.Event() for number in range(4)}

    def act(item: Item) -> int:
        assert gates[item["data"]].wait(BOUND)
        if item["data"]:
            gates[item["data"] - 1].set()
        return int(item["data"])

    workshop.acts["each"] = act
    gates[3].set()  # the last part ends first, and each lets the one before it end
    async with serve(map_reduce({"max": 1, "instance_num": 4}), workshop=workshop) as pipeline:
        assert (await pipeline({"data": [0, 1, 2, 3]}))["result"] == [0, 1, 2, 3]


async def test_another_key_is_split_and_several_are_merged(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        item["score"] = item["box"] / 10
        return item["data"], item["box"]

    workshop.acts["each"] = act
    async with serve(map_reduce(split="box", merge="result, score"), workshop=workshop) as pipeline:
        answer = await pipeline({"data": "page", "box": [1, 2]})
        assert answer == {
            "data": "page",
            "box": [1, 2],
            "result": [("page", 1), ("page", 2)],
            "score": [0.1, 0.2],
        }


async def test_keys_of_parts_that_are_not_merged_are_not_in_the_answer(
    workshop: Workshop,
) -> None:
    def act(item: Item) -> str:
        item["own"] = item["data"]
        item["shared"] = "changed"
        return "r"

    workshop.acts["each"] = act
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        assert await pipeline({"data": [1], "shared": "mine"}) == {
            "data": [1],
            "shared": "mine",
            "result": ["r"],
        }


async def test_the_merged_item_goes_on_to_the_next_node(workshop: Workshop) -> None:
    workshop.acts |= {
        "before": lambda item: item["data"].split(),
        "each": text,
        "after": lambda item: "".join(item["data"]),
    }
    tables = map_reduce(next="after") | {
        "before": {"backend": "Work", "next": "all"},
        "after": {"backend": "Work"},
    }
    async with serve(tables, workshop=workshop) as pipeline:
        assert await pipeline({"data": "a b"}) == {"data": "a b", "result": "<a><b>"}


async def test_jump_sends_the_item_itself(workshop: Workshop) -> None:
    def act(item: Item) -> str:
        item["extra"] = 1
        return text(item)

    workshop.acts["far"] = act
    tables = {
        "near": {"backend": "Work", "next": "go"},
        "go": {"backend": "Jump", "jump": "far", "next": "end"},
        "end": {"backend": "Work"},
        "far": {"backend": "Work"},
    }
    async with serve(tables, workshop=workshop) as pipeline:
        assert await pipeline({"data": "x", "key": 2}) == {
            "data": "x",
            "key": 2,
            "extra": 1,
            "result": "<x>",
        }
        assert workshop.inputs("end") == ["<x>"]


async def test_a_break_after_a_jump_ends_the_inner_run_only(workshop: Workshop) -> None:
    register_filter("stop", lambda item: Status.BREAK)
    tables = {
        "go": {"backend": "Jump", "jump": "far", "next": "end"},
        "end": {"backend": "Work", "filter": "Run"},
        "far": {"backend": "Work", "next": "never"},
        "never": {"backend": "Work", "filter": "stop"},
    }
    async with serve(tables, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == "x"
        assert [node for node, _ in workshop.ran] == ["far", "end"]


@pytest.mark.parametrize(
    ("data", "pieces", "result"),
    [
        ([1, 2, 3, 4, 5], [[1, 2], [3, 4], [5]], [1, 2, 3, 4, 5]),
        ((1, 2, 3), [(1, 2), (3,)], [1, 2, 3]),
        (np.arange(5), [[0, 1], [2, 3], [4]], np.arange(5)),
        ([], [], []),
    ],
)
async def test_copy_split_cuts_into_pieces_and_joins_the_results(
    workshop: Workshop, data: Any, pieces: Any, result: Any
) -> None:
    tables = map_reduce({"max": 1}) | {
        "all": {"backend": "CopySplit", "jump": "each", "split_size": 2}
    }
    async with serve(tables, workshop=workshop) as pipeline:
        answer = (await pipeline({"data": data}))["result"]
        assert type(answer) is type(result)
        assert list(answer) == list(result)
        assert [list(piece) for piece in workshop.inputs("each")] == [
            list(piece) for piece in pieces
        ]


async def test_copy_split_of_tensors(workshop: Workshop) -> None:
    torch = pytest.importorskip("torch")
    tables = map_reduce() | {"all": {"backend": "CopySplit", "jump": "each", "split_size": 2}}
    async with serve(tables, workshop=workshop) as pipeline:
        answer = (await pipeline({"data": torch.arange(10).reshape(5, 2)}))["result"]
        assert torch.equal(answer, torch.arange(10).reshape(5, 2))


async def test_copy_split_collects_results_that_can_not_be_joined(workshop: Workshop) -> None:
    workshop.acts["each"] = lambda item: sum(item["data"])
    tables = map_reduce() | {"all": {"backend": "CopySplit", "jump": "each", "split_size": 2}}
    async with serve(tables, workshop=workshop) as pipeline:
        assert (await pipeline({"data": [1, 2, 3]}))["result"] == [3, 3]


# request_size


async def test_the_elements_of_a_batch_are_one_row_each(workshop: Workshop) -> None:
    async with serve(map_reduce({"max": 4}), workshop=workshop) as pipeline:
        assert (await pipeline({"data": np.arange(3), "request_size": 3}))["result"] == [0, 1, 2]
        assert all("request_size" not in item for item in workshop.items)
        assert [len(batch) for batch in workshop.batches("each")] == [3]


async def test_a_jump_takes_the_rows_along(workshop: Workshop) -> None:
    tables = {"go": {"backend": "Jump", "jump": "far"}, "far": {"backend": "Work", "max": 4}}
    async with serve(tables, workshop=workshop) as pipeline:
        await asyncio.gather(
            *[pipeline({"data": number, "request_size": 3}) for number in range(2)]
        )
        assert workshop.batches("far") == [[0], [1]]  # six rows are too many for one batch
        assert [item["request_size"] for item in workshop.items] == [3, 3]


async def test_a_piece_has_as_many_rows_as_elements(workshop: Workshop) -> None:
    tables = map_reduce({"max": 4}) | {
        "all": {"backend": "CopySplit", "jump": "each", "split_size": 3}
    }
    async with serve(tables, workshop=workshop) as pipeline:
        await pipeline({"data": np.arange(7), "request_size": 7})
        assert [item["request_size"] for item in workshop.items] == [3, 3, 1]
        assert [[len(piece) for piece in batch] for batch in workshop.batches("each")] == [
            [3],
            [3, 1],
        ]


@pytest.mark.parametrize(
    "composite", [{"backend": "Jump"}, {"backend": "CopySplit", "split_size": 5}]
)
async def test_a_part_with_more_rows_than_a_batch_can_hold_is_refused(
    workshop: Workshop, composite: dict[str, Any]
) -> None:
    tables = {"all": {"jump": "each", **composite}, "each": {"backend": "Work", "max": 4}}
    async with serve(tables, workshop=workshop) as pipeline:
        with pytest.raises(
            InvalidRequest,
            match=r"a part has 5 rows \(request_size\), but node 'each' takes at most 4",
        ):
            await pipeline({"data": np.arange(5), "request_size": 5})
        assert (await pipeline({"data": np.arange(4), "request_size": 4})) is not None


# failures


async def test_a_part_without_a_key_to_merge_fails_the_parent_and_is_named(
    workshop: Workshop,
) -> None:
    def act(item: Item) -> Any:
        if item["data"] != 1:
            item["score"] = 0.5
        return item["data"]

    workshop.acts["each"] = act
    async with serve(map_reduce(merge="result,score"), workshop=workshop) as pipeline:
        with pytest.raises(BackendError, match="node 'all': part 1 of 3 has no 'score' to merge"):
            await pipeline({"data": [0, 1, 2]})
        assert outcomes(pipeline, "all") == {"failed": 1}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"data": 3},
            "node 'all': it splits 'data', which is int: expected a list, a tuple or an array",
        ),
        ({"data": "text"}, "node 'all': it splits 'data', which is str"),
        ({"data": np.array(3)}, "node 'all': it splits 'data', which is ndarray"),
    ],
)
async def test_data_that_can_not_be_split(workshop: Workshop, item: Item, message: str) -> None:
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        with pytest.raises(BackendError, match=message):
            await pipeline(item)
        assert (await pipeline({"data": [1]}))["result"] == [1]


async def test_an_item_without_the_key_to_split(workshop: Workshop) -> None:
    async with serve(map_reduce(split="boxes"), workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError,
            match="node 'all': it splits 'boxes', but the item has no such key; its keys are",
        ):
            await pipeline({"data": 1, "x": 2})


class Fickle:
    """An array of two elements that raises when they are read."""

    shape = (2,)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        raise KeyError(index)


@pytest.mark.parametrize(
    "composite", [{"backend": "MapReduce"}, {"backend": "CopySplit", "split_size": 1}]
)
async def test_data_that_raises_when_split_fails_its_own_request_only(
    workshop: Workshop, composite: dict[str, Any]
) -> None:
    async with serve(
        {**map_reduce(), "all": {"jump": "each", **composite}}, workshop=workshop
    ) as pipeline:
        with pytest.raises(BackendError, match="node 'all': KeyError"):
            await pipeline({"data": Fickle()})
        assert len((await pipeline({"data": [1, 2]}))["result"]) == 2


async def test_an_item_that_has_lost_its_data_fails_alone(workshop: Workshop) -> None:
    def drop(item: Item) -> Status:
        if "drop" in item:
            del item["data"]
        return Status.RUN

    register_filter("drop", drop)
    tables = map_reduce(split="box", filter="drop") | {"before": {"backend": "Work", "next": "all"}}
    async with serve(tables, workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError, match="node 'all': the item has no 'data'; its keys are box, drop"
        ):
            await pipeline({"data": 1, "drop": True, "box": [1, 2]})
        assert (await pipeline({"data": 1, "box": [1, 2]}))["result"] == [1, 1]


async def test_the_soft_failure_of_a_part_is_that_of_the_parent(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        if item["data"] == 1:
            item["error"] = InvalidInput("no image")
            return None
        return item["data"]

    workshop.acts["each"] = act
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        good, bad = await pipeline([{"data": [0, 2]}, {"data": [0, 1, 2], "key": "kept"}])
        assert good["result"] == [0, 2]
        assert set(bad) == {"data", "key", "error"}
        assert type(bad["error"]) is InvalidInput
        assert bad["data"] == [0, 1, 2]
        with pytest.raises(InvalidInput, match="no image"):
            await pipeline({"data": [1]})
        assert outcomes(pipeline, "all") == {"ok": 1, "soft": 2}


@pytest.mark.parametrize("soft", [False, True], ids=["failure", "soft failure"])
async def test_a_part_that_fails_drops_the_other_parts_of_its_parent_only(
    workshop: Workshop, soft: bool
) -> None:
    def act(item: Item) -> Any:
        if item["data"] == "bad":
            raise InvalidInput("on purpose") if soft else ValueError("on purpose")
        return item["data"]

    workshop.acts["each"] = act
    workshop.hold("each")
    async with serve(map_reduce({"max": 1}), workshop=workshop) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": ["bad", *range(100)]}))
        await workshop.begun("each")
        other = asyncio.ensure_future(
            pipeline({"data": [f"other {number}" for number in range(5)]})
        )
        await turns()
        workshop.release("each")
        with pytest.raises(InvalidInput if soft else BackendError, match="on purpose"):
            await first
        assert (await other)["result"] == [f"other {number}" for number in range(5)]
        assert waiting(pipeline, "all") == 0
        # Of the parts that queued when it failed, the executor may have taken one at once.
        assert sum(isinstance(data, int) for data in workshop.inputs("each")) <= 1


async def test_a_failure_names_the_node_of_the_part_and_its_backend(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        raise ValueError("on purpose")

    workshop.acts["each"] = act
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError, match="node 'each': backend Work raised ValueError: on purpose"
        ) as caught:
            await pipeline({"data": [1]})
        assert isinstance(caught.value.__cause__, ValueError)


async def test_the_log_names_the_request_whose_parts_can_not_be_made(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(list[int]):
        def __iter__(self) -> Any:
            raise ValueError("on purpose")

    async with serve(map_reduce(), workshop=workshop) as pipeline:
        with pytest.raises(BackendError, match="node 'all': ValueError: on purpose"):
            await pipeline.submit_nowait({"data": Broken([1])}, request_id="r1").future
    (record,) = caplog.records
    assert vars(record)["request_id"] == "r1"


# depth, number, turns


def nested(levels: int, **last: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {"pipeline": {"timeout": 1000.0, "entry": "m0", "max_requests": 5000}}
    for level in range(levels):
        tables[f"m{level}"] = {
            "backend": "MapReduce",
            "jump": f"m{level + 1}" if level < levels - 1 else "each",
        }
    return tables | {"each": {"backend": "Work", "max": 1, **last}}


async def test_lists_of_lists_of_lists(workshop: Workshop) -> None:
    workshop.acts["each"] = text
    async with serve(nested(3), workshop=workshop) as pipeline:
        answer = await pipeline({"data": [[["a", "b"], ["c"]], [[], ["d"]]]})
        assert answer["result"] == [[["<a>", "<b>"], ["<c>"]], [[], ["<d>"]]]


async def test_many_parents_of_nested_parts_and_one_instance_end_all(workshop: Workshop) -> None:
    async with serve(nested(3), workshop=workshop) as pipeline:
        data = [[[number, -number], [number]] for number in range(3)]
        answers = await asyncio.gather(
            *[pipeline({"data": [*data, [[parent]]]}) for parent in range(200)]
        )
        assert [answer["result"] for answer in answers] == [
            [*data, [[parent]]] for parent in range(200)
        ]
        assert len(workshop.inputs("each")) == 200 * 10
        assert outcomes(pipeline, "m0") == {"ok": 200}


async def test_python_logic_among_the_parts_may_enter_the_same_map_reduce_again(
    workshop: Workshop,
) -> None:
    """The parts that queue fill all the room, and they wait for parts of their own."""
    from penstock.backends.expressions.registry import register_backend

    async def flatten(item: Item, call: Any) -> Any:
        if not isinstance(item["data"], list):
            return [item["data"]]
        parts = (await call("all", {"data": item["data"]}))["result"]
        return [element for part in parts for element in part]

    register_backend("Flatten", flatten)
    tables = {"all": {"backend": "MapReduce", "jump": "flatten"}, "flatten": {"backend": "Flatten"}}
    async with serve(tables) as pipeline:
        data = [[[number, [number, [number]]]] for number in range(100)]
        answer = await pipeline({"data": data, "node_name": "flatten"})
        assert answer["result"] == [number for number in range(100) for _ in range(3)]


async def test_at_most_twice_max_parts_queue(workshop: Workshop) -> None:
    workshop.hold("each")
    async with serve(map_reduce({"max": 4}), workshop=workshop) as pipeline:
        most = 0
        calls = [asyncio.ensure_future(pipeline({"data": list(range(50))})) for _ in range(3)]
        await workshop.begun("each")
        await turns()
        assert queued(pipeline, "each") == 8  # and four run
        workshop.release("each")
        while not all(call.done() for call in calls):
            most = max(most, queued(pipeline, "each"))
            await asyncio.sleep(0)
        assert most == 8
        assert len(workshop.inputs("each")) == 150
        # A batch that starts makes room for the next parts, so no batch is too small.
        assert {len(batch) for batch in workshop.batches("each")[:-1]} == {4}


async def test_a_small_parent_does_not_wait_for_a_large_one(workshop: Workshop) -> None:
    workshop.hold("each")
    async with serve(map_reduce(), workshop=workshop) as pipeline:
        large = asyncio.ensure_future(pipeline({"data": ["large"] * 300}))
        await workshop.begun("each")
        small = asyncio.ensure_future(pipeline({"data": ["small"] * 3}))
        await turns()
        workshop.release("each")
        await small
        ran = workshop.inputs("each")
        last = max(index for index, data in enumerate(ran) if data == "small")
        # Before its last part: the batch that ran (2), what queued already (4), and for each of its
        # own parts (3) one of the large parent, in batches of 2.
        assert last + 1 <= 2 + 4 + 6
        assert not large.done()
        assert (await large)["result"] == ["large"] * 300


async def test_parents_take_turns(workshop: Workshop) -> None:
    workshop.hold("each")
    async with serve(map_reduce({"max": 1}), workshop=workshop) as pipeline:
        calls = [asyncio.ensure_future(pipeline({"data": [name] * 4})) for name in "abc"]
        await workshop.begun("each")
        await turns()
        workshop.release("each")
        await asyncio.gather(*calls)
        # The first came alone: one part runs, two queue. After that the parents take turns.
        assert "".join(workshop.inputs("each")) in {"aaabacbcbcbc", "aaabcabcbcbc"}


async def test_parts_have_the_priority_of_their_parent(workshop: Workshop) -> None:
    tables = map_reduce({"max": 1, "priority_levels": 3})
    tables["all"]["priority_levels"] = 3
    tables["hold"] = {"backend": "Work"}
    workshop.hold("each")
    async with serve(tables, workshop=workshop) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": ["first"], "node_name": "all"}))
        await workshop.begun("each")
        low = asyncio.ensure_future(pipeline({"data": ["low"], "node_name": "all"}, priority=3))
        await turns()
        high = asyncio.ensure_future(pipeline({"data": ["high"], "node_name": "all"}, priority=1))
        await turns()
        workshop.release("each")
        await asyncio.gather(first, low, high)
        assert workshop.inputs("each") == ["first", "high", "low"]


# parents that end early


async def test_a_parent_that_waits_for_its_turn_is_answered_at_its_deadline(
    workshop: Workshop,
) -> None:
    clock = Clock()
    workshop.hold("each")
    async with serve(map_reduce(), workshop=workshop, clock=clock) as pipeline:
        large = asyncio.ensure_future(pipeline({"data": ["large"] * 20}))
        await workshop.begun("each")
        late = asyncio.ensure_future(pipeline({"data": ["late"] * 20}, timeout=0.01))
        await turns()
        assert waiting(pipeline, "all") == 2
        clock.now += 0.01
        with pytest.raises(DeadlineExceeded, match="node 'all'"):
            await late
        assert waiting(pipeline, "all") == 1
        workshop.release("each")
        assert len((await large)["result"]) == 20
        assert "late" not in workshop.inputs("each")
        assert outcomes(pipeline, "all") == {"ok": 1, "expired": 1}


async def test_parts_have_the_deadline_of_their_parent(workshop: Workshop) -> None:
    """None starts after it, even if the timer of the composite has not fired yet."""
    clock = Clock()
    workshop.hold("each")
    async with serve(map_reduce(), workshop=workshop, clock=clock) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": ["first"]}))
        await workshop.begun("each")
        late = asyncio.ensure_future(pipeline({"data": ["late"] * 20}, timeout=500.0))
        await turns()
        assert queued(pipeline, "each") == 4
        clock.now += 500.0
        workshop.release("each")
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await first)["result"] == ["first"]
        assert "late" not in workshop.inputs("each")


async def test_parts_that_queue_are_dropped_at_the_deadline(workshop: Workshop) -> None:
    clock = Clock()
    workshop.hold("each")
    async with serve(map_reduce(), workshop=workshop, clock=clock) as pipeline:
        late = asyncio.ensure_future(pipeline({"data": ["late"] * 20}, timeout=0.01))
        await workshop.begun("each")
        assert queued(pipeline, "each") == 4
        clock.now += 0.01
        with pytest.raises(DeadlineExceeded):
            await late
        assert queued(pipeline, "each") == 0
        assert pipeline.in_flight == 0
        workshop.release("each")
        await until(lambda: not pipeline.nodes[0].scheduler.running)
        assert len(workshop.inputs("each")) == 2


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
async def test_a_parent_whose_caller_leaves_drops_its_parts(
    workshop: Workshop, twice: bool
) -> None:
    workshop.hold("each")
    async with serve(nested(2) if twice else map_reduce({"max": 1}), workshop=workshop) as pipeline:
        first, second = (["first"] * 20, ["second"] * 20)
        leaver = asyncio.ensure_future(pipeline({"data": [first] if twice else first}))
        await workshop.begun("each")
        stayer = asyncio.ensure_future(pipeline({"data": [second] if twice else second}))
        await turns()
        leaver.cancel()
        await turns()
        assert leaver.cancelled()
        assert pipeline.in_flight == 1
        workshop.release("each")
        assert (await stayer)["result"] == ([second] if twice else second)
        assert workshop.inputs("each").count("first") == 1  # the one that ran
        assert sum(outcomes(pipeline, "m0" if twice else "all").values()) == 2


async def test_a_part_that_ends_after_its_parents_caller_has_left(workshop: Workshop) -> None:
    """The future of the parent is done, but the composite does not know yet."""
    workshop.hold("each")
    async with serve(map_reduce({"max": 1}), workshop=workshop) as pipeline:
        work = pipeline.submit_nowait({"data": [1, 2, 3, 4, 5]})
        await workshop.begun("each")
        work.future.cancel()
        workshop.release("each")
        await until(lambda: not pipeline.nodes[0].scheduler.running)
        assert waiting(pipeline, "all") == 1
        work.leave()
        assert waiting(pipeline, "all") == 0
        assert (await pipeline({"data": [1, 2, 3]}))["result"] == [1, 2, 3]


@pytest.mark.parametrize("levels", [1, 3])
async def test_close_with_parents_that_wait(workshop: Workshop, levels: int) -> None:
    workshop.hold("each")
    config = Pipeline.load(nested(levels)).config
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline(config)
        await pipeline.start()
        data: Any = list(range(30))
        for _ in range(levels - 1):
            data = [data]
        calls = [asyncio.ensure_future(pipeline({"data": data})) for _ in range(5)]
        await workshop.begun("each")
        await turns()
        closing = asyncio.ensure_future(pipeline.close(timeout=0))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReady] * 5
        workshop.release("each")
        await closing
        assert_empty_except_running(pipeline)
        assert asyncio.all_tasks() == {asyncio.current_task()}


def assert_empty_except_running(pipeline: Pipeline) -> None:
    for node in pipeline.nodes:
        node.scheduler.running.clear()
    assert_empty(pipeline)


async def test_close_lets_requests_in_flight_end(workshop: Workshop) -> None:
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline(Pipeline.load(map_reduce()).config)
        await pipeline.start()
        calls = [asyncio.ensure_future(pipeline({"data": list(range(30))})) for _ in range(3)]
        await turns()
        await pipeline.close(timeout=BOUND)
        assert [answer["result"] for answer in await asyncio.gather(*calls)] == [
            list(range(30))
        ] * 3


async def test_a_node_that_is_shared_counts_the_parts_of_each_composite_alone(
    workshop: Workshop,
) -> None:
    """Two composites over one node, which gets requests of its own too: each composite has its own
    share of the queue.
    """
    tables = map_reduce({"max": 1}) | {"also": {"backend": "MapReduce", "jump": "each"}}
    workshop.hold("each")
    async with serve(tables, workshop=workshop) as pipeline:
        calls = [
            asyncio.ensure_future(pipeline({"data": ["x"] * 10, "node_name": name}))
            for name in ("all", "also")
        ]
        calls.append(asyncio.ensure_future(pipeline({"data": "alone", "node_name": "each"})))
        await workshop.begun("each")
        await turns()
        assert queued(pipeline, "each") == 2 + 2 + 1
        workshop.release("each")
        answers = await asyncio.gather(*calls)
        assert [len(answer["result"]) for answer in answers] == [10, 10, 5]


async def test_the_parts_of_two_composites_in_one_graph_add_up(workshop: Workshop) -> None:
    tables = map_reduce(next="also") | {"also": {"backend": "MapReduce", "jump": "each"}}
    workshop.acts["each"] = lambda item: [item["data"]] * 2
    async with serve(tables, workshop=workshop) as pipeline:
        (node,) = pipeline.nodes
        for _ in range(2):
            await pipeline({"data": [1, 2, 3]})
            assert node.parts_per_item == 3 + 3


async def test_parts_of_composites_in_different_graphs_are_averaged(workshop: Workshop) -> None:
    """A request enters at one of the two roots, so it never sends the parts of both."""
    tables = map_reduce() | {"also": {"backend": "MapReduce", "jump": "each"}}
    async with serve(tables, workshop=workshop) as pipeline:
        (node,) = pipeline.nodes
        await pipeline({"data": [1] * 6, "node_name": "all"})
        assert node.parts_per_item == 6
        await pipeline({"data": [1] * 2, "node_name": "also"})
        assert node.parts_per_item == 4


async def test_a_composite_that_a_filter_skips_counts_as_often_as_it_runs(
    workshop: Workshop,
) -> None:
    register_filter("rare", lambda item: Status.RUN if "rare" in item else Status.SKIP)
    tables = map_reduce(next="also") | {
        "also": {"backend": "MapReduce", "jump": "each", "filter": "rare"}
    }
    async with serve(tables, workshop=workshop) as pipeline:
        (node,) = pipeline.nodes
        await pipeline({"data": [1, 2]})
        assert node.parts_per_item == 2
        await pipeline({"data": [1, 2], "rare": True})
        assert node.parts_per_item == 2 + 2 / 2
