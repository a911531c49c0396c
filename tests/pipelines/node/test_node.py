"""A node's scheduler, threads and loop: in which order things happen, which no caller can see."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from typing import Any, ClassVar

import pytest

from penstock.backends.base import Backend, Params
from penstock.backends.errors import BackendError, ConfigError, NotReady, Problem
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.pipelines.config.definition import InstanceGroupConfig, NodeConfig, PipelineConfig
from penstock.pipelines.node.node import Node
from penstock.pipelines.node.queue import NEVER, Batch, Entry, Outcome

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Echo(Backend):
    parameters = Params
    gate: ClassVar[threading.Event]
    seen: ClassVar[list[list[Any]]]

    def forward(self, batch: list[Item]) -> None:
        type(self).seen.append([item["data"] for item in batch])
        assert type(self).gate.wait(20)
        for item in batch:
            item["result"] = item["data"]


class Watched(Entry):
    """An entry that records what the node was doing when the entry ended."""

    __slots__ = ("ended", "node")

    def __init__(self, data: Any, node: Node, deadline: float = NEVER, size: int = 1) -> None:
        super().__init__(
            {"data": data}, asyncio.get_running_loop().create_future(), deadline, None, size
        )
        self.node = node
        self.ended: str = ""

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        assert isinstance(outcome, dict)
        assert not self.ended
        self.ended = repr(self.node)
        self.future.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        assert not self.ended
        self.ended = type(error).__name__
        self.future.cancel()


def make(
    bound: int = 1, groups: tuple[int, ...] = (), shape_key: Any = None, **options: Any
) -> tuple[Node, type[Echo]]:
    attributes = {
        "gate": threading.Event(),
        "seen": [],
        "shape_key": staticmethod(shape_key) if shape_key else None,
    }
    cls: Any = type("Echo", (Echo,), attributes)
    cls.gate.set()
    configs = tuple(
        InstanceGroupConfig(Spec("Echo", cls, Params()), max=largest)
        for largest in groups or (bound,)
    )
    config = NodeConfig("node", configs, **options)
    return Node(config, PipelineConfig("p", {"node": config}), asyncio.get_running_loop()), cls


BEFORE_DELIVERY = [
    "<Node node: 1 active, 0 idle, 1 queued>",
    "<Node node: 1 active, 0 idle, 0 queued>",
]
AFTER_DELIVERY = [
    "<Node node: 0 active, 1 idle, 2 queued>",
    "<Node node: 0 active, 1 idle, 1 queued>",
]


@pytest.mark.parametrize(
    ("short", "then"), [(0.0, BEFORE_DELIVERY), (60.0, AFTER_DELIVERY)], ids=["long", "short"]
)
async def test_when_the_executor_is_started_again(
    monkeypatch: pytest.MonkeyPatch, short: float, then: list[str]
) -> None:
    """After a long batch: before its results are delivered. After a short one: at the end of that
    iteration of the loop.
    """
    monkeypatch.setattr("penstock.pipelines.node.node.SHORT_BATCH_SECONDS", short)
    node, _ = make()
    await node.start()
    entries = [Watched(number, node) for number in range(3)]
    for entry in entries:
        node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[entry.future for entry in entries])
    assert [answer["result"] for answer in answers] == [0, 1, 2]
    assert [entry.ended for entry in entries] == [*then, "<Node node: 0 active, 1 idle, 0 queued>"]
    await node.close(20)


async def test_a_small_item_after_a_big_one_runs_when_the_big_one_leaves() -> None:
    node, cls = make(groups=(1, 4))
    await node.start()
    cls.gate.clear()
    first, big, small = (
        Watched("first", node, size=4),
        Watched("big", node, size=4),
        Watched("small", node),
    )
    node.enqueue(first, 0.0)
    await asyncio.sleep(0)
    node.enqueue(big, 0.0)
    node.enqueue(small, 0.0)
    await asyncio.sleep(0)
    assert repr(node) == "<Node node: 1 active, 1 idle, 5 queued>"
    big.future.cancel()
    node.discard(big)
    async with asyncio.timeout(20):
        while len(cls.seen) < 2:  # while the first one still runs
            await asyncio.sleep(0.001)
        assert sorted(cls.seen) == [["first"], ["small"]]
        cls.gate.set()
        await asyncio.gather(first.future, small.future)
    assert node.statistics.outcomes["cancelled"] == 1
    await node.close(20)


async def test_shapes_run_in_batches_of_their_own_and_an_item_without_a_shape_alone() -> None:
    def shape(item: Item) -> Any:
        return {"a": 1, "b": 2, "list": []}[item["data"]]

    node, cls = make(8, shape_key=shape)
    await node.start()
    entries = [Watched(data, node) for data in ("a", "b", "list", "unknown", "list", "a")]
    for entry in entries:
        node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await asyncio.gather(*[entry.future for entry in entries])
    assert cls.seen == [["a", "a"], ["b"], ["list"], ["unknown"], ["list"]]
    await node.close(20)


async def test_an_earlier_deadline_moves_the_timer_though_no_executor_is_idle() -> None:
    node, cls = make()
    await node.start()
    cls.gate.clear()
    now = asyncio.get_running_loop().time()
    clock = node._clock
    assert abs(clock() - now) < 1.0
    running = Watched("running", node)
    node.enqueue(running, clock())
    await asyncio.sleep(0)
    late, soon = Watched("late", node, clock() + 1000), Watched("soon", node, clock() + 0.01)
    node.enqueue(late, clock())
    await asyncio.sleep(0)
    node.enqueue(soon, clock())
    async with asyncio.timeout(20):
        await asyncio.wait([soon.future])
    assert (soon.ended, late.ended) == ("DeadlineExceeded", "")
    node.discard(late)
    cls.gate.set()
    async with asyncio.timeout(20):
        await running.future
    await node.close(20)


async def test_rows_ahead_of_a_priority() -> None:
    node, cls = make(priority_levels=3, default_priority=2)
    await node.start()
    cls.gate.clear()
    entries = []
    for wanted, size in (None, 1), (1, 1), (2, 1), (3, 1), (9, 1):
        entry = Watched(wanted, node, size=size)
        entry.wanted = wanted
        node.enqueue(entry, 0.0)
        entries.append(entry)
    await asyncio.sleep(0)  # 1 has begun
    assert [node.ahead_of(priority) for priority in (1, 2, 3, None)] == [1, 3, 5, 3]
    cls.gate.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*[entry.future for entry in entries])
    assert cls.seen == [[1], [None], [2], [3], [9]]
    await node.close(20)


async def test_what_queues_and_runs_fails_at_close() -> None:
    node, cls = make()
    await node.start()
    cls.gate.clear()
    entries = [Watched(number, node) for number in range(2)]
    for entry in entries:
        node.enqueue(entry, 0.0)
    await asyncio.sleep(0)
    close = asyncio.ensure_future(node.close(20))
    await asyncio.sleep(0)
    assert [entry.ended for entry in entries] == ["NotReady", "NotReady"]
    cls.gate.set()
    await close
    assert cls.seen in ([[0]], [])


async def test_the_bound_of_a_node_and_its_backend() -> None:
    node, _ = make(groups=(2, 5))
    await node.start()
    assert sorted(executor.max for executor in node._executors) == [2, 5]
    assert node.scheduler.max == 5
    await node.close(20)
    await node.close(20)


async def test_a_node_that_is_closed_before_it_starts_leaves_no_lost_exception() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    node, _ = make()
    await node.close(20)
    del node
    gc.collect()
    assert reported == []


async def test_one_task_decides_from_start_to_close() -> None:
    before = asyncio.all_tasks()
    node, _ = make()
    await node.start()
    (task,) = asyncio.all_tasks() - before
    assert task.get_name() == "p/node scheduler"
    await node.close(20)
    assert asyncio.all_tasks() == before


async def test_what_comes_in_one_iteration_makes_one_batch() -> None:
    node, cls = make(8)
    await node.start()
    entries = [Watched(number, node) for number in range(8)]
    for entry in entries:
        node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await asyncio.gather(*[entry.future for entry in entries])
    assert cls.seen == [[0, 1, 2, 3, 4, 5, 6, 7]]
    await node.close(20)


async def test_a_decision_that_raises_is_logged_and_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.pipelines.node.node.FAILED_DECISION_DELAY_SECONDS", 0.001)
    node, _ = make()
    await node.start()
    decide = node.scheduler.decide
    failures = [ValueError("a mistake")]

    def fail_once(scheduler: Any, now: float) -> float:
        if failures:
            raise failures.pop()
        return decide(now)

    monkeypatch.setattr(type(node.scheduler), "decide", fail_once)
    entry = Watched("data", node)
    node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        assert (await entry.future)["result"] == "data"
    assert "node node: the decision failed" in caplog.text
    assert "ValueError: a mistake" in caplog.text
    await node.close(20)


async def test_a_change_during_a_decision_leads_to_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, cls = make(groups=(1, 1))
    await node.start()
    decide = node.scheduler.decide
    early, late = Watched("early", node), Watched("late", node)
    arrivals = [late]

    def enqueue_after(scheduler: Any, now: float) -> float:
        wake = decide(now)
        while arrivals:
            node.enqueue(arrivals.pop(), now)
        return wake

    monkeypatch.setattr(type(node.scheduler), "decide", enqueue_after)
    cls.gate.clear()  # else the end of the first batch would lead to a decision
    node.enqueue(early, 0.0)
    async with asyncio.timeout(20):
        while len(cls.seen) < 2:
            await asyncio.sleep(0.001)
        cls.gate.set()
        await asyncio.gather(early.future, late.future)
    await node.close(20)


async def test_close_ends_the_task_of_a_node_that_did_not_load() -> None:
    before = asyncio.all_tasks()
    node, cls = make()

    def fail(self: Any, params: Any, context: Any) -> None:
        raise ValueError("no such model")

    cls.init = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="node 'node': ValueError: no such model"):
        await node.start()
    async with asyncio.timeout(20):
        while node.executors:  # until its thread has ended: then close waits for nothing else
            await asyncio.sleep(0.001)
        await node.close(20)
    assert asyncio.all_tasks() == before


async def test_a_mistake_in_the_file_is_named_as_a_check_names_it() -> None:
    node, cls = make()

    def fail(self: Any, params: Any, context: Any) -> None:
        raise ConfigError([Problem("device is 'cuda:9'", key="device")])

    cls.init = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError) as caught:
        await node.start()
    assert str(caught.value) == "[node] device: device is 'cuda:9'"
    await node.close(20)


class NoProblemsError(ConfigError):
    def __init__(self) -> None:
        Exception.__init__(self, "no device")


@pytest.mark.parametrize("error", [NoProblemsError(), ConfigError("no device")])
async def test_a_config_error_without_problems_ends_the_start(error: ConfigError) -> None:
    node, cls = make()

    def fail(self: Any, params: Any, context: Any) -> None:
        raise error

    cls.init = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="no device"):
        async with asyncio.timeout(20):
            await node.start()
    await node.close(20)


async def test_a_node_that_is_closed_while_a_decision_is_due_starts_nothing() -> None:
    node, cls = make()
    await node.start()
    entry = Watched("data", node)
    node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await node.close(20)
    assert (entry.ended, cls.seen) == ("NotReady", [])


async def test_decisions_inherit_no_context_of_a_request() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    node, _ = make()
    node.watch_starts(lambda batch: seen.append(variable.get()))
    variable.set("of the start")
    await node.start()
    variable.set("of the request")
    entry = Watched("data", node)
    node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await entry.future
    assert seen == ["none"]
    await node.close(20)


async def test_a_scheduler_that_is_cancelled_leaves_nothing_waiting() -> None:
    """`asyncio.run` cancels all tasks of the loop when it ends."""
    before = asyncio.all_tasks()
    node, cls = make()
    await node.start()
    cls.gate.clear()
    running, queued, late = [Watched(name, node) for name in ("running", "queued", "late")]
    node.enqueue(running, 0.0)
    await asyncio.sleep(0)
    node.enqueue(queued, 0.0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([running.future, queued.future])
    assert (running.ended, queued.ended) == ("NotReady", "NotReady")
    node.enqueue(late, 0.0)
    async with asyncio.timeout(20):
        await asyncio.wait([late.future])
    assert late.ended == "NotReady"
    cls.gate.set()
    await node.close(20)


async def test_a_scheduler_that_is_cancelled_while_it_loads_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = asyncio.all_tasks()
    node, cls = make()
    loaded = threading.Event()
    monkeypatch.setattr(cls, "init", lambda self, params, context: loaded.wait(20))
    start = asyncio.create_task(node.start())
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before - {start}:
        task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(NotReady, match="its scheduler was cancelled"):
            await start
    assert node.not_ready == "node 'node' is closed"
    loaded.set()
    await node.close(20)


async def test_a_scheduler_that_fails_is_logged_and_leaves_nothing_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, cls = make()
    await node.start()
    cls.gate.clear()
    entry = Watched("data", node)

    def fail() -> float:
        raise OSError("no clock")

    monkeypatch.setattr(node, "_clock", fail)
    node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await asyncio.wait([entry.future])
    assert entry.ended == "NotReady" and node.not_ready
    assert "node node: the scheduler failed" in caplog.text and "no clock" in caplog.text
    cls.gate.set()
    await node.close(20)


class Stubborn(Watched):
    """An entry that can't take its outcome."""

    __slots__ = ()

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        raise ValueError("a mistake")


async def test_an_outcome_that_can_not_be_delivered_costs_no_neighbour_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node, cls = make(3)
    await node.start()
    first, second, third = Stubborn("a", node), Watched("b", node), Watched("c", node)
    for entry in (first, second, third):
        node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        await asyncio.wait([first.future, second.future, third.future])
    assert cls.seen == [["a", "b", "c"]]
    assert first.ended == "BackendError"
    assert [(await entry.future)["result"] for entry in (second, third)] == ["b", "c"]
    assert "node node: a result could not be delivered" in caplog.text
    await node.close(20)


async def test_the_timer_is_set_again_after_it_fired() -> None:
    node, cls = make()
    await node.start()
    cls.gate.clear()
    running = Watched("running", node)
    node.enqueue(running, node._clock())
    await asyncio.sleep(0)
    for name in ("first", "second"):  # the second deadline comes after the first timer
        entry = Watched(name, node, node._clock() + 0.01)
        node.enqueue(entry, node._clock())
        async with asyncio.timeout(20):
            await asyncio.wait([entry.future])
        assert entry.ended == "DeadlineExceeded"
    cls.gate.set()
    await running.future
    await node.close(20)


async def test_a_shape_that_can_not_be_compared_runs_alone() -> None:
    class Odd:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ValueError("a mistake")

    node, cls = make(4, shape_key=lambda item: Odd())
    await node.start()
    entries = [Watched(name, node) for name in "ab"]
    for entry in entries:
        node.enqueue(entry, 0.0)
    async with asyncio.timeout(20):
        assert [(await entry.future)["result"] for entry in entries] == ["a", "b"]
    assert sorted(cls.seen) == [["a"], ["b"]]
    await node.close(20)
