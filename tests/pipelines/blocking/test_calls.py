"""A call between its caller's thread and the loop, with a loop that runs when it is told. What is rare in real threads is certain here."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.pipelines.blocking.calls import PipeCall


class Run:
    def __init__(self) -> None:
        self.left = 0

    def leave(self) -> None:
        self.left += 1


@pytest.fixture
def later() -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
    """What was asked of the loop."""
    return []


@pytest.fixture
def call(later: list[Any]) -> PipeCall:
    runner = SimpleNamespace(
        loop=SimpleNamespace(call_soon=lambda function, *given: later.append((function, given))),
        pipeline=SimpleNamespace(submit_nowait=lambda item, timeout, priority, part: Run()),
    )
    made = PipeCall(runner, [{"data": 1}, {"data": 2}, {"data": 3}], None, None, "kept alive")  # type: ignore[arg-type]
    made.submit()
    return made


def test_a_failure_is_told_at_once_and_its_siblings_leave_a_little_later(
    call: PipeCall, later: list[Any]
) -> None:
    first, second, third = call.parts
    runs: list[Any] = [part.run for part in call.parts]
    first.set_result({"result": 1})
    assert call.lock.locked()
    second.set_exception(ValueError("as told"))
    assert not call.lock.locked()
    assert third.done()  # no batch takes it from here on
    assert [run.left for run in runs] == [0, 0, 0]  # this may be inside the scheduler's walk
    with pytest.raises(ValueError, match="as told"):
        call.merge()  # the caller is faster than the loop
    ((function, given),) = later
    function(*given)
    assert [run.left for run in runs] == [0, 0, 1]
    assert call.keeps is None


def test_only_the_first_end_counts(call: PipeCall) -> None:
    parts = list(call.parts)
    parts[0].set_exception(ValueError("first"))
    parts[1].set_exception(ValueError("second"))
    parts[2].set_result({"result": 1})
    assert str(call.error) == "first"


def test_the_last_answer_ends_the_call(call: PipeCall, later: list[Any]) -> None:
    for number, part in enumerate(call.parts):
        assert call.lock.locked()
        part.set_result({"data": "another", "result": number})
    assert not call.lock.locked()
    items = [part.caller_item for part in call.parts]
    call.merge()
    assert items == [{"data": 1, "result": 0}, {"data": 2, "result": 1}, {"data": 3, "result": 2}]
    assert later == []


def test_a_call_that_was_abandoned_before_the_loop_saw_it_is_not_submitted() -> None:
    def submit_nowait(*given: Any) -> None:
        raise AssertionError(given)

    call = PipeCall(
        SimpleNamespace(pipeline=SimpleNamespace(submit_nowait=submit_nowait)),
        [{"data": 1}],
        None,
        None,
        None,
    )  # type: ignore[arg-type]
    call.abandon()
    call.submit()
    assert call.parts[0].done()
