"""Nodes of Penstock's own operators, which a measurement at load puts on the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import BackendError, NotReady
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.node.measured import CHEAP_SECONDS, resolved
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.testing import Clock

from ..workshop import until

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


def on_thread() -> bool:
    """Return whether the node `a` has a thread."""
    return any(thread.name == "p/a#0" for thread in threading.enumerate())


@asynccontextmanager
async def serve(
    keys: dict[str, Any], clock: Callable[[], float] | None = None
) -> AsyncIterator[Pipeline]:
    config = load({"a": {"backend": "Identity", **keys}}, name="p")
    pipeline = Pipeline(config) if clock is None else Pipeline(config, clock=clock)
    async with asyncio.timeout(60), pipeline:
        yield pipeline


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what runs within a second for cheap: coverage and a busy machine are slow."""
    monkeypatch.setattr("penstock.pipelines.node.measured.CHEAP_SECONDS", 1.0)


@pytest.mark.usefixtures("any_speed")
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"executor": "auto", "max": 64},
        {"backend": "S[Copy[data:x],Move[x:y],Add(z:1),AddInt(n:2),Remove[y],Keep[z,n]]"},
        {"backend": "S[HasKey(k)[Copy[data:x],Identity],(or)Identity]"},
        {"backend": "Result2Key(k)[Identity]"},
    ],
)
async def test_operators_run_on_the_loop(keys: dict[str, Any]) -> None:
    async with serve(keys) as pipeline:
        assert not on_thread()
        assert (await pipeline({"data": 1, "k": 2, "node_name": "a"}))["result"] == 1
        answers = await pipeline([{"data": number} for number in range(100)])
        assert [answer["result"] for answer in answers] == list(range(100))


@pytest.mark.usefixtures("any_speed")
async def test_a_logical_node_is_where_the_node_is_that_it_shares() -> None:
    tables = {"a": {"backend": "Identity", "next": "a.2"}, "a.2": {"next": "b"}}
    tables["b"] = {"borrow_from": "a"}
    async with asyncio.timeout(60), Pipeline(load(tables, name="p")) as pipeline:
        assert (await pipeline({"data": 1}))["result"] == 1
        assert not on_thread()


@pytest.mark.parametrize(
    "keys",
    [
        {"executor": "thread"},
        {"instance_num": 2},
        {"backend": "Sleep(0)"},
        {"backend": "same"},
        {"backend": "S[Identity,same]"},
        {"backend": "S[Identity,(odd)Identity]"},
        {"device": "cpu"},
    ],
)
async def test_what_is_not_an_operator_is_never_guessed(keys: dict[str, Any]) -> None:
    register_backend("same", lambda data: data)
    register_filter("odd", lambda item: Status.RUN)
    async with serve(keys):
        assert on_thread()


async def test_operators_that_read_scores_are_measured_with_as_many_as_there_are_labels(
    tmp_path: Path,
) -> None:
    (tmp_path / "many.txt").write_text("label\n" * 20_000)
    keys = {"backend": "SoftmaxArgMaxTensor", "labels": str(tmp_path / "many.txt"), "max": 32}
    async with serve(keys) as pipeline:
        assert on_thread()
        answer = await pipeline({"data": np.arange(20_000, dtype=np.float32)})
        assert answer["class"] == 19_999


@pytest.mark.parametrize(("seconds", "executor"), [(0.5, "auto"), (1.5, "thread")])
async def test_a_batch_that_takes_long_is_not_cheap(
    caplog: pytest.LogCaptureFixture, seconds: float, executor: str
) -> None:
    caplog.set_level(logging.INFO, "penstock.node")
    clock = Clock()

    def moving() -> float:
        clock.move(seconds * CHEAP_SECONDS)
        return clock()

    config = await resolved(load("Identity"), moving)
    assert [(node.name, node.executor) for node in config.nodes.values()] == [("main", executor)]
    where = "the event loop" if executor == "auto" else "a thread"
    assert caplog.messages == [f'node main: runs on {where}, as measured (executor = "auto")']


async def test_what_can_not_be_measured_is_reported_by_its_load(tmp_path: Path) -> None:
    keys = {"backend": "SoftmaxArgMaxTensor", "labels": str(tmp_path / "none.txt")}
    with pytest.raises(BackendError, match=r"node 'a': BackendError: .* can't be read"):
        async with serve(keys):
            pass


async def test_a_pipeline_that_is_closed_while_it_is_measured() -> None:
    pipeline = Pipeline(load({"a": {"next": "b"}, "b": {}}, name="p"))
    starting = asyncio.ensure_future(pipeline.start())
    await asyncio.sleep(0)
    await pipeline.close(0)
    with pytest.raises(NotReady, match="closed while it loaded"):
        await starting
    assert pipeline.state == "closed"


class Slow(Clock):
    """A clock on which every reading takes 6 ms while `slow` is true."""

    slow = False

    def __call__(self) -> float:
        if self.slow:
            self.move(0.006)
        return self.now


@pytest.mark.usefixtures("any_speed")
async def test_a_node_whose_batches_take_long_moves_to_a_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Slow()
    async with serve({"max": 4}, clock) as pipeline:
        for slow in (True, True, False, True, True):  # never three in a row
            clock.slow = slow
            assert (await pipeline({"data": 1}))["result"] == 1
        assert not on_thread()
        clock.slow = True
        assert (await pipeline({"data": 2}))["result"] == 2
        clock.slow = False
        assert pipeline.not_ready == ""
        await until(lambda: len(pipeline.nodes[0].executors) == 1 and on_thread())
        answers = await pipeline([{"data": number} for number in range(10)])
        assert [answer["result"] for answer in answers] == list(range(10))
        assert pipeline.not_ready == ""
        assert repr(pipeline.nodes[0]) == "<Node a: 0 active, 1 idle, 0 queued>"
        assert pipeline.nodes[0].statistics.restarts == 0
    assert caplog.text.count("node a: a batch of 1 item held the event loop") == 1


async def test_a_node_that_is_declared_cheap_stays_where_it_is() -> None:
    clock = Slow()
    async with serve({"executor": "loop"}, clock) as pipeline:
        clock.slow = True
        for _ in range(10):
            await pipeline({"data": 1})
        assert not on_thread() and len(pipeline.nodes[0].executors) == 1
