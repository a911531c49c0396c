"""Pipelines with `executor = "loop"`: nodes whose batches run on the event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock import pipe
from penstock.backends.base import Backend, Context
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    InvalidInput,
    NotReady,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.testing import Clock

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")


class Work(Backend):
    """Records its calls, each with its thread. `acts[node](item)` is what a node does."""

    calls: list[tuple[str, str]]
    batches: list[tuple[str, list[Any]]]
    acts: dict[str, Callable[[Item], Any]]
    threads: set[int]

    def _called(self, name: str) -> None:
        cls = type(self)
        cls.calls.append((self.node, name))
        cls.threads.add(threading.get_ident())

    def init(self, params: Any, context: Context) -> None:
        self.node = context.node
        self._called("init")

    def warm_up(self) -> None:
        self._called("warm_up")

    def forward(self, batch: list[Item]) -> None:
        cls = type(self)
        cls.threads.add(threading.get_ident())
        cls.batches.append((self.node, [item["data"] for item in batch]))
        for item in batch:
            act = cls.acts.get(self.node)
            result = item["data"] if act is None else act(item)
            if result is not None:
                item["result"] = result

    def close(self) -> None:
        self._called("close")


@pytest.fixture
def work(own_registry: None) -> type[Work]:
    made: type[Work] = type(
        "Work", (Work,), {"calls": [], "batches": [], "acts": {}, "threads": set()}
    )
    register_backend("Work", made)
    return made


def graph(**nodes: dict[str, Any]) -> dict[str, Any]:
    return {name: {"backend": "Work", "executor": "loop", **keys} for name, keys in nodes.items()}


@asynccontextmanager
async def serve(source: dict[str, Any], clock: Clock | None = None) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(load(source, name="p"), clock=clock or time.monotonic)
    async with asyncio.timeout(60), pipeline:
        yield pipeline
        assert pipeline.in_flight == 0


async def gathered(pipeline: Pipeline, *data: Any) -> list[Any]:
    return await asyncio.gather(
        *[pipeline({"data": each}) for each in data], return_exceptions=True
    )


# what runs there


async def test_everything_of_a_backend_runs_on_the_thread_of_the_loop(work: type[Work]) -> None:
    before = set(threading.enumerate())
    async with serve(graph(a={"next": "b"}, b={})) as pipeline:
        assert (await pipeline({"data": 3}))["result"] == 3
        assert set(threading.enumerate()) <= before
        assert [repr(node) for node in pipeline.nodes] == [
            "<Node a: 0 active, 1 idle, 0 queued>",
            "<Node b: 0 active, 1 idle, 0 queued>",
        ]
        assert pipeline.not_ready == ""
    assert work.threads == {threading.get_ident()}
    assert [name for node, name in work.calls if node == "a"] == ["init", "warm_up", "close"]


async def test_functions_and_classes_of_users(own_registry: None) -> None:
    threads = []

    def double(data: int) -> int:
        threads.append(threading.get_ident())
        return 2 * data

    class Plain:
        def forward(self, batch: list[Item]) -> None:
            threads.append(threading.get_ident())
            for item in batch:
                item["result"] = item["data"] + 1

    register_backend("double", double)
    register_backend("Plain", Plain)
    async with serve({"a": {"backend": "S[double,Plain,Identity]", "executor": "loop"}}) as p:
        assert (await p({"data": 3}))["result"] == 7
    assert set(threads) == {threading.get_ident()}


async def test_other_work_of_the_loop_comes_between_two_loads(work: type[Work]) -> None:
    events: list[str] = []
    loop = asyncio.get_running_loop()

    class Loads(Backend):
        def init(self, params: Any, context: Context) -> None:
            events.append(context.node)
            loop.call_soon(events.append, "other work")

        def forward(self, batch: list[Item]) -> None: ...

    register_backend("Loads", Loads)
    async with serve(graph(a={"backend": "Loads"}, b={"backend": "Loads"})):
        assert events[:3] == ["a", "other work", "b"]


# batches and turns


async def test_what_arrives_together_shares_a_batch_of_at_most_max(work: type[Work]) -> None:
    async with serve(graph(a={"max": 4})) as pipeline:
        answers = await pipeline([{"data": number} for number in range(6)])
        assert [answer["result"] for answer in answers] == list(range(6))
    assert work.batches == [("a", [0, 1, 2, 3]), ("a", [4, 5])]


async def test_priorities_and_shapes(work: type[Work]) -> None:
    shape_key: Any = staticmethod(lambda item: type(item["data"]))
    work.shape_key = shape_key
    async with serve(graph(a={"max": 8, "priority_levels": 2})) as pipeline:
        await asyncio.gather(
            pipeline({"data": 1}, priority=2),
            pipeline({"data": "x"}, priority=2),
            pipeline({"data": 2}, priority=1),
        )
    assert work.batches == [("a", [2, 1]), ("a", ["x"])]


async def test_a_chain_runs_in_one_go(work: type[Work]) -> None:
    """Between its nodes the loop does nothing else."""
    loop = asyncio.get_running_loop()
    events: list[Any] = []

    def act(item: Item) -> Any:
        events.append(item["data"])
        loop.call_soon(events.append, "other work")
        return item["data"] + 1

    work.acts = dict.fromkeys("abc", act)
    async with serve(graph(a={"next": "b"}, b={"next": "c"}, c={}), Clock()) as pipeline:
        assert (await pipeline({"data": 0}))["result"] == 3
    assert events[:3] == [0, 1, 2]


async def test_the_loop_does_other_work_between_two_batches_of_a_node(work: type[Work]) -> None:
    loop = asyncio.get_running_loop()
    events: list[Any] = []

    def act(item: Item) -> None:
        events.append(item["data"])
        loop.call_soon(events.append, "other work")

    work.acts["a"] = act
    async with serve(graph(a={"max": 1}), Clock()) as pipeline:
        await pipeline([{"data": 0}, {"data": 1}])
    assert events[:3] == [0, "other work", 1]


async def test_a_long_turn_lets_the_loop_do_other_work(work: type[Work]) -> None:
    loop, clock = asyncio.get_running_loop(), Clock()
    events: list[Any] = []

    def act(item: Item) -> Any:
        events.append(item["data"])
        loop.call_soon(events.append, "other work")
        clock.move(0.002)
        return item["data"] + 1

    work.acts = dict.fromkeys("abc", act)
    async with serve(graph(a={"next": "b"}, b={"next": "c"}, c={}), clock) as pipeline:
        assert (await pipeline({"data": 0}))["result"] == 3
    assert events[:5] == [0, "other work", 1, "other work", 2]


async def test_a_loop_of_many_rounds_lets_other_requests_run(work: type[Work]) -> None:
    clock = Clock()

    def act(item: Item) -> Any:
        clock.move(0.0001)
        if item["data"]:
            item["restart"] = "a"
        return item["data"] and item["data"] - 1

    work.acts["a"] = act
    ended = []
    source = {"pipeline": {"loop": True}, **graph(a={"max": 1})}
    async with serve(source, clock) as pipeline:

        async def call(rounds: int) -> None:
            assert (await pipeline({"data": rounds}))["result"] == 0
            ended.append(rounds)

        await asyncio.gather(call(500), call(1))
    assert ended == [1, 500]


async def test_loop_nodes_beside_others(work: type[Work]) -> None:
    """A chain and a graph of nodes on the loop, on threads and in composites."""
    register_backend("OnThread", lambda data: data * 10)

    async def logic(item: Item, call: Any) -> None:
        item["result"] = (await call("sub", {"data": item["data"]}))["result"]

    register_backend("logic", logic)
    source = graph(
        a={"next": "t"},
        t={"backend": "OnThread", "executor": "thread", "next": "b,j"},
        b={"next": "end"},
        j={"backend": "logic", "next": "end"},
        end={"map": "b[result:data],j[result:other]"},
        sub={},
    ) | {"pipeline": {"entry": "a"}}
    async with serve(source) as pipeline:
        answers = await gathered(pipeline, *range(20))
        assert [answer["result"] for answer in answers] == [number * 10 for number in range(20)]
        assert {answer["other"] for answer in answers} == {number * 10 for number in range(20)}
    assert work.threads == {threading.get_ident()}


async def test_streams_and_map_reduce_over_a_loop_node(work: type[Work]) -> None:
    async def parts(item: Item, call: Any) -> Any:
        for number in range(3):
            yield (await call("sub", {"data": number}))["result"]

    register_backend("parts", parts)
    async with serve(graph(s={"backend": "parts"}, sub={})) as pipeline:
        found = [part["result"] async for part in pipeline.stream({"data": 1, "node_name": "s"})]
        assert found == [0, 1, 2]
    source = graph(m={"backend": "MapReduce(jump=sub,split=data,merge=result)"}, sub={"max": 4})
    work.acts["sub"] = lambda item: item["data"] * 2
    async with serve(source) as pipeline:
        assert (await pipeline({"data": [1, 2, 3]}))["result"] == [2, 4, 6]


async def test_a_node_on_the_loop_waits_while_its_results_fill_their_share(
    work: type[Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.backends.memory import budget
    from penstock.pipelines.node.outflow import DIVISOR

    monkeypatch.setattr(budget, "limit", DIVISOR * 25_000)
    gate = threading.Event()

    def slow(data: bytes) -> int:
        assert gate.wait(60)
        return len(data)

    register_backend("slow", slow)
    work.acts["a"] = lambda item: bytes(10_000)
    source = graph(a={"max": 1, "next": "b"}, b={"backend": "slow", "executor": "thread"})
    async with serve(source) as pipeline:
        calls = [asyncio.ensure_future(pipeline({"data": b"x"})) for _ in range(10)]
        while not pipeline.nodes[0].outflow.full:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(work.batches) == 3
        gate.set()
        assert [answer["result"] for answer in await asyncio.gather(*calls)] == [10_000] * 10


# failures, deadlines, departures


@pytest.mark.parametrize(
    "error",
    [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, MemoryError],
)
async def test_a_failure_ends_neither_its_neighbours_nor_the_loop(
    work: type[Work], error: type[BaseException]
) -> None:
    def act(item: Item) -> Any:
        if item["data"] == "bad":
            raise error("gone")
        return item["data"]

    work.acts["a"] = act
    async with serve(graph(a={"max": 4})) as pipeline:
        first, bad, last = await gathered(pipeline, "first", "bad", "last")
        assert type(bad) is BackendError and f"raised {error.__name__}: gone" in str(bad)
        if error is MemoryError:  # its batch does not run again
            assert type(first) is type(last) is BackendError
        else:
            assert (first["result"], last["result"]) == ("first", "last")
        assert (await pipeline({"data": "next"}))["result"] == "next"


async def test_soft_failures_and_retry_off(work: type[Work]) -> None:
    def act(item: Item) -> Any:
        if item["data"] == "soft":
            raise InvalidInput("not readable")
        if item["data"] == "bad":
            raise ValueError("no")
        return item["data"]

    work.acts["a"] = act
    async with serve(graph(a={"max": 4})) as pipeline:
        good, soft = await gathered(pipeline, "good", "soft")
        assert good["result"] == "good" and type(soft) is InvalidInput
    async with serve(graph(a={"max": 4, "retry": False})) as pipeline:
        answers = await gathered(pipeline, "good", "bad")
        assert [type(answer) for answer in answers] == [BackendError] * 2


async def test_a_device_error_replaces_the_instance(
    work: type[Work], caplog: pytest.LogCaptureFixture
) -> None:
    def act(item: Item) -> Any:
        if item["data"] == "bad":
            raise DeviceError("lost")
        return item["data"]

    work.acts["a"] = act
    async with serve(graph(a={"max": 1})) as pipeline:
        bad, after = await gathered(pipeline, "bad", "after")
        assert type(bad) is DeviceError
        assert after["result"] == "after"
        assert pipeline.nodes[0].statistics.restarts == 1
        assert pipeline.not_ready == ""
    assert [name for _, name in work.calls] == [
        "init", "warm_up", "close", "init", "warm_up", "close",
    ]  # fmt: skip
    assert "node a: p/a#0 died and is restarted" in caplog.text


async def test_deadlines(work: type[Work]) -> None:
    clock = Clock()
    work.acts["a"] = lambda item: clock.move(item["data"])
    async with serve(graph(a={"max": 1})) as _, serve(graph(a={"max": 1}), clock) as pipeline:
        late, waited = await asyncio.gather(
            pipeline({"data": 5.0}, timeout=3.0),
            pipeline({"data": 0.0}, timeout=4.0),
            return_exceptions=True,
        )
        assert str(late) == "node 'a': the answer came after the deadline"
        assert str(waited) == "node 'a': the deadline passed while the request was queued"
        assert type(late) is type(waited) is DeadlineExceeded
        assert pipeline.nodes[0].statistics.outcomes["expired"] == 2
    assert [data for _, data in work.batches] == [[5.0]]


async def test_what_its_caller_left_does_not_run(work: type[Work]) -> None:
    async with serve(graph(a={"max": 4})) as pipeline:
        calls = [asyncio.ensure_future(pipeline({"data": number})) for number in range(3)]
        for call in calls:
            call.get_loop().call_soon(lambda: None)
        await asyncio.sleep(0)  # all have come
        calls[1].cancel()
        left = pipeline.submit_nowait({"data": 9})
        left.leave()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert 9 not in [data for _, batch in work.batches for data in batch]


async def test_closing_answers_what_queues(work: type[Work]) -> None:
    pipeline = Pipeline(load(graph(a={}), name="p"))
    await pipeline.start()
    waiting = pipeline.submit_nowait({"data": 1})
    await pipeline.close(0)
    with pytest.raises(NotReady, match="is closed"):
        await waiting.future
    assert work.batches == []


async def test_a_pipeline_that_is_closed_while_it_loads(work: type[Work]) -> None:
    pipeline = Pipeline(load(graph(a={}, b={}), name="p"))
    starting = asyncio.ensure_future(pipeline.start())
    await asyncio.sleep(0)
    await pipeline.close(0)
    with pytest.raises(NotReady, match="closed"):
        await starting
    for node in "ab":
        names = [name for at, name in work.calls if at == node]
        assert names in ([], ["init", "warm_up", "close"])


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_an_init_that_fails(work: type[Work], error: type[BaseException]) -> None:
    class Fails(Backend):
        def init(self, params: Any, context: Context) -> None:
            raise error("gone")

    register_backend("Fails", Fails)
    with pytest.raises(BackendError, match=f"node 'b': {error.__name__}: gone"):
        async with Pipeline.load(graph(a={}, b={"backend": "Fails"})):
            pass
    assert [name for node, name in work.calls if node == "a"] in (
        [],
        ["init", "warm_up", "close"],
    )


async def test_an_answered_request_leaves_nothing(work: type[Work]) -> None:
    class Data:
        pass

    async with serve(graph(a={"next": "b"}, b={})) as pipeline:
        gc.collect()
        gc.disable()
        try:
            data = Data()
            left = weakref.ref(data)
            await pipeline({"data": data})
            work.batches.clear()
            del data
            await asyncio.sleep(0)
            assert left() is None
        finally:
            gc.enable()


# the watchdog


def held(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if "event loop for" in record.getMessage()
    ]


async def test_what_holds_the_loop_is_logged_with_its_node(
    work: type[Work], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    work.acts["b"] = lambda item: clock.move(item["data"])
    async with serve(graph(a={"next": "b"}, b={}), clock) as pipeline:
        await pipeline({"data": 0.004})
        assert held(caplog) == []
        await pipeline({"data": 0.006})
        (line,) = held(caplog)
        assert line.startswith("node b: a batch of 1 item held the event loop for 6.0 ms")
        (record,) = [record for record in caplog.records if record.getMessage() == line]
        assert (record.name, record.levelno) == ("penstock.node", logging.WARNING)
        assert vars(record)["pipeline"] == "p" and vars(record)["node"] == "b"


async def test_lines_of_the_watchdog_are_bounded(
    work: type[Work], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    work.acts["a"] = lambda item: clock.move(0.006)
    async with serve(graph(a={}), clock) as pipeline:
        for _ in range(100):
            await pipeline({"data": 1})
        assert len(held(caplog)) == 1
        clock.move(10)
        await pipeline({"data": 1})
        assert len(held(caplog)) == 2
        assert "(99 more did since the last such line)" in held(caplog)[1]


async def test_a_load_that_holds_the_loop_is_logged(
    own_registry: None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()

    class Loads(Backend):
        def init(self, params: Any, context: Context) -> None:
            clock.move(0.02)

        def forward(self, batch: list[Item]) -> None: ...

    register_backend("Loads", Loads)
    async with serve(graph(a={"backend": "Loads"}), clock):
        pass
    (line,) = held(caplog)
    assert line.startswith("node a: its load held the event loop for 20.0 ms")


# threads


def test_a_pipe_runs_it_on_the_thread_of_its_loop(work: type[Work]) -> None:
    with pipe(load(graph(a={"max": 5}), name="p")) as p:
        items: list[dict[str, Any]] = [{"data": 1}, {"data": 2}]
        p(items)
        assert [item["result"] for item in items] == [1, 2]
        assert (p.min(), p.max()) == (1, 5)
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads


def test_a_backend_on_the_loop_can_not_wait_for_a_pipe(work: type[Work]) -> None:
    with pipe("Identity") as other, pipe(load(graph(a={}), name="p")) as p:
        work.acts["a"] = lambda item: other({"data": 1})
        with pytest.raises(BackendError, match="was called in the thread of a running event loop"):
            p({"data": 1})


# what is refused


def problem(source: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"instance_num": 2}, "found 2 instances: executor = \"loop\" runs one"),
        ({"max": "1&2"}, "found 2 instances"),
        ({"backend": "Sleep"}, "Sleep can't run on the event loop, because it sleeps"),
        ({"backend": "S[Identity,OnnxTensor]", "model": "x.onnx"}, "OnnxTensor can't run on"),
        ({"backend": "ModelTensor", "model": "x.onnx"}, "because it runs a model"),
        ({"backend": "PythonTensor", "model": "x:y"}, "because it runs a model"),
        ({"backend": "DecodeMat"}, "DecodeMat can't run on the event loop, because its time grows"),
        ({"backend": "HasKey(k)[ResizeMat(3,3)]"}, "ResizeMat can't run on the event loop"),
        ({"device": "cuda:0"}, "a backend that waits for a GPU would hold the event loop"),
    ],
)  # fmt: skip
def test_what_would_hold_the_loop_is_refused(keys: dict[str, Any], text: str) -> None:
    found = problem({"a": {"backend": "Identity", "executor": "loop", **keys}})
    assert found.startswith("[a] executor: ") and text in found


def test_a_class_that_inherits_from_an_engine_is_refused() -> None:
    from penstock.backends.image.decode import DecodeMat

    register_backend("MyDecode", type("MyDecode", (DecodeMat,), {}))
    assert "MyDecode can't run on the event loop" in problem(
        {"a": {"backend": "MyDecode", "executor": "loop"}}
    )


async def test_a_default_of_the_file_leaves_composites_alone(work: type[Work]) -> None:
    source: dict[str, Any] = {
        "executor": "loop",
        "j": {"backend": "Jump(sub)"},
        "sub": {"backend": "Work"},
    }
    async with serve(source) as pipeline:
        assert (await pipeline({"data": 1}))["result"] == 1
    assert problem({"executor": "loop", "a": {"backend": "Sleep"}}).startswith("[a] executor: ")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[a]\nbackend = "Identity"\nexecutor = "loop"\n')
    assert load(tmp_path / "p.toml").nodes["a"].executor == "loop"
