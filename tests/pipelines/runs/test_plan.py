"""Entry points, and the neighbours of plan nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.backends.errors import ConfigError, NotFound
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.plan import Plan

from ..workshop import Workshop, mark, serve

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


DIAMOND: dict[str, Any] = {
    "a": "b,c",
    "b": "d",
    "c": "d",
    "d": {"map": "b[result:data],c[result:c]", "next": "e"},
    "e": None,
}


def plan(**nodes: Any) -> Plan:
    return Pipeline.load(graph(**nodes)).plan


def named(plan_nodes: Any) -> str:
    return " ".join(plan_node.name for plan_node in plan_nodes)


# plan nodes


def test_neighbours() -> None:
    plan_nodes = plan(**DIAMOND).nodes
    assert {name: named(plan_node.before) for name, plan_node in plan_nodes.items()} == {
        "a": "",
        "b": "a",
        "c": "a",
        "d": "b c",
        "e": "d",
    }
    assert {name: named(plan_node.next) for name, plan_node in plan_nodes.items()} == {
        "a": "b c",
        "b": "d",
        "c": "d",
        "d": "e",
        "e": "",
    }
    assert {
        name: plan_node.follows and plan_node.follows.name for name, plan_node in plan_nodes.items()
    } == {
        "a": None,
        "b": "d",
        "c": "d",
        "d": "e",
        "e": None,
    }
    assert [name for name, plan_node in plan_nodes.items() if plan_node.kept] == ["b", "c"]
    assert repr(plan_nodes["a"]) == "<PlanNode a>"


def test_what_skips_take_with_them() -> None:
    plan_nodes = plan(**DIAMOND).nodes
    assert {name: named(plan_node.serial) for name, plan_node in plan_nodes.items()} == {
        "a": "a",
        "b": "b",
        "c": "c",
        "d": "d e",
        "e": "e",
    }
    assert {name: named(plan_node.owned) for name, plan_node in plan_nodes.items()} == {
        "a": "a b c d e",
        "b": "b",
        "c": "c",
        "d": "d e",
        "e": "e",
    }


def test_filters() -> None:
    plan_nodes = plan(
        a="b", b={"next": "c", "map": "a[result:data]"}, c={"next": "d", "filter": "or"}, d=None
    ).nodes
    assert {name: plan_node.filter_name for name, plan_node in plan_nodes.items()} == {
        "a": "swap",
        "b": "Run",
        "c": "or",
        "d": "swap",
    }


def test_chains_are_linear() -> None:
    entry_points = plan(a="b", b="c", c=None).entry_points
    assert {name: entry_point.linear for name, entry_point in entry_points.items()} == {
        "a": True,
        "b": True,
        "c": True,
    }
    entry_points = plan(a="b", b={"next": "c", "filter": "or"}, c=None).entry_points
    assert {name: entry_point.linear for name, entry_point in entry_points.items()} == {
        "a": False,
        "b": True,
        "c": True,
    }
    entry_points = plan(**DIAMOND).entry_points
    assert {name: entry_point.linear for name, entry_point in entry_points.items()} == {
        "a": False,
        "d": True,
        "e": True,
    }


# entry points


def test_entry_points_need_nothing_from_elsewhere() -> None:
    assert sorted(plan(**DIAMOND).entry_points) == ["a", "d", "e"]


def test_a_map_from_further_up_closes_an_entry_point() -> None:
    entry_points = plan(a="b", b="c", c={"map": "b[result:data],a[result:x]"}).entry_points
    # An item that enters at c is taken as it comes, without the map.
    assert sorted(entry_points) == ["a", "c"]


async def test_a_node_in_the_middle_may_be_entered(workshop: Workshop) -> None:
    mark(workshop, *"abcde")
    async with serve(graph(**DIAMOND), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x", "node_name": "d"}) == {
            "data": "x",
            "node_name": "d",
            "result": "e(d(x))",
        }
        assert (await pipeline({"data": "x", "node_name": "e"}))["result"] == "e(x)"
        assert (await pipeline({"data": "x"}))["result"] == "e(d(b(a(x))))"


async def test_a_node_that_can_not_be_entered_and_one_that_is_not_there(workshop: Workshop) -> None:
    async with serve(graph(**DIAMOND), workshop=workshop) as pipeline:
        with pytest.raises(NotFound, match="pipeline 'p': node 'b' can't be entered"):
            await pipeline({"data": "x", "node_name": "b"})
        with pytest.raises(
            IndexError, match=r"no node 'aa'.*did you mean 'a'.*its nodes are a, b, c, d, e"
        ):
            await pipeline({"data": "x", "node_name": "aa"})
        for name in (None, 3, ["a"], ""):
            with pytest.raises(NotFound):
                await pipeline({"data": "x", "node_name": name})
    async with serve(graph(a=None), workshop=workshop) as pipeline:
        with pytest.raises(NotFound):
            await pipeline({"data": "x", "node_name": "b"})


async def test_several_roots_need_a_name(workshop: Workshop) -> None:
    workshop.acts |= {"a": lambda item: "a", "b": lambda item: "b"}
    async with serve(graph(a=None, b=None), workshop=workshop) as pipeline:
        assert pipeline.plan.default is None
        with pytest.raises(
            NotFound, match=r"several roots \(a, b\): the item must name one, as node_name"
        ):
            await pipeline({"data": "x"})
        answers = await asyncio.gather(
            *[pipeline({"data": "x", "node_name": name}) for name in "ab"]
        )
        assert [answer["result"] for answer in answers] == ["a", "b"]


async def test_entry_names_the_entry_point_of_several(workshop: Workshop) -> None:
    workshop.acts |= {"b": lambda item: "b", "d": lambda item: "d"}
    for entry, nodes in (("b", {"a": None, "b": None}), ("d", DIAMOND)):
        tables = graph(**nodes)
        tables["pipeline"]["entry"] = entry
        async with serve(tables, workshop=workshop) as pipeline:
            assert (await pipeline({"data": "x"}))["result"] == entry


def test_an_entry_that_is_not_possible() -> None:
    tables = graph(**DIAMOND)
    for entry in ("b", "x"):
        tables["pipeline"]["entry"] = entry
        with pytest.raises(ConfigError, match="entry"):
            Pipeline.load(tables)


async def test_the_target_of_a_jump_is_not_the_default_entry_point(
    workshop: Workshop,
) -> None:
    workshop.acts["far"] = lambda item: "far"
    tables = graph(near={"backend": "Jump", "jump": "far"}, far=None)
    async with serve(tables, workshop=workshop) as pipeline:
        assert pipeline.plan.default is pipeline.plan.entry_points["near"]
        assert (await pipeline({"data": "x"}))["result"] == "far"
        assert (await pipeline({"data": "x", "node_name": "far"}))["result"] == "far"
