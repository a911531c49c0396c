"""Sequences as callers and backends see them: order, state, and why they end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest

from penstock.backends.errors import BackendError, InvalidInput, InvalidRequest, QueueFull
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.backends.sequences.sequence import Sequence
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.sequences.step import Step

from ..workshop import BOUND, Clock, serve, turns, until

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Tracker:
    """Answers with all that it was given of a sequence. `ends`: id and reason of each end."""

    max = 4
    ends: ClassVar[list[tuple[int | str, str]]]
    on: ClassVar[dict[int | str, set[int]]]
    batches: ClassVar[list[list[int | str]]]
    gate: ClassVar[threading.Event]

    def forward(self, batch: list[Item]) -> None:
        cls = type(self)
        cls.batches.append([item["sequence"].id for item in batch])
        assert cls.gate.wait(BOUND)
        for item in batch:
            sequence: Sequence = item["sequence"]
            cls.on.setdefault(sequence.id, set()).add(threading.get_ident())
            if sequence.start:
                assert sequence.state is None
                sequence.on_end = lambda reason, key=sequence.id: self.end(key, reason)
            sequence.state = [*(sequence.state or ()), item["data"]]
            if item["data"] == "unreadable":
                item["error"] = InvalidInput("unreadable")
            elif item["data"] == "fail":
                raise ValueError("fail")
            else:
                item["result"] = sequence.state

    def end(self, key: int | str, reason: str) -> None:
        type(self).on.setdefault(key, set()).add(threading.get_ident())
        type(self).ends.append((key, reason))


@pytest.fixture(autouse=True)
def tracker(own_registry: None) -> Iterator[None]:
    Tracker.ends, Tracker.on, Tracker.batches = [], {}, []
    Tracker.gate = threading.Event()
    Tracker.gate.set()
    register_backend("Tracker", Tracker)
    yield
    Tracker.gate.set()


def tables(**keys: Any) -> dict[str, Any]:
    sequence = {key: keys.pop(key) for key in list(keys) if key in SEQUENCE_KEYS}
    return {"track": {"backend": "Tracker", "sequence": sequence, **keys}}


SEQUENCE_KEYS = ("idle_timeout", "max_sequences", "max_waiting", "strategy")


async def steps(pipeline: Pipeline, key: int | str, *data: Any, **flags: bool) -> list[Any]:
    answers = await asyncio.gather(
        *[pipeline({"data": each}, sequence=key, **flags) for each in data]
    )
    assert not any("sequence" in answer for answer in answers)
    return [answer["result"] for answer in answers]


@pytest.mark.parametrize("executor", ["thread", "loop"])
async def test_steps_of_a_sequence_are_in_order_and_share_its_state(executor: str) -> None:
    instances = 2 if executor == "thread" else 1
    async with serve(tables(instance_num=instances, executor=executor)) as pipeline:
        one, text, other = await asyncio.gather(
            steps(pipeline, 1, "a", "b", "c"),
            steps(pipeline, "1", "d", "e"),
            steps(pipeline, "cam", *range(20)),
        )
        assert one == [["a"], ["a", "b"], ["a", "b", "c"]]
        assert text == [["d"], ["d", "e"]]
        assert other[-1] == list(range(20))
        assert await steps(pipeline, 1, "f", sequence_start=True, sequence_end=True) == [["f"]]
        await until(lambda: len(Tracker.ends) == 2)
        assert Tracker.ends == [(1, "end"), (1, "end")]
        assert repr(pipeline.sequences) == "<Sequencer p: 2 live, 0 waiting, 0 steps wait>"
    assert sorted(Tracker.ends[2:]) == [("1", "unload"), ("cam", "unload")]
    assert all(len(threads) == 1 for threads in Tracker.on.values())  # its one owner, also at end
    assert all(len(set(batch)) == len(batch) for batch in Tracker.batches)


async def test_steps_of_different_sequences_share_batches() -> None:
    async with serve(tables()) as pipeline:
        await asyncio.gather(*[steps(pipeline, key, "x", "y") for key in "abcd"])
        assert Tracker.batches == [list("abcd"), list("abcd")]


async def test_a_failed_step_leaves_the_state_before_it() -> None:
    async with serve(tables()) as pipeline:
        with pytest.raises(BackendError, match="fail"):
            await steps(pipeline, 5, "fail")
        assert await steps(pipeline, 5, 1) == [[1]]  # `start` is still true
        with pytest.raises(InvalidInput):
            await steps(pipeline, 5, "unreadable")
        Tracker.gate.clear()
        others = asyncio.gather(*[steps(pipeline, key, 2) for key in (6, 7)])
        failing = asyncio.create_task(steps(pipeline, 5, "fail"))
        await turns()
        Tracker.gate.set()
        with pytest.raises(BackendError, match="fail"):
            await failing  # its neighbours run again, alone
        assert await others == [[[2]], [[2]]]
        assert await steps(pipeline, 5, 3) == [[1, 3]]
        assert Tracker.ends == []


async def test_a_start_of_a_live_sequence_ends_it_after_its_steps() -> None:
    async with serve(tables()) as pipeline:
        Tracker.gate.clear()
        first = asyncio.create_task(steps(pipeline, "x", 1, 2))
        await turns()
        again = asyncio.create_task(steps(pipeline, "x", 3, sequence_start=True))
        await turns()
        more = asyncio.create_task(steps(pipeline, "x", 4))
        await turns()
        Tracker.gate.set()
        assert [await first, await again, await more] == [[[1], [1, 2]], [[3]], [[3, 4]]]
        assert Tracker.ends == [("x", "end")]


async def test_a_client_that_leaves_ends_its_sequence() -> None:
    async with serve(tables()) as pipeline:
        await steps(pipeline, "x", 0)
        Tracker.gate.clear()
        current = asyncio.create_task(steps(pipeline, "x", 1))
        await until(lambda: len(Tracker.batches) == 2)
        waiting = asyncio.create_task(steps(pipeline, "x", 2))
        anew = asyncio.create_task(steps(pipeline, "x", 3, sequence_start=True))
        await turns()
        current.cancel()
        with pytest.raises(InvalidRequest, match="'x' has ended: a client left"):
            await waiting
        Tracker.gate.set()
        assert await anew == [[3]]
        assert Tracker.ends == [("x", "departure")]
        # One that waits for its turn leaves: the step in the graph is answered.
        Tracker.gate.clear()
        current = asyncio.create_task(steps(pipeline, "x", 4))
        await until(lambda: len(Tracker.batches) == 4)
        waiting = asyncio.create_task(steps(pipeline, "x", 5))
        await turns()
        waiting.cancel()
        await turns()
        Tracker.gate.set()
        assert await current == [[3, 4]]
        await until(lambda: len(Tracker.ends) == 2)
        assert Tracker.ends[1:] == [("x", "departure")]
        # A door ends what it has begun (a stream that breaks off).
        step = Step("y")
        answer = await pipeline.submit_nowait({"data": 6}, sequence=step).future
        assert answer["result"] == [6]
        assert step.sequence is not None
        step.sequence.depart()
        step.sequence.depart()
        assert await steps(pipeline, "y", 7) == [[7]]
        step.sequence.depart()  # it is over: the next one of its id is another
        assert await steps(pipeline, "y", 8) == [[7, 8]]
        assert Tracker.ends[2:] == [("y", "departure")]


async def test_the_wait_for_a_turn_counts_as_queued() -> None:
    clock = Clock()
    async with serve(tables(), clock=clock) as pipeline:
        Tracker.gate.clear()
        first, second = Step(1), Step(1)
        runs = [pipeline.submit_nowait({"data": 1}, sequence=step) for step in (first, second)]
        await until(lambda: Tracker.batches)
        clock.now += 5
        Tracker.gate.set()
        for run in runs:
            await run.future
        assert (first.waited, second.waited) == (0, 5)
        assert [run.spent() for run in runs] == [(0, 5), (0, 0)]
        assert (pipeline.statistics.seconds, pipeline.statistics.queued) == (10, 5)


async def test_an_idle_sequence_ends_and_a_busy_one_does_not() -> None:
    clock = Clock()
    async with serve(tables(idle_timeout=0.05), clock=clock) as pipeline:
        await steps(pipeline, "idle", 1)
        clock.now += 0.04
        await steps(pipeline, "busy", 1)
        clock.now += 0.02
        await until(lambda: Tracker.ends)
        assert Tracker.ends == [("idle", "idle")]
        assert await steps(pipeline, "busy", 2) == [[1, 2]]
        assert pipeline.sequences is not None
        assert pipeline.sequences.live == 1


async def test_starts_that_leave_before_their_turn_leave_nothing() -> None:
    async with serve(tables()) as pipeline:
        Tracker.gate.clear()
        current = asyncio.create_task(steps(pipeline, "x", 1))
        await until(lambda: Tracker.batches)
        gone: list[Any] = []
        for _ in range(3):
            run = pipeline.submit_nowait({"data": 2}, sequence=(step := Step("x", start=True)))
            gone.append(weakref.ref(step.sequence))
            run.leave()
            del run, step
        late = pipeline({"data": 3}, sequence="x", sequence_start=True, timeout=0.01)
        with pytest.raises(TimeoutError, match="waited for its turn"):
            await late
        anew = asyncio.create_task(steps(pipeline, "x", 4, sequence_start=True))
        await turns()
        gc.collect()
        assert [one() for one in gone] == [None] * 3
        Tracker.gate.set()
        assert await current == [[1]]
        assert await anew == [[4]]
        assert await steps(pipeline, "x", 5) == [[4, 5]]


async def test_sequences_wait_for_a_place_and_are_bounded() -> None:
    async with serve(tables(max_sequences=2, max_waiting=1)) as pipeline:
        await steps(pipeline, "a", 1)
        await steps(pipeline, "b", 1)
        third = asyncio.create_task(steps(pipeline, "c", 1, 2))
        await turns()
        with pytest.raises(QueueFull, match=r"2 are live \(max_sequences = 2\) and 1 wait"):
            await steps(pipeline, "d", 1)
        assert repr(pipeline.sequences) == "<Sequencer p: 2 live, 1 waiting, 2 steps wait>"
        assert pipeline.refused["queue_full"] == 1
        assert await steps(pipeline, "a", 2, sequence_end=True) == [[1, 2]]
        assert await third == [[1], [1, 2]]
        # One that is begun anew keeps its place.
        fourth = asyncio.create_task(steps(pipeline, "d", 1))
        await turns()
        assert await steps(pipeline, "b", 2, sequence_start=True) == [[2]]
        assert await steps(pipeline, "b", 3, sequence_end=True) == [[2, 3]]
        assert await fourth == [[1]]
        # The deadline of a step that waits for a place, or for its turn.
        with pytest.raises(TimeoutError, match="waited for its turn in sequence 'e'"):
            await pipeline({"data": 1}, sequence="e", timeout=0.01)
        assert pipeline.sequences is not None
        assert pipeline.sequences.waiting == 0


async def test_steps_that_wait_for_their_turn_count_for_the_queue_size() -> None:
    async with serve({"pipeline": {"queue_size": 2}, **tables()}) as pipeline:
        Tracker.gate.clear()
        running = asyncio.create_task(steps(pipeline, 1, "a", "b", "c"))
        await until(lambda: Tracker.batches)
        with pytest.raises(QueueFull, match=r"too many requests wait: 2 \(queue_size = 2\)"):
            await steps(pipeline, 1, "d")
        Tracker.gate.set()
        assert await running == [["a"], ["a", "b"], ["a", "b", "c"]]


async def test_an_error_in_on_end_is_logged_and_ends_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(self: Tracker, key: int | str, reason: str) -> None:
        raise SystemExit("on purpose")

    async with serve(tables(retry=False)) as pipeline:
        await steps(pipeline, 1, "a")
        monkeypatch.setattr(Tracker, "end", end)
        await steps(pipeline, 1, "b", sequence_end=True)
        await until(lambda: "node track: on_end of sequence 1 failed" in caplog.text)
        assert await steps(pipeline, 1, "c") == [["c"]]
        with pytest.raises(BackendError):
            await steps(pipeline, 1, "fail")  # without a second run
        assert await steps(pipeline, 1, "d") == [["c", "d"]]


async def test_what_no_step_can_be_is_refused() -> None:
    async with serve(tables()) as pipeline:
        with pytest.raises(InvalidRequest, match="must specify a non-zero or non-empty corre"):
            await pipeline({"data": 1})
        with pytest.raises(InvalidRequest, match="batch-size 1 due to requirements of sequence"):
            await pipeline({"data": 1, "request_size": 2}, sequence=1)
        refused: list[Any] = [0, 2**64, "", "x" * 129, True, 1.0, b"x"]
        for given in refused:
            with pytest.raises(InvalidRequest, match="the id of a sequence"):
                await pipeline({"data": 1}, sequence=given)
        with pytest.raises(InvalidRequest, match="sequence 7 to model 'p' must specify the START"):
            pipeline.submit_nowait({"data": 1}, sequence=Step(7, strict=True))
        assert await steps(pipeline, 2**64 - 1, 1) == [[1]]
    async with serve({"plain": {"backend": "Identity"}}) as pipeline:
        with pytest.raises(InvalidRequest, match="takes no sequences"):
            await pipeline({"data": 1}, sequence=1)


class Frame:
    """Something whose end is seen."""


def is_freed(frame: weakref.ref[Frame]) -> bool:
    return frame() is None


async def test_an_item_is_freed_when_its_step_has_ended() -> None:
    async with serve(tables(max_sequences=1)) as pipeline:
        gc.collect()
        gc.disable()
        try:
            for leaves in (False, True):
                frame = Frame()
                freed = weakref.ref(frame)
                sequence = Step(1, end=True)
                run = pipeline.submit_nowait({"data": 1, "frame": frame}, sequence=sequence)
                if leaves:
                    run.leave()
                else:
                    await run.future
                del run, frame
                await until(partial(is_freed, freed))
        finally:
            gc.enable()


async def test_a_list_and_a_stream_are_steps() -> None:
    async with serve(tables()) as pipeline:
        await steps(pipeline, "x", 0)
        answers = await pipeline(
            [{"data": 1}, {"data": 2}], sequence="x", sequence_start=True, sequence_end=True
        )
        assert [answer["result"] for answer in answers] == [[1], [1, 2]]
        parts = [part async for part in pipeline.stream({"data": 3}, sequence="x")]
        assert [part["result"] for part in parts] == [[3]]
        await until(lambda: len(Tracker.ends) == 2)
