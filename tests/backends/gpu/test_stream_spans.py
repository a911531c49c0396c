"""Work on a device, on the timeline.

Without a GPU, stand-ins for the device's events use a clock that the test moves.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from penstock.backends import timeline
from penstock.backends.base import Context
from penstock.backends.engines.torch.engine import TorchEngine
from penstock.backends.engines.torch.params import TorchParams
from penstock.backends.gpu.device import DeviceHalf
from penstock.backends.gpu.stream_spans import StreamSpans

from ..trace_events import Shown


class StandInEvent:
    """Stands in for torch.cuda.Event: takes its time as soon as it is recorded."""

    now = 0.0  # milliseconds
    made = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing  # else elapsed_time raises
        StandInEvent.made += 1

    def record(self, stream: Any) -> None:
        assert stream == "stream"
        self.at = StandInEvent.now

    def elapsed_time(self, later: StandInEvent) -> float:
        return later.at - self.at


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> StreamSpans:
    monkeypatch.setattr(torch.cuda, "Event", StandInEvent)
    monkeypatch.setattr(StandInEvent, "made", 0)
    return StreamSpans(torch.device("cuda", 1), "stream")


def work(stream: StreamSpans, name: str, milliseconds: float, **arguments: int) -> None:
    with stream.span(name, **arguments):
        StandInEvent.now += milliseconds
    StandInEvent.now += 2


def test_work_ends_at_the_end_of_the_wait(stream: StreamSpans) -> None:
    recording = timeline.Recording()
    with timeline.record(recording):
        work(stream, "copy", 8, rows=4)
        work(stream, "run", 32, rows=4)
        work(stream, "copy back", 16)
        before = time.monotonic()
        stream.place()
        assert before <= recording.spans[-1].end <= time.monotonic()
        stream.place()  # a wait without work
    track = f"{threading.current_thread().name} on cuda:1"
    assert {span.track for span in recording.spans} == {track}
    shown = Shown(recording.trace()).spans[track]
    assert [(depth, name, arguments) for depth, name, _, _, arguments in shown] == [
        (0, "copy", {"rows": 4}), (0, "run", {"rows": 4}), (0, "copy back", {}),
    ]  # fmt: skip
    times = [(start, end) for _, _, start, end, _ in shown]
    # In microseconds.
    expected = [0, 8000, 10000, 42000, 44000, 60000]
    assert [pytest.approx(time, abs=1) for pair in times for time in pair] == expected


def test_without_a_recording_no_event_is_made(stream: StreamSpans) -> None:
    work(stream, "run", 1)
    stream.place()
    assert StandInEvent.made == 0


def test_work_whose_recording_has_ended_is_dropped(stream: StreamSpans) -> None:
    first, second = timeline.Recording(), timeline.Recording()
    with timeline.record(first):
        work(stream, "run", 1)
    stream.place()
    with timeline.record(second):
        stream.place()
    assert first.spans == second.spans == []


def test_work_that_fails_is_not_shown(stream: StreamSpans) -> None:
    recording = timeline.Recording()
    with timeline.record(recording):
        with pytest.raises(RuntimeError, match="gone"), stream.span("run"):
            raise RuntimeError("gone")
        stream.place()
    assert recording.spans == []


def test_on_the_cpu_spans_are_on_the_track_of_the_thread() -> None:
    half = DeviceHalf(torch.device("cpu"), "node 'a'")
    recording = timeline.Recording()
    with timeline.record(recording):
        batch = half.assemble(0, [torch.ones(1, 2), torch.ones(2, 2)], 4, 8, torch.float32)
        with half.span("run", rows=3):
            output = batch * 2
        half.fetch([output])
    assert [(span.name, span.arguments) for span in recording.spans] == [
        ("assembly", {"rows": 4}),
        ("run", {"rows": 3}),
    ]
    assert {span.track for span in recording.spans} == {threading.current_thread().name}
    half.close()


class Double(TorchEngine):
    def load(self, params: Any, context: Context, device: torch.device) -> Any:
        return None

    def _run(self, inputs: Any, names: tuple[str, ...] = ()) -> list[Any]:
        return [inputs[0] * 2]


def test_torch_engines_show_assembly_and_run() -> None:
    backend = Double()
    backend.init(
        TorchParams.model_validate({"model": "", "max": "4x2"}), Context(node="a", device="cpu")
    )
    recording = timeline.Recording()
    with timeline.record(recording):
        backend.forward([{"data": torch.ones(1, 2)} for _ in range(3)])
    backend.close()
    assert [(span.name, span.arguments) for span in recording.spans] == [
        ("assembly", {"rows": 3}),
        ("run", {"rows": 3}),
    ]
