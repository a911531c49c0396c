"""Pipelines with real threads.

Gates in the backends decide when things happen, so no test waits for time to pass.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from penstock.backends.base import Backend, Context, Params
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    InvalidInput,
    InvalidRequest,
    MissingData,
    NotReady,
    QueueFull,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item, as_item
from penstock.backends.process.failure import RestartError
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Run

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

BOUND = 20.0  # seconds after which a test that hangs fails


class EventGate(threading.Event):
    """While it is closed, a backend that passes it waits on its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.set()

    def close(self) -> None:
        self.clear()

    def open(self) -> None:
        self.set()


class Probe(Backend):
    """Records the items that it gets. `act(item)` returns the result of an item, or raises."""

    parameters = Params
    gate: ClassVar[EventGate]
    init_gate: ClassVar[EventGate]
    seen: ClassVar[list[list[Any]]]
    calls: ClassVar[list[str]]
    entered: ClassVar[threading.Semaphore]
    act: ClassVar[Callable[[Item], Any]]
    failing_inits: ClassVar[int]

    def init(self, params: Any, context: Context) -> None:
        cls = type(self)
        cls.calls.append(f"init {threading.current_thread().name}")
        self.thread = threading.get_ident()
        assert cls.init_gate.wait(BOUND)
        if cls.failing_inits:
            cls.failing_inits -= 1
            raise ValueError("no such model")

    def forward(self, batch: list[Item]) -> None:
        cls = type(self)
        assert threading.get_ident() == self.thread
        cls.seen.append([item["data"] for item in batch])
        cls.entered.release()
        assert cls.gate.wait(BOUND)
        for item in batch:
            item["result"] = cls.act(item)

    def close(self) -> None:
        assert threading.get_ident() == self.thread
        type(self).calls.append("close")


def probe(act: Callable[[Item], Any] = lambda item: item["data"], **attributes: Any) -> type[Probe]:
    own = {
        "gate": EventGate(),
        "init_gate": EventGate(),
        "seen": [],
        "calls": [],
        "entered": threading.Semaphore(0),
        "failing_inits": 0,
        "act": staticmethod(act),
        **attributes,
    }
    return type("Probe", (Probe,), own)


def poison(
    *bad: Any, error: Callable[[], BaseException] = lambda: ValueError("poison")
) -> Callable[[Item], Any]:
    def act(item: Item) -> Any:
        if item["data"] in bad:
            raise error()
        return item["data"]

    return act


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until a thread's report has brought something about."""
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.001)


async def entered(cls: type[Probe]) -> None:
    """Wait until a forward has begun."""
    assert await asyncio.to_thread(cls.entered.acquire, timeout=BOUND)


def build(
    cls: type[Backend] = Backend,
    *,
    pipeline: dict[str, Any] | None = None,
    name: str = "p",
    **keys: Any,
) -> Pipeline:
    register_backend("Probe", cls)
    return Pipeline.load(
        {"pipeline": pipeline or {}, "node": {"backend": "Probe", **keys}}, name=name
    )


@asynccontextmanager
async def serve(cls: type[Probe], **keys: Any) -> AsyncIterator[Pipeline]:
    async with asyncio.timeout(BOUND):
        async with build(cls, **keys) as pipeline:
            try:
                yield pipeline
            finally:
                cls.gate.open()
                cls.init_gate.open()


async def gathered(pipeline: Pipeline, *values: Any) -> list[Any]:
    """Call the pipeline with each value as `data`. Return the answers and exceptions."""
    return await asyncio.gather(
        *[pipeline({"data": data}) for data in values], return_exceptions=True
    )


def nothing_is_left(pipeline: Pipeline) -> bool:
    """Assert that the pipeline holds nothing of any request."""
    assert pipeline.in_flight == 0
    assert pipeline._admission.door.rows == 0
    for node in pipeline.nodes:
        assert (node.scheduler.queued, node.scheduler.buckets, node.scheduler.running) == (
            0,
            {},
            {},
        )
    return True


# one item


async def test_a_call_returns_a_new_dict_and_leaves_the_callers_alone() -> None:
    def act(item: Item) -> Any:
        item["extra"] = 1
        item["data"] = "changed"
        return "answer"

    async with serve(probe(act)) as pipeline:
        item = {"data": "in", "result": "stale", "error": "stale", "other": [1]}
        before = dict(item)
        answer = await pipeline(item)
        assert answer == {"data": "in", "result": "answer", "extra": 1, "other": [1]}
        assert answer["other"] is item["other"]
        assert item == before
        assert nothing_is_left(pipeline)
        assert pipeline.nodes[0].statistics.outcomes["ok"] == 1


async def test_the_backend_sees_no_stale_result() -> None:
    def act(item: Item) -> Any:
        assert "result" not in item
        assert "error" not in item

    async with serve(probe(act)) as pipeline:
        assert await pipeline(MappingProxyType({"data": 1, "result": 2, "error": 3})) == {
            "data": 1,
            "result": None,
        }


def test_as_item() -> None:
    plain = {"data": 1}
    assert as_item(plain) is plain
    assert as_item({"data": 1, "result": 2, "error": 3}) == {"data": 1}
    assert type(as_item(MappingProxyType({"data": 1}))) is dict
    for wrong in (3, "data", b"data", None, {"data"}):
        with pytest.raises(TypeError, match="an item is a dict"):
            as_item(wrong)


async def test_requests_that_are_refused_at_once() -> None:
    cls = probe()
    async with serve(cls, max=4, priority_levels=3) as pipeline:
        with pytest.raises(MissingData, match="no 'data'"):
            await pipeline({"dato": 1})
        with pytest.raises(IndexError):
            await pipeline({})
        with pytest.raises(TypeError):
            await pipeline(["not a dict"])  # type: ignore[list-item]  # the wrong type is the test
        for priority in (0, 4, -1):
            with pytest.raises(InvalidRequest, match="3 priority levels"):
                await pipeline({"data": 1}, priority=priority)
        for size in (0, -1, 1.5, "2"):
            with pytest.raises(InvalidRequest, match="positive int"):
                await pipeline({"data": 1, "request_size": size})
        with pytest.raises(InvalidRequest, match="<= 4 for 'p'; got 5"):
            await pipeline({"data": 1, "request_size": 5})
        assert (await pipeline({"data": 1, "request_size": 4}, priority=3))["result"] == 1
        assert nothing_is_left(pipeline)
    async with serve(cls) as pipeline:
        assert (await pipeline({"data": 1}, priority=7))["result"] == 1  # no levels: it is ignored
        for priority in (0, -1):
            with pytest.raises(InvalidRequest, match="no priority levels, 1 is the highest"):
                await pipeline({"data": 1}, priority=priority)


async def test_a_caller_from_python_may_bring_an_id() -> None:
    cls = probe(act=lambda item: item["request_id"], takes_request_id=True)
    async with serve(cls, max=4) as pipeline:
        item = {"data": 1}
        assert (await pipeline(item))["result"] == "" and item == {"data": 1}
        assert (await pipeline({"data": 1, "request_id": "mine"}))["result"] == "mine"
        submission = pipeline.submit_nowait(item, request_id="theirs")
        assert (await submission.future)["result"] == "theirs" and item == {"data": 1}


# lists and batches


async def test_a_list_is_one_call_and_one_batch() -> None:
    cls = probe()
    async with serve(cls, max=8) as pipeline:
        assert [
            answer["result"] for answer in await pipeline([{"data": n} for n in range(8)])
        ] == list(range(8))
        assert cls.seen == [list(range(8))]
        assert await pipeline([]) == []
        assert await pipeline(({"data": 1},)) == [{"data": 1, "result": 1}]


async def test_items_queued_in_one_iteration_of_the_loop_run_as_one_batch() -> None:
    cls = probe()
    async with serve(cls, max=8) as pipeline:
        await gathered(pipeline, *range(8))
        assert cls.seen == [list(range(8))]


async def test_an_exception_in_a_list_cancels_the_other_items() -> None:
    def act(item: Item) -> Any:
        cls.gate.close()  # the next batch stays there
        raise ValueError("poison")

    cls = probe(act)
    async with serve(cls, max=1) as pipeline:
        cls.gate.close()
        call = asyncio.ensure_future(pipeline([{"data": 0}, {"data": 1}, {"data": 2}]))
        await entered(cls)
        runs: list[Any] = list(pipeline.nodes[0].scheduler)
        cls.gate.open()
        with pytest.raises(BackendError, match="poison"):
            await call
        assert [run.future.cancelled() for run in runs] == [True, True]
        cls.gate.open()
        await until(lambda: not pipeline.nodes[0].scheduler.running)
        # When 0 failed, 1 had been started already (decide before deliver), and 2 had not.
        assert [2] not in cls.seen
        assert nothing_is_left(pipeline)


async def test_a_refused_item_of_a_list_cancels_the_others() -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        with pytest.raises(MissingData):
            await pipeline([{"data": 0}, {}])
        assert (await pipeline({"data": 1}))["result"] == 1
        assert cls.seen == [[1]]


async def test_a_soft_failure_is_raised_alone_and_stays_with_its_item_in_a_list() -> None:
    class Soft(Backend):
        parameters = Params

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                if item["data"] == "bad":
                    item["error"] = InvalidInput("unreadable")
                elif item["data"] == "text":
                    item["error"] = "only a text"
                    item["result"] = "half"
                else:
                    item["result"] = 1

    async with build(Soft) as pipeline:
        with pytest.raises(InvalidInput, match="unreadable"):
            await pipeline({"data": "bad"})
        with pytest.raises(InvalidInput, match="only a text"):
            await pipeline({"data": "text"})
        good, bad, text = await pipeline([{"data": "good"}, {"data": "bad"}, {"data": "text"}])
        assert good == {"data": "good", "result": 1}
        assert bad.keys() == text.keys() == {"data", "error"}
        assert pipeline.nodes[0].statistics.outcomes == {
            "ok": 1,
            "soft": 4,
            "failed": 0,
            "expired": 0,
            "cancelled": 0,
        }


async def test_a_backend_may_change_the_list_that_it_gets() -> None:
    class Greedy(Backend):
        parameters = Params

        def forward(self, batch: list[Item]) -> None:
            while batch:
                item = batch.pop()
                item["result"] = item["data"]

    async with build(Greedy) as pipeline:
        assert [answer["result"] for answer in await pipeline([{"data": 1}, {"data": 2}])] == [1, 2]


# failure


async def test_the_other_items_of_a_failed_batch_run_again_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe(poison("bad"))
    async with serve(cls) as pipeline:
        a, bad, b = await gathered(pipeline, "a", "bad", "b")
        assert (a["result"], b["result"]) == ("a", "b")
        assert isinstance(bad, BackendError)
        assert str(bad) == "node 'node': backend Probe raised ValueError: poison"
        assert isinstance(bad.__cause__, ValueError)
        assert cls.seen == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]
        assert [record.getMessage() for record in caplog.records] == ["node node: an item failed"]
        assert pipeline.nodes[0].statistics.outcomes == {
            "ok": 2,
            "soft": 0,
            "failed": 1,
            "expired": 0,
            "cancelled": 0,
        }
        assert nothing_is_left(pipeline)


async def test_a_failed_run_does_not_change_the_copies_of_the_next() -> None:
    def act(item: Item) -> Any:
        assert "mark" not in item
        item["mark"] = 1
        if item["data"] == "bad":
            raise ValueError("poison")

    cls = probe(act)
    async with serve(cls) as pipeline:
        good, bad = await gathered(pipeline, "good", "bad")
        assert good["mark"] == 1
        assert "ValueError" in str(bad)


async def test_invalid_input_raised_in_a_batch_is_that_items_soft_failure() -> None:
    cls = probe(poison("bad", error=lambda: InvalidInput("not mine")))
    async with serve(cls) as pipeline:
        good, bad = await pipeline([{"data": "good"}, {"data": "bad"}])
        assert good["result"] == "good"
        assert isinstance(bad["error"], InvalidInput)
        assert "result" not in bad
        assert cls.seen == [["good", "bad"], ["good"], ["bad"]]
        with pytest.raises(InvalidInput, match="not mine"):
            await pipeline({"data": "bad"})
        assert cls.seen[3:] == [["bad"]]
        assert pipeline.nodes[0].statistics.outcomes["soft"] == 2


@pytest.mark.parametrize("error", [MemoryError, DeviceError])
async def test_memory_and_device_errors_are_not_retried(error: type[Exception]) -> None:
    cls = probe(poison("bad", error=lambda: error("gone")))
    async with serve(cls) as pipeline:
        answers = await gathered(pipeline, "good", "bad")
        assert cls.seen == [["good", "bad"]]
        kind = DeviceError if error is DeviceError else BackendError
        assert [type(answer) for answer in answers] == [kind] * 2
        assert answers[0] is not answers[1]


async def test_a_device_error_among_the_re_runs_ends_them() -> None:
    def act(item: Item) -> Any:
        if len(cls.seen) == 1:
            raise ValueError("first")
        if item["data"] == "bad":
            raise DeviceError("gone")
        return item["data"]

    cls = probe(act)
    async with serve(cls) as pipeline:
        a, bad, b = await gathered(pipeline, "a", "bad", "b")
        assert cls.seen == [["a", "bad", "b"], ["a"], ["bad"]]
        assert a["result"] == "a"
        assert isinstance(bad, DeviceError)
        assert isinstance(b, DeviceError)


async def test_without_retry_the_whole_batch_fails() -> None:
    cls = probe(poison("bad"))
    async with serve(cls, retry=False) as pipeline:
        answers = await gathered(pipeline, "good", "bad")
        assert all(isinstance(answer, BackendError) for answer in answers)
        assert cls.seen == [["good", "bad"]]


async def test_each_request_of_a_failed_batch_has_a_line_with_its_id_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe(poison("bad"))
    async with serve(cls, retry=False) as pipeline:
        futures = [
            pipeline.submit_nowait({"data": data}, request_id=data).future
            for data in ("good", "bad", "third")
        ]
        await asyncio.wait(futures)
        assert cls.seen == [["good", "bad", "third"]]
        assert all(isinstance(future.exception(), BackendError) for future in futures)
    lines = [(getattr(line, "request_id", None), line.getMessage()) for line in caplog.records]
    assert lines == [
        (name, f"node node: a batch of 3 items failed (request {name})")
        for name in ("good", "bad", "third")
    ]
    assert [line.exc_info is not None for line in caplog.records] == [True, False, False]


async def test_after_a_batch_failed_item_by_item_none_is_retried_until_a_run_succeeds() -> None:
    cls = probe(poison("bad"))
    async with serve(cls) as pipeline:
        await gathered(pipeline, "bad", "bad")
        assert len(cls.seen) == 3
        good, _ = await gathered(pipeline, "good", "bad")
        assert isinstance(good, BackendError)
        assert len(cls.seen) == 4
        assert (await pipeline({"data": "good"}))["result"] == "good"
        good, _ = await gathered(pipeline, "good", "bad")
        assert good["result"] == "good"
        assert len(cls.seen) == 5 + 3


async def test_invalid_input_fails_its_item_only_while_retries_are_suspended() -> None:
    cls = probe(
        lambda item: (
            poison("odd", error=lambda: InvalidInput("odd"))(item)
            if item["data"] == "odd"
            else poison("bad")(item)
        )
    )
    async with serve(cls) as pipeline:
        await gathered(pipeline, "bad", "bad")
        good, odd = await gathered(pipeline, "good", "odd")
        assert good["result"] == "good"
        assert isinstance(odd, InvalidInput)


async def test_an_item_whose_caller_left_is_not_run_again() -> None:
    cls = probe(poison("bad"))
    async with serve(cls) as pipeline:
        cls.gate.close()
        calls = [
            asyncio.ensure_future(pipeline({"data": data})) for data in ("bad", "left", "good")
        ]
        await entered(cls)
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        cls.gate.open()
        bad, _, good = await asyncio.gather(*calls, return_exceptions=True)
        assert cls.seen == [["bad", "left", "good"], ["bad"], ["good"]]
        assert isinstance(bad, BackendError)
        assert isinstance(good, dict)
        assert good["result"] == "good"
        assert pipeline.nodes[0].statistics.outcomes == {
            "ok": 1,
            "soft": 0,
            "failed": 1,
            "expired": 0,
            "cancelled": 1,
        }
        assert nothing_is_left(pipeline)


async def test_an_item_past_its_deadline_is_not_run_again() -> None:
    time = [0.0]
    cls = probe(poison("bad"))
    register_backend("Probe", cls)
    loaded = Pipeline.load({"node": {"backend": "Probe"}})
    async with asyncio.timeout(BOUND), Pipeline(loaded.config, clock=lambda: time[0]) as pipeline:
        cls.gate.close()
        calls = [
            asyncio.ensure_future(pipeline({"data": data}, timeout=timeout))
            for data, timeout in (("bad", 9), ("late", 5), ("good", 9))
        ]
        await entered(cls)
        time[0] = 5.0  # exactly
        cls.gate.open()
        bad, late, good = await asyncio.gather(*calls, return_exceptions=True)
        assert cls.seen == [["bad", "late", "good"], ["bad"], ["good"]]
        assert isinstance(bad, BackendError)
        assert isinstance(late, DeadlineExceeded)
        assert isinstance(good, dict)
        assert good["result"] == "good"
        assert nothing_is_left(pipeline)


async def test_the_member_of_a_sequential_that_raised_is_named() -> None:
    class First(Backend):
        parameters = Params

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = item["data"]

    class Second(First):
        def forward(self, batch: list[Item]) -> None:
            raise KeyError("weights")

    class One(Second):
        max = 1

    for cls in First, Second, One:
        register_backend(cls.__name__, cls)
    for expression, guilty in (
        ("S[First,Second]", "Second"),
        ("SyncTensor[S[First,S[First,Second]]]", "Second"),
        ("S[First,One]", "One"),
    ):
        async with Pipeline.load({"x": {"backend": expression}}) as pipeline:
            with pytest.raises(
                BackendError, match=rf"node 'x': backend {guilty} raised KeyError: 'weights'"
            ):
                await pipeline({"data": 1})


# threads that die, hang, or never start


async def test_a_thread_that_dies_fails_its_futures_and_is_restarted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe(poison("kill", error=lambda: RestartError("gone")))
    async with serve(cls, max=2) as pipeline:
        cls.gate.close()
        calls = [
            asyncio.ensure_future(pipeline({"data": data})) for data in ("a", "kill", "queued")
        ]
        await entered(cls)
        cls.init_gate.close()
        cls.gate.open()
        for call in calls[:2]:  # a's copy has a result, but the batch has not ended
            with pytest.raises(
                BackendError, match=r"node 'node': p/node#0 died of RestartError: gone"
            ) as caught:
                await call
            assert isinstance(caught.value.__cause__, RestartError)
        assert pipeline.not_ready == "node 'node': 1 of 1 executors are not running"
        assert repr(pipeline.nodes[0].scheduler).endswith(": 0 active, 0 idle, 1 queued>")
        assert not calls[2].done()
        cls.init_gate.open()
        assert (await calls[2])["result"] == "queued"
        assert pipeline.not_ready == ""
        assert cls.seen == [["a", "kill"], ["queued"]]
        assert pipeline.nodes[0].statistics.restarts == 1
        assert pipeline.nodes[0].statistics.outcomes == {
            "ok": 1,
            "soft": 0,
            "failed": 2,
            "expired": 0,
            "cancelled": 0,
        }
        assert "died and is restarted" in caplog.text
        assert nothing_is_left(pipeline)
    assert sorted(cls.calls) == ["close", "close", "init p/node#0", "init p/node#0"]


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("place", ["init", "warm_up", "close"])
async def test_an_exit_in_init_warm_up_or_close(
    executor: str, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ops.py").write_text(f"""
import sys
import penstock

class Exits(penstock.Backend):
    def forward(self, batch):
        for item in batch:
            item["result"] = 1

    def {place}(self, *_):
        sys.exit("gone")
""")
    tables = {"x": {"backend": f"Python[{tmp_path}/ops.py:Exits]", "executor": executor}}
    if place != "close":
        with pytest.raises(BackendError, match="node 'x': SystemExit: gone"):
            async with Pipeline.load(tables):
                pass
        return
    async with asyncio.timeout(20), Pipeline.load(tables) as pipeline:
        assert (await pipeline({"data": 1}))["result"] == 1
    assert executor == "process" or caplog.text.count("close failed") == 1
    assert nothing_is_left(pipeline)


@pytest.mark.parametrize("text", ["sys.exit(3)", "raise GeneratorExit"])
async def test_a_file_that_exits_when_it_is_imported(text: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(f"import sys\n{text}\n")
    with pytest.raises(ConfigError, match=r"importing .*ops.py' .* failed: (System|Generator)Exit"):
        Pipeline.load({"x": {"backend": f"Python[{tmp_path}/ops.py:f]"}})


async def test_a_device_error_fails_the_batch_and_replaces_the_instance() -> None:
    cls = probe(
        poison("assert", error=lambda: DeviceError("CUDA error: device-side assert triggered"))
    )
    async with serve(cls, max=2) as pipeline:
        cls.gate.close()
        calls = [
            asyncio.ensure_future(pipeline({"data": data})) for data in ("a", "assert", "queued")
        ]
        await entered(cls)
        cls.init_gate.close()
        cls.gate.open()
        for call in calls[:2]:
            with pytest.raises(
                DeviceError,
                match="node 'node': backend Probe raised DeviceError: CUDA error: device-side",
            ):
                await call
        assert pipeline.not_ready == "node 'node': 1 of 1 executors are not running"
        assert not calls[2].done()
        cls.init_gate.open()
        assert (await calls[2])["result"] == "queued"
        assert pipeline.not_ready == ""
        # Nothing was run again, and nothing ran on the instance that failed.
        assert cls.seen == [["a", "assert"], ["queued"]]
        assert nothing_is_left(pipeline)
    assert sorted(cls.calls) == ["close", "close", "init p/node#0", "init p/node#0"]


async def test_items_that_ran_alone_before_the_thread_died_are_answered() -> None:
    def act(item: Item) -> Any:
        if item["data"] == "kill":
            raise ValueError("first") if len(cls.seen) == 1 else RestartError("then")
        return item["data"]

    cls = probe(act)
    async with serve(cls) as pipeline:
        a, kill, b = await gathered(pipeline, "a", "kill", "b")
        assert a["result"] == "a"
        assert "died of RestartError" in str(kill)
        assert "died of RestartError" in str(b)
        assert (await pipeline({"data": "c"}))["result"] == "c"


async def test_a_restart_that_fails_is_tried_again() -> None:
    cls = probe(poison("kill", error=lambda: RestartError("gone")))
    async with serve(cls) as pipeline:
        cls.failing_inits = 1
        await gathered(pipeline, "kill")
        await until(lambda: pipeline.not_ready == "")
        assert (await pipeline({"data": "a"}))["result"] == "a"
        assert pipeline.nodes[0].statistics.restarts == 2


async def test_restarts_of_one_instance_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        node = pipeline.nodes[0]
        (executor,) = node._executors
        delays = []
        monkeypatch.setattr(
            node,
            "_loop",
            type(
                "Loop",
                (),
                {"call_later": staticmethod(lambda delay, *a, **k: delays.append(delay))},
            ),
        )
        monkeypatch.setattr(node, "_decide", lambda now: None)
        for failures in (0, 1, 2, 5000):
            executor.failures = failures
            node.executor_died(executor, RestartError())
        assert delays == [0.0, 0.2, 0.4, 30.0]
        monkeypatch.undo()


async def test_an_init_that_fails_names_the_node_and_leaves_nothing() -> None:
    good, bad = probe(), probe(failing_inits=1)
    register_backend("Good", good)
    register_backend("Bad", bad)
    pipeline = Pipeline.load(
        {"a": {"backend": "Good", "instance_num": 2, "next": "b"}, "b": {"backend": "Bad"}}
    )
    with pytest.raises(BackendError, match=r"node 'b': ValueError: no such model"):
        await pipeline.start()
    assert pipeline.state == "closed"
    assert good.calls.count("close") == 2
    with pytest.raises(NotReady, match="closed"):
        await pipeline({"data": 1})
    with pytest.raises(RuntimeError, match="started before"):
        await pipeline.start()


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    cls = probe()
    cls.init_gate.close()
    pipeline = build(cls)
    start = asyncio.ensure_future(pipeline.start())
    await until(lambda: cls.calls)
    start.cancel()
    await asyncio.sleep(0)
    cls.init_gate.open()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert pipeline.state == "closed"


async def test_closed_while_loading() -> None:
    cls = probe()
    cls.init_gate.close()
    pipeline = build(cls)
    start = asyncio.ensure_future(pipeline.start())
    await until(lambda: cls.calls)
    with pytest.raises(NotReady, match="loading"):
        await pipeline({"data": 1})
    close = asyncio.ensure_future(pipeline.close())
    await asyncio.sleep(0)
    cls.init_gate.open()
    await close
    with pytest.raises(NotReady, match="closed"):
        await start
    assert pipeline.state == "closed"


async def test_a_stuck_forward_is_not_ready_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe()
    async with serve(cls, stuck_after=0.05) as pipeline:
        cls.gate.close()
        with pytest.raises(DeadlineExceeded, match=r"ran longer than 0.05 s \(stuck_after\)"):
            await pipeline({"data": 1})
        assert "has run for more than 0.05 s" in pipeline.not_ready
        assert "cls.gate.wait(BOUND)" in caplog.text
        assert pipeline.in_flight == 0
        cls.gate.open()
        pipeline.nodes[0].scheduler.stuck_after = 60.0  # the machine may stand still for a while
        await until(lambda: pipeline.not_ready == "")
        assert pipeline.nodes[0].estimate.batches == 0  # its seconds say nothing of other batches
        assert (await pipeline({"data": 2}))["result"] == 2
        assert pipeline.nodes[0].estimate.batches == 1
        assert nothing_is_left(pipeline)


async def test_close_does_not_wait_for_a_thread_that_hangs() -> None:
    cls = probe()
    pipeline = build(cls, stuck_after=0.05)
    await pipeline.start()
    cls.gate.close()
    with pytest.raises(DeadlineExceeded):
        await pipeline({"data": 1})
    async with asyncio.timeout(BOUND):
        await pipeline.close(1e6)
    cls.gate.open()
    await until(lambda: "close" in cls.calls)


# close


async def test_close_drains_then_ends_the_threads() -> None:
    cls = probe()
    async with serve(cls, max=1) as pipeline:
        cls.gate.close()
        calls = [asyncio.ensure_future(pipeline({"data": data})) for data in range(3)]
        await entered(cls)
        close = asyncio.ensure_future(pipeline.close())
        await asyncio.sleep(0)
        assert pipeline.not_ready == "pipeline 'p' is draining"
        with pytest.raises(NotReady, match="draining"):
            await pipeline({"data": 3})
        cls.gate.open()
        await close
        assert [(await call)["result"] for call in calls] == [0, 1, 2]
        assert pipeline.state == "closed"
        await pipeline.close()
    assert cls.calls == ["init p/node#0", "close"]


async def test_requests_that_do_not_end_in_time_fail_with_not_ready() -> None:
    cls = probe()
    async with serve(cls, max=1) as pipeline:
        cls.gate.close()
        calls = [asyncio.ensure_future(pipeline({"data": data})) for data in range(3)]
        await entered(cls)
        close = asyncio.ensure_future(pipeline.close(0.01))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReady] * 3
        assert len(set(map(id, answers))) == 3  # each has an exception of its own
        cls.gate.open()
        await close
        assert cls.seen == [[0]]
        assert pipeline.in_flight == 0


async def test_a_second_close_may_end_the_first_sooner() -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        cls.gate.close()
        call = asyncio.ensure_future(pipeline({"data": 1}))
        await entered(cls)
        patient = asyncio.ensure_future(pipeline.close(1000.0))
        await asyncio.sleep(0)
        hasty = asyncio.ensure_future(pipeline.close(0))
        with pytest.raises(NotReady):
            await call
        cls.gate.open()
        await asyncio.gather(patient, hasty)


async def test_close_may_be_called_again_after_a_cancelled_close() -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        cls.gate.close()
        call = asyncio.ensure_future(pipeline({"data": 1}))
        await entered(cls)
        close = asyncio.ensure_future(pipeline.close(1000.0))
        await asyncio.sleep(0)
        close.cancel()
        with pytest.raises(asyncio.CancelledError):
            await close
        cls.gate.open()
        assert (await call)["result"] == 1
        await pipeline.close()
        assert pipeline.state == "closed"


async def test_a_thread_that_never_ends_is_reported_and_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe()
    pipeline = build(cls)
    await pipeline.start()
    (executor,) = pipeline.nodes[0]._executors
    cls.gate.close()
    call = asyncio.ensure_future(pipeline({"data": 1}))
    await entered(cls)
    async with asyncio.timeout(BOUND):
        await pipeline.close(0)
        await pipeline.close(1000.0)  # the second close waits for nothing
    with pytest.raises(NotReady):
        await call
    assert "did not stop within 1 s and is left running" in caplog.text
    assert "cls.gate.wait(BOUND)" in caplog.text
    cls.gate.open()
    assert await asyncio.to_thread(executor.join, BOUND)
    await asyncio.sleep(0)


async def test_close_of_a_pipeline_that_never_started() -> None:
    pipeline = build(probe())
    await pipeline.close()
    assert pipeline.state == "closed"


# callers that leave, deadlines, admission


async def test_an_item_whose_caller_leaves_the_queue_never_reaches_the_backend() -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        cls.gate.close()
        running = asyncio.ensure_future(pipeline({"data": "running"}))
        await entered(cls)
        waiting = [asyncio.ensure_future(pipeline({"data": data})) for data in ("a", "b")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert pipeline.nodes[0].scheduler.queued == 1
        assert pipeline.in_flight == 2
        running.cancel()
        await asyncio.wait([running])
        cls.gate.open()
        assert (await waiting[1])["result"] == "b"
        assert cls.seen == [["running"], ["b"]]
        assert pipeline.nodes[0].statistics.outcomes == {
            "ok": 1,
            "soft": 0,
            "failed": 0,
            "expired": 0,
            "cancelled": 2,
        }
        assert nothing_is_left(pipeline)


async def test_a_queued_request_is_answered_at_its_deadline() -> None:
    cls = probe()
    async with serve(cls) as pipeline:
        cls.gate.close()
        running = asyncio.ensure_future(pipeline({"data": "running"}))
        await entered(cls)
        with pytest.raises(DeadlineExceeded, match="while the request was queued"):
            await pipeline({"data": "late"}, timeout=0.02)
        assert pipeline.in_flight == 1
        cls.gate.open()
        assert (await running)["result"] == "running"
        assert cls.seen == [["running"]]
        assert pipeline.nodes[0].statistics.outcomes["expired"] == 1
        with pytest.raises(TimeoutError):
            await pipeline({"data": "never"}, timeout=0)
        assert cls.seen == [["running"]]


async def test_a_result_after_the_deadline_is_late_and_one_at_the_deadline_is_in_time() -> None:
    time = [0.0]
    cls = probe()
    loaded = build(cls)
    async with asyncio.timeout(BOUND), Pipeline(loaded.config, clock=lambda: time[0]) as pipeline:
        cls.gate.close()
        calls = [asyncio.ensure_future(pipeline({"data": t}, timeout=t)) for t in (4.0, 5.0)]
        await entered(cls)
        time[0] = 5.0
        cls.gate.open()
        late, good = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(late, DeadlineExceeded)
        assert "after the deadline" in str(late)
        assert isinstance(good, dict)
        assert good["result"] == 5.0


@pytest.mark.parametrize("timeout", [None, 1000.0, float("nan"), float("inf")])
async def test_a_callers_timeout_is_at_most_the_pipelines(timeout: float | None) -> None:
    cls = probe()
    async with serve(cls, pipeline={"timeout": 7.0}) as pipeline:
        run = pipeline.submit_nowait({"data": 1}, timeout)
        assert isinstance(run, Run)
        assert 0 < run.deadline - pipeline._clock() <= 7.0
        assert (await run.future)["result"] == 1


async def test_no_more_than_max_requests_in_flight() -> None:
    cls = probe()
    async with serve(cls, pipeline={"max_requests": 2}) as pipeline:
        cls.gate.close()
        calls = [asyncio.ensure_future(pipeline({"data": data})) for data in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="max_requests"):
            await pipeline({"data": 2})
        cls.gate.open()
        await asyncio.gather(*calls)
        assert (await pipeline({"data": 3}))["result"] == 3
        assert pipeline.refused["queue_full"] == 1


async def test_priorities_decide_the_order() -> None:
    cls = probe()
    async with serve(cls, max=1, priority_levels=3) as pipeline:
        cls.gate.close()
        calls = [asyncio.ensure_future(pipeline({"data": "first"}))]
        await entered(cls)
        calls += [
            asyncio.ensure_future(pipeline({"data": priority}, priority=priority))
            for priority in (3, None, 1)
        ]
        await asyncio.sleep(0)
        cls.gate.open()
        await asyncio.gather(*calls)
        assert cls.seen == [["first"], [1], [None], [3]]


# chains


async def test_a_chain_moves_result_to_data_and_breaks_without_one() -> None:
    first = probe(lambda item: item["data"] * 10)
    second = probe(lambda item: item["data"] + 1)

    class Picky(Backend):
        parameters = Params

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                if item["data"] == 50:
                    item["mark"] = "broke off"
                elif item["data"] == 60:
                    item["error"] = InvalidInput("no 60")
                else:
                    item["result"] = item["data"]

    for name, cls in ("First", first), ("Picky", Picky), ("Second", second):
        register_backend(name, cls)
    nodes = {
        "a": {"backend": "First", "next": "b"},
        "b": {"backend": "Picky", "next": "c"},
        "c": {"backend": "Second", "max": 2},
    }
    async with Pipeline.load(nodes) as pipeline:
        assert await pipeline({"data": 4}) == {"data": 4, "result": 41}
        assert await pipeline({"data": 5}) == {"data": 5, "mark": "broke off"}
        with pytest.raises(InvalidInput, match="no 60"):
            await pipeline({"data": 6})
        assert second.seen == [[40]]
        with pytest.raises(InvalidRequest, match="<= 2"):  # the smallest max of all nodes
            await pipeline({"data": 1, "request_size": 3})
        run = pipeline.submit_nowait({"data": 7})
        await run.future
        stages = run.timings()
        assert [(stage.node, stage.batch_size) for stage in stages] == [
            ("a", 1),
            ("b", 1),
            ("c", 1),
        ]
        assert all(stage.queue >= 0 and stage.run >= 0 for stage in stages)
        broken = pipeline.submit_nowait({"data": 5})
        await broken.future
        assert [stage.node for stage in broken.timings()] == ["a", "b"]
        assert nothing_is_left(pipeline)


async def test_timings_are_empty_while_a_request_queues() -> None:
    async with serve(probe()) as pipeline:
        run = pipeline.submit_nowait({"data": 1})
        assert run.timings() == []
        await run.future


async def test_a_request_whose_caller_leaves_is_dropped_in_the_middle_of_a_chain() -> None:
    first, second = probe(), probe()
    register_backend("First", first)
    register_backend("Second", second)
    async with asyncio.timeout(BOUND):
        async with Pipeline.load(
            {"a": {"backend": "First", "next": "b"}, "b": {"backend": "Second"}}
        ) as pipeline:
            second.gate.close()
            running = asyncio.ensure_future(pipeline({"data": 1}))
            await entered(second)
            call = asyncio.ensure_future(pipeline({"data": 2}))
            await until(lambda: pipeline.nodes[1].scheduler.queued)
            call.cancel()
            await asyncio.wait([call])
            assert pipeline.nodes[1].scheduler.queued == 0
            second.gate.open()
            await running
            assert second.seen == [[1]]
            assert nothing_is_left(pipeline)


# leaks


async def test_the_callers_context_reaches_neither_executors_nor_timers() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="empty")
    values: list[str] = []

    def act(item: Item) -> Any:
        values.append(variable.get())
        if item["data"] == "kill":
            raise RestartError

    cls = probe(act)
    async with serve(cls) as pipeline:
        node = pipeline.nodes[0]
        decide = node.scheduler.decide

        def spy(now: float) -> float:
            values.append(variable.get())
            return decide(now)

        watched: Any = WatchedScheduler(node.scheduler, spy)
        node.scheduler = watched
        variable.set("a caller's")
        await pipeline({"data": 1})
        await gathered(pipeline, "kill")
        with pytest.raises(DeadlineExceeded):
            await pipeline({"data": 2}, timeout=0)
        await pipeline({"data": 3})
        assert len(values) > 6
        assert set(values) == {"empty"}


class WatchedScheduler:
    """A scheduler with another `decide`. Its slots allow no new attribute."""

    def __init__(self, scheduler: Any, decide: Any) -> None:
        self.scheduler = scheduler
        self.decide = decide

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)


async def test_a_request_is_freed_without_the_garbage_collector() -> None:
    class Data:
        pass

    cls = probe()
    async with serve(cls) as pipeline:
        await pipeline({"data": 0})
        gc.collect()
        gc.disable()
        try:
            data = Data()
            gone = weakref.ref(data)
            run = pipeline.submit_nowait({"data": data})
            await run.future
            assert run.timings()[0].batch_size == 1
            del run, data
            cls.seen.clear()
            await asyncio.sleep(0)
            await until(lambda: gone() is None)
        finally:
            gc.enable()


async def test_no_exception_is_reported_to_the_loop_as_lost() -> None:
    cls = probe(poison("bad"))
    lost: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: lost.append(context))
    async with serve(cls, max=2) as pipeline:
        with pytest.raises(BackendError):
            await pipeline([{"data": "bad"}, {"data": "bad"}, {"data": "bad"}, {"data": "good"}])
        calls = [asyncio.ensure_future(pipeline({"data": "bad"})) for _ in range(4)]
        await asyncio.sleep(0)
        calls[1].cancel()
        calls[3].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        del calls
    gc.collect()
    await asyncio.sleep(0)
    assert lost == []


async def test_init_and_forward_of_an_instance_run_on_one_named_daemon_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = probe()
    async with serve(cls, instance_num=3) as pipeline:
        assert sorted(cls.calls) == ["init p/node#0", "init p/node#1", "init p/node#2"]
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("p/node#")]
        assert len(threads) == 3
        assert all(thread.daemon for thread in threads)
        await gathered(pipeline, *range(100))  # the backend itself asserts its thread
        assert repr(pipeline) == "<Pipeline p: ready, 0 active, 0 queued>"
        assert repr(pipeline.nodes[0]) == "<Node node: 0 active, 3 idle, 0 queued>"
        logging.getLogger("penstock").debug("no more")
    assert sorted(cls.calls[3:]) == ["close"] * 3
