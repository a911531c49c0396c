"""`sequence_batching` of a model's configuration: what is reported, and what a load may change."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.model_config_pb2
from google.protobuf.json_format import ParseDict
from onnx import TensorProto, helper

from penstock import InvalidRequest, Pipeline
from penstock.app.http.json_text import JsonLimits
from penstock.app.v2.models.description import config_of, metadata_of
from penstock.app.v2.models.model import Model
from penstock.app.v2.models.model_config import configure
from penstock.app.v2.models.overrides import Override
from penstock.pipelines.config.load import load

messages: Any = tritonclient.grpc.model_config_pb2  # it has no types
TENSOR = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}
CONTROLS = [
    {
        "name": "START",
        "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}],
    },
    {
        "name": "ID",
        "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}],
    },
]
STATE = {"input_name": "SUM", "output_name": "SUM_OUT", "data_type": "TYPE_FP32", "dims": ["1"]}


def running_sum() -> bytes:
    """Return a model: SUM_OUT = X + (0 at the START, else SUM). Y is SUM_OUT, and the ID."""

    def port(name: str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, ["n", 1])

    nodes = [
        helper.make_node("Cast", ["START"], ["starts"], to=TensorProto.BOOL),
        helper.make_node("Where", ["starts", "zero", "SUM"], ["before"]),
        helper.make_node("Add", ["X", "before"], ["SUM_OUT"]),
        helper.make_node("Cast", ["ID"], ["id"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["SUM_OUT", "id"], ["Y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "running_sum",
        [port("X"), port("START", TensorProto.INT32), port("ID", TensorProto.UINT64), port("SUM")],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", 2]), port("SUM_OUT")],
        [helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def source(**sequence: Any) -> Any:
    return {
        "pipeline": {"name": "kept", "inputs": {"x": TENSOR}, "outputs": {"y": TENSOR}},
        "node": {"backend": "Identity", "max": 4, "instance_num": 2, "sequence": sequence},
    }


def as_message(config: Any) -> Any:
    """Return a configuration as clients of gRPC get it. Raises for a field that is not there."""
    return ParseDict(config, messages.ModelConfig())


def sequence_of(config: Any) -> Any:
    return config.nodes["node"].sequence


async def test_what_is_reported_changes_nothing() -> None:
    given = source(max_sequences=10, idle_timeout=2.5)
    async with Pipeline.load(given) as pipeline:
        reported = config_of(Model(pipeline))
    assert "dynamic_batching" not in reported  # ModelConfig has one of the two
    batching = as_message(reported).sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    assert batching.oldest.max_candidate_sequences == 5
    assert batching.max_sequence_idle_microseconds == 2_500_000
    config = load(given)
    assert configure(config, reported, 4) == config


async def test_a_load_changes_the_strategy_and_the_bounds() -> None:
    config = load(source())
    oldest = {"oldest": {"max_candidate_sequences": 3, "max_queue_delay_microseconds": "2000"}}
    changed = configure(
        config, {"sequence_batching": {**oldest, "max_sequence_idle_microseconds": 5_000_000}}
    )
    assert sequence_of(changed) == replace(sequence_of(config), max_sequences=6, idle_timeout=5.0)
    assert changed.nodes["node"].batching_timeout == 2
    changed = configure(config, {"sequence_batching": {"direct": {}}})
    assert sequence_of(changed) == replace(sequence_of(config), strategy="direct")
    async with Pipeline(changed) as pipeline:
        batching = as_message(config_of(Model(pipeline))).sequence_batching
    assert batching.WhichOneof("strategy_choice") == "direct"


@pytest.mark.parametrize(
    ("batching", "said"),
    [
        ({"oldest": {}, "direct": {}}, "expected one of them"),
        ({"oldest": {"preferred_batch_size": [4]}}, "preferred_batch_size"),
        ({"direct": {"minimum_slot_utilization": 0.5}}, "minimum_slot_utilization"),
        ({"direct": {"max_candidate_sequences": 4}}, "max_candidate_sequences"),
        ({"iterative_sequence": True}, "iterative_sequence"),
        ({"max_sequence_idle_microseconds": -1}, "max_sequence_idle_microseconds"),
        ([], "sequence_batching"),
    ],
)
def test_what_would_be_ignored_is_refused(batching: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        configure(load(source()), {"sequence_batching": batching})


def test_a_pipeline_without_state_takes_none() -> None:
    given = source()
    del given["node"]["sequence"]
    with pytest.raises(InvalidRequest, match=r"\[NODE.sequence\]"):
        configure(load(given), {"sequence_batching": {}})


def override(batching: Any) -> Override:
    parameters = {
        "config": json.dumps({"max_batch_size": 4, "sequence_batching": batching}),
        "file:1/model.onnx": base64.b64encode(running_sum()).decode(),
    }
    return Override.read("sum", parameters, JsonLimits(100, 1000))


async def sums_of(pipeline: Pipeline) -> Any:
    steps = ((7, 1), (8, 10), (7, 2), (8, 20))
    return [
        (await pipeline({"data": np.array([[value]], np.float32)}, sequence=sequence))[
            "result"
        ].tolist()
        for sequence, value in steps
    ]


SUMS = [[[1, 7]], [[10, 8]], [[3, 7]], [[30, 8]]]


async def test_a_model_comes_with_its_controls_and_state() -> None:
    change = override(
        {"control_input": CONTROLS, "state": [STATE], "max_sequence_idle_microseconds": 9_000_000}
    )
    (config,) = change.materialise()
    async with Pipeline(config) as pipeline:
        change.check_tensors(pipeline)
        metadata = metadata_of(Model(pipeline), ["1"])
        with pytest.raises(InvalidRequest, match="whole numbers"):
            await pipeline({"data": np.array([[1]], np.float32)}, sequence="cam-7")
        assert pipeline.sequences is not None and pipeline.sequences.is_empty
        assert await sums_of(pipeline) == SUMS
    assert [one["name"] for one in metadata["inputs"]] == ["X"]
    assert [one["name"] for one in metadata["outputs"]] == ["Y"]


async def test_controls_and_states_of_a_file_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sum.onnx").write_bytes(running_sum())
    state = {"input": "SUM", "output": "SUM_OUT"}
    sequence = {"idle_timeout": 9, "controls": {"start": "START", "id": "ID"}, "state": [state]}
    node = {"backend": "OnnxTensor", "model": str(tmp_path / "sum.onnx"), "sequence": sequence}
    async with Pipeline.load({"node": node}) as pipeline:
        reported = config_of(Model(pipeline))
        assert await sums_of(pipeline) == SUMS
        other = override({"state": [{**STATE, "output_name": "Y"}]})
        with pytest.raises(InvalidRequest, match="'state' of 'sequence_batching'"):
            other.check_tensors(pipeline)
    batching = as_message(reported).sequence_batching
    assert batching.max_sequence_idle_microseconds == 9_000_000
    start, identity = (one.control[0] for one in batching.control_input)
    assert list(start.int32_false_true) == [0, 1]
    assert identity.data_type == messages.TYPE_UINT64
    (kept,) = batching.state
    assert (kept.input_name, kept.output_name, list(kept.dims)) == ("SUM", "SUM_OUT", [1])
    assert kept.data_type == messages.TYPE_FP32 and kept.initial_state[0].zero_data


@pytest.mark.parametrize(
    ("batching", "said"),
    [
        ({"control_input": [{"name": "A", "control": [{"kind": "OTHER"}]}]}, "kind"),
        ({"control_input": [{"control": [{}]}]}, "name"),
        ({"state": [{"input_name": "A"}]}, "output_name"),
        ({"state": [{**STATE, "initial_state": [{"data_file": "../x"}]}]}, "data_file"),
        ({"state": [{**STATE, "dims": [-2]}]}, "dims"),
        ({"state": [{**STATE, "data_type": "TYPE_X"}]}, "TYPE_X"),
        (
            {"control_input": [{"name": "A", "control": [{"int32_false_true": [1]}]}]},
            "int32_false_true",
        ),
    ],
)
def test_a_model_with_a_malformed_table_is_refused(batching: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        override(batching).materialise()
