"""Random graphs, items and accidents: what a pipeline answers is what the plain recursion of graphs/reference.py says.

PENSTOCK_TEST_GRAPHS is the number of graphs (default 350).
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

import pytest
import uvloop
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput
from penstock.backends.expressions import filters
from penstock.backends.expressions.filters import register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.pipeline import Pipeline

from ..graphs.behaviour import BOUND, FILTERS, Request, Worker, act
from ..graphs.generate import Tables, configurations, ends, items, skips
from ..graphs.reference import Item, Outcome, Reference

GRAPHS = int(os.environ.get("PENSTOCK_TEST_GRAPHS", "350"))
MOST_OUTCOMES = 200
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
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
    caplog.set_level(
        logging.CRITICAL, "penstock"
    )  # each failure of a node is logged with its traceback


def load(tables: Tables, clock: Clock) -> Pipeline:
    """As it is served, but that no wait is long enough for anything but a request's own deadline."""
    return Pipeline(
        Pipeline.load({"pipeline": {"timeout": 1e6}, "stuck_after": 1e9, **tables}).config,
        clock=clock,
    )


class Clock:
    """Stands still, or goes on a little at each look; a test moves it."""

    def __init__(self, tick: float) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def refer(tables: Tables) -> Reference:
    said = {
        name: lambda item, say=function: getattr(say(item), "value", "nonsense")
        for name, function in FILTERS.items()
    }
    return Reference(tables, act, said)


def expected(reference: Reference, item: Item) -> list[Outcome] | None:
    """Every allowed outcome; None where the item can't enter. Too many of them are no test of anything."""
    try:
        found = list(islice(reference.outcomes(item), MOST_OUTCOMES + 1))
    except IndexError:
        return None
    assume(len(found) <= MOST_OUTCOMES)
    return found


def is_failure(found: BaseException, outcome: Outcome) -> bool:
    if outcome.failed is None:
        assert outcome.answer is not None
        error = outcome.answer.get("error")
        return error is not None and type(found) is InvalidInput and str(found) == str(error)
    return isinstance(found, BackendError) and any(
        f"node {name!r}" in str(found) for name in outcome.failed.nodes
    )


def is_answer(found: Item, outcome: Outcome, item: Item) -> bool:
    if outcome.answer is None:
        return False
    assert found["data"] is item["data"]
    same = {**found, "error": str(found.get("error"))} == {
        **outcome.answer,
        "error": str(outcome.answer.get("error")),
    }
    return same and found.get("context") is outcome.answer.get("context")


def ran_as(outcome: Outcome, ran: list[str], least: bool = True) -> bool:
    counts = Counter(ran)
    return counts <= outcome.most and (not least or outcome.least <= counts)


def check_one(found: Any, outcomes: list[Outcome] | None, item: Item, *, interrupted: bool) -> None:
    """One call's end. `interrupted`: it was cancelled, or had a deadline that passed, at whatever moment that was."""
    ran = item["context"].ran
    if interrupted and isinstance(found, (asyncio.CancelledError, DeadlineExceeded)):
        assert any(ran_as(outcome, ran, least=False) for outcome in outcomes or ()) or not ran, ran
    elif outcomes is None:
        assert isinstance(found, IndexError) and not ran, repr(found)
    elif isinstance(found, BaseException):
        alike = [outcome for outcome in outcomes if is_failure(found, outcome)]
        assert alike, f"{found!r} is none of {outcomes}"
        assert any(ran_as(outcome, ran) for outcome in alike), f"{ran} does not fit {alike}"
    else:
        alike = [
            outcome
            for outcome in outcomes
            if is_answer(found, outcome, item) and "error" not in found
        ]
        assert alike, f"{found!r} is none of {outcomes}"
        assert any(ran_as(outcome, ran) for outcome in alike), f"{ran} does not fit {alike}"


def check_many(
    found: Any, outcomes: list[list[Outcome] | None], asked: list[Item], *, interrupted: bool
) -> None:
    """One call of a list: all its answers, or one failure."""
    possible = [each for each in outcomes if each is not None]
    if interrupted and isinstance(found, (asyncio.CancelledError, DeadlineExceeded)):
        return
    if len(possible) < len(outcomes):
        assert isinstance(found, IndexError), repr(found)
    elif isinstance(found, BaseException):
        hard = [outcome for each in possible for outcome in each if outcome.failed is not None]
        assert any(is_failure(found, outcome) for outcome in hard), f"{found!r} is none of {hard}"
    else:
        for answer, each, item in zip(found, possible, asked, strict=True):
            alike = [outcome for outcome in each if is_answer(answer, outcome, item)]
            assert alike, f"{answer!r} is none of {each}"
            assert any(ran_as(outcome, item["context"].ran) for outcome in alike), (
                f"{item['context'].ran} does not fit {alike}"
            )


class Call(NamedTuple):
    """A call, and the turns of the loop at which it is made and cancelled."""

    asked: Item | list[Item]
    timeout: float | None
    begin: int
    cancel: int | None


@st.composite
def calls(draw: st.DrawFn, tables: Tables) -> list[Call]:
    found: list[Call] = []
    for _ in range(draw(st.integers(1, 6))):
        many = draw(st.integers(0, 5)) == 0
        asked = (
            draw(st.lists(items(tables), min_size=1, max_size=3)) if many else draw(items(tables))
        )
        begin = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
        cancel = draw(st.sampled_from([None] * 24 + [0, 1, 2, 4, 8, 16, 32, 64]))
        timeout = draw(st.sampled_from([None, None, None, 100.0]))
        found.append(Call(asked, timeout, begin, None if cancel is None else begin + cancel))
    return found


async def make(pipeline: Pipeline, made: list[Call], clock: Clock, move: int | None) -> list[Any]:
    """Make the calls, each in its turn; the clock passes every deadline at turn `move`."""
    tasks: dict[int, asyncio.Task[Any]] = {}
    for turn in range(1 + max(max(call.begin, call.cancel or 0, move or 0) for call in made)):
        for number, call in enumerate(made):
            if call.begin == turn:
                tasks[number] = asyncio.ensure_future(pipeline(call.asked, timeout=call.timeout))  # type: ignore[arg-type]
            if call.cancel == turn:
                tasks[number].cancel()
        if move == turn:
            clock.now += 1000.0
        await asyncio.sleep(0)
    return await asyncio.gather(
        *[tasks[number] for number in range(len(made))], return_exceptions=True
    )


async def quiet(pipeline: Pipeline) -> None:
    """Let the loop run until no node has work, then see that nothing is left of any request."""

    def busy() -> Iterator[str]:
        for node in pipeline.nodes:
            if getattr(node, "scheduler", None) is not None and node.scheduler.running:
                yield node.name

    async with asyncio.timeout(BOUND):
        while any(busy()):
            await asyncio.sleep(0.0005)
    assert pipeline.inside == 0
    assert pipeline._admission.rows == 0
    for node in pipeline.nodes:
        if getattr(node, "scheduler", None) is not None:
            assert (node.scheduler.queued, node.scheduler.buckets) == (0, {})
        else:
            assert not node.waiting  # type: ignore[attr-defined]
            assert getattr(node, "_queued", 0) == 0
    schedulers = {node._scheduling for node in pipeline.nodes}
    assert asyncio.all_tasks() == {asyncio.current_task(), *schedulers}


async def accidents(tables: Tables, made: list[Call], clock: Clock, move: int | None) -> None:
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))
    reference = refer(tables)
    async with asyncio.timeout(BOUND), load(tables, clock) as pipeline:
        asked = [call.asked if isinstance(call.asked, list) else [call.asked] for call in made]
        before = [[dict(item) for item in each] for each in asked]
        outcomes = [[expected(reference, item) for item in each] for each in asked]
        answers = await make(pipeline, made, clock, move)
        await quiet(pipeline)
        for call, each, allowed, found in zip(made, asked, outcomes, answers, strict=True):
            interrupted = call.cancel is not None or (call.timeout is not None and move is not None)
            if isinstance(call.asked, list):
                check_many(found, allowed, each, interrupted=interrupted)
            else:
                check_one(found, allowed[0], call.asked, interrupted=interrupted)
            event(type(found).__name__)
        assert before == asked, "a caller's dict was changed"
        # What was cancelled or failed has left nothing in anybody's way.
        again = asked[0][0]
        again["context"].ran.clear()
        check_one(
            (await asyncio.gather(pipeline(again), return_exceptions=True))[0],
            outcomes[0][0],
            again,
            interrupted=False,
        )
        await quiet(pipeline)
    assert heard == []


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
    loop=st.sampled_from(sorted(LOOPS)),
)
def test_a_graph_means_what_the_recursion_says(
    scene: tuple[Tables, list[Call]], tick: float, move: int | None, loop: str
) -> None:
    tables, made = scene
    threads = set(threading.enumerate())
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(accidents(tables, made, Clock(tick), move))
    assert set(threading.enumerate()) <= threads


async def hold(tables: Tables, item: Item) -> None:
    """Whatever runs beside the end is held until the answer is there: what comes behind that must not start any more."""
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
            found = (await asyncio.gather(pipeline(item), return_exceptions=True))[0]
        finally:
            request.go.set()
        await quiet(pipeline)
    check_one(found, outcomes, item, interrupted=False)
    for name in beside & alone:
        behind = reference.led_to(name) - {name}
        event("something came behind it" if behind & alone else "nothing came behind it")
        assert (behind & alone).isdisjoint(request.ran)


@settings(
    random_graphs,
    max_examples=max(1, GRAPHS // 4),
    suppress_health_check=[HealthCheck.filter_too_much, *QUIET],
)
@given(scene=ends())
def test_the_end_of_a_request_starts_nothing_more(scene: tuple[Tables, Item]) -> None:
    with asyncio.Runner() as runner:
        runner.run(hold(*scene))
