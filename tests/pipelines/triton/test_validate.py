"""What Triton would refuse in a configuration. Its `qa/L0_model_config` names most of the cases."""

from pathlib import Path

import pytest

from penstock.pipelines.triton.model import TritonModel
from penstock.pipelines.triton.reading import parse_config
from penstock.pipelines.triton.validate import validate

TENSORS = """
    input { name: "IN" data_type: TYPE_FP32 dims: 4 }
    output { name: "OUT" data_type: TYPE_FP32 dims: 4 }
"""
MODEL = f'name: "m" backend: "onnxruntime" max_batch_size: 8 {TENSORS}'
SINGLE = f'name: "m" backend: "onnxruntime" {TENSORS}'
SEQUENCES = f'name: "m" backend: "python" max_batch_size: 8 {TENSORS} sequence_batching'


def problems_of(text: str) -> list[tuple[str, str]]:
    config = parse_config(text)
    model = TritonModel(Path("m"), "1", config, config, "m/config.pbtxt")
    return [(problem.key, problem.message) for problem in validate(model)]


def tensor(dims: str, shape: str) -> str:
    """Return an input whose dims are reshaped."""
    return (
        f'input {{ name: "X" data_type: TYPE_FP32 dims: [{dims}] reshape {{ shape: [{shape}] }} }}'
    )


def policies(ordering: str) -> str:
    return f"{MODEL} dynamic_batching {{ preserve_ordering: true {ordering} }}"


def control(kind: str, values: str = "int32_false_true: [0, 1]", name: str = "START") -> str:
    return f'control_input {{ name: "{name}" control {{ kind: {kind} {values} }} }}'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (f'name: "m" {TENSORS}', "backend"),
        (f"{MODEL} platform: 'pytorch_libtorch'", "platform"),
        (MODEL.replace("8", "-1"), "max_batch_size"),
        (f"{MODEL} input {{ name: 'IN' data_type: TYPE_FP32 dims: 4 }}", "input[1].name"),
        (f"{MODEL} input {{ data_type: TYPE_FP32 dims: 1 }}", "input[1].name"),
        (f"{MODEL} input {{ name: 'X' dims: 1 }}", "input[1].data_type"),
        (f"{MODEL} input {{ name: 'X' data_type: TYPE_FP32 }}", "input[1].dims"),
        (f"{MODEL} output {{ name: 'X' data_type: TYPE_FP32 dims: 0 }}", "output[1].dims"),
        (f"{MODEL} input {{ name: 'X' data_type: TYPE_FP32 dims: [1, -2] }}", "input[1].dims"),
        (
            f"{MODEL} input {{ name: 'X' data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW }}",
            "input[1].format",
        ),
        (f"{MODEL} {tensor('4', '2, 3')}", "input[1].reshape.shape"),
        (f"{MODEL} {tensor('4', '')}", "input[1].reshape.shape"),
        (f"{MODEL} {tensor('4', '4, 0')}", "input[1].reshape.shape"),
        (f"{MODEL} {tensor('2, -1', '-1')}", "input[1].reshape.shape"),
        (f"{MODEL} {tensor('-1, 2, -1', '-1, -1, 2')}", "input[1].reshape.shape"),
        (f"{SINGLE} {tensor('1', '')}", "input[1].reshape.shape"),
        (
            f"{MODEL} dynamic_batching {{ preferred_batch_size: [4, 9] }}",
            "dynamic_batching.preferred_batch_size",
        ),
        (
            f"{MODEL} dynamic_batching {{ priority_levels: 3 }}",
            "dynamic_batching.default_priority_level",
        ),
        (
            f"{MODEL} dynamic_batching {{ priority_levels: 3 default_priority_level: 4 }}",
            "dynamic_batching.default_priority_level",
        ),
        (
            f"{MODEL} dynamic_batching {{ priority_levels: 3 default_priority_level: 1 "
            "priority_queue_policy { key: 4 value { max_queue_size: 1 } } }",
            "dynamic_batching.priority_queue_policy.4",
        ),
        (
            policies("priority_levels: 2 default_priority_level: 1"),
            "dynamic_batching.priority_levels",
        ),
        (
            policies(
                "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }"
            ),
            "dynamic_batching.default_queue_policy.timeout_action",
        ),
        (
            policies(
                "priority_queue_policy { key: 1 value { timeout_action: DELAY "
                "default_timeout_microseconds: 1 } }"
            ),
            "dynamic_batching.priority_queue_policy.1.timeout_action",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_START')} "
            f"{control('CONTROL_SEQUENCE_START', name='START2')} }}",
            "sequence_batching.control_input[1].control[0].kind",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_START')} "
            f"{control('CONTROL_SEQUENCE_END')} }}",
            "sequence_batching.control_input[1].name",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_READY', '')} }}",
            "sequence_batching.control_input[0].control[0]",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_READY', 'int32_false_true: 1')} }}",
            "sequence_batching.control_input[0].control[0].int32_false_true",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_CORRID', 'data_type: TYPE_FP32')} }}",
            "sequence_batching.control_input[0].control[0].data_type",
        ),
        (
            f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_START')} "
            "direct { minimum_slot_utilization: 1.5 } }",
            "sequence_batching.direct.minimum_slot_utilization",
        ),
        (
            f"{SEQUENCES} {{ oldest {{ preferred_batch_size: 9 }} }}",
            "sequence_batching.oldest.preferred_batch_size",
        ),
        (f"{MODEL} ensemble_scheduling {{ step {{ model_name: 'x' }} }}", "ensemble_scheduling"),
        (f"{MODEL} instance_group {{ count: 1025 }}", "instance_group[0].count"),
        (f'name: "m" platform: "ensemble" {TENSORS}', "ensemble_scheduling.step"),
        (
            f'name: "m" platform: "ensemble" backend: "python" {TENSORS} '
            "ensemble_scheduling { step { } }",
            "backend",
        ),
        (
            f'name: "m" platform: "ensemble" {TENSORS} ensemble_scheduling {{ step {{ }} }} '
            "instance_group { count: 1 }",
            "instance_group",
        ),
        (f"{MODEL} instance_group {{ kind: KIND_CPU gpus: 0 }}", "instance_group[0].gpus"),
        (f"{MODEL} instance_group {{ kind: KIND_GPU gpus: -1 }}", "instance_group[0].gpus"),
        (f"{MODEL} instance_group {{ profile: 'x' }}", "instance_group[0].profile"),
        (f"{SEQUENCES} {{ }} response_cache {{ enable: true }}", "response_cache.enable"),
        (
            f"{MODEL} model_metrics {{ metric_control {{ histogram_options {{ buckets: 1 }} }} }}",
            "model_metrics.metric_control[0].metric_identifier.family",
        ),
    ],
)
def test_what_triton_refuses_is_refused_and_named(text: str, field: str) -> None:
    found = problems_of(text)
    assert [key for key, _ in found] == [field]
    assert all("expected" in message or "remove" in message for _, message in found)


@pytest.mark.parametrize(
    "text",
    [
        MODEL,
        f"{MODEL} {tensor('4', '2, 2')}",
        f"{MODEL} {tensor('1', '')}",
        f"{MODEL} {tensor('2, 4, -1, 6', '8, -1, 1, 6')}",
        f"{MODEL} dynamic_batching {{ preferred_batch_size: [4, 8] }}",
        f"{SEQUENCES} {{ {control('CONTROL_SEQUENCE_START')} "
        f"{control('CONTROL_SEQUENCE_CORRID', 'data_type: TYPE_UINT64', 'ID')} direct {{ }} }}",
    ],
)
def test_what_triton_takes_is_taken(text: str) -> None:
    assert problems_of(text) == []
