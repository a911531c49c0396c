"""Single flight under random arrivals, ends, failures and departures, against what must hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.cache.responses import ResponseCache
from penstock.pipelines.pipeline import Pipeline

LOOPS = ("uvloop",)

KEYS = st.integers(0, 2)
EVENTS = st.one_of(
    st.tuples(st.just("come"), KEYS),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["end", "end", "fail", "soft", "expire"]), st.integers(0, 9)),
    st.tuples(st.just("turn"), st.just(0)),
)


class World:
    """A pipeline whose one node ends each run as the test says."""

    def __init__(self) -> None:
        self.running: list[tuple[int, asyncio.Future[Any]]] = []
        self.begun: Counter[int] = Counter()
        self.callers: list[tuple[int, asyncio.Task[Any]]] = []

    async def work(self, item: Any, call: Any) -> Any:
        key, ending = item["data"], asyncio.get_running_loop().create_future()
        assert key not in [other for other, _ in self.running], "two equal requests run"
        self.begun[key] += 1
        entry = (key, ending)
        self.running.append(entry)
        try:
            return await ending
        finally:
            self.running.remove(entry)

    def end(self, how: str, number: int) -> None:
        waiting = [entry for entry in self.running if not entry[1].done()]
        if not waiting:
            return
        key, ending = waiting[number % len(waiting)]
        if how == "end":
            ending.set_result([key, ["own"]])
        else:
            errors = {"fail": BackendError, "soft": InvalidInput, "expire": DeadlineExceeded}
            ending.set_exception(errors[how](how))


async def drive(events: list[tuple[str, int]]) -> None:
    world = World()
    register_backend("Work", world.work)
    pipeline = Pipeline.load(
        {"pipeline": {"cache": True, "max_requests": 6}, "n": {"backend": "Work"}}
    )
    pipeline.responses = responses = ResponseCache(1 << 20)
    async with pipeline:
        for event, number in events:
            if event == "come":
                coming = pipeline({"data": number})
                world.callers.append((number, asyncio.create_task(coming)))
            elif event == "leave" and world.callers:
                world.callers[number % len(world.callers)][1].cancel()
            elif event == "turn":
                await asyncio.sleep(0)
            else:
                world.end(event, number)
        while any(not task.done() for _, task in world.callers):
            for _ in range(6):
                await asyncio.sleep(0)
            world.end("end", 0)
        for _ in range(6):  # what was cancelled ends
            await asyncio.sleep(0)
        await check(world, pipeline)
    assert responses.bytes == 0


async def check(world: World, pipeline: Pipeline) -> None:
    """Look at what each caller got, and at what is counted. All have ended."""
    outcomes = await asyncio.gather(*[task for _, task in world.callers], return_exceptions=True)
    lists = []
    refused = 0
    for (key, task), outcome in zip(world.callers, outcomes, strict=True):
        if isinstance(outcome, dict):
            assert outcome == {"data": key, "result": [key, ["own"]]}
            lists += [id(outcome["result"]), id(outcome["result"][1])]
        else:
            refused += "max_requests" in str(outcome)
            assert task.cancelled() or isinstance(outcome, Exception)
    assert len(set(lists)) == len(lists), "two callers share a list"
    assert pipeline.in_flight == 0
    assert pipeline.cache is not None and not pipeline.cache._flights
    statistics = pipeline.statistics
    ended = statistics.answered + sum(statistics.failures.values()) + refused
    never_began = sum(task.cancelled() for _, task in world.callers)
    assert len(world.callers) - never_began <= ended <= len(world.callers)
    assert statistics.succeeded <= sum(world.begun.values())
    assert not world.running


@settings(max_examples=80)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_each_caller_gets_its_own_answer(events: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        asyncio.run(asyncio.wait_for(drive(events), 60))
