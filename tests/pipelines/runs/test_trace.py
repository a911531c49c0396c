"""The trace of a request: its steps in every kind of node, however the request ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.backends.base import Backend
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.expressions import filters
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.trace import MAX_TRACED_PARTS, Step, Trace

TIMES = ("queue_ms", "run_ms")


class Upper(Backend):
    """Return the text in upper case. Three texts are commands instead."""

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if item["data"] == "fail":
                raise ValueError("no upper case")
            if item["data"] == "unreadable":
                item["error"] = InvalidInput("no \udcff text")
            elif item["data"] != "nothing":
                item["result"] = item["data"].upper()


async def ask(item: Item, call: Any) -> Any:
    first, second = await asyncio.gather(call("upper", {"data": "a"}), call("upper", {"data": "b"}))
    return first["result"] + second["result"]


async def letters(item: Item, call: Any) -> AsyncIterator[str]:
    for letter in item["data"]:
        yield letter
    if item["data"] == "unread":
        raise InvalidInput("the rest")


@pytest.fixture(autouse=True)
def _registered(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_registered", {})
    register_backend("Upper", Upper)
    register_backend("Ask", ask)
    register_backend("Letters", letters)
    register_filter("theirs", lambda item: Status(item["said"]))


async def steps_of(nodes: dict[str, Any], item: Item, fails: bool = False) -> list[Step]:
    """Return the steps without their times, after a check that exactly nodes that ran have them."""
    trace = Trace()
    async with Pipeline.load(nodes) as pipeline:
        submission = pipeline.submit_nowait(item, trace=trace)
        if fails:
            with pytest.raises(Exception, match="node"):
                await submission.future
        else:
            await submission.future
    assert json.loads(json.dumps(trace.steps, ensure_ascii=False).encode()) == trace.steps
    timeless(trace.steps)
    return trace.steps


def timeless(steps: list[Step]) -> None:
    for step in steps:
        assert all((time in step) == ("batch" in step) for time in TIMES)
        assert all(step.pop(time) >= 0 for time in TIMES if time in step)
        for inner in (*step.get("parts", ()), *step.get("yields", ())):
            timeless(inner)


def node(backend: str = "Upper", **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


RAN: Step = {"batch": 1, "left": ["data", "result"]}
SWAPPED: Step = {"filter": "swap", "status": "Run", "keys": ["data"], **RAN}


async def test_a_chain() -> None:
    steps = await steps_of({"a": node(next="b"), "b": node()}, {"data": "x", "id": 7})
    assert steps == [
        {"node": "a", "keys": ["data", "id"], "batch": 1, "left": ["data", "id", "result"]},
        {
            "node": "b",
            "filter": "swap",
            "status": "Run",
            "keys": ["data", "id"],
            "batch": 1,
            "left": ["data", "id", "result"],
        },
    ]


async def test_break() -> None:
    nodes = {"a": node(next="b"), "b": node()}
    _, stopped = await steps_of(nodes, {"data": "nothing"})
    assert stopped == {
        "node": "b",
        "filter": "swap",
        "status": "Break",
        "reason": "it has no result",
        "keys": ["data"],
    }
    ran, stopped = await steps_of(nodes, {"data": "unreadable"})
    assert ran["error"] == "no \\udcff text" and ran["left"] == ["data", "error"]
    assert stopped["reason"] == "it has an error: no \\udcff text"


async def test_a_fallback() -> None:
    nodes = {"a": node(next="b"), "b": node("Identity", filter="or", next="c"), "c": node()}
    steps = await steps_of(nodes, {"data": "x"})
    assert [(step["node"], step["status"], step.get("reason")) for step in steps[1:]] == [
        ("b", "Skip", "it has a result"),
        ("c", "Run", None),
    ]
    assert "batch" not in steps[1] and steps[1]["keys"] == ["data", "result"]
    steps = await steps_of(nodes, {"data": "nothing"})
    assert (steps[1]["status"], steps[1]["reason"], steps[1]["batch"]) == (
        "Run",
        "it has no result",
        1,
    )


@pytest.mark.parametrize("said", ["SerialSkip", "SubGraphSkip"])
async def test_skipped_with_another(said: str) -> None:
    join = node(map="a[result:data],c[data:other]")
    nodes = {
        "a": node(next="b,d"),
        "b": node(filter="theirs", next="c"),
        "c": node(next="d"),
        "d": join,
    }
    steps = {step["node"]: step for step in await steps_of(nodes, {"data": "x", "said": said})}
    assert (steps["b"]["filter"], steps["b"]["status"]) == ("theirs", said)
    assert steps["c"] == {"node": "c", "status": "skipped with b"}
    assert steps["d"]["keys"] == ["data", "other"] and steps["d"]["batch"] == 1


async def test_parts_of_a_list() -> None:
    nodes = {
        "each": node("MapReduce", jump="upper", next="end"),
        "end": node("Identity"),
        "upper": node(max=4),
    }
    split, end = await steps_of(nodes, {"data": ["a", "b", "c"]})
    assert (split["batch"], split["left"], end["node"]) == (1, ["data", "result"], "end")
    assert [part[0]["node"] for part in split["parts"]] == ["upper"] * 3
    assert {part[0]["batch"] for part in split["parts"]} == {3} and "more_parts" not in split
    split, _ = await steps_of(nodes, {"data": ["a"] * (MAX_TRACED_PARTS + 5)})
    assert len(split["parts"]) == MAX_TRACED_PARTS and split["more_parts"] == 5


async def test_parts_of_python_logic_and_of_jumps_in_jumps() -> None:
    nodes = {
        "jump": node("Jump", jump="logic"),
        "logic": node("Ask", next="end"),
        "end": node(),
        "upper": node(),
    }
    (jump,) = await steps_of(nodes | {"pipeline": {"entry": "jump"}}, {"data": "x"})
    ((logic, end),) = jump["parts"]
    assert [part[0] | {"batch": 1} for part in logic["parts"]] == [
        {"node": "upper", "keys": ["data"], **RAN}
    ] * 2
    assert (logic["node"], logic["left"], end) == (
        "logic",
        ["data", "result"],
        {"node": "end", **SWAPPED},
    )


async def test_what_fails() -> None:
    (failed,) = await steps_of({"a": node(next="b"), "b": node()}, {"data": "fail"}, fails=True)
    assert (
        failed["error"] == "BackendError: node 'a': backend Upper raised ValueError: no upper case"
        and "left" not in failed
    )
    nodes = {
        "each": node("MapReduce", jump="upper"),
        "upper": node(next="end", max=1),
        "end": node(),
    }
    (split,) = await steps_of(nodes, {"data": ["fail", "a"]}, fails=True)
    assert split["error"] == failed["error"].replace("'a'", "'upper'")
    (dropped,) = split["parts"][1]
    assert dropped == {"node": "upper", "keys": ["data"]}  # dropped from the queue


async def test_a_stream() -> None:
    nodes = {
        "letters": node("Letters", next="upper"),
        "upper": node(next="end"),
        "end": node("Identity"),
    }
    (source,) = await steps_of(nodes, {"data": "ab"})
    assert source == {
        "node": "letters",
        "keys": ["data"],
        "batch": 1,
        "yields": [[{"node": "upper", **SWAPPED}, {"node": "end", **SWAPPED}]] * 2,
    }
    (source,) = await steps_of(nodes, {"data": "a" * (MAX_TRACED_PARTS + 3)})
    assert len(source["yields"]) == MAX_TRACED_PARTS and source["more_yields"] == 3
    (source,) = await steps_of(nodes, {"data": "unread"})
    assert source["error"] == "InvalidInput: the rest" and len(source["yields"]) == 6


async def test_a_loop_passes_a_node_again() -> None:
    @register_backend("CountDown")
    class CountDown(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = item["data"] - 1
                if item["result"]:
                    item["restart"] = "down"

    steps = await steps_of({"pipeline": {"loop": True}, "down": node("CountDown")}, {"data": 3})
    assert [step["batch"] for step in steps] == [1, 1, 1]


async def test_a_note_on_each_step_that_ran() -> None:
    seen: list[tuple[str, str, Any]] = []

    def note(step: Step, batch: Any, outcome: Any) -> None:
        seen.append((step["node"], batch.node, outcome["result"]))
        step["noted"] = True

    trace = Trace(note)
    nodes = {"each": node("MapReduce", jump="upper.2"), "upper": node(), "upper.2": {}}
    async with Pipeline.load(nodes | {"pipeline": {"entry": "each"}}) as pipeline:
        await pipeline.submit_nowait({"data": ["a", "b"]}, trace=trace).future
    assert seen == [
        ("upper.2", "upper", "A"),
        ("upper.2", "upper", "B"),
        ("each", "each", ["A", "B"]),
    ]
    assert trace.steps[0]["noted"] and all(part[0]["noted"] for part in trace.steps[0]["parts"])


class Fails:
    def forward(self, batch: list[Item]) -> None:
        raise ValueError("no")


async def test_the_log_has_the_requests_id_however_the_item_came_to_the_node(
    own_registry: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(item: Item, call: Any) -> Any:
        return await call("work", item)

    register_backend("Fails", Fails)
    register_backend("Ask", ask)
    nodes = {
        "parts": {"backend": "MapReduce", "jump": "work"},
        "ask": {"backend": "Ask"},
        "work": {"backend": "Fails"},
    }
    async with Pipeline.load({**nodes, "pipeline": {"entry": "parts"}}) as pipeline:
        items: list[Item] = [
            {"data": [1]},
            {"data": 1, "node_name": "ask"},
            {"data": 1, "node_name": "work"},
        ]
        for number, item in enumerate(items):
            with pytest.raises(BackendError):
                await pipeline.submit_nowait(item, request_id=f"R{number}").future
    assert [
        record.__dict__["request_id"]
        for record in caplog.records
        if record.getMessage().startswith("node work")
    ] == ["R0", "R1", "R2"]
