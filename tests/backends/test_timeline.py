"""The contents of a recording, and that viewers can read its file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends import timeline
from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.item import Item

from .trace_events import Shown


def test_an_empty_recording_is_a_trace() -> None:
    shown = Shown(timeline.Recording().trace())
    assert (shown.process, shown.spans, shown.waits) == ("penstock", {}, {})


def test_spans_are_on_their_track_in_microseconds_from_the_first() -> None:
    recording = timeline.Recording()
    recording.add("p/b#0", "run", 1000.25, 1000.5, rows=3)
    recording.add("p/a#0", "batch", 1000.0, 1001.0, items=2, rows=4)
    shown = Shown(recording.trace())
    assert shown.spans == {
        "p/a#0": [(0, "batch", 0, 1_000_000, {"items": 2, "rows": 4})],
        "p/b#0": [(0, "run", 250_000, 500_000, {"rows": 3})],
    }
    assert shown.about == {"spans": 2, "spans that did not fit": 0}


def test_a_span_is_inside_the_one_that_was_open_when_it_began() -> None:
    recording = timeline.Recording()
    recording.add("t", "run", 10.000_002_9, 10.000_004_2)
    recording.add("t", "run of no length", 10.000_005_5, 10.000_005_5)
    recording.add("t", "batch", 10.000_002_1, 10.000_007_0)  # recorded last, as executors do
    recording.add("t", "batch", 10.000_007_0, 10.000_009_0)
    (track,) = Shown(recording.trace()).spans.values()
    assert [(depth, name) for depth, name, *_ in track] == [
        (0, "batch"),
        (1, "run"),
        (1, "run of no length"),
        (0, "batch"),
    ]


def test_spans_that_nest_in_seconds_nest_in_microseconds() -> None:
    """Clocks that have run for months round at these digits."""
    random = np.random.default_rng(7)
    for _ in range(200):
        recording = timeline.Recording()
        times = np.sort(10_000_000 + random.random(12) * 1e-5).tolist()
        for depth in range(6):
            recording.add("t", str(depth), times[depth], times[-1 - depth])
        Shown(recording.trace())


def test_waits_lie_side_by_side_in_as_few_rows_as_they_need() -> None:
    recording = timeline.Recording()
    for start, end in [(0.0, 5.0), (1.0, 3.0), (2.0, 5.0), (3.0, 6.0), (6.0, 7.0)]:
        recording.add_wait("p/a queue", start, end)
    recording.add_wait("p/b queue", 0.0, 9.0)
    shown = Shown(recording.trace())
    assert sorted(shown.waits["p/a queue"]) == [
        (int(a * 1e6), int(b * 1e6)) for a, b in [(0, 5), (1, 3), (2, 5), (3, 6), (6, 7)]
    ]
    assert {name: len(rows) for name, rows in shown.rows.items()} == {
        "p/a queue": 3,
        "p/b queue": 1,
    }


def test_a_full_recording_keeps_the_first_and_counts_the_others() -> None:
    recording = timeline.Recording(limit=3)
    for second in range(4):
        recording.add("t", "batch", second, second + 1)
        recording.add_wait("t queue", second, second)
    assert (len(recording.spans), len(recording.waits), recording.missing) == (2, 1, 5)
    assert Shown(recording.trace()).about == {"spans": 3, "spans that did not fit": 5}


def test_a_span_is_on_the_track_of_its_thread_even_if_it_fails() -> None:
    recording = timeline.Recording()

    def work() -> None:
        with timeline.span("assembly", rows=2):
            pass
        with pytest.raises(ValueError, match="no"), timeline.span("run"):
            raise ValueError("no")

    with timeline.record(recording):
        thread = threading.Thread(target=work, name="p/a#1")
        thread.start()
        thread.join()
    spans = Shown(recording.trace()).spans["p/a#1"]
    assert [(depth, name, arguments) for depth, name, _, _, arguments in spans] == [
        (0, "assembly", {"rows": 2}),
        (0, "run", {}),
    ]


def test_spans_are_recorded_only_inside_a_recording_and_only_in_one() -> None:
    recording = timeline.Recording()
    with timeline.span("before"):
        pass
    with timeline.record(recording):
        with pytest.raises(RuntimeError, match="already"), timeline.record(timeline.Recording()):
            pass
        with timeline.span("within"):
            pass
    with timeline.span("after"):
        pass
    assert timeline.recording is None
    assert [span.name for span in recording.spans] == ["within"]


def test_onnx_shows_assembly_and_run(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "double", ports[:1], ports[1:]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "double.onnx",
    )
    backend = OnnxTensor()
    params = OnnxParams.model_validate({"model": str(tmp_path / "double.onnx")})
    backend.init(params, Context(node="a", max=4))
    batch: list[Item] = [{"data": np.full((1, 3), number, np.float32)} for number in range(3)]
    recording = timeline.Recording()
    with timeline.record(recording):
        backend.forward(batch)
        backend.forward(batch[:1])  # alone: it runs without a copy
    backend.close()
    (track,) = Shown(recording.trace()).spans.values()
    assert [(name, arguments) for _, name, _, _, arguments in track] == [
        ("assembly", {"rows": 3}), ("run", {"rows": 3}), ("run", {"rows": 1}),
    ]  # fmt: skip
