"""Controls and states that are tensors of the model."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from penstock import BackendError, ConfigError, InvalidInput, Pipeline
from penstock.backends.base import Backend, Context, Signature, TensorPort
from penstock.backends.memory import budget
from penstock.backends.sequences.definition import Control, SequenceConfig, State
from penstock.backends.sequences.sequence import Sequence
from penstock.backends.sequences.tensors import SequenceTensors

CONTROLS = (
    Control("start", "START"),
    Control("end", "END", false=-1, true=2),
    Control("ready", "READY"),
    Control("id", "ID"),
)
STATE = State("SUM", "SUM_OUT")
INPUTS = (
    TensorPort("START", "int32", (-1, 1)),
    TensorPort("X", "float32", (-1, 2)),
    TensorPort("END", "float32", (-1, 1)),
    TensorPort("READY", "bool", (-1, 1)),
    TensorPort("ID", "uint64", (-1, 1)),
    TensorPort("SUM", "float32", (-1, 2)),
)
OUTPUTS = (TensorPort("SUM_OUT", "float32", (-1, 2)), TensorPort("Y", "float32", (-1, 2)))


class Sum(Backend):
    """An engine: SUM_OUT = SUM + X, and Y = 10 SUM_OUT. It keeps what it gets."""

    max = 4

    def __init__(self, signature: Signature | None = None) -> None:
        self.signature = signature or Signature(INPUTS, OUTPUTS, batched=True)
        self.got: list[list[Any]] = []

    def forward(self, batch: list[Any]) -> None:
        self.got.append([item["data"] for item in batch])
        sums = np.concatenate([item["data"][5] + item["data"][1] for item in batch])
        for row, item in enumerate(batch):
            one = sums[row : row + 1]
            item["result"] = [one, 10 * one]


def step(value: float, sequence: Sequence) -> dict[str, Any]:
    return {"data": np.full((1, 2), value, np.float32), "sequence": sequence}


def wrapped(engine: Backend | None = None, **table: Any) -> SequenceTensors:
    config = SequenceConfig(controls=CONTROLS, state=(STATE,), **table)
    return SequenceTensors(engine or Sum(), config, Context(node="net"))


def test_the_model_gets_controls_and_its_own_state() -> None:
    engine = Sum()
    node = wrapped(engine)
    assert node.signature is not None
    assert [port.name for port in node.signature.inputs or ()] == ["X"]
    assert [port.name for port in node.signature.outputs or ()] == ["Y"]
    first, second = Sequence(7), Sequence(8)
    batch = [step(1, first), step(2, second)]
    node.forward(batch)
    assert [item["result"].tolist() for item in batch] == [[[10, 10]], [[20, 20]]]
    assert [item["data"].tolist() for item in batch] == [[[1, 1]], [[2, 2]]]  # as clients sent it
    first.start, first.end = False, True
    (last,) = batch = [step(5, first)]
    node.forward(batch)
    assert last["result"].tolist() == [[60, 60]]
    start, _, end, ready, identity, before = engine.got[1][0]
    assert [array.item() for array in (start, end, ready, identity)] == [0, 2, True, 7]
    assert before.tolist() == [[1, 1]]
    assert [array.item() for array in engine.got[0][1][:1]] == [1]
    dtypes = ["int32", "float32", "float32", "bool", "uint64", "float32"]
    assert [array.dtype for array in engine.got[0][0]] == dtypes


def test_rows_of_direct_are_the_slots_of_their_sequences() -> None:
    engine = Sum()
    node = wrapped(engine, strategy="direct")
    batch = [step(3, Sequence(9, slot=2)), step(1, Sequence(8, slot=0))]
    node.forward(batch)
    (rows,) = engine.got
    assert [row[1][0, 0] for row in rows] == [1, 0, 3]
    assert [row[3].item() for row in rows] == [True, False, True]
    assert [row[4].item() for row in rows] == [8, 0, 9]
    assert [item["result"][0, 0] for item in batch] == [30, 10]


def test_an_id_that_the_model_can_not_take_fails_its_item_alone() -> None:
    node = wrapped()
    batch = [step(1, Sequence("cam-7")), step(2, Sequence(8))]
    node.forward(batch)
    assert isinstance(batch[0]["error"], InvalidInput) and "cam-7" in str(batch[0]["error"])
    assert batch[1]["result"].tolist() == [[20, 20]]
    small = (*INPUTS[:4], TensorPort("ID", "int32", (-1, 1)), INPUTS[5])
    with pytest.raises(InvalidInput, match="int32"):
        wrapped(Sum(Signature(small, OUTPUTS, True))).forward([step(1, Sequence(1 << 40))])
    texts = (*INPUTS[:4], TensorPort("ID", "string", (-1, 1)), INPUTS[5])
    engine = Sum(Signature(texts, OUTPUTS, True))
    wrapped(engine).forward([step(1, Sequence("cam-7"))])
    assert engine.got[0][0][4].tolist() == [["cam-7"]]


def test_states_are_counted_and_keep_no_batch_alive() -> None:
    gc.collect()  # what earlier tests have left
    node = wrapped()
    before = budget.used
    sequences = [Sequence(number) for number in range(1, 4)]
    for _ in range(2):
        node.forward([step(1, sequence) for sequence in sequences])
    assert budget.used - before == 3 * 8
    assert all(sequence.state.arrays[0].base is None for sequence in sequences)
    sequences.clear()
    assert budget.used == before


def test_a_sequence_begins_with_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "first.npy", np.array([5.0, 6.0]))
    state = State("SUM", "SUM_OUT", initial="first.npy")
    context = Context(node="net", directory=tmp_path)
    node = SequenceTensors(Sum(), SequenceConfig(controls=CONTROLS, state=(state,)), context)
    (item,) = batch = [step(1, Sequence(1))]
    node.forward(batch)
    assert item["result"].tolist() == [[60, 70]]
    np.save(tmp_path / "other.npy", np.zeros(3))
    other = State("SUM", "SUM_OUT", initial="other.npy")
    with pytest.raises(ConfigError, match=r"\[net\].*sequence.state.*other.npy"):
        SequenceTensors(Sum(), SequenceConfig(state=(other,)), context)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"controls": (Control("start", "STRT"),)}, "no input 'STRT', did you mean 'START'?"),
        ({"state": (State("SUM", "SUMOUT"),)}, "no output 'SUMOUT', did you mean 'SUM_OUT'?"),
    ],
)
def test_tensors_that_the_model_lacks_are_refused(table: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        SequenceTensors(Sum(), SequenceConfig(**table), Context(node="net"))


def test_what_the_model_does_not_tell_has_to_be_given() -> None:
    open_state = (*INPUTS[:5], TensorPort("SUM", "float32", (-1, -1)))
    with pytest.raises(ConfigError, match="shape"):
        wrapped(Sum(Signature(open_state, OUTPUTS, True)))
    nameless = Signature(None, None, True)
    with pytest.raises(ConfigError, match="INPUT__0"):
        wrapped(Sum(nameless))


def test_a_model_with_too_few_outputs_is_told() -> None:
    class Mute(Sum):
        def forward(self, batch: list[Any]) -> None:
            for item in batch:
                item["result"] = item["data"][1]

    state = (State("SUM", "Y"),)
    node = SequenceTensors(Mute(), SequenceConfig(controls=CONTROLS, state=state), Context())
    with pytest.raises(BackendError, match="1 outputs"):
        node.forward([step(1, Sequence(1))])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write a TorchScript module without names: (x, sum) -> (2 (x + sum), x + sum)."""
    torch = pytest.importorskip("torch")

    class Adds(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, total: Any) -> Any:
            return 2 * (x + total), x + total

    example = (torch.zeros(2, 3), torch.zeros(2, 3))
    torch.jit.trace(Adds(), example).save(str(tmp_path / "adds.pt"))
    return tmp_path / "adds.pt"


async def answers(node: dict[str, Any]) -> list[float]:
    """Run steps of two sequences. Return the first value of each answer."""
    found = []
    async with Pipeline.load(node) as pipeline:
        for name, value in (("a", 1), ("b", 10), ("a", 2), ("b", 20)):
            data = np.full((1, 3), value, np.float32)
            answer = await pipeline({"data": data}, sequence=name)
            found.append(float(np.asarray(answer["result"])[0, 0]))
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_torch(script: Path) -> None:
    state = {"input": "INPUT__1", "output": "OUTPUT__1", "shape": [3]}
    node = {"backend": "TorchScriptTensor", "model": str(script), "max": 4}
    assert await answers({**node, "sequence": {"state": [state]}}) == [2, 20, 6, 60]


async def test_the_states_of_a_child_process_are_in_it(tmp_path: Path) -> None:
    x, total, added, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])
        for name in ("x", "total", "added", "y")
    )
    nodes = [
        helper.make_node("Add", ["x", "total"], ["added"]),
        helper.make_node("Add", ["added", "added"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "adds", [x, total], [y, added])
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(tmp_path / "adds.onnx"))
    node = {"backend": "OnnxTensor", "model": str(tmp_path / "adds.onnx"), "executor": "process"}
    table = {"state": [{"input": "total", "output": "added"}]}
    assert await answers({**node, "sequence": table}) == [2, 20, 6, 60]
