from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest

from penstock.app.processes import messages
from penstock.app.processes.control import Control
from penstock.app.processes.models.link import MOST_QUERIES
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.repository import Repository

from ...server.doors import wait_until
from ..fronts import SECONDS, Models, StubFront, models

GATE = threading.Event()
INSIDE = threading.Event()


@register_backend("ProcessGate")
class ProcessGate(Backend):
    """Waits at the gate."""

    def forward(self, batch: Any) -> None:
        INSIDE.set()
        GATE.wait(60)
        for item in batch:
            item["result"] = len(item["data"])


@register_backend("ProcessBroken")
class ProcessBroken(Backend):
    """Can't be loaded."""

    def __init__(self) -> None:
        raise ValueError("broken")

    def forward(self, batch: Any) -> None:
        """Never called."""


GATED: dict[str, Any] = {"pipeline": {"name": "gated"}, "gate": {"backend": "ProcessGate"}}


@pytest.fixture(autouse=True)
def gate() -> None:
    GATE.clear()
    INSIDE.clear()


def test_a_drain_finishes_requests_and_refuses_new_ones() -> None:
    with models(GATED) as process, process.front() as front:
        running = front.request("/predict/gated", b"123")
        assert INSIDE.wait(SECONDS)
        process.control.send(Control.DRAIN)
        wait_until(lambda: process.repository.state == "draining")
        refused = front.request("/predict/gated", b"4")
        number, status, _, body = front.answer()
        assert (number, status, json.loads(body)["code"]) == (refused, 503, "not_ready")
        GATE.set()
        assert front.answer()[::3] == (running, b'{"result":3}')
        assert process.control.receive() == (Control.DRAINED,)
        assert front.receive()[0] == messages.TABLE
        front.request("/predict/gated", b"5")
        assert front.answer()[1] == 503
        process.end()
        assert process.code == 0
        with pytest.raises(EOFError):
            front.receive()


def test_the_end_comes_in_time_though_a_request_still_runs() -> None:
    with models(GATED, drain_timeout=60) as process, process.front() as front:
        front.request("/predict/gated", b"123")
        assert INSIDE.wait(SECONDS)
        process.control.send(Control.END, 0.1)
        assert front.answer()[1] == 503
        GATE.set()
        process.end()
        assert process.code == 0


def test_the_end_does_not_wait_for_a_longer_drain() -> None:
    with models(GATED, drain_timeout=60) as process, process.front() as front:
        front.request("/predict/gated", b"123")
        assert INSIDE.wait(SECONDS)
        process.control.send(Control.DRAIN)
        wait_until(lambda: process.repository.state == "draining")
        process.control.send(Control.END, 0.1)
        with pytest.raises(EOFError):
            front.receive()
        GATE.set()
        process.end()
        assert process.code == 0


def test_a_new_link_to_a_front_takes_the_place_of_the_old_one() -> None:
    with models(GATED) as process, process.front(1) as new:
        with process.front(1) as old:
            process.link(newest := StubFront(1))
            newest.greet()
            old.request("/predict/missing", b"x")
            assert old.answer()[1] == 404  # it ends its requests still
        newest.request("/predict/missing", b"x")
        newest.answer()
        new.request("/predict/missing", b"x")
        new.answer()
        asked = process.ask(b"report", 60)
        _, number, _ = newest.receive()
        newest.send(messages.REPLY, number, b"newest")
        assert asked.result(SECONDS) == [(1, b"newest")]
        newest.close()


def test_it_ends_by_itself_when_its_parent_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    with models(GATED) as process:
        process.control.socket.close()
        process.thread.join(SECONDS)
        assert process.code == 0
    assert "the parent process has ended: the server ends too" in caplog.messages


def test_a_pipeline_that_can_not_be_loaded_is_told() -> None:
    broken = {"pipeline": {"name": "broken"}, "node": {"backend": "ProcessBroken"}}
    process = Models(Repository.read(broken, strict=True), Settings())
    told = process.control.receive()
    process.thread.join(SECONDS)
    process.control.close()
    assert told == (Control.FAILED, "a pipeline can't be loaded: node 'node': ValueError: broken")
    assert process.code == 1


def test_a_report_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with models(GATED) as process, caplog.at_level(logging.INFO):
        process.control.send(Control.REPORT)
        process.control.send(Control.PROCESSES, [("parent", 1, 0)])
        process.control.send(99, "of a later release")
        process.control.send(Control.DRAIN)
        assert process.control.receive() == (Control.DRAINED,)  # all before has been done
    assert any("gated" in message for message in caplog.messages)


def test_fronts_are_asked_and_answer() -> None:
    with models(GATED) as process, process.front(1) as one, process.front(2) as two:
        asked = process.ask(b"report", 5.0)
        for front in (one, two):
            kind, number, payload = front.receive()
            assert (kind, front.content(payload)) == (messages.QUERY, b"report")
            content = str(front.number).encode() * 40_000
            front.send(messages.REPLY, number, front.arena.put(content))
        assert dict(asked.result(SECONDS)) == {1: b"1" * 40_000, 2: b"2" * 40_000}
        asked = process.ask(b"report", 5.0)
        one.receive()
        one.socket.close()
        _, number, _ = two.receive()
        two.send(messages.REPLY, number, b"two")
        assert asked.result(SECONDS) == [(2, b"two")]


def test_a_front_that_answers_no_query_is_asked_no_more() -> None:
    with models(GATED) as process, process.front() as front:
        for _ in range(2):  # the log settings are answered, and that has been read
            front.request("/predict/missing", b"x")
            front.answer()
        for _ in range(MOST_QUERIES):
            assert process.ask(b"report", 0.001).result(SECONDS) == []
        assert process.ask(b"report", 60).result(SECONDS) == []
        for _ in range(MOST_QUERIES):
            _, number, _ = front.receive()
            front.send(messages.REPLY, number, b"late")
        front.request("/predict/missing", b"x")
        front.answer()
        asked = process.ask(b"report", 60)
        _, number, _ = front.receive()
        front.send(messages.REPLY, number, b"in time")
        assert asked.result(SECONDS) == [(1, b"in time")]
