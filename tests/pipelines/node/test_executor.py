"""An executor's thread and its batches, run on the thread of the test."""

from __future__ import annotations

from asyncio import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.backends.base import Backend
from penstock.backends.errors import BackendError, DeviceError, InvalidInput
from penstock.backends.item import Item
from penstock.backends.process.failure import ProcessDiedError, RestartError
from penstock.pipelines.node.executor import run_batch
from penstock.pipelines.node.queue import NEVER, Batch, Entry


class Scripted(Backend):
    """Raises the `data` of an item if it is an exception."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def forward(self, batch: list[Item]) -> None:
        self.seen.append(len(batch))
        for item in batch:
            if isinstance(item["data"], BaseException):
                raise item["data"]
            item["result"] = item["data"]


def batch(*data: Any, deadlines: tuple[float, ...] = (), gone: tuple[int, ...] = ()) -> Batch:
    entries = []
    for position, value in enumerate(data):
        future: Any = SimpleNamespace(done=lambda position=position: position in gone)
        entries.append(Entry({"data": value}, future, deadlines[position] if deadlines else NEVER))
    return Batch("node", None, entries, len(entries), 0.0)


def run(
    made: Batch, *, retry: bool = True, suspended: bool = False, now: float = 0.0
) -> tuple[list[str], Scripted, Any]:
    """Run the batch. Return how each item ended, the backend, and the owner."""
    owner: Any = SimpleNamespace(retry=retry, retry_suspended=suspended)
    backend = Scripted()
    run_batch(backend, made, owner, lambda: now)
    return [_name(outcome) for outcome in made.outcomes], backend, owner


def _name(outcome: Any) -> str:
    if isinstance(outcome, dict):
        return "soft" if "error" in outcome else "ok"
    return type(outcome).__name__ if outcome is not None else "none"


def test_success() -> None:
    made = batch(1, 2)
    outcomes, backend, owner = run(made, suspended=True)
    assert (outcomes, backend.seen, owner.retry_suspended) == (["ok", "ok"], [2], False)
    assert [entry.item for entry in made.entries] == [{"data": 1}, {"data": 2}]


def test_one_alone_is_not_run_again() -> None:
    assert run(batch(ValueError()))[0] == ["BackendError"]
    outcomes, backend, owner = run(batch(InvalidInput("no")))
    assert (outcomes, backend.seen, owner.retry_suspended) == (["soft"], [1], False)


def test_each_runs_again_once() -> None:
    outcomes, backend, owner = run(batch(1, ValueError(), InvalidInput(), 4))
    assert (outcomes, backend.seen, owner.retry_suspended) == (
        ["ok", "BackendError", "soft", "ok"],
        [4, 1, 1, 1, 1],
        False,
    )


def test_no_item_is_run_again_after_its_deadline_or_departure() -> None:
    outcomes, backend, _ = run(
        batch(ValueError(), 1, 2, 3, deadlines=(9, 5, 6, 9), gone=(3,)), now=5.0
    )
    assert (outcomes, backend.seen) == (["BackendError", "none", "ok", "none"], [4, 1, 1])


@pytest.mark.parametrize("error", [MemoryError, DeviceError])
def test_never_retried(error: type[Exception]) -> None:
    outcomes, backend, owner = run(batch(1, error("gone")))
    assert (set(outcomes), backend.seen) == (
        {"DeviceError" if error is DeviceError else "BackendError"},
        [2],
    )
    assert not owner.retry_suspended


def test_retry_off_and_suspended() -> None:
    assert run(batch(1, ValueError()), retry=False)[0] == ["BackendError"] * 2
    assert run(batch(1, ValueError()), suspended=True)[0] == ["BackendError"] * 2
    assert run(batch(1, InvalidInput()), suspended=True)[0] == ["ok", "soft"]
    assert run(batch(1, InvalidInput()), retry=False)[0] == ["BackendError"] * 2


def test_retries_are_suspended_when_all_fail_and_resumed_by_a_run_that_succeeds_only() -> None:
    assert run(batch(ValueError(), ValueError()))[2].retry_suspended
    assert not run(batch(1, ValueError()), suspended=False)[2].retry_suspended
    assert not run(batch(ValueError()), suspended=False)[2].retry_suspended
    assert run(batch(InvalidInput(), InvalidInput()), suspended=True)[2].retry_suspended
    assert not run(batch(InvalidInput(), 1), suspended=True)[2].retry_suspended
    assert run(batch(ValueError(), 1, gone=(1,)), suspended=True)[2].retry_suspended


def test_a_thread_that_ends_leaves_no_half_made_copies() -> None:
    made = batch(1, RestartError())
    with pytest.raises(RestartError):
        run(made)
    assert made.outcomes == [None, None]


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, CancelledError, KeyboardInterrupt])
def test_no_exception_of_a_backend_ends_the_thread(error: type[BaseException]) -> None:
    outcomes, backend, _ = run(batch(1, error(), 3))
    assert (outcomes, backend.seen) == (["ok", "BackendError", "ok"], [3, 1, 1, 1])
    assert run(batch(error()))[0] == ["BackendError"]
    assert run(batch(1, error()), retry=False)[0] == ["BackendError"] * 2


def test_each_caller_gets_an_exception_of_its_own_that_names_node_and_backend() -> None:
    made = batch(1, DeviceError("bus"))
    run(made)
    first, second = made.outcomes
    assert first is not second
    assert isinstance(first, BackendError)
    assert str(first) == "node 'node': backend Scripted raised DeviceError: bus"
    assert first.__cause__ is second.__cause__ is made.entries[1].item["data"]


def test_an_error_of_an_item_alone_has_no_other_error_as_its_context() -> None:
    """A log would show it as "during the handling of" the error of another item."""
    made = batch(ValueError("one"), InvalidInput("two"), OSError("three"))
    run(made)
    assert [entry.item["data"].__context__ for entry in made.entries] == [None] * 3
    died = ProcessDiedError("the child died")
    made = batch(died)
    run(made)
    assert died.__context__ is None
