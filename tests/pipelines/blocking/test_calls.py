"""A call between its caller's thread and the loop, with a loop that the test runs.

Orders that are rare between real threads are certain here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.pipelines.blocking.calls import PipeCall


class Run:
    """Counts how often it is left."""

    def __init__(self) -> None:
        self.left = 0

    def leave(self) -> None:
        self.left += 1


Callback = tuple[Callable[..., None], tuple[Any, ...]]


@pytest.fixture
def later() -> list[Callback]:
    """The callbacks that the loop has been given."""
    return []


@pytest.fixture
def call(later: list[Callback]) -> PipeCall:
    runner: Any = SimpleNamespace(
        loop=SimpleNamespace(call_soon=lambda function, *args: later.append((function, args))),
        pipeline=SimpleNamespace(
            submit_nowait=lambda item, timeout, priority, part, client, sequence: Run()
        ),
    )
    call = PipeCall(runner, [{"data": 1}, {"data": 2}, {"data": 3}], None, None, keeps="kept alive")
    call.submit()
    return call


def test_a_failure_wakes_the_caller_at_once_and_the_other_items_leave_later(
    call: PipeCall, later: list[Callback]
) -> None:
    first, second, third = call.parts
    runs: list[Any] = [part.run for part in call.parts]
    first.set_result({"result": 1})
    assert call.lock.locked()
    second.set_exception(ValueError("on purpose"))
    assert not call.lock.locked()
    assert third.done()  # no batch takes it from here on
    # Not yet: the scheduler may be iterating over the queue that they leave.
    assert [run.left for run in runs] == [0, 0, 0]
    with pytest.raises(ValueError, match="on purpose"):
        call.merge()  # the caller is faster than the loop
    ((function, args),) = later
    function(*args)
    assert [run.left for run in runs] == [0, 0, 1]
    assert call.keeps is None


def test_only_the_first_end_counts(call: PipeCall) -> None:
    parts = list(call.parts)
    parts[0].set_exception(ValueError("first"))
    parts[1].set_exception(ValueError("second"))
    parts[2].set_result({"result": 1})
    assert str(call.error) == "first"


def test_the_last_answer_ends_the_call(call: PipeCall, later: list[Callback]) -> None:
    for number, part in enumerate(call.parts):
        assert call.lock.locked()
        part.set_result({"data": "another", "result": number})
    assert not call.lock.locked()
    items = [part.caller_item for part in call.parts]
    call.merge()
    assert items == [{"data": 1, "result": 0}, {"data": 2, "result": 1}, {"data": 3, "result": 2}]
    assert later == []


def test_a_call_that_was_abandoned_before_the_loop_saw_it_is_not_submitted() -> None:
    def submit_nowait(*args: Any) -> None:
        raise AssertionError(args)

    runner: Any = SimpleNamespace(pipeline=SimpleNamespace(submit_nowait=submit_nowait))
    call = PipeCall(runner, [{"data": 1}], None, None)
    call.abandon()
    call.submit()
    assert call.parts[0].done()
