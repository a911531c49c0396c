"""ModelTensor's choice between OpenVINO and ONNX Runtime on a CPU: what is measured, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import Context
from penstock.backends.engines import cpu_choice
from penstock.backends.engines.model import ModelParams, ModelTensor, choose_engine
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.openvino.backend import OpenvinoTensor
from penstock.backends.engines.openvino.library import without_telemetry
from penstock.backends.item import Item

with without_telemetry():
    pytest.importorskip("openvino")


class Clock:
    """Moves on by what a run of an engine takes: `seconds`, by the engine's name."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.runs: list[str] = []
        self.extra: Callable[[], float] = lambda: 0.0
        """What else the process does during a run, in seconds."""

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(OnnxTensor=0.04, OpenvinoTensor=0.02)
    forward = OnnxTensor.forward

    def timed(self: Any, batch: list[Item]) -> None:
        forward(self, batch)
        clock.runs.append(self.engine)
        clock.now += clock.seconds[self.engine] + clock.extra()

    monkeypatch.setattr(OnnxTensor, "forward", timed)
    monkeypatch.setattr(cpu_choice, "time", clock)
    return clock


def write(
    path: Path, shape: Any = ("n", 3), operator: str = "Neg", dtype: int = TensorProto.FLOAT
) -> Path:
    ports = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    node = helper.make_node(operator, ["x"], ["y"])
    graph = helper.make_graph([node], "graph", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def choose(path: Path, context: dict[str, Any] | None = None, **params: Any) -> Any:
    choice = choose_engine(
        ModelParams.model_validate({"model": str(path), **params}),
        Context(node="net", device="cpu", **(context or {})),
    )
    if choice.tried is not None and choice.tried.engine is not None:
        choice.tried.engine.close()
    return choice


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "OpenvinoTensor"), (0.39, "OnnxTensor"), (0.6, "OnnxTensor")]
)
def test_the_faster_engine_runs_the_model(
    tmp_path: Path, clock: Clock, seconds: float, expected: str
) -> None:
    clock.seconds.update(OnnxTensor=0.4, OpenvinoTensor=seconds)
    choice = choose(write(tmp_path / "m.onnx"), max=4)
    assert choice.engine.__name__ == expected
    assert choice.why == (
        "the node's device is cpu; a batch of 4 takes OpenVINO "
        f"{seconds * 1000:.2f} ms of processor time, and ONNX Runtime 400.00 ms"
    )


def test_a_slow_model_is_timed_in_a_smaller_batch_and_at_least_three_times(
    tmp_path: Path, clock: Clock
) -> None:
    """Other work of the process in some of the runs does not decide."""
    clock.seconds.update(OnnxTensor=2.0, OpenvinoTensor=1.0)
    disturbed = iter([0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 9.0])  # ORT, ORT, OpenVINO, then in turns
    clock.extra = lambda: next(disturbed, 0.0)
    choice = choose(write(tmp_path / "m.onnx"), max=8)
    assert choice.engine.__name__ == "OpenvinoTensor"
    assert "a batch of 2 takes OpenVINO 1000.00 ms of processor time" in choice.why
    assert (
        clock.runs
        == ["OnnxTensor"] * 2
        + ["OpenvinoTensor"]
        + [
            "OnnxTensor",
            "OpenvinoTensor",
        ]
        * 3
    )


def test_all_instances_take_what_the_first_has_found(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "penstock")
    path, made = write(tmp_path / "m.onnx"), []
    for instance in range(2):
        backend = ModelTensor()
        backend.init(
            ModelParams.model_validate({"model": str(path), "max": 4}),
            Context(node="net", device="cpu", instance=instance, instances=2),
        )
        made.append(backend)
    measured = len(clock.runs)
    assert set(clock.runs) == {"OnnxTensor", "OpenvinoTensor"}
    clock.seconds["OnnxTensor"] = 0.01  # too late to matter
    for backend in made:
        assert type(backend.children[0]).__name__ == "OpenvinoTensor"
        item: Item = {"data": np.array([[1, 2, 3]], np.float32)}
        backend.forward([item])
        assert np.asarray(item["result"]).tolist() == [[-1, -2, -3]]
        backend.close()
    assert len(clock.runs) == measured + 2
    chosen = [record for record in caplog.records if record.name == "penstock.model"]
    assert len(chosen) == 1 and "with OpenvinoTensor on cpu" in chosen[0].getMessage()


def test_openvino_is_not_even_opened_for_a_model_that_takes_no_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.seconds["OnnxTensor"] = 0.0009
    monkeypatch.setattr(OpenvinoTensor, "open_session", lambda *_: pytest.fail("it is opened"))
    choice = choose(write(tmp_path / "m.onnx"))
    assert choice.engine.__name__ == "OnnxTensor"
    assert choice.why.endswith("not tried, because a batch of 8 takes less than 1 ms")


def test_a_model_of_large_whole_numbers_stays_with_onnx_runtime(
    tmp_path: Path, clock: Clock
) -> None:
    choice = choose(write(tmp_path / "m.onnx", dtype=TensorProto.INT64), max=4)
    assert choice.engine.__name__ == "OnnxTensor" and "x may have larger ones" in choice.why
    choice = choose(write(tmp_path / "m.onnx", dtype=TensorProto.INT32), max=4)
    assert choice.engine.__name__ == "OpenvinoTensor"


@pytest.mark.parametrize(
    ("shape", "context", "params", "why"),
    [
        (("n", "w"), {}, {}, 'the shapes are not known (max = "8x3x224x224")'),
        (("n", 3), {"opens_only": True}, {}, "a model is only opened"),
        (("n", 3), {"alone": True, "instances": 2}, {}, "each instance is a process"),
        (("n", 3), {}, {"warm_up": "missing.npz"}, "it can't be compared with OpenVINO: "),
    ],
)
def test_where_nothing_can_be_measured_it_is_onnx_runtime(
    tmp_path: Path, clock: Clock, shape: Any, context: Any, params: Any, why: str
) -> None:
    choice = choose(write(tmp_path / "m.onnx", shape), context, **params)
    assert choice.engine.__name__ == "OnnxTensor" and why in choice.why


@pytest.mark.parametrize(
    ("precision", "factor", "taken"),
    [
        (None, 1.1, False),
        ("fp32", 1.001, True),
        ("bf16", 1.05, True),
        ("bf16", 1.2, False),
        ("fp16", 1.2, False),
    ],
)
def test_an_engine_with_other_answers_is_not_taken(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
    factor: float,
    taken: bool,
) -> None:
    """A lower precision may round, and no more: one item of the batch is enough to tell."""
    timed = OnnxTensor.forward

    def wrong(self: Any, batch: list[Item]) -> None:
        timed(self, batch)
        batch[-1]["result"] = batch[-1]["result"] * factor

    monkeypatch.setattr(OpenvinoTensor, "forward", wrong)
    choice = choose(write(tmp_path / "m.onnx"), max=4, precision=precision)
    assert choice.engine.__name__ == ("OpenvinoTensor" if taken else "OnnxTensor")
    assert taken or "OpenVINO gives other answers: largest difference" in choice.why


def test_a_model_that_openvino_refuses_stays_with_onnx_runtime(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, params: Any, context: Context) -> None:
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(OpenvinoTensor, "open_session", refuse)
    choice = choose(write(tmp_path / "m.onnx"), max=4)
    assert choice.engine.__name__ == "OnnxTensor"
    assert choice.why.endswith("it can't be compared with OpenVINO: unsupported operator")


def test_an_engine_with_other_classes_is_not_taken(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = OnnxTensor.forward

    def wrong(self: Any, batch: list[Item]) -> None:
        timed(self, batch)
        for item in batch:
            item["result"] += 1

    keys: dict[str, Any] = {"max": 4, "postprocessor": "ArgMax"}
    assert choose(write(tmp_path / "m.onnx"), **keys).engine.__name__ == "OpenvinoTensor"
    monkeypatch.setattr(OpenvinoTensor, "forward", wrong)
    choice = choose(write(tmp_path / "m.onnx"), **keys)
    assert choice.engine.__name__ == "OnnxTensor"
    assert choice.why.endswith("OpenVINO gives other answers: in 4 of 4 items")
