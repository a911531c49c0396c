"""`penstock.testing`: the tools that users' tests build on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from penstock import Backend, Item, Pipeline, register_backend
from penstock.testing import Clock, Entry, FakeExecutor, Gate, Scheduler


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = Clock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.move(2.5)
    assert clock() == 7.5


async def test_a_gate_holds_a_backend_until_it_opens() -> None:
    gate = Gate()

    class Held(Backend):
        def forward(self, batch: list[Item]) -> None:
            gate.wait()
            for item in batch:
                item["result"] = item["data"] + 1

    register_backend("HeldByTheGate", Held)
    async with Pipeline.load({"node": {"backend": "HeldByTheGate"}}) as pipeline:
        answer = asyncio.ensure_future(pipeline({"data": 1}))
        await gate.entered()
        assert not answer.done()
        gate.open()
        assert (await answer)["result"] == 2


def test_a_gate_that_stays_closed_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.pipelines.testing.BOUND_SECONDS", 0.01)
    gate = Gate()
    with pytest.raises(TimeoutError, match="stayed closed"):
        gate.wait()
    gate.wait_entered()  # that one arrival, and no second
    with pytest.raises(TimeoutError, match="no thread came"):
        gate.wait_entered()


def test_a_gate_closes_again() -> None:
    gate = Gate()
    gate.open()
    gate.wait()
    assert repr(gate) == "<Gate open>"
    gate.close()
    assert repr(gate) == "<Gate closed>"
    thread = threading.Thread(target=gate.wait)
    thread.start()
    gate.wait_entered()
    gate.wait_entered()
    assert thread.is_alive()
    gate.open()
    thread.join(20)
    assert not thread.is_alive()


def test_a_fake_executor_keeps_the_batches_of_a_decision() -> None:
    def ignore(_: Any) -> None:
        pass

    class Waiting:
        def done(self) -> bool:
            return False

    scheduler = Scheduler("node", on_expired=ignore, on_stuck=ignore)
    executor = FakeExecutor(2)
    scheduler.add(executor)
    future: Any = Waiting()
    for number in range(3):
        scheduler.enqueue(Entry({"data": number}, future, float("inf"), None, 1), None, 0.0)
    scheduler.decide(0.0)
    assert [[entry.item["data"] for entry in batch.entries] for batch in executor.batches] == [
        [0, 1]
    ]
    scheduler.release(executor)
    scheduler.decide(0.0)
    assert len(executor.batches) == 2
    assert repr(executor) == "<FakeExecutor fake: 2 batches>"


def test_a_gate_that_tests_share_forgets_the_last_one() -> None:
    gate = Gate()
    gate.open()
    gate.wait()
    gate.reset()
    assert not gate.is_open
    thread = threading.Thread(target=gate.wait)
    thread.start()
    gate.wait_entered()  # this thread's arrival, not the one before
    assert thread.is_alive()
    gate.open()
    thread.join(20)
    assert not thread.is_alive()
