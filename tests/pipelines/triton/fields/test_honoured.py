"""What the table of fields calls honoured has an effect: the pipeline is another one with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.fields.treatments import Treatment
from penstock.pipelines.triton.reading import parse_config
from penstock.pipelines.triton.translation.translate import translate

A, B, Y, Z = (f'{{ name: "{name}" data_type: TYPE_FP32 dims: 4 }}' for name in "ABYZ")
TENSORS = f"input [ {A}, {B} ] output [ {Y}, {Z} ]"
ONNX = f'backend: "onnxruntime" max_batch_size: 8 {TENSORS}'
TORCH = f'backend: "pytorch" max_batch_size: 8 {TENSORS}'
OPENVINO = f'backend: "openvino" max_batch_size: 8 {TENSORS}'
PYTHON = f'backend: "python" max_batch_size: 8 {TENSORS}'
HIDDEN = f'backend: "onnxruntime" max_batch_size: 8 input {A} output {Y}'
"""A model whose input B and output Z are no client's."""

Case = tuple[str, str, str]
"""A configuration, a text in it, and what stands in the text's place in another configuration."""


def added(base: str, text: str, *, to: str = "") -> Case:
    """Add `text` to a configuration that ends with `to`."""
    whole = f"{base} {to}"
    return (whole, to, text) if to else (whole, whole, f"{whole} {text}")


def parameter(base: str, key: str, value: str) -> Case:
    return added(base, f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')


def of_sample(more: str, data: str = "zero_data: true", base: str = "") -> Case:
    def sample(more: str, data: str) -> str:
        inputs = " ".join(
            f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: 4 {of} }} }}'
            for name, of in (("A", data), ("B", "zero_data: true"))
        )
        return f'model_warmup {{ name: "w" {more} {inputs} }}'

    before = sample(base or "batch_size: 1", "zero_data: true")
    return added(ONNX, sample(more, data), to=before)


def of_sequences(base: str, text: str, model: str = PYTHON) -> Case:
    return added(model, f"sequence_batching {{ {text} }}", to=f"sequence_batching {{ {base} }}")


def of_batches(base: str, text: str) -> Case:
    return added(ONNX, f"dynamic_batching {{ {text} }}", to=f"dynamic_batching {{ {base} }}")


LEVELS = "priority_levels: 2 default_priority_level: 1"


def control(kind: str, values: str) -> str:
    return f'control_input {{ name: "B" control {{ kind: CONTROL_SEQUENCE_{kind} {values} }} }}'


def state(more: str = "", *, output: str = "Z") -> str:
    return (
        f'state {{ input_name: "B" output_name: "{output}" data_type: TYPE_FP32 dims: 4 {more} }}'
    )


def initial(data: str) -> str:
    return f'initial_state {{ name: "first" data_type: TYPE_FP32 dims: 4 {data} }}'


START = control("START", "fp32_false_true: [0, 1]")


def mapped(kind: str, *names: str) -> str:
    return " ".join(f'{kind}_map {{ key: "{name}" value: "{name}" }}' for name in names)


ENSEMBLE = f"""
    platform: "ensemble" max_batch_size: 8 {TENSORS}
    ensemble_scheduling {{ step {{
        model_name: "model" model_version: 1 {mapped("input", *"AB")} {mapped("output", *"YZ")}
    }} }}
"""
ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"
ACCELERATED = f"""
    {ONNX}
    optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "tensorrt" }} }} }}
"""

CASES: Mapping[str, Case] = {
    "max_batch_size": (ONNX, "max_batch_size: 8", "max_batch_size: 4"),
    "default_model_filename": added(ONNX, 'default_model_filename: "other.onnx"'),
    "version_policy.latest.num_versions": added(
        ONNX, "version_policy { latest { num_versions: 2 } }"
    ),
    "version_policy.all": added(ONNX, "version_policy { all { } }"),
    "version_policy.specific.versions": added(ONNX, "version_policy { specific { versions: 1 } }"),
    "input.name": (PYTHON, '"B"', '"C"'),
    "input.data_type": (PYTHON, '"B" data_type: TYPE_FP32', '"B" data_type: TYPE_INT32'),
    "input.dims": (PYTHON, '"B" data_type: TYPE_FP32 dims: 4', '"B" data_type: TYPE_FP32 dims: 5'),
    "input.reshape.shape": (
        ONNX,
        '"B" data_type: TYPE_FP32 dims: 4',
        '"B" data_type: TYPE_FP32 dims: [2, 2] reshape { shape: 4 }',
    ),
    "input.optional": (
        PYTHON,
        '"B" data_type: TYPE_FP32',
        '"B" optional: true data_type: TYPE_FP32',
    ),
    "output.name": (PYTHON, '"Z"', '"C"'),
    "output.data_type": (PYTHON, '"Z" data_type: TYPE_FP32', '"Z" data_type: TYPE_INT32'),
    "output.dims": (PYTHON, '"Z" data_type: TYPE_FP32 dims: 4', '"Z" data_type: TYPE_FP32 dims: 5'),
    "output.reshape.shape": (
        ONNX,
        '"Z" data_type: TYPE_FP32 dims: 4',
        '"Z" data_type: TYPE_FP32 dims: [2, 2] reshape { shape: 4 }',
    ),
    "output.label_filename": (ONNX, '"Z"', '"Z" label_filename: "labels.txt"'),
    "optimization.graph.level": added(ONNX, "optimization { graph { level: 1 } }"),
    "dynamic_batching": added(ONNX, "dynamic_batching { }"),
    "dynamic_batching.priority_levels": of_batches("", LEVELS),
    "dynamic_batching.default_priority_level": of_batches(LEVELS, LEVELS.replace("l: 1", "l: 2")),
    **{
        f"dynamic_batching.{path}.{field}": of_batches(
            f"{LEVELS} {begin} default_timeout_microseconds: 10 {end}",
            f"{LEVELS} {begin} default_timeout_microseconds: {later} {more} {end}",
        )
        for path, begin, end in (
            ("default_queue_policy", "default_queue_policy {", "}"),
            ("priority_queue_policy.*", "priority_queue_policy { key: 2 value {", "} }"),
        )
        for field, later, more in (
            ("timeout_action", 10, "timeout_action: DELAY"),
            ("default_timeout_microseconds", 20, ""),
            ("max_queue_size", 10, "max_queue_size: 3"),
        )
    },
    "sequence_batching": added(PYTHON, "sequence_batching { }"),
    "sequence_batching.direct": of_sequences("", "direct { }"),
    "sequence_batching.oldest.max_candidate_sequences": of_sequences(
        "oldest { max_candidate_sequences: 4 }", "oldest { max_candidate_sequences: 5 }"
    ),
    "sequence_batching.max_sequence_idle_microseconds": of_sequences(
        "", "max_sequence_idle_microseconds: 7000000"
    ),
    "sequence_batching.control_input.name": of_sequences(state(), START, HIDDEN),
    "sequence_batching.control_input.control.kind": of_sequences(
        START, control("END", "fp32_false_true: [0, 1]"), HIDDEN
    ),
    "sequence_batching.control_input.control.bool_false_true": of_sequences(
        START, control("START", "bool_false_true: [false, true]"), HIDDEN
    ),
    "sequence_batching.control_input.control.int32_false_true": of_sequences(
        START, control("START", "int32_false_true: [0, 1]"), HIDDEN
    ),
    "sequence_batching.control_input.control.data_type": of_sequences(
        control("CORRID", "data_type: TYPE_UINT64"),
        control("CORRID", "data_type: TYPE_INT32"),
        HIDDEN,
    ),
    "sequence_batching.control_input.control.fp32_false_true": of_sequences(
        START, control("START", "fp32_false_true: [1, 2]"), HIDDEN
    ),
    "sequence_batching.state.input_name": of_sequences(START, state(), HIDDEN),
    "sequence_batching.state.output_name": of_sequences(
        state(), state(output="Y"), HIDDEN.replace('"Y"', '"Z"')
    ),
    "sequence_batching.state.data_type": of_sequences(
        state(), state().replace("FP32", "FP16"), HIDDEN
    ),
    "sequence_batching.state.dims": of_sequences(
        state(), state().replace("dims: 4", "dims: 5"), HIDDEN
    ),
    "sequence_batching.state.initial_state.dims": of_sequences(
        state(initial("zero_data: true")).replace("dims: 4", "dims: -1", 1),
        state(initial("zero_data: true").replace("dims: 4", "dims: 5")).replace(
            "dims: 4", "dims: -1", 1
        ),
        HIDDEN,
    ),
    "sequence_batching.state.initial_state.data_file": of_sequences(
        state(initial("zero_data: true")), state(initial('data_file: "state"')), HIDDEN
    ),
    "ensemble_scheduling.step.model_name": (ENSEMBLE, '"model"', '"other"'),
    "ensemble_scheduling.step.model_version": (ENSEMBLE, "model_version: 1", "model_version: 2"),
    "ensemble_scheduling.step.input_map": (ENSEMBLE, 'value: "B"', 'value: "A"'),
    "ensemble_scheduling.step.output_map": (ENSEMBLE, 'value: "Z"', 'value: "X"'),
    **{
        f"{ACCELERATOR}.parameters.{key}": (
            ACCELERATED,
            'name: "tensorrt"',
            f'name: "tensorrt" parameters {{ key: "{key}" value: "{value}" }}',
        )
        for key, value in {
            "max_workspace_size_bytes": "1073741824",
            "trt_profile_min_shapes": "A:2x4,B:2x4",
            "trt_profile_max_shapes": "A:4x4,B:4x4",
            "trt_engine_cache_path": (
                'engines" } parameters { key: "trt_engine_cache_enable" value: "1'
            ),
        }.items()
    },
    **{
        f"{ACCELERATOR}.parameters.{key}": (
            ACCELERATED.replace("tensorrt", "cuda"),
            'name: "cuda"',
            f'name: "cuda" parameters {{ key: "{key}" value: "{value}" }}',
        )
        for key, value in {
            "gpu_mem_limit": "1073741824",
            "arena_extend_strategy": "kNextPowerOfTwo",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
            "enable_cuda_graph": "0",
        }.items()
    },
    "instance_group.kind": added(PYTHON, "instance_group { kind: KIND_MODEL count: 2 }"),
    "instance_group.count": added(ONNX, "instance_group { kind: KIND_CPU count: 3 }"),
    "instance_group.gpus": added(PYTHON, "instance_group { kind: KIND_GPU gpus: 1 }"),
    "model_transaction_policy.decoupled": added(
        PYTHON, "model_transaction_policy { decoupled: true }"
    ),
    "model_warmup.batch_size": of_sample("batch_size: 2"),
    "model_warmup.inputs.*.random_data": of_sample("batch_size: 1", "random_data: true"),
    "model_warmup.inputs.*.input_data_file": of_sample("batch_size: 1", 'input_data_file: "in"'),
    "model_warmup.count": of_sample("batch_size: 1 count: 3"),
    "response_cache.enable": added(ONNX, "response_cache { enable: true }"),
    "parameters.penstock_decode": parameter(
        PYTHON.replace("dims: 4", "dims: [3, 8, 8]", 1), "penstock_decode", "A=imagenet"
    ),
    "parameters.PENSTOCK_EXECUTOR": parameter(PYTHON, "PENSTOCK_EXECUTOR", "thread"),
    **{
        f"parameters.{key}": parameter(ONNX, key, value)
        for key, value in {
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "3",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "0",
            "memory.enable_memory_arena_shrinkage": "cpu:0",
            "cudnn_conv_algo_search": "1",
            "gpu_mem_limit": "1073741824",
            "arena_extend_strategy": "0",
        }.items()
    },
    **{
        f"parameters.{key}": parameter(OPENVINO, key, value)
        for key, value in {
            "INFERENCE_NUM_THREADS": "3",
            "CPU_THREADS_NUM": "3",
            "ENFORCE_BF16": "YES",
            "HINT_BF16": "YES",
            "CPU_BIND_THREAD": "YES",
        }.items()
    },
    **{
        f"parameters.{key}": parameter(TORCH, key, value)
        for key, value in {
            "DISABLE_OPTIMIZED_EXECUTION": "true",
            "INFERENCE_MODE": "false",
            "DISABLE_CUDNN": "true",
            "ENABLE_WEIGHT_SHARING": "false",
            "ENABLE_CACHE_CLEANING": "true",
            "INTER_OP_THREAD_COUNT": "3",
            "INTRA_OP_THREAD_COUNT": "3",
            "ENABLE_JIT_EXECUTOR": "false",
            "ENABLE_JIT_PROFILING": "false",
            "ENABLE_TENSOR_FUSER": "false",
        }.items()
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model of two inputs and two outputs. Return its folder."""
    folder = tmp_path_factory.mktemp("repository") / "model"
    for version in ("1", "2"):
        (folder / version).mkdir(parents=True)
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in names]
        for names in ("AB", "YZ")
    )
    nodes = [
        helper.make_node("Add", ["A", "B"], ["Y"]),
        helper.make_node("Sub", ["A", "B"], ["Z"]),
    ]
    graph = helper.make_graph(nodes, "both", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for name in ("model.onnx", "other.onnx"):
        onnx.save(model, folder / "1" / name)
    for name in ("model.pt", "model.xml"):
        (folder / "1" / name).touch()
    (folder / "1" / "model.py").write_text("class TritonPythonModel:\n    pass\n")
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    for name in ("warmup/in", "initial_state/state"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(bytes(16))
    return folder


def built(text: str, folder: Path) -> tuple[Any, Any]:
    """Translate a configuration. Return its nodes, without what a Python model is told of the
    configuration, and its `[pipeline]`.
    """
    tables = translate(parse_config(text), folder, "1")
    assert tables.problems == []
    nodes = {
        name: {key: value for key, value in table.items() if key != "model_config"}
        for name, table in tables.nodes.items()
    }
    return nodes, tables.pipeline


@pytest.mark.parametrize("field", CASES)
def test_a_field_that_is_honoured_changes_the_pipeline(field: str, folder: Path) -> None:
    text, old, new = CASES[field]
    other = text.replace(old, new)
    assert other != text
    assert built(text, folder) != built(other, folder)


NOT_TRIED: Mapping[str, str] = {
    "name": "it is the folder's",
    "platform": "it chooses the backend, as the tests of each do",
    "backend": "it chooses what translates the rest, as the tests of each do",
    "input.allow_ragged_batch": "a Python model gets each request's own tensors anyway",
    "optimization.cuda.graphs": "graphs are captured without it, too",
    "sequence_batching.iterative_sequence": "false is as if it were not there",
    "sequence_batching.state.initial_state.data_type": "it is the state's",
    "sequence_batching.state.initial_state.zero_data": "zeros are the default",
    "model_warmup.name": "errors and logs have it",
    "model_warmup.inputs.*.data_type": "it is the input's",
    "model_warmup.inputs.*.dims": "they are those of the input",
    "model_warmup.inputs.*.zero_data": "zeros are the default",
    "parameters.*": "test_python has models that read them",
    "parameters.FORCE_CPU_ONLY_INPUT_TENSORS": "inputs are always on the CPU",
}
"""Fields that change no key of the pipeline, and why."""


def test_each_honoured_field_is_tried() -> None:
    honoured = {
        path
        for path, lines in FIELDS.items()
        if any(line.treatment is Treatment.HONOURED for line in lines)
    }
    containers = {path for path in honoured if any(case.startswith(f"{path}.") for case in FIELDS)}
    assert honoured - containers == (CASES.keys() | NOT_TRIED.keys()) - containers
    assert not CASES.keys() & NOT_TRIED.keys()
