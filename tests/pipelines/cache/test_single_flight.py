"""The cache of a pipeline: what runs, who gets which answer, and what is counted."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    MissingData,
    NotFound,
    NotReady,
    QueueFull,
)
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.cache.pipeline_cache import PipelineCache
from penstock.pipelines.cache.request import CachedRequest
from penstock.pipelines.cache.responses import ResponseCache
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.trace import Trace
from tests.pipelines.workshop import Clock, Workshop, serve, turns

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

TABLES: dict[str, Any] = {"pipeline": {"cache": True}, "n": {"backend": "Work", "max": 1}}
CHAIN: dict[str, Any] = {
    "pipeline": {"cache": True},
    "a": {"backend": "Work", "max": 1, "next": "n"},
    "n": {"backend": "Work", "max": 1},
}
GRAPH = {**CHAIN, "n": {**CHAIN["n"], "map": "a[result:data]"}}
LOOP = {**CHAIN, "pipeline": {"cache": True, "loop": True}}
FORMS = pytest.mark.parametrize("tables", [TABLES, CHAIN, GRAPH, LOOP], ids=str)


@pytest.fixture
def workshop(own_registry: None) -> Iterator[Workshop]:
    made = Workshop()
    yield made
    made.release_all()


def counts(pipeline: Pipeline) -> tuple[int, int, int, int]:
    """Return how many requests were hits, joined, missed, and ended well in all."""
    statistics = pipeline.statistics
    return statistics.hits, statistics.joined, statistics.misses, statistics.answered


@FORMS
async def test_an_answer_is_kept_when_its_item_comes_again(tables: Any, workshop: Workshop) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        assert pipeline.cache is not None
        answers = []
        for kept in (0, 1, 1, 1):
            answers.append(await pipeline({"data": "x"}))
            assert pipeline.cache.size[0] == kept
        assert answers == [{"data": "x", "result": "x"}] * 4
        assert workshop.inputs("n") == ["x", "x"]
        assert counts(pipeline) == (2, 0, 2, 4)
        assert await pipeline({"data": "y"}) == {"data": "y", "result": "y"}
        assert counts(pipeline) == (2, 0, 3, 5)


@FORMS
async def test_equal_requests_under_way_run_once(tables: Any, workshop: Workshop) -> None:
    workshop.hold("n")
    async with serve(tables, workshop=workshop) as pipeline:
        callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(4)]
        other = asyncio.create_task(pipeline({"data": "y"}))
        await workshop.begun("n")
        callers.append(asyncio.create_task(pipeline({"data": "x"})))
        await turns()
        assert pipeline.in_flight == 6
        workshop.release("n")
        assert await asyncio.gather(*callers) == [{"data": "x", "result": "x"}] * 5
        assert await other == {"data": "y", "result": "y"}
        assert workshop.inputs("n") == ["x", "y"]
        assert counts(pipeline) == (4, 4, 2, 6)
        assert await pipeline({"data": "x"}) == {"data": "x", "result": "x"}
        assert workshop.inputs("n") == ["x", "y"]


async def test_equal_items_of_one_call_run_once(workshop: Workshop) -> None:
    async with serve(TABLES, workshop=workshop) as pipeline:
        answers = await pipeline([{"data": "x"}, {"data": "x"}, {"data": "y"}, {"data": "x"}])
        assert [answer["result"] for answer in answers] == ["x", "x", "y", "x"]
        assert workshop.inputs("n") == ["x", "y"]


@FORMS
@pytest.mark.parametrize("seen", [False, True])
async def test_when_the_first_leaves_the_others_get_the_answer_of_its_run(
    tables: Any, seen: bool, workshop: Workshop
) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        if seen:  # the first one knows of the flight
            workshop.acts["n"] = lambda item: item.setdefault("other", object())
            await pipeline({"data": "x"})
            workshop.acts.clear()
            workshop.ran.clear()
        workshop.hold("n")
        first = asyncio.create_task(pipeline({"data": "x"}))
        await workshop.begun("n") if not seen else await turns()
        others = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(2)]
        await turns()
        first.cancel()
        await turns()
        assert (first.cancelled(), pipeline.in_flight) == (True, 2)
        others[0].cancel()
        await turns()
        assert pipeline.in_flight == 1
        workshop.release("n")
        answer = await others[1]
        assert answer == {"data": "x", "result": "x"}
        assert workshop.inputs("n") == ["x"]
        assert pipeline.statistics.failures["cancelled"] == 2


@FORMS
async def test_when_all_leave_the_work_is_dropped(tables: Any, workshop: Workshop) -> None:
    workshop.hold("n")
    async with serve(tables, workshop=workshop) as pipeline:
        busy = asyncio.create_task(pipeline({"data": "busy"}))
        await workshop.begun("n")
        callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(3)]
        await turns()
        for caller in callers:
            caller.cancel()
            await turns()
        assert pipeline.in_flight == 1
        workshop.release("n")
        await busy
        again = await pipeline({"data": "x"})
        assert again["result"] == "x"
        assert workshop.inputs("n") == ["busy", "x"]
        assert pipeline.statistics.failures["cancelled"] == 3


async def test_one_that_joins_has_its_own_deadline(workshop: Workshop) -> None:
    workshop.hold("n")
    async with serve(TABLES, workshop=workshop) as pipeline:
        first = asyncio.create_task(pipeline({"data": "x"}))
        await workshop.begun("n")
        with pytest.raises(DeadlineExceeded, match="waited for the answer of an equal request"):
            await pipeline({"data": "x"}, timeout=0.01)
        assert pipeline.in_flight == 1
        workshop.release("n")
        assert (await first)["result"] == "x"
        assert pipeline.statistics.failures["expired"] == 1


@FORMS
@pytest.mark.parametrize("first_leaves", [False, True])
async def test_the_deadline_of_the_first_is_not_that_of_the_others(
    tables: Any, first_leaves: bool, workshop: Workshop
) -> None:
    clock = Clock()
    workshop.hold("n")
    async with serve(tables, workshop=workshop, clock=clock) as pipeline:
        first = asyncio.create_task(pipeline({"data": "x"}, timeout=5))
        await workshop.begun("n")
        others = [asyncio.create_task(pipeline({"data": "x"}, timeout=25)) for _ in range(2)]
        await turns()
        if first_leaves:
            first.cancel()
            await turns()
        clock.now += 10
        workshop.release("n")
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        expected: Any = asyncio.CancelledError if first_leaves else DeadlineExceeded
        assert isinstance(answers[0], expected)
        assert answers[1:] == [{"data": "x", "result": "x"}] * 2
        assert workshop.inputs("n") == ["x", "x"]  # the second run was for both


class OddError(Exception):
    """An exception that `copy` can't copy."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def refuse(error: BaseException) -> Any:
    def act(item: Any) -> Any:
        raise error

    return act


@FORMS
@pytest.mark.parametrize("error", [ValueError("no"), OddError(1, 2), InvalidInput("unreadable")])
async def test_a_failure_is_that_of_all_and_is_not_kept(
    tables: Any, error: BaseException, workshop: Workshop
) -> None:
    async with serve(tables, workshop=workshop) as pipeline:
        for _ in range(2):
            workshop.acts["n"] = refuse(error)
            workshop.hold("n")
            callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(3)]
            await workshop.begun("n")
            workshop.release("n")
            errors = await asyncio.gather(*callers, return_exceptions=True)
            assert {str(each) for each in errors} == {str(errors[0])}
            assert all(isinstance(each, BackendError | InvalidInput) for each in errors)
            assert len({id(each) for each in errors}) == 3  # each has its own traceback
        soft, failed = (pipeline.statistics.failures[how] for how in ("soft", "failed"))
        assert soft + failed == 6
        assert counts(pipeline)[0] == 0
        workshop.acts.clear()
        assert await pipeline({"data": "x"}) == {"data": "x", "result": "x"}


async def test_a_soft_failure_is_not_kept(workshop: Workshop) -> None:
    workshop.acts["n"] = lambda item: item.update(error=InvalidInput("dark"))
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(3):
            callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(2)]
            errors = await asyncio.gather(*callers, return_exceptions=True)
            assert [str(error) for error in errors] == ["dark", "dark"]
        assert workshop.inputs("n") == ["x"] * 3
        assert pipeline.cache is not None and pipeline.cache.size == (0, 0)


async def test_a_hit_passes_where_nothing_else_is_admitted(workshop: Workshop) -> None:
    tables = {**TABLES, "pipeline": {"cache": True, "max_requests": 2}}
    async with serve(tables, workshop=workshop) as pipeline:
        for _ in range(2):
            await pipeline({"data": "x"})
        workshop.hold("n")
        busy = [asyncio.create_task(pipeline({"data": n})) for n in range(2)]
        await workshop.begun("n")
        with pytest.raises(QueueFull, match="max_requests = 2"):
            await pipeline({"data": "z"})
        with pytest.raises(QueueFull, match="max_requests = 2"):
            await pipeline({"data": 1})  # it would wait for an equal one, and be in flight too
        pipeline.check_admission()
        assert (await pipeline({"data": "x"}))["result"] == "x"
        assert pipeline.refused["queue_full"] == 2
        workshop.release("n")
        await asyncio.gather(*busy)


async def test_no_caller_sees_what_another_one_changes(workshop: Workshop) -> None:
    def act(item: Any) -> None:
        item["result"] = {"list": [[1], "a"], "array": np.zeros(3), "pair": ([1], 2)}
        item["raw"] = bytearray(b"ab")

    workshop.acts["n"] = act
    async with serve(TABLES, workshop=workshop) as pipeline:
        for number in range(5):
            together = await asyncio.gather(*[pipeline({"data": "x"}) for _ in range(3)])
            answer: Any
            for answer in (*together, await pipeline({"data": "x"})):
                result = answer["result"]
                assert result["list"] == [[1], "a"] and result["pair"] == ([1], 2)
                assert result["array"].tolist() == [0, 0, 0] and answer["raw"] == b"ab"
                result["list"][0].append(number)
                result["list"].clear()
                result["array"][:] = 7
                result["array"].shape = (3, 1)
                result["pair"][0].clear()
                answer["raw"][:] = b"z"
                result.clear()
        assert len(workshop.inputs("n")) == 1


async def test_who_only_reads_shares_arrays_that_nobody_can_change(workshop: Workshop) -> None:
    workshop.acts["n"] = lambda item: np.arange(3)
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(2):
            await pipeline({"data": "x"})
        first, second = [
            await pipeline.submit_nowait({"data": "x"}, reads_only=True).future for _ in range(2)
        ]
        assert np.shares_memory(first["result"], second["result"])
        with pytest.raises(ValueError, match="read-only"):
            first["result"][0] = 1
        with pytest.raises(ValueError):
            first["result"].flags.writeable = True


async def test_each_caller_has_its_own_inputs_in_the_answer(workshop: Workshop) -> None:
    workshop.acts["n"] = lambda item: item["text"]
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(3):
            array, text = np.zeros(2), ["t"]
            answer = await pipeline({"data": array, "text": text, "n": 1})
            assert answer["data"] is array and answer["text"] is text
            assert answer["result"] == ["t"]


async def test_what_the_answer_depends_on_is_in_the_key(workshop: Workshop) -> None:
    workshop.acts["n"] = lambda item: repr(item)
    items: list[dict[str, Any]] = [
        {"data": 1},
        {"data": True},
        {"data": "1"},
        {"data": 1, "k": 1},
        {"data": 1, "k": 2},
        {"data": 1, "request_size": 1},
        {"data": 1, "node_name": "n"},
        {"data": np.zeros(1, "f4")},
        {"data": np.zeros(1, "i4")},
    ]
    async with serve(TABLES, workshop=workshop) as pipeline:
        first = [(await pipeline(dict(item)))["result"] for item in items]
        for _ in range(2):
            again = await asyncio.gather(*[pipeline(dict(item), priority=None) for item in items])
            assert [answer["result"] for answer in again] == first
        assert counts(pipeline)[0] == len(items)


async def test_wrong_requests_are_refused_whatever_is_kept(workshop: Workshop) -> None:
    tables = {**TABLES, "n": {"backend": "Work", "priority_levels": 2}}
    async with serve(tables, workshop=workshop) as pipeline:
        for _ in range(3):
            await pipeline({"data": "x"}, priority=1)
        with pytest.raises(NotFound, match="'z'"):
            await pipeline({"data": "x", "node_name": "z"})
        with pytest.raises(InvalidRequest, match="priority"):
            await pipeline({"data": "x"}, priority=3)
        with pytest.raises(MissingData):
            await pipeline({"date": "x"})


async def test_an_item_that_can_not_be_hashed_passes_by(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.acts["n"] = lambda item: 1
    caplog.set_level(logging.WARNING, "penstock.cache")
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(3):
            assert (await pipeline({"data": object()}))["result"] == 1
        assert counts(pipeline) == (0, 0, 0, 3)
        assert pipeline.statistics.uncached == 3
    assert len(caplog.records) == 1
    assert "'data' is a builtins.object" in caplog.text


async def test_an_answer_that_can_not_be_copied_is_made_for_each(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.acts["n"] = lambda item: SimpleNamespace(of=item["data"])
    caplog.set_level(logging.WARNING, "penstock.cache")
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(2):
            workshop.hold("n")
            callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(3)]
            await workshop.begun("n")
            workshop.release("n")
            answers = await asyncio.gather(*callers)
            assert len({id(answer["result"]) for answer in answers}) == 3
        assert len(workshop.inputs("n")) == 6
        assert pipeline.cache is not None and pipeline.cache.size == (0, 0)
    assert len(caplog.records) == 1
    assert "'result' has a types.SimpleNamespace" in caplog.text


async def test_a_traced_request_runs(workshop: Workshop) -> None:
    async with serve(TABLES, workshop=workshop) as pipeline:
        for _ in range(3):
            trace = Trace()
            await pipeline.submit_nowait({"data": "x"}, trace=trace).future
            assert trace.steps[0]["node"] == "n"
        assert len(workshop.inputs("n")) == 3


async def test_a_large_item_is_not_hashed_when_its_client_has_left(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Any] = []
    digests = PipelineCache._digests

    def note(self: PipelineCache, item: Any, leader: Any, most: int | None = None) -> Any:
        if most is None:
            hashed.append(item["data"][:1])
        return digests(self, item, leader, most)

    monkeypatch.setattr(PipelineCache, "_digests", note)
    helper, held = ThreadPoolExecutor(1), threading.Event()
    loop = asyncio.get_running_loop()
    async with serve(TABLES, workshop=workshop) as pipeline:
        large = {one: {"data": one + bytes(1 << 20)} for one in (b"a", b"b")}
        for item in large.values():  # the first time nothing is hashed
            await pipeline(item)
        loop.set_default_executor(helper)
        helper.submit(held.wait)
        leaves = pipeline.submit_nowait(large[b"a"])
        stays = pipeline.submit_nowait(large[b"b"])
        leaves.leave()
        await turns()  # asyncio tells the thread's pool of a cancellation in the next one
        held.set()
        assert (await stays.future)["result"] == large[b"b"]["data"]
        assert hashed == [b"b"]


async def test_large_items_are_hashed_elsewhere_and_run_once(workshop: Workshop) -> None:
    large = bytes(1 << 20)
    workshop.acts["n"] = lambda item: len(item["data"])
    workshop.hold("n")
    async with serve(TABLES, workshop=workshop) as pipeline:
        first = asyncio.create_task(pipeline({"data": large}))
        await workshop.begun("n")
        others = [asyncio.create_task(pipeline({"data": bytes(1 << 20)})) for _ in range(3)]
        leaves = pipeline.submit_nowait({"data": large})
        assert isinstance(leaves, CachedRequest)
        leaves.leave()
        await turns(5000)  # threads hash a megabyte for each of them meanwhile
        workshop.release("n")
        answers = await asyncio.gather(first, *others)
        assert [answer["result"] for answer in answers] == [1 << 20] * 4
        assert len(workshop.ran) == 1
        assert pipeline.statistics.failures["cancelled"] == 1
        changed = large[:50_000] + b"x" + large[50_001:]  # where no sample is taken
        assert (await pipeline({"data": changed}))["data"] is changed
        assert len(workshop.ran) == 2


async def test_items_that_only_look_equal_do_not_join(workshop: Workshop) -> None:
    size = 100_000
    one, other = bytes(size), bytes(50_000) + b"x" + bytes(size - 50_001)
    workshop.acts["n"] = lambda item: sum(item["data"])
    workshop.hold("n")
    async with serve(TABLES, workshop=workshop) as pipeline:
        callers = [asyncio.create_task(pipeline({"data": each})) for each in (one, other, one)]
        await workshop.begun("n")
        workshop.release("n")
        answers = await asyncio.gather(*callers)
        assert [answer["result"] for answer in answers] == [0, ord("x"), 0]
        assert len(workshop.ran) == 2


async def test_kept_answers_expire(workshop: Workshop) -> None:
    clock = Clock()
    tables = {**TABLES, "pipeline": {"cache": {"ttl": 60}}}
    async with serve(tables, workshop=workshop, clock=clock) as pipeline:
        for moved, ran in ((0, 1), (0, 2), (59, 2), (2, 3), (59, 3)):
            clock.now += moved
            await pipeline({"data": "x"})
            assert len(workshop.ran) == ran


async def test_a_pipeline_that_closes_lets_go_of_its_answers(workshop: Workshop) -> None:
    responses = ResponseCache(1 << 20)
    for expected in (1, 1):
        pipeline = Pipeline.load(TABLES, name="p")
        pipeline.responses = responses
        async with pipeline:
            for _ in range(3):
                await pipeline({"data": "x"})
            assert pipeline.cache is not None and pipeline.cache.size[0] == expected
            assert responses.bytes > 0
        assert (responses.bytes, pipeline.cache.size) == (0, (0, 0))
    assert len(workshop.inputs("n")) == 4  # the second load saw nothing of the first one


async def test_requests_that_wait_fail_when_the_pipeline_closes(workshop: Workshop) -> None:
    workshop.hold("n")
    pipeline = Pipeline.load(TABLES, name="p")
    await pipeline.start()
    callers = [asyncio.create_task(pipeline({"data": "x"})) for _ in range(3)]
    await workshop.begun("n")
    closing = asyncio.create_task(pipeline.close(0))
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [NotReady] * 3
    workshop.release("n")
    await closing
    assert pipeline.in_flight == 0


async def test_the_bytes_of_all_answers_are_bounded(workshop: Workshop) -> None:
    responses = ResponseCache(100_000)
    workshop.acts["n"] = lambda item: bytes(10_000 if item["data"] < 100 else 20_000)
    pipelines = []
    for name in ("p", "q"):
        pipeline = Pipeline.load(TABLES, name=name)
        pipeline.responses = responses
        await pipeline.start()
        pipelines.append(pipeline)
    for number in range(20):
        for pipeline in pipelines:
            for _ in range(2):
                await pipeline({"data": number})
            assert 0 < responses.bytes <= 100_000
    assert responses.evicted > 20
    before = responses.evicted
    for _ in range(3):
        await pipelines[0]({"data": 100})  # more than an eighth of all
    assert responses.evicted == before
    assert pipelines[0].statistics.hits == 0
    for pipeline in pipelines:
        await pipeline.close()
    assert responses.bytes == 0


async def test_no_cache_without_room(workshop: Workshop) -> None:
    pipeline = Pipeline.load(TABLES)
    pipeline.responses = ResponseCache(0)
    async with pipeline:
        assert pipeline.cache is None
        for _ in range(3):
            await pipeline({"data": "x"})
    assert len(workshop.ran) == 3


async def test_nothing_keeps_an_item_that_came_once(workshop: Workshop) -> None:
    class Text(str):
        __slots__ = ("__weakref__",)

    workshop.acts["n"] = lambda item: 1
    async with serve(TABLES, workshop=workshop) as pipeline:
        array = np.zeros(10)
        gone = weakref.ref(array)
        await pipeline({"data": array})
        workshop.ran.clear()
        workshop.items.clear()
        del array
        await turns()
        gc.collect()
        assert gone() is None
        assert pipeline.cache is not None and not pipeline.cache._leaders


async def test_python_logic_calls_another_pipeline_through_its_cache(workshop: Workshop) -> None:
    async def ask(item: Any, call: Any) -> Any:
        answers = await call("p", [{"data": "x"}, {"data": "x"}])
        answer = await call("p", {"data": "x"})
        answer["result"] = answer["result"] + "!"
        return [*(one["result"] for one in answers), answer["result"]]

    register_backend("Ask", ask)
    async with serve(TABLES, workshop=workshop) as called:
        caller = Pipeline.load({"ask": {"backend": "Ask"}}, name="q")
        caller.others = {"p": called}.__getitem__
        async with caller:
            for _ in range(3):
                assert (await caller({"data": 0}))["result"] == ["x", "x", "x!"]
        assert workshop.inputs("n") == ["x"]
        assert counts(called) == (8, 1, 1, 9)


async def test_the_calls_of_logic_that_ends_leave_equal_ones_alone(workshop: Workshop) -> None:
    async def ask(item: Any, call: Any) -> Any:
        await call("p", {"data": "x"})

    register_backend("Ask", ask)
    workshop.hold("n")
    async with serve(TABLES, workshop=workshop) as called:
        caller = Pipeline.load({"ask": {"backend": "Ask"}}, name="q")
        caller.others = {"p": called}.__getitem__
        async with caller:
            asking = asyncio.create_task(caller({"data": 0}))
            await workshop.begun("n")
            other = asyncio.create_task(called({"data": "x"}))
            await turns()
            asking.cancel()
            await turns()
            assert called.in_flight == 1
            workshop.release("n")
            assert (await other)["result"] == "x"
        assert workshop.inputs("n") == ["x"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"pipeline": {"cache": 1}, "n": {"backend": "Identity"}}, "expected true, false"),
        ({"pipeline": {"cache": {"ttl": 0}}, "n": {"backend": "Identity"}}, "cache.ttl"),
        ({"pipeline": {"cache": {"size": 1}}, "n": {"backend": "Identity"}}, "size"),
    ],
)
def test_a_wrong_cache_is_a_problem(tables: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline.load(tables)


def test_a_pipeline_that_streams_has_no_cache(own_registry: None) -> None:
    async def parts(item: Any, call: Any) -> Any:
        yield 1

    async def whole(item: Any, call: Any) -> Any:
        return 1

    register_backend("Parts", parts)
    with pytest.raises(ConfigError, match="node 'n' yields them in parts"):
        Pipeline.load({"pipeline": {"cache": True}, "n": {"backend": "Parts"}})
    stream = {"inputs": {"data": {"kind": "bytes", "stream": True}}, "cache": True}
    register_backend("Whole", whole)
    with pytest.raises(ConfigError, match="its input 'data' is a stream"):
        Pipeline.load({"pipeline": stream, "n": {"backend": "Whole"}})
    assert Pipeline.load({"pipeline": {"cache": "false"}, "n": {"backend": "Parts"}})
