"""Random graphs, items and accidents: a pipeline answers as the recursion of graphs/reference.py.

PENSTOCK_TEST_GRAPHS is the number of graphs (default 200).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import uvloop
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput
from penstock.backends.expressions import filters
from penstock.backends.expressions.filters import register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.pipeline import Pipeline

from ..graphs.behaviour import BOUND, FILTERS, Request, Worker, act
from ..graphs.generate import Tables, configurations, ends, items, skips
from ..graphs.reference import Item, Outcome, Reference

pytestmark = pytest.mark.timeout(300)  # seconds; the longest takes 30 of one processor

GRAPHS = int(os.environ.get("PENSTOCK_TEST_GRAPHS", "200"))
MOST_OUTCOMES = 200
EVENT_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
random_graphs = settings(
    max_examples=GRAPHS,
    deadline=None,
    suppress_health_check=QUIET,
)


@pytest.fixture(autouse=True)
def registered(
    own_registry: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filters, "_registered", {})
    register_backend("Worker", Worker)
    for name, function in FILTERS.items():
        register_filter(name, function)
    # Else each failure of a node is logged with its traceback.
    caplog.set_level(logging.CRITICAL, "penstock")


def load(tables: Tables, clock: Clock) -> Pipeline:
    """Load a pipeline in which only a request's own deadline ends a wait."""
    return Pipeline(
        Pipeline.load({"pipeline": {"timeout": 1e6}, "stuck_after": 1e9, **tables}).config,
        clock=clock,
    )


class Clock:
    """A clock that a test moves. It advances by `tick` at each reading."""

    def __init__(self, tick: float) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def refer(tables: Tables) -> Reference:
    statuses = {
        name: lambda item, filter_=function: getattr(filter_(item), "value", "nonsense")
        for name, function in FILTERS.items()
    }
    return Reference(tables, act, statuses)


def expected(reference: Reference, item: Item) -> list[Outcome] | None:
    """Return every allowed outcome, or None if the item can't enter.

    Rejects items with too many outcomes: they would not test anything.
    """
    try:
        outcomes = list(islice(reference.outcomes(item), MOST_OUTCOMES + 1))
    except IndexError:
        return None
    assume(len(outcomes) <= MOST_OUTCOMES)
    return outcomes


def is_failure(answer: BaseException, outcome: Outcome) -> bool:
    if outcome.failed is None:
        assert outcome.answer is not None
        error = outcome.answer.get("error")
        return error is not None and type(answer) is InvalidInput and str(answer) == str(error)
    return isinstance(answer, BackendError) and any(
        f"node {name!r}" in str(answer) for name in outcome.failed.nodes
    )


def is_answer(answer: Item, outcome: Outcome, item: Item) -> bool:
    if outcome.answer is None:
        return False
    assert answer["data"] is item["data"]
    same = {**answer, "error": str(answer.get("error"))} == {
        **outcome.answer,
        "error": str(outcome.answer.get("error")),
    }
    return same and answer.get("context") is outcome.answer.get("context")


def ran_as(outcome: Outcome, ran: list[str], least: bool = True) -> bool:
    counts = Counter(ran)
    return counts <= outcome.most and (not least or outcome.least <= counts)


def check_one(
    answer: Any, outcomes: list[Outcome] | None, item: Item, *, interrupted: bool
) -> None:
    """Check how a call ended.

    `interrupted`: it was cancelled, or its deadline passed, at any moment.
    """
    ran = item["context"].ran
    if interrupted and isinstance(answer, (asyncio.CancelledError, DeadlineExceeded)):
        assert any(ran_as(outcome, ran, least=False) for outcome in outcomes or ()) or not ran, ran
    elif outcomes is None:
        assert isinstance(answer, IndexError) and not ran, repr(answer)
    elif isinstance(answer, BaseException):
        alike = [outcome for outcome in outcomes if is_failure(answer, outcome)]
        assert alike, f"{answer!r} is none of {outcomes}"
        assert any(ran_as(outcome, ran) for outcome in alike), f"{ran} does not fit {alike}"
    else:
        alike = [
            outcome
            for outcome in outcomes
            if is_answer(answer, outcome, item) and "error" not in answer
        ]
        assert alike, f"{answer!r} is none of {outcomes}"
        assert any(ran_as(outcome, ran) for outcome in alike), f"{ran} does not fit {alike}"


def check_many(
    answer: Any, outcomes: list[list[Outcome] | None], asked: list[Item], *, interrupted: bool
) -> None:
    """Check how a call with a list ended: with all its answers, or with one failure."""
    possible = [allowed for allowed in outcomes if allowed is not None]
    if interrupted and isinstance(answer, (asyncio.CancelledError, DeadlineExceeded)):
        return
    if len(possible) < len(outcomes):
        assert isinstance(answer, IndexError), repr(answer)
    elif isinstance(answer, BaseException):
        hard = [
            outcome for allowed in possible for outcome in allowed if outcome.failed is not None
        ]
        assert any(is_failure(answer, outcome) for outcome in hard), f"{answer!r} is none of {hard}"
    else:
        for final, allowed, item in zip(answer, possible, asked, strict=True):
            alike = [outcome for outcome in allowed if is_answer(final, outcome, item)]
            assert alike, f"{final!r} is none of {allowed}"
            assert any(ran_as(outcome, item["context"].ran) for outcome in alike), (
                f"{item['context'].ran} does not fit {alike}"
            )


class Call(NamedTuple):
    """A call, and the iterations of the loop in which it is made and cancelled."""

    asked: Item | list[Item]
    timeout: float | None
    begin: int
    cancel: int | None


@st.composite
def calls(draw: st.DrawFn, tables: Tables) -> list[Call]:
    made: list[Call] = []
    for _ in range(draw(st.integers(1, 6))):
        many = draw(st.integers(0, 5)) == 0
        asked = (
            draw(st.lists(items(tables), min_size=1, max_size=3)) if many else draw(items(tables))
        )
        begin = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
        cancel = draw(st.sampled_from([None] * 24 + [0, 1, 2, 4, 8, 16, 32, 64]))
        timeout = draw(st.sampled_from([None, None, None, 100.0]))
        made.append(Call(asked, timeout, begin, None if cancel is None else begin + cancel))
    return made


async def make(pipeline: Pipeline, made: list[Call], clock: Clock, move: int | None) -> list[Any]:
    """Make each call in its iteration. In the iteration `move` the clock passes every deadline."""
    tasks: dict[int, asyncio.Task[Any]] = {}
    for iteration in range(1 + max(max(call.begin, call.cancel or 0, move or 0) for call in made)):
        for number, call in enumerate(made):
            if call.begin == iteration:
                tasks[number] = asyncio.ensure_future(pipeline(call.asked, timeout=call.timeout))
            if call.cancel == iteration:
                tasks[number].cancel()
        if move == iteration:
            clock.now += 1000.0
        await asyncio.sleep(0)
    return await asyncio.gather(
        *[tasks[number] for number in range(len(made))], return_exceptions=True
    )


async def quiet(pipeline: Pipeline) -> None:
    """Let the loop run until no node has work, then assert that nothing of a request is left."""

    def busy() -> Iterator[str]:
        for node in pipeline.nodes:
            if getattr(node, "scheduler", None) is not None and node.scheduler.running:
                yield node.name

    async with asyncio.timeout(BOUND):
        while any(busy()):
            await asyncio.sleep(0.0005)
    assert pipeline.in_flight == 0
    assert pipeline._admission.door.rows == 0
    for node in pipeline.nodes:
        if getattr(node, "scheduler", None) is not None:
            assert (node.scheduler.queued, node.scheduler.buckets) == (0, {})
            assert node.outflow.bytes == 0
        else:
            assert not node.waiting  # type: ignore[attr-defined]
            assert getattr(node, "_queued", 0) == 0
    schedulers = {node._scheduling for node in pipeline.nodes}
    assert asyncio.all_tasks() == {asyncio.current_task(), *schedulers}


async def accidents(tables: Tables, made: list[Call], clock: Clock, move: int | None) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    reference = refer(tables)
    async with asyncio.timeout(BOUND), load(tables, clock) as pipeline:
        asked = [call.asked if isinstance(call.asked, list) else [call.asked] for call in made]
        before = [[dict(item) for item in call_items] for call_items in asked]
        outcomes = [[expected(reference, item) for item in call_items] for call_items in asked]
        answers = await make(pipeline, made, clock, move)
        await quiet(pipeline)
        for call, call_items, allowed, answer in zip(made, asked, outcomes, answers, strict=True):
            interrupted = call.cancel is not None or (call.timeout is not None and move is not None)
            if isinstance(call.asked, list):
                check_many(answer, allowed, call_items, interrupted=interrupted)
            else:
                check_one(answer, allowed[0], call.asked, interrupted=interrupted)
            event(type(answer).__name__)
        assert before == asked, "a caller's dict was changed"
        # Calls that were cancelled or failed have left nothing that disturbs others.
        again = asked[0][0]
        again["context"].ran.clear()
        check_one(
            (await asyncio.gather(pipeline(again), return_exceptions=True))[0],
            outcomes[0][0],
            again,
            interrupted=False,
        )
        await quiet(pipeline)
    assert reported == []


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tables, list[Call]]:
    if draw(st.integers(0, 3)) == 0:
        tables, item = draw(skips())
        return tables, [Call(item, None, 0, None)]
    tables = draw(configurations())
    return tables, draw(calls(tables))


@random_graphs
@given(
    scene=scenes(),
    tick=st.sampled_from([0.0, 0.002]),
    move=st.sampled_from([None, None, 6, 8, 12, 20, 40]),
    loop=st.sampled_from(sorted(EVENT_LOOPS)),
)
def test_a_graph_means_what_the_recursion_says(
    scene: tuple[Tables, list[Call]], tick: float, move: int | None, loop: str
) -> None:
    tables, made = scene
    threads = set(threading.enumerate())
    with asyncio.Runner(loop_factory=EVENT_LOOPS[loop]) as runner:
        runner.run(accidents(tables, made, Clock(tick), move))
    assert set(threading.enumerate()) <= threads


@settings(random_graphs, max_examples=max(1, GRAPHS // 4))
@given(
    scene=scenes(),
    move=st.sampled_from([None, None, 6, 8, 12, 20, 40]),
    limit=st.sampled_from([0, 1000]),
)
def test_a_graph_means_the_same_under_a_tiny_budget(
    scene: tuple[Tables, list[Call]], move: int | None, limit: int
) -> None:
    """A node may not run ahead of the nodes after it, and no node waits for ever."""
    tables, made = scene
    with (
        patch.object(budget, "limit", limit),
        patch("penstock.pipelines.node.queue.SMALL_BYTES", 1),
        patch("penstock.pipelines.runs.run.SMALL_BYTES", 1),
        asyncio.Runner() as runner,
    ):
        runner.run(accidents(tables, made, Clock(0.0), move))


async def hold(tables: Tables, item: Item) -> None:
    """Hold the nodes that run beside the end until the answer is there.

    The nodes that follow them must not start any more.
    """
    reference = refer(tables)
    outcomes = expected(reference, item)
    assume(outcomes is not None and len(outcomes) == 1)
    assert outcomes is not None
    beside = outcomes[0].most.keys() - outcomes[0].least.keys()
    request: Request = item["context"]
    request.holds = frozenset(beside)
    count = Counter(node.act for node in reference.nodes.values())
    alone = {name for name in reference.led_to(item["node_name"]) if count[name] == 1}
    assume(beside & alone)
    async with asyncio.timeout(BOUND), load(tables, Clock(0.0)) as pipeline:
        try:
            answer = (await asyncio.gather(pipeline(item), return_exceptions=True))[0]
        finally:
            request.go.set()
        await quiet(pipeline)
    check_one(answer, outcomes, item, interrupted=False)
    for name in beside & alone:
        after = reference.led_to(name) - {name}
        event("nodes follow it" if after & alone else "no nodes follow it")
        assert (after & alone).isdisjoint(request.ran)


@settings(
    random_graphs,
    max_examples=max(1, GRAPHS // 4),
    suppress_health_check=[HealthCheck.filter_too_much, *QUIET],
)
@given(scene=ends())
def test_the_end_of_a_request_starts_nothing_more(scene: tuple[Tables, Item]) -> None:
    with asyncio.Runner() as runner:
        runner.run(hold(*scene))
