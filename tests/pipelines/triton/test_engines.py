"""Triton's onnxruntime, pytorch and tensorrt backends: their names, shapes and parameters."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.errors import BackendError, ConfigError
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.triton.completion import complete
from penstock.pipelines.triton.folders import model_folder
from penstock.pipelines.triton.read import read_version, written_config
from penstock.pipelines.triton.translation import onnx as translation

LOOPS = ("uvloop",)

FLOAT = TensorProto.FLOAT
HAS_TORCH = find_spec("torch") is not None


def onnx_model(path: Path, nodes: Any, inputs: Any, outputs: Any, initializers: Any = ()) -> None:
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(value, name) for name, value in initializers],
    )
    opset = helper.make_opsetid("", 17)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


def read(folder: Path, config: str) -> Any:
    (folder / "config.pbtxt").write_text(config)
    model = model_folder(folder)
    assert model is not None
    return read_version(written_config(model), model, "1")


def keys(config: Any) -> Any:
    """Return the parameters of the one node."""
    (node,) = config.nodes.values()
    spec = node.instance_groups[0].spec
    return spec.name, spec.params


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """sum = a + b; difference = a - b, of Nx2."""
    onnx_model(
        tmp_path / "pair" / "1" / "model.onnx",
        [("Add", ["a", "b"], ["sum"]), ("Sub", ["a", "b"], ["difference"])],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])],
        [("sum", FLOAT, ["n", 2]), ("difference", FLOAT, ["n", 2])],
    )
    return tmp_path / "pair"


PAIR = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "b" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 2 ] } },
        { name: "a" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "difference" data_type: TYPE_FP32 dims: [ 1, 2 ] reshape { shape: [ 2 ] } } ]
"""


async def test_an_onnx_model_in_the_order_and_shapes_of_its_configuration(pair: Path) -> None:
    config = read(pair, PAIR)
    async with Pipeline(config) as pipeline:
        b, a = np.ones((1, 2, 1), np.float32), np.full((1, 2), 3, np.float32)
        result = (await pipeline({"data": [b, a]}))["result"]
    assert result.tolist() == [[[2, 2]]]


def test_options_of_onnx_runtime(pair: Path) -> None:
    name, params = keys(
        read(
            pair,
            PAIR
            + """
            optimization { graph { level: 2 } }
            parameters { key: "intra_op_thread_count" value { string_value: "3" } }
            parameters { key: "inter_op_thread_count" value { string_value: "2" } }
            parameters { key: "execution_mode" value { string_value: "1" } }
            parameters { key: "enable_mem_arena" value { string_value: "0" } }
            parameters { key: "enable_mem_pattern" value { string_value: "false" } }
            parameters { key: "memory.enable_memory_arena_shrinkage"
                         value { string_value: "cpu:0;gpu:0" } }
            parameters { key: "gpu_mem_limit" value { string_value: "1000" } }
            instance_group { kind: KIND_GPU gpus: 0 }
            """,
        )
    )
    assert name == "OnnxTensor"
    assert (params.threads, params.inter_op_thread_count, params.execution_mode) == (
        3,
        2,
        "parallel",
    )
    assert not params.enable_mem_arena and not params.enable_mem_pattern
    assert params.shrink_mem_arena and params.graph_optimization_level == "disabled"
    assert params.arena_limit == 1


def accelerator(name: str, **parameters: str) -> str:
    lines = "".join(
        f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()
    )
    kind = "cpu" if name == "openvino" else "gpu"
    return (
        f"optimization {{ execution_accelerators {{ {kind}_execution_accelerator {{ "
        f'name: "{name}" {lines} }} }} }}'
    )


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_that_only_tensorrt_may_use(
    pair: Path, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    for module in (complete, translation):
        monkeypatch.setattr(module, "gpu_count", lambda: gpus)
    config = read(
        pair, PAIR + accelerator("tensorrt") + "instance_group { kind: KIND_GPU gpus: 0 }"
    )
    (node,) = config.nodes.values()
    assert keys(config)[0] == "ModelTensor"
    warnings = [warning.partition("runs on the CPU: ")[2] for warning in config.warnings]
    assert warnings == ([] if gpus else ["there is no GPU here"])
    assert node.devices == (() if gpus else ("cpu",))


def test_accelerators(pair: Path) -> None:
    options = {"precision_mode": "FP16", "max_workspace_size_bytes": "1073741824"}
    name, params = keys(read(pair, PAIR + accelerator("tensorrt", **options)))
    assert (name, params.precision, params.max_workspace_size) == ("ModelTensor", "fp16", 1024)
    on_cpu = "instance_group { kind: KIND_CPU }"
    assert keys(read(pair, PAIR + accelerator("tensorrt", **options) + on_cpu))[0] == "OnnxTensor"
    assert keys(read(pair, PAIR + accelerator("openvino")))[0] == "ModelTensor"
    options = {"gpu_mem_limit": "2097152", "arena_extend_strategy": "kNextPowerOfTwo"}
    name, params = keys(read(pair, PAIR + accelerator("cuda", prefer_nhwc="1", **options)))
    assert (name, params.arena_limit) == ("OnnxTensor", 2)
    assert params.arena_extend_strategy == "next_power_of_two"
    unlimited = 'parameters { key: "gpu_mem_limit" value { string_value: "18446744073709551615" } }'
    params = keys(read(pair, PAIR + accelerator("cuda", **options) + unlimited))[1]
    assert params.arena_limit is None  # what is no accelerator's counts more
    config = PAIR.replace("dims: [ 2 ]", "dims: [ -1 ]")
    assert keys(read(pair, config + accelerator("tensorrt")))[0] == "OnnxTensor"
    shapes = {"trt_profile_max_shapes": "a:8x2,b:8x2", "trt_profile_min_shapes": "a:1x2,b:1x2"}
    name, params = keys(read(pair, config + accelerator("tensorrt", **shapes)))
    assert (name, params.max, params.min) == ("ModelTensor", "8x2,8x2", "1x2,1x2")
    for wrong in (
        accelerator("tensorrt", precision_mode="INT8"),
        accelerator("tensorrt", trt_dla_enable="1"),
        accelerator("tensorrt", max_workspace_size_bytes="1G"),
        accelerator("cuda", gpu_mem_limit="1G"),
        accelerator("cuda", cudnn_conv_algo_search="BEST"),
        accelerator("migraphx"),
        accelerator("openvino").replace("openvino", "armnn"),
    ):
        with pytest.raises(ConfigError, match="execution_accelerators"):
            read(pair, PAIR + wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", 'parameters { key: "execution_mode" value { string_value: "2" } }', "expected 0 to 1"),
        ("", 'parameters { key: "enable_mem_arena" value { string_value: "on" } }', "true, false"),
        (
            "",
            'parameters { key: "intra_op_thread_count" value { string_value: "x" } }',
            "a whole number",
        ),
        ('name: "a"', 'name: "c"', r"input\[1\]\.name.* expected one of a, b"),
        (
            'name: "a" data_type: TYPE_FP32',
            'name: "a" data_type: TYPE_INT64',
            r"input\[1\]\.data_type.* found TYPE_INT64 for 'a', and the model has TYPE_FP32",
        ),
        ('"a" data_type: TYPE_FP32 dims: [ 2', '"a" data_type: TYPE_FP32 dims: [ 3', r"\[3\]"),
        ('"a"', '"a" optional: true', "max_batch_size 0"),
        (
            '"difference"',
            '"difference" label_filename: "x.txt"',
            r"^[^\n]*output\[0\]\.label_filename: there is no file 'x.txt' in the model's folder$",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_its_model(
    pair: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(pair, PAIR.replace(old, new, 1) if old else PAIR + new)


async def test_a_scalar_has_shape_1_for_clients(tmp_path: Path) -> None:
    """Triton's configurations can't write a shape without sizes. The model lies in a folder."""
    onnx_model(
        tmp_path / "add" / "1" / "model.onnx" / "model.onnx",
        [("Add", ["x", "y"], ["z"])],
        [("x", FLOAT, []), ("y", FLOAT, [2])],
        [("z", FLOAT, [2])],
    )
    config = read(
        tmp_path / "add",
        """
        platform: "onnxruntime_onnx"
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] },
                { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
        output [ { name: "z" data_type: TYPE_FP32 dims: [ 2 ] } ]
        """,
    )
    async with Pipeline(config) as pipeline:
        data = [np.ones(1, np.float32), np.zeros(2, np.float32)]
        assert (await pipeline({"data": data}))["result"].tolist() == [1, 1]


IMAGES = """
backend: "onnxruntime" max_batch_size: 4
input [ { name: "left" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] },
        { name: "scale" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } ]
parameters { key: "penstock_decode" value { string_value: "imagenet" } }
"""


def test_images_may_come_encoded(tmp_path: Path) -> None:
    onnx_model(
        tmp_path / "images" / "1" / "model.onnx",
        [("Mul", ["left", "wide"], ["y"]), ("Unsqueeze", ["scale", "axes"], ["wide"])][::-1],
        [("left", FLOAT, ["n", 3, 8, 8]), ("scale", FLOAT, ["n", 1])],
        [("y", FLOAT, ["n", 3, 8, 8])],
        [("axes", np.array([2, 3]))],
    )
    left, scale = read(tmp_path / "images", IMAGES).inputs
    assert left.decode.shape == (3, 8, 8) and left.decode.mean[0] == 123.675
    assert scale.decode is None
    named = IMAGES.replace('"imagenet"', '"left=unit"')
    assert read(tmp_path / "images", named).inputs[0].decode.std == (255.0,)
    for wrong in ("right=unit", "left=sepia", "scale=unit"):
        with pytest.raises(ConfigError, match=r"penstock_decode|inputs\.(left|scale)"):
            read(tmp_path / "images", IMAGES.replace('"imagenet"', f'"{wrong}"'))
    two = IMAGES.replace("dims: [ 1 ]", "dims: [ 3, 2, 2 ]")
    with pytest.raises(ConfigError, match=r"penstock_decode.*inputs of left, scale"):
        read(tmp_path / "images", two)


def test_a_model_of_openvino(pair: Path) -> None:
    (pair / "1" / "model.xml").write_text("<net/>")
    more = """
    parameters { key: "INFERENCE_NUM_THREADS" value { string_value: "1" } }
    parameters { key: "HINT_BF16" value { string_value: "YES" } }
    instance_group { kind: KIND_GPU gpus: 0 }
    """
    name, params = keys(read(pair, PAIR.replace("onnxruntime", "openvino") + more))
    assert (name, params.model, params.threads) == ("OpenvinoTensor", "1/model.xml", 1)
    assert (params.inputs, params.outputs, params.precision) == (
        ("b", "a"),
        ("difference",),
        "bf16",
    )


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
async def test_a_torchscript_model_with_its_parameters(tmp_path: Path) -> None:
    import torch

    class Pair(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a - b

    (tmp_path / "pair" / "1").mkdir(parents=True)
    jit: Any = torch.jit
    ones = torch.ones(2, 2)
    jit.trace(Pair(), (ones, ones)).save(str(tmp_path / "pair" / "1" / "model.pt"))
    config = read(
        tmp_path / "pair",
        """
        platform: "pytorch_libtorch"
        max_batch_size: 4
        input [ { name: "INPUT__1" data_type: TYPE_FP32 dims: [ 2 ] },
                { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] } ]
        output [ { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 2 ] } ]
        model_warmup { name: "ones" batch_size: 1
          inputs { key: "INPUT__0" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } }
          inputs { key: "INPUT__1" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } } }
        parameters { key: "INFERENCE_MODE" value { string_value: "false" } }
        parameters { key: "DISABLE_OPTIMIZED_EXECUTION" value { string_value: "true" } }
        parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }
        parameters { key: "INTER_OP_THREAD_COUNT" value { string_value: "0" } }
        """,
    )
    _, params = keys(config)
    assert not params.inference_mode and params.disable_optimized_execution
    assert (params.intra_op_thread_count, params.inter_op_thread_count) == (1, None)
    async with Pipeline(config) as pipeline:
        item = {"data": [np.ones((1, 2), np.float32), np.full((1, 2), 3, np.float32)]}
        assert (await pipeline(item))["result"].tolist() == [[2, 2]]


def test_engines_of_tensorrt_and_packages_of_torch(tmp_path: Path) -> None:
    tensors = """
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
    """
    for backend, file, expected in (
        ("tensorrt", "model.plan", "TensorrtTensor"),
        ("pytorch", "model.pt2", "TorchExportTensor"),
    ):
        folder = tmp_path / backend
        (folder / "1").mkdir(parents=True)
        (folder / "1" / file).write_bytes(b"")
        config = f'backend: "{backend}" default_model_filename: "{file}" {tensors}'
        name, params = keys(read(folder, config))
        assert (name, params.model, params.inputs) == (expected, f"1/{file}", ("x",))
        assert params.batched is False
    _, params = keys(read(folder, config.replace("TYPE_FP32", "TYPE_BF16", 1)))
    assert params.dtypes == {"x": "bfloat16"}


SAMPLES = """
model_warmup {
  name: "good" batch_size: 2
  inputs { key: "a" value { data_type: TYPE_FP32 dims: [ 2 ] random_data: true } }
  inputs { key: "b" value { data_type: TYPE_FP32 dims: [ 2, 1 ] input_data_file: "b" } }
}
model_warmup { name: "none" }
"""
TEXT_SAMPLE = """
model_warmup {
  name: "bad" batch_size: 1 count: 3
  inputs { key: "a" value { data_type: TYPE_STRING dims: [ 1 ] zero_data: true } }
}
"""


async def test_samples_for_warming_up(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pair / "warmup").mkdir()
    (pair / "warmup" / "b").write_bytes(np.ones(2, "<f4").tobytes())
    config = read(pair, PAIR + SAMPLES)
    (good,) = keys(config)[1].warm_up
    assert (good.name, good.batch_size, good.count) == ("good", 2, 1)
    async with Pipeline(config):
        assert "not warmed up" not in caplog.text
    with pytest.raises(BackendError, match=r"the sample bad failed: .*input b is missing"):
        async with Pipeline(read(pair, PAIR + TEXT_SAMPLE)):
            pass
    for old, new, field in (
        ("dims: [ 1 ]", "dims: [ -1 ]", "dims"),
        ("data_type: TYPE_STRING ", "", "data_type"),
        ("zero_data: true", "", "zero_data"),
    ):
        with pytest.raises(ConfigError, match=rf"model_warmup.*inputs\.a.*{field}"):
            read(pair, PAIR + TEXT_SAMPLE.replace(old, new))


COUNTING = """
class TritonPythonModel:
    def execute(self, requests):
        tensors = [request.inputs()[0].as_numpy() for request in requests]
        raise ValueError(f"{len(requests)} of {tensors[0].shape}")
"""


async def test_samples_run_in_python_models_too(tmp_path: Path) -> None:
    folder = tmp_path / "counting"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(COUNTING)
    config = """
    backend: "python" max_batch_size: 8
    input [ { name: "x" data_type: TYPE_INT32 dims: [ -1 ] } ]
    output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
    parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }
    model_warmup { name: "three" batch_size: 3
      inputs { key: "x" value { data_type: TYPE_INT32 dims: [ 5 ] zero_data: true } } }
    """
    with pytest.raises(BackendError, match=r"the sample three failed: .*3 of \(1, 5\)"):
        async with Pipeline(read(folder, config)):
            pass


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
async def test_a_package_of_torch(tmp_path: Path) -> None:
    import torch

    class Pair(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a - b

    (tmp_path / "pair" / "1").mkdir(parents=True)
    program = torch.export.export(Pair(), (torch.ones(1, 2), torch.ones(1, 2)))
    torch.export.save(program, tmp_path / "pair" / "1" / "model.pt2")
    config = """
    backend: "pytorch" platform: "torch_aoti"
    input [ { name: "ARGS[1]" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 1, 2 ] } },
            { name: "ARGS[0]" data_type: TYPE_FP32 dims: [ 1, 2 ] } ]
    output [ { name: "RESULT[1]" data_type: TYPE_FP32 dims: [ 1, 2 ] } ]
    """
    async with Pipeline(read(tmp_path / "pair", config)) as pipeline:
        item = {"data": [np.ones((2, 1), np.float32), np.full((1, 2), 3, np.float32)]}
        assert (await pipeline(item))["result"].tolist() == [[2, 2]]
    with pytest.raises(ConfigError, match=r"found 'KWARGS\[b\]', expected its place"):
        read(tmp_path / "pair", config.replace("ARGS[1]", "KWARGS[b]"))
