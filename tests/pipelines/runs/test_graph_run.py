"""Graphs with joins, branches and filters: small cases, written by hand.

test_graph_machine.py compares random graphs with a plain recursion.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.item import Item

from ..workshop import Clock, Workshop, mark, outcomes, queued, serve, turns, until

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


def graph(**nodes: Any) -> dict[str, Any]:
    """Make the tables of nodes from what follows each; a dict adds other keys."""
    tables = {
        name: keys if isinstance(keys, dict) else {"next": keys} if keys else {}
        for name, keys in nodes.items()
    }
    return {
        "pipeline": {"timeout": 1000.0},
        **{name: {"backend": "Work", **keys} for name, keys in tables.items()},
    }


def diamond(**keys: Any) -> dict[str, Any]:
    """Make the tables of a graph in which a leads to b and c, and both lead to d."""
    tables = graph(a="b,c", b="d", c="d", d={"map": "b[result:data],c[result:other]"})
    for name, more in keys.items():
        tables[name] |= more
    return tables


def names(workshop: Workshop) -> str:
    """Return the names of the nodes that ran, in alphabetical order."""
    return "".join(sorted(node for node, batch in workshop.ran for _ in batch))


# joins


async def test_a_join_takes_what_its_map_names(workshop: Workshop) -> None:
    mark(workshop, "a", "b", "c")
    workshop.acts["d"] = lambda item: sorted(item.items())
    async with serve(diamond(), workshop=workshop) as pipeline:
        answer = await pipeline({"data": "x", "key": 1, "context": "carried over"})
        assert answer["result"] == [
            ("context", "carried over"),
            ("data", "b(a(x))"),
            ("other", "c(a(x))"),
        ]
        assert answer["data"] == "x"
        assert "key" not in answer


async def test_a_join_may_take_from_any_ancestor(workshop: Workshop) -> None:
    mark(workshop, "a", "b", "c")
    workshop.acts["d"] = lambda item: (item["data"], item["first"], item["whole"])
    tables = diamond(d={"map": "c[result:data],a[result:first],a[data:whole]"})
    async with serve(tables, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == ("c(a(x))", "a(x)", "x")


async def test_a_join_waits_for_the_slowest(workshop: Workshop) -> None:
    workshop.hold("b")
    async with serve(diamond(), workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": "x"}))
        await until(lambda: outcomes(pipeline, "c") == {"ok": 1})
        await turns()
        assert workshop.inputs("d") == []
        workshop.release("b")
        assert (await calling)["result"] == "x"
        assert names(workshop) == "abcd"


async def test_a_key_that_a_source_has_not_left(workshop: Workshop) -> None:
    async with serve(
        diamond(d={"map": "b[result:data],c[score:score]"}), workshop=workshop
    ) as pipeline:
        with pytest.raises(
            BackendError,
            match="node 'd': its map takes 'score' from node 'c', which left only data, result",
        ):
            await pipeline({"data": "x"})


async def test_a_soft_failure_before_a_join_says_why(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        raise InvalidInput("no image")

    workshop.acts["b"] = act
    async with serve(diamond(), workshop=workshop) as pipeline:
        with pytest.raises(InvalidInput, match="no image"):
            await pipeline({"data": "x"})
        (answer,) = await pipeline([{"data": "x", "key": 1}])
        assert {**answer, "error": str(answer["error"])} == {
            "data": "x",
            "key": 1,
            "error": "no image",
        }
        assert workshop.inputs("d") == []


@pytest.mark.parametrize("where", ["node", "filter"])
async def test_an_error_set_in_place_is_a_soft_failure(workshop: Workshop, where: str) -> None:
    """Also with a result beside it, and as text."""

    def act(item: Item) -> Any:
        item["error"] = "not today"
        return "never seen"

    def mine(item: Item) -> Status:
        item["error"] = "not today"
        return Status.BREAK

    register_filter("mine", mine)
    if where == "node":
        workshop.acts["a"] = act
    async with serve(
        diamond(b={"filter": "mine"} if where == "filter" else {}), workshop=workshop
    ) as pipeline:
        with pytest.raises(InvalidInput, match="not today"):
            await pipeline({"data": "x"})
        (answer,) = await pipeline([{"data": "x"}])
        assert (sorted(answer), type(answer["error"])) == (["data", "error"], InvalidInput)
        assert set(names(workshop)) <= {"a", "c"}


async def test_a_fallback_after_a_soft_failure(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        raise InvalidInput("no image")

    workshop.acts |= {"a": act, "b": lambda item: f"slowly {item['data']}"}
    async with serve(graph(a="b", b={"filter": "or"}), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x"}) == {"data": "x", "result": "slowly x"}
        workshop.acts["a"] = lambda item: "quickly"
        assert await pipeline({"data": "x"}) == {"data": "x", "result": "quickly"}
        assert workshop.inputs("b") == ["x"]


async def test_successors_do_not_see_each_others_changes(workshop: Workshop) -> None:
    def change(item: Item) -> Any:
        item["key"] = "changed"
        return item["data"]

    workshop.acts |= {"b": change, "c": lambda item: item["key"], "d": lambda item: item["other"]}
    workshop.hold("c")
    async with serve(diamond(c={"max": 1}), workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": "x", "key": "as given"}))
        await until(lambda: outcomes(pipeline, "b") == {"ok": 1})
        workshop.release("c")
        assert (await calling)["result"] == "as given"


async def test_several_leaves_all_run_and_give_no_result(workshop: Workshop) -> None:
    async with serve(graph(a="b,c", b=None, c=None), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x", "key": 1}) == {"data": "x", "key": 1}
        assert names(workshop) == "abc"


async def test_a_logical_node_shares_the_queue_and_has_its_own_way(workshop: Workshop) -> None:
    tables = graph(a="rec", rec="b", b={"next": "rec.2"})
    tables["rec.2"] = {"next": "c"}
    tables["c"] = {"backend": "Work"}
    mark(workshop, "a", "b", "c", "rec")
    async with serve(tables, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == "c(rec(b(rec(a(x)))))"
        assert [node.name for node in pipeline.nodes] == ["a", "rec", "b", "c"]
        assert outcomes(pipeline, "rec") == {"ok": 2}


# filters


async def test_swap_moves_and_run_leaves_the_data(workshop: Workshop) -> None:
    mark(workshop, "a", "b")
    for name, result in (
        (None, "b(a(x))"),
        ("swap", "b(a(x))"),
        ("Run", "b(x)"),
        ("Continue", "b(x)"),
    ):
        tables = graph(a="b", b={"filter": name} if name else {})
        async with serve(tables, workshop=workshop) as pipeline:
            assert (await pipeline({"data": "x"}))["result"] == result


@pytest.mark.parametrize("name", ["Run", "mine"])
async def test_a_node_does_not_see_the_answers_of_earlier_nodes(
    workshop: Workshop, name: str
) -> None:
    register_filter("mine", lambda item: Status.RUN)
    workshop.acts |= {"a": lambda item: "old", "b": lambda item: None}
    async with serve(graph(a="b", b={"filter": name}), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x"}) == {"data": "x"}
        assert "result" not in workshop.items[-1]


async def test_an_item_without_a_result_ends_at_swap(workshop: Workshop) -> None:
    def act(item: Item) -> None:
        item["reason"] = "nothing there"

    workshop.acts["a"] = act
    async with serve(diamond(), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x"}) == {"data": "x", "reason": "nothing there"}
        assert names(workshop) == "a"


@pytest.mark.parametrize(
    ("said", "ran", "result"),
    [
        (Status.RUN, "abcde", "e(d(c(b(a(x)))))"),
        (Status.SKIP, "acde", "e(d(c(a(x))))"),
        (Status.SERIAL_SKIP, "a", "a(x)"),
        (Status.SUBGRAPH_SKIP, "a", "a(x)"),
        (Status.BREAK, "a", "a(x)"),
    ],
)
async def test_what_a_status_does_in_a_chain(
    workshop: Workshop, said: Status, ran: str, result: str
) -> None:
    def filter_(item: Item) -> Status:
        if said is Status.RUN:
            item["data"] = item.pop("result")
        return said

    register_filter("mine", filter_)
    mark(workshop, *"abcde")
    async with serve(
        graph(a="b", b={"next": "c", "filter": "mine"}, c="d", d="e", e=None), workshop=workshop
    ) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == result
        assert names(workshop) == ran


def forked(filter_: str) -> dict[str, Any]:
    """Make the tables of a → b → c → (d, e) → join → f, and a → g → f.

    Only b leads to b, c, d, e and join. The longest chain from b is b, c.
    """
    return graph(
        a="b,g",
        b={"next": "c", "filter": filter_},
        c="d,e",
        d="join",
        e="join",
        g="f",
        join={"next": "f", "map": "d[result:data],e[result:e]"},
        f={"map": "join[result:data],g[result:g]"},
    )


@pytest.mark.parametrize(
    ("filter_", "ran"),
    [("SerialSkip", ["a", "d", "e", "f", "g", "join"]), ("SubGraphSkip", ["a", "f", "g"])],
)
async def test_what_is_skipped_in_a_graph(workshop: Workshop, filter_: str, ran: list[str]) -> None:
    mark(workshop, "a", "d", "e", "g")
    workshop.acts["f"] = lambda item: (item["data"], item["g"])
    async with serve(forked(filter_), workshop=workshop) as pipeline:
        answer = await pipeline({"data": "x"})
        assert sorted(node for node, _ in workshop.ran) == ran
        # `join` is in the sub-graph: it passes on the dict with which b was skipped.
        assert answer["result"] == ("d(a(x))" if filter_ == "SerialSkip" else "a(x)", "g(a(x))")


async def test_a_skipped_node_passes_its_own_dict_on(workshop: Workshop) -> None:
    def skip(item: Item) -> Status:
        item["seen"] = item["data"]
        return Status.SKIP

    register_filter("mine", skip)
    workshop.acts["d"] = lambda item: (item["data"], item["seen"])
    tables = diamond(b={"filter": "mine"}, d={"map": "b[result:data,seen:seen]"})
    async with serve(tables, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == ("x", "x")
        assert names(workshop) == "acd"
        assert outcomes(pipeline, "b") == {}


async def test_break_ends_the_graph_and_drops_what_queues(workshop: Workshop) -> None:
    register_filter("mine", lambda item: Status.BREAK)
    workshop.hold("c")
    async with serve(
        diamond(c={"max": 1}, b={"filter": "mine"}, a={"max": 1}), workshop=workshop
    ) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": "x"}))
        assert (await calling)["result"] == "x"
        await turns()
        assert queued(pipeline, "c") == 0
        assert names(workshop) == "a"
        assert pipeline.in_flight == 0


async def test_break_while_a_branch_runs_ignores_its_result(workshop: Workshop) -> None:
    register_filter("mine", lambda item: Status.BREAK)
    tables = graph(
        a="b,slow",
        b="stop",
        stop={"filter": "mine", "next": "d"},
        slow="d",
        d={"map": "stop[result:data],slow[result:x]"},
    )
    workshop.hold("slow")
    workshop.hold("b")
    async with serve(tables, workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": "x"}))
        await workshop.begun("slow")
        workshop.release("b")
        assert (await calling)["result"] == "x"
        workshop.release("slow")
        await until(lambda: outcomes(pipeline, "slow") == {"cancelled": 1})
        assert workshop.inputs("d") == []


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ("Error", "node 'b': its filter Error returned Error"),
        ("raises", "node 'b': its filter raises raised ZeroDivisionError: division by zero"),
        ("nonsense", "node 'b': its filter nonsense returned None: expected a penstock.Status"),
        ("filter", "node 'b': .*'filter', which is missing: expected one of Run"),
    ],
)
async def test_a_filter_that_fails_names_its_node(
    workshop: Workshop, filter_: str, message: str
) -> None:
    filters: dict[str, Any] = {"raises": lambda item: 1 / 0, "nonsense": lambda item: None}
    for name, function in filters.items():
        register_filter(name, function)
    async with serve(graph(a="b", b={"filter": filter_}), workshop=workshop) as pipeline:
        with pytest.raises(BackendError, match=message) as caught:
            await pipeline({"data": "x"})
        assert (type(caught.value.__cause__) is ZeroDivisionError) == (filter_ == "raises")
        assert outcomes(pipeline, "a") == {"ok": 1}


async def test_a_filter_that_raises_invalid_input_is_a_soft_failure(workshop: Workshop) -> None:
    def mine(item: Item) -> Status:
        raise InvalidInput("too small")

    register_filter("mine", mine)
    async with serve(graph(a="b", b={"filter": "mine"}), workshop=workshop) as pipeline:
        with pytest.raises(InvalidInput, match="too small"):
            await pipeline({"data": "x"})


async def test_the_item_may_name_its_status(workshop: Workshop) -> None:
    async with serve(graph(a="b", b={"filter": "filter"}), workshop=workshop) as pipeline:
        for said, ran in ((Status.SKIP, "a"), ("skip", "a"), ("Run", "ab"), (Status.BREAK, "a")):
            workshop.ran.clear()
            await pipeline({"data": "x", "filter": said})
            assert names(workshop) == ran


async def test_a_long_chain_of_skips_does_not_recurse(workshop: Workshop) -> None:
    numbers = range(1500)
    tables: dict[str, Any] = {
        f"n{number}": {"backend": "Identity", "next": f"n{number + 1}", "filter": "Skip"}
        for number in numbers
    }
    tables["n0"].pop("filter")
    tables |= {"global": {"instance_num": 1}, "n1500": {"backend": "Identity", "filter": "Skip"}}
    shared = {
        name: {**keys, "borrow_from": "n0"} if name.startswith("n") and name != "n0" else keys
        for name, keys in tables.items()
    }
    for name, keys in shared.items():
        if name not in ("n0", "global"):
            keys.pop("backend")
    async with serve(shared) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == "x"


# requests that end early


async def test_a_failure_in_one_branch_drops_the_others(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        raise ValueError("as told")

    workshop.acts["b"] = act
    workshop.hold("c")
    async with serve(diamond(c={"max": 1}), workshop=workshop) as pipeline:
        calls = [asyncio.ensure_future(pipeline({"data": number})) for number in range(3)]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, BackendError)
            assert "node 'b': backend Work raised ValueError: as told" in str(answer)
        await turns()
        assert (queued(pipeline, "c"), pipeline.in_flight) == (0, 0)
        workshop.release("c")
        await until(lambda: not any(node.scheduler.running for node in pipeline.nodes))
        assert workshop.inputs("d") == []


async def test_a_caller_that_leaves_leaves_every_branch(workshop: Workshop) -> None:
    workshop.hold("b")
    workshop.hold("c")
    async with serve(diamond(b={"max": 1}, c={"max": 1}), workshop=workshop) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": "first"}))
        await workshop.begun("b")
        await workshop.begun("c")
        second = asyncio.ensure_future(pipeline({"data": "second"}))
        await until(lambda: queued(pipeline, "b") == 1 and queued(pipeline, "c") == 1)
        second.cancel()
        await turns()
        assert (queued(pipeline, "b"), queued(pipeline, "c"), pipeline.in_flight) == (0, 0, 1)
        workshop.release("b")
        workshop.release("c")
        assert (await first)["result"] == "first"


async def test_the_deadline_in_one_branch_is_that_of_the_request(workshop: Workshop) -> None:
    clock = Clock()
    workshop.hold("b")
    async with serve(diamond(b={"max": 1}), workshop=workshop, clock=clock) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": "first"}))
        await workshop.begun("b")
        late = asyncio.ensure_future(pipeline({"data": "late"}, timeout=0.01))
        await until(lambda: queued(pipeline, "b") == 1)
        clock.now += 0.01
        with pytest.raises(
            DeadlineExceeded, match="node 'b': the deadline passed while the request was queued"
        ):
            await late
        workshop.release("b")
        assert (await first)["result"] == "first"


async def test_many_requests_at_once_meet_in_batches(workshop: Workshop) -> None:
    mark(workshop, "a", "b", "c")
    workshop.acts["d"] = lambda item: (item["data"], item["other"])
    async with serve(diamond(), workshop=workshop) as pipeline:
        answers = await asyncio.gather(*[pipeline({"data": number}) for number in range(300)])
        assert [answer["result"] for answer in answers] == [
            (f"b(a({number}))", f"c(a({number}))") for number in range(300)
        ]
        assert len(workshop.batches("d")) < 300


async def test_the_stages_of_a_request_are_reported(workshop: Workshop) -> None:
    async with serve(diamond(), workshop=workshop) as pipeline:
        work = pipeline.submit_nowait({"data": "x"})
        await work.future
        assert sorted(stage.node for stage in work.timings()) == ["a", "b", "c", "d"]
        assert all(
            stage.queue >= 0 and stage.run >= 0 and stage.batch_size == 1
            for stage in work.timings()
        )


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), BaseException("panic")]
)
async def test_a_filter_that_raises_a_base_exception_fails_its_request(
    error: BaseException,
) -> None:
    def panics(item: Item) -> Status:
        raise error

    register_filter("panics", panics)
    async with serve(graph(a="b", b={"filter": "panics"})) as pipeline:
        with pytest.raises(
            BackendError, match=f"node 'b': its filter panics raised {type(error).__name__}"
        ):
            await pipeline({"data": 1})


def test_torchpipes_names_of_statuses() -> None:
    ours = {
        "Run": Status.RUN,
        "Continue": Status.RUN,
        "Skip": Status.SKIP,
        "SerialSkip": Status.SERIAL_SKIP,
        "SubGraphSkip": Status.SUBGRAPH_SKIP,
        "Break": Status.BREAK,
        "Error": Status.ERROR,
    }
    assert {name: getattr(Status, name) for name in ours} == ours
    assert len(Status) == 6
