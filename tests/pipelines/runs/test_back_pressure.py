"""Back-pressure: a node runs ahead of the nodes after it only as far as the budget allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from penstock.backends.item import Item
from penstock.backends.memory import budget
from penstock.pipelines.node.node import Node
from penstock.pipelines.node.outflow import DIVISOR, bytes_of, bytes_of_all
from penstock.pipelines.pipeline import Pipeline

from ..workshop import Workshop, queued, serve, turns, until, waiting

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")

IMAGE_BYTES = 100_000
AHEAD = 3
"""The images that fit into the share of one node."""
REQUESTS = 40


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    workshop = Workshop()
    workshop.acts["decode"] = lambda item: (
        np.zeros(IMAGE_BYTES, np.uint8) if isinstance(item["data"], bytes) else b"small"
    )
    return workshop


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(budget, "limit", DIVISOR * (AHEAD * IMAGE_BYTES + 1000))
    yield


def tables(**nodes: dict[str, Any]) -> dict[str, Any]:
    return {
        "pipeline": {"timeout": 1000.0},
        **{name: {"backend": "Work", "max": 1, **keys} for name, keys in nodes.items()},
    }


def node(pipeline: Pipeline, name: str) -> Node:
    (found,) = [running for running in pipeline.nodes if running.name == name]
    return found


def begin(pipeline: Pipeline, count: int = REQUESTS) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(pipeline({"data": b"png"})) for _ in range(count)]


async def settled(pipeline: Pipeline, name: str) -> None:
    """Wait until the node has made what it may."""
    await until(lambda: not node(pipeline, name).scheduler.running)
    await turns()
    await until(lambda: not node(pipeline, name).scheduler.running)


async def test_a_node_stops_when_its_results_fill_its_share(workshop: Workshop) -> None:
    workshop.hold("slow")
    graph = tables(decode={"next": "slow"}, slow={})
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await workshop.begun("slow")
        await until(lambda: node(pipeline, "decode").outflow.full)
        await settled(pipeline, "decode")
        # One runs, and those that wait are over the share by the one that filled it.
        assert len(workshop.inputs("decode")) == AHEAD + 1
        assert queued(pipeline, "decode") == REQUESTS - AHEAD - 1
        workshop.release("slow")
        assert len(await asyncio.gather(*calls)) == REQUESTS
        assert len(workshop.inputs("slow")) == REQUESTS


async def test_the_hold_reaches_nodes_further_up(workshop: Workshop) -> None:
    workshop.hold("slow")
    graph = tables(decode={"next": "resize"}, resize={"next": "slow"}, slow={})
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await workshop.begun("slow")
        await until(lambda: len(workshop.inputs("decode")) >= 2 * (AHEAD + 1))
        await settled(pipeline, "decode")
        assert len(workshop.inputs("resize")) == AHEAD + 1
        assert len(workshop.inputs("decode")) == 2 * (AHEAD + 1)
        workshop.release("slow")
        await asyncio.gather(*calls)


async def test_small_results_hold_nothing(workshop: Workshop) -> None:
    workshop.acts["decode"] = lambda item: np.zeros(1000, np.uint8)
    workshop.hold("slow")
    graph = tables(decode={"next": "slow"}, slow={})
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await until(lambda: len(workshop.inputs("decode")) == REQUESTS)
        workshop.release("slow")
        await asyncio.gather(*calls)


async def test_callers_that_leave_make_room(workshop: Workshop) -> None:
    workshop.hold("slow")
    graph = tables(decode={"next": "slow"}, slow={})
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline, AHEAD + 1)
        await until(lambda: node(pipeline, "decode").outflow.full)
        others = begin(pipeline)
        await settled(pipeline, "decode")
        assert len(workshop.inputs("decode")) == AHEAD + 1
        for call in calls:
            call.cancel()
        await until(lambda: len(workshop.inputs("decode")) == 2 * (AHEAD + 1))
        workshop.release("slow")
        await asyncio.gather(*others)


async def test_a_result_that_waits_at_a_join_counts(workshop: Workshop) -> None:
    """The image is done; the request waits for a slow branch that knows nothing of it."""
    workshop.acts["first"] = lambda item: b"png"
    workshop.hold("slow")
    graph = tables(
        first={"next": "decode,slow"},
        decode={"next": "both"},
        slow={"next": "both"},
        both={"map": "decode[result:data],slow[result:other]"},
    )
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await until(lambda: node(pipeline, "first").outflow.full)
        later = begin(pipeline)
        await settled(pipeline, "decode")
        await settled(pipeline, "first")
        assert not workshop.inputs("both")
        before = len(workshop.inputs("first"))
        await turns()
        assert len(workshop.inputs("first")) == before <= REQUESTS
        assert queued(pipeline, "first") >= REQUESTS
        workshop.release("slow")
        await asyncio.gather(*calls, *later)


async def test_what_a_later_node_maps_counts_until_then(workshop: Workshop) -> None:
    """The nodes between pass small results on, and the image is kept for the crop."""
    workshop.acts["detect"] = lambda item: "boxes"
    workshop.hold("slow")
    graph = tables(
        decode={"next": "detect"},
        detect={"next": "slow"},
        slow={"next": "crop"},
        crop={"map": "decode[result:data],slow[result:boxes]"},
    )
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await until(lambda: node(pipeline, "detect").outflow.full)
        await until(lambda: node(pipeline, "decode").outflow.full)
        await settled(pipeline, "decode")
        assert len(workshop.inputs("decode")) == 2 * (AHEAD + 1)
        workshop.release("slow")
        await asyncio.gather(*calls)


async def test_results_before_a_composite_count(workshop: Workshop) -> None:
    workshop.hold("slow")
    graph = tables(
        decode={"next": "send"}, send={"backend": "Jump", "jump": "slow"}, slow={"next": ""}
    )
    graph["pipeline"]["entry"] = "decode"
    del graph["slow"]["next"]
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        await until(lambda: node(pipeline, "decode").outflow.full)
        await settled(pipeline, "decode")
        assert waiting(pipeline, "send") == AHEAD + 1 == len(workshop.inputs("decode"))
        workshop.release("slow")
        await asyncio.gather(*calls)


LOGIC = """
async def logic(item, call):
    if len(item["data"]) == 100_000:
        await call("{called}", {{"data": "again"}})
    return 1
"""


@pytest.mark.parametrize("called", ["slow", "decode"])
async def test_logic_never_waits_for_its_own_item(
    workshop: Workshop, tmp_path: Any, called: str
) -> None:
    """Logic that calls the node before it would wait for ever for the room that it takes."""
    (tmp_path / "logic.py").write_text(LOGIC.format(called=called))
    graph = tables(
        decode={"next": "send"},
        send={"backend": f"Python[{tmp_path}/logic.py:logic]"},
        slow={},
    )
    del graph["send"]["max"]
    graph["pipeline"]["entry"] = "decode"
    workshop.hold("slow")
    async with serve(graph, workshop=workshop) as pipeline:
        calls = begin(pipeline)
        if called == "slow":
            await until(lambda: node(pipeline, "decode").outflow.full)
            await settled(pipeline, "decode")
            assert len(workshop.inputs("decode")) == AHEAD + 1
            workshop.release("slow")
        await asyncio.gather(*calls)


async def test_logic_inside_a_fan_out_may_call_any_node(workshop: Workshop, tmp_path: Any) -> None:
    (tmp_path / "logic.py").write_text(LOGIC.format(called="decode"))
    graph = tables(
        decode={"next": "send"},
        send={"backend": "Jump", "jump": "logic"},
        logic={"backend": f"Python[{tmp_path}/logic.py:logic]"},
    )
    del graph["logic"]["max"]
    graph["pipeline"]["entry"] = "decode"
    async with serve(graph, workshop=workshop) as pipeline:
        await asyncio.gather(*begin(pipeline))


async def test_a_node_that_its_results_come_back_to_is_never_held(workshop: Workshop) -> None:
    workshop.acts["other"] = lambda item: np.zeros(IMAGE_BYTES, np.uint8)
    graph = tables(decode={"next": "other"}, other={"next": "decode.2"})
    graph["decode.2"] = {}
    async with serve(graph, workshop=workshop) as pipeline:
        await asyncio.gather(*begin(pipeline))
        assert len(workshop.inputs("decode")) == 2 * REQUESTS


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (b"12345", 5),
        ("12345", 5),
        (7, 0),
        (None, 0),
        (np.zeros((10, 10), np.float32), 400),
        (np.zeros((10, 10), np.float32)[:2], 400),  # it keeps all of it alive
        ([np.zeros(10, np.uint8), np.zeros(20, np.uint8)], 30),
        ([1.5] * 1000, 0),
        (object(), 0),
    ],
)
def test_bytes_of_an_item(value: Any, size: int) -> None:
    assert bytes_of({"data": value}) == size


def test_what_items_share_counts_once() -> None:
    image = np.zeros(1000, np.uint8)
    item: Item = {"data": image, "boxes": b"boxes"}
    assert bytes_of_all([item, {"result": image}, {"data": image, "other": b"1234"}]) == 1009


def test_tensors_count_by_their_device() -> None:
    torch = pytest.importorskip("torch")
    assert bytes_of({"data": torch.zeros(10)}) == 40
    assert bytes_of({"data": torch.zeros(10, device="meta")}) == 0
