"""Sequences in graphs: several nodes, composites, Python logic, and threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from penstock.backends.errors import BackendError, InvalidInput, InvalidRequest
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.blocking.pipe import pipe
from penstock.pipelines.pipeline import Pipeline

from ..workshop import serve, turns, until

LOOPS = ["uvloop"]

pytestmark = pytest.mark.usefixtures("no_threads_left")

ends: list[tuple[int | str, str, int]] = []


class Sum:
    """Answers with the sum of what it was given of a sequence."""

    max = 4

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            sequence = item["sequence"]
            if sequence.start:
                sequence.on_end = lambda reason, key=sequence.id: ends.append(
                    (key, reason, threading.get_ident())
                )
            sequence.state = (sequence.state or 0) + item["data"]
            item["result"] = sequence.state


class Fails:
    def forward(self, batch: list[Item]) -> None:
        if any(item["data"] > 100 for item in batch):
            raise ValueError("too much")
        for item in batch:
            item["result"] = item["data"]


async def summing(item: Item, call: Any) -> Any:
    """Python logic with a state: the sum so far."""
    sequence = item["sequence"]
    if sequence.start:
        sequence.on_end = lambda reason: ends.append((sequence.id, reason, threading.get_ident()))
    sequence.state = (sequence.state or 0) + item["data"]
    await asyncio.sleep(0)
    if item["data"] == 13:
        raise InvalidInput("13")
    if item["data"] == 14:
        raise ValueError("14")
    return sequence.state


async def calling(item: Item, call: Any) -> Any:
    """Python logic without a state, which calls the node that has one."""
    if item["data"] == 0:
        await asyncio.gather(call("sum", {"data": 1}), call("sum", {"data": 2}))
    first = await call("sum", {"data": item["data"]})
    second = await call("sum", {"data": item["data"]})
    return first["result"], second["result"]


async def calling_another(item: Item, call: Any) -> Any:
    answer = await call("other", {"data": 1}, sequence=item["data"], sequence_end=True)
    with pytest.raises(InvalidRequest, match="takes no sequence"):
        await call("inner", {"data": 1}, sequence=1)
    return answer["result"]


async def counting(item: Item, call: Any) -> Any:
    """A generator with a state: it yields the sum so far twice."""
    sequence = item["sequence"]
    sequence.state = (sequence.state or 0) + item["data"]
    yield sequence.state
    yield sequence.state


@pytest.fixture(autouse=True)
def backends(own_registry: None) -> None:
    ends.clear()
    register_backend("Sum", Sum)
    register_backend("Fails", Fails)
    for function in (summing, calling, calling_another, counting):
        register_backend(function.__name__, function)


async def results(pipeline: Pipeline, key: int | str, *data: int, **flags: bool) -> list[Any]:
    answers = await asyncio.gather(
        *[pipeline({"data": each}, sequence=key, **flags) for each in data]
    )
    assert not any("sequence" in answer for answer in answers)
    return [answer["result"] for answer in answers]


async def test_each_node_has_a_state_of_its_own() -> None:
    tables = {
        "a": {"backend": "Sum", "sequence": {}, "instance_num": 2, "next": "b"},
        "b": {"backend": "Sum", "sequence": {}, "next": "c"},
        "c": {"backend": "Fails"},
    }
    async with serve(tables) as pipeline:
        one, two = await asyncio.gather(results(pipeline, 1, 1, 2, 3), results(pipeline, 2, 10, 10))
        assert (one, two) == ([1, 4, 10], [10, 30])
        with pytest.raises(BackendError, match="too much"):
            await results(pipeline, 2, 80)
        assert await results(pipeline, 2, -200) == [30 + 100 - 100]  # the others have done it
        await results(pipeline, 1, 1, sequence_end=True)
        await until(lambda: len(ends) == 2)
        assert [(key, reason) for key, reason, _ in ends] == [(1, "end")] * 2
        assert len({thread for *_, thread in ends}) == 2


async def test_logic_keeps_a_state_on_the_loop() -> None:
    async with serve({"logic": {"backend": "summing", "sequence": {}}}) as pipeline:
        assert await results(pipeline, "a", 1, 2) == [1, 3]
        with pytest.raises(InvalidInput):
            await results(pipeline, "a", 13)
        with pytest.raises(BackendError):
            await results(pipeline, "a", 14)
        assert await results(pipeline, "a", 3, sequence_end=True) == [6]
        assert await results(pipeline, "a", 4) == [4]
        left = asyncio.create_task(results(pipeline, "b", 1))
        await turns(2)
        left.cancel()
        await turns()
        assert ends == [
            ("a", "end", threading.get_ident()),
            ("b", "departure", threading.get_ident()),
        ]
    assert ends[2:] == [("a", "unload", threading.get_ident())]


async def test_a_stream_is_one_step() -> None:
    async with serve({"logic": {"backend": "counting", "sequence": {}}}) as pipeline:
        answers: list[Any] = await asyncio.gather(
            *[pipeline({"data": data}, sequence=1) for data in (1, 2)]
        )
        assert [[part["result"] for part in parts] for parts in answers] == [[1, 1], [3, 3]]
        parts = [part async for part in pipeline.stream({"data": 1}, sequence=1)]
        assert [(part["result"], "sequence" in part) for part in parts] == [(4, False)] * 2


async def test_parts_of_a_step_come_to_a_state_one_at_a_time() -> None:
    tables = {
        "pipeline": {"entry": "logic"},
        "logic": {"backend": "calling"},
        "sum": {"backend": "Sum", "sequence": {}},
    }
    async with serve(tables) as pipeline:
        assert await results(pipeline, 1, 1, 2) == [(1, 2), (4, 6)]
        with pytest.raises(BackendError, match="another part of this step of sequence 1 is here"):
            await results(pipeline, 1, 0)


async def test_logic_calls_a_sequence_of_another_pipeline() -> None:
    tables = {
        "pipeline": {"entry": "logic"},
        "logic": {"backend": "calling_another"},
        "inner": {"backend": "Identity"},
    }
    async with serve({"sum": {"backend": "Sum", "sequence": {}}}, name="other") as other:
        async with serve(tables) as pipeline:
            pipeline.others = lambda name: other
            assert (await pipeline({"data": "x"}))["result"] == 1
        await until(lambda: ends)
        assert [end[:2] for end in ends] == [("x", "end")]


def test_threads_have_sequences() -> None:
    with pipe({"sum": {"backend": "Sum", "sequence": {}}}) as p:
        items = [{"data": data} for data in (1, 2, 3)]
        p(items, sequence="x", sequence_start=True)
        assert [item["result"] for item in items] == [1, 3, 6]
        item = {"data": 4}
        p(item, sequence="x", sequence_end=True)
        assert item["result"] == 10
        with pytest.raises(InvalidRequest):
            p(item)
        with pytest.raises(InvalidRequest):
            p(item, sequence=0)
    assert [end[:2] for end in ends] == [("x", "end")]
