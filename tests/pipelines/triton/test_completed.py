"""What a configuration leaves out is completed as Triton completes it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper

from penstock import create_app
from penstock.backends.engines.openvino.library import without_telemetry
from penstock.backends.errors import ConfigError
from penstock.pipelines.repository import Repository
from penstock.pipelines.triton.completion import complete
from penstock.pipelines.triton.reading import parse_config
from penstock.pipelines.triton.translation.translate import translate

from ...triton_server import TritonServer, triton_server

LOOPS = ("uvloop",)

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        assert config.as_dict()["instance_group"][0]["count"] >= 1
        config.set_max_batch_size(8)
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(one, "X").as_numpy())]
            )
            for one in requests
        ]
"""

THREAD = 'parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }\n'

WHOLE = (
    THREAD
    + """
name: "whole"
backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] optional: true } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" } ]
dynamic_batching {
  max_queue_delay_microseconds: 100
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 4 default_timeout_microseconds: 7000000 }
}
instance_group [ { kind: KIND_CPU }, { name: "other" count: 1 } ]
version_policy { specific { versions: [ 1, 3 ] } }
"""
)

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "A" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "B" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [ {
  model_name: "whole" model_version: -1
  input_map { key: "X" value: "A" } output_map { key: "Y" value: "B" }
} ] }
"""


def write_python(repository: Path, name: str, config: str) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(ECHO)


@contextlib.asynccontextmanager
async def serving(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(repository)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
def completing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with triton_server(tmp_path_factory.mktemp("triton"), completes=True) as server:
        yield server


def test_configurations_and_metadata_are_those_of_triton(
    tmp_path: Path, completing: TritonServer
) -> None:
    write_python(tmp_path, "whole", WHOLE)
    (tmp_path / "whole" / "labels.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "wrapper" / "1").mkdir(parents=True)
    (tmp_path / "wrapper" / "config.pbtxt").write_text(ENSEMBLE)
    shutil.copytree(tmp_path, completing.repository, dirs_exist_ok=True)
    triton = completing.client
    triton.load_model("wrapper")  # loads the other, once
    names = ("whole", "wrapper")

    async def ours() -> list[Any]:
        async with serving(tmp_path) as client:
            paths = [f"/v2/models/{name}{end}" for name in names for end in ("/config", "")]
            return [(await client.get(path)).json() for path in paths]

    answers = iter(asyncio.run(ours()))
    for name in names:
        theirs, config, metadata = triton.get_model_config(name), *islice(answers, 2)
        config.get("ensemble_scheduling", {}).pop("max_inflight_requests", None)  # is newer
        assert config == theirs
        assert [*config] == [*theirs]
        for tensor in metadata["inputs"]:
            tensor.pop("optional", None)  # Triton doesn't say it there
        assert metadata == triton.get_model_metadata(name)


async def test_the_names_of_tensors_are_free(tmp_path: Path) -> None:
    """They may be those of keys that Penstock uses, and that a request's parameters have."""
    names = ("data", "result", "error", "_hidden")
    folder = tmp_path / "named"
    (folder / "1").mkdir(parents=True)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in names]
    made = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1])
        for name in ("temperature", "context")
    ]
    nodes = [
        helper.make_node("Sub", ["data", "result"], ["temperature"]),
        helper.make_node("Sub", ["error", "_hidden"], ["context"]),
    ]
    graph = helper.make_graph(nodes, "named", ports, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "1" / "model.onnx")
    request = {
        "parameters": {"temperature": 0.5},
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": "FP32", "data": [value]}
            for name, value in zip(names, (8, 1, 30, 10), strict=True)
        ],
    }
    async with serving(tmp_path) as client:
        answer = await client.post("/v2/models/named/infer", json=request)
        assert answer.status_code == 200, answer.text
        assert {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]} == {
            "temperature": [7.0],
            "context": [20.0],
        }
        values = {"data": [[8]], "result": [[1]], "error": [[30]], "_hidden": [[10]]}
        plain = await client.post("/predict/named", json=values)
        assert plain.json() == {"result": [[[7.0]], [[20.0]]]}
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert [*schemas["Prediction_named"]["properties"]] == ["result"]


def test_a_batch_size_that_does_not_fit_the_model(tmp_path: Path, write_linear: Any) -> None:
    write_linear(tmp_path, config="max_batch_size: 4")
    model = onnx.load(tmp_path / "linear" / "1" / "model.onnx")
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "linear" / "1" / "model.onnx")
    with pytest.raises(ConfigError, match="max_batch_size is 4, but the first size of a tensor"):
        Repository.read(tmp_path)
    (tmp_path / "linear" / "config.pbtxt").write_text("")
    found = Repository.read(tmp_path).configs["linear"].model_config
    assert found is not None
    assert (found["max_batch_size"], found["input"][0]["dims"]) == (0, [1, 4])


def test_models_of_openvino_and_torch_without_a_configuration(
    tmp_path: Path, write_linear: Any
) -> None:
    with without_telemetry():
        openvino = pytest.importorskip("openvino")
    file = write_linear(tmp_path / "from") / "1" / "model.onnx"
    folder = tmp_path / "models" / "bare" / "1"
    folder.mkdir(parents=True)
    openvino.save_model(openvino.convert_model(file), folder / "model.xml")
    (tmp_path / "models" / "script" / "1").mkdir(parents=True)
    (tmp_path / "models" / "script" / "1" / "model.pt").write_bytes(b"")
    found = Repository.read(tmp_path / "models")
    assert [str(problem) for problem in found.problems] == [
        f"{tmp_path / 'models' / 'script'} {field}: it is empty, and a TorchScript model doesn't "
        "name its tensors: expected them"
        for field in ("input", "output")
    ]
    config = found.configs["bare"].model_config
    assert config is not None and config["backend"] == "openvino"
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (4, [4])
    assert config["output"][0]["data_type"] == "TYPE_FP32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: ${max_batch_size}", "a template: it holds \\$\\{max_batch_size\\}"),
        ("max_batch_size: {{ size }}", "a template: it holds \\{\\{ size \\}\\}"),
        ("input { data_type: #DTYPE\n}", "a template: it holds #DTYPE"),
        ("max_batch_size: MAX_BATCH", "a template: it holds MAX_BATCH"),
        ("input { data_type: TYPE_FP31 }", "^m: line 1, column 20: .*TYPE_FP31"),
        ('name: "a"\nbatch: 3', "^m: line 2, column 1: .*batch"),
        ("# ${comment}\nmax_batch_size: x", "^m: line 2, column 17: "),
    ],
)
def test_errors_name_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(text, "m")


@pytest.mark.parametrize(
    ("backend", "groups", "gpus", "keys"),
    [
        ("pytorch", "", 0, {"device": "cpu"}),
        ("pytorch", "", 2, {"instance_num": 2, "device": "cuda:0,cuda:1"}),
        ("pytorch", "{ kind: KIND_CPU count: 3 }", 2, {"instance_num": 3, "device": "cpu"}),
        ("pytorch", "{ count: 2 gpus: [ 1 ] }", 2, {"instance_num": 2, "device": "cuda:1"}),
        (
            "pytorch",
            "{ kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_CPU count: 2 }",
            1,
            {"instance_num": 3, "device": "cuda:0,cpu,cpu"},
        ),
        ("python", "", 0, {}),
        ("python", "", 2, {"instance_num": 2, "device": "cuda:0,cuda:1"}),
        ("onnxruntime", "", 2, {"instance_num": 2}),
        ("onnxruntime", "{ count: 1 }", 2, {}),
        ("onnxruntime", "{ kind: KIND_CPU count: 1 }", 2, {"device": "cpu"}),
        ("onnxruntime", "{ kind: KIND_GPU gpus: [ 1 ] }", 2, {"device": "cpu"}),
        ("onnxruntime on CUDA", "", 2, {"instance_num": 2, "device": "cuda:0,cuda:1"}),
        ("onnxruntime on CUDA", "{ kind: KIND_GPU gpus: [ 1 ] }", 2, {"device": "cuda:1"}),
        ("onnxruntime on CUDA", "{ kind: KIND_CPU count: 1 }", 2, {"device": "cpu"}),
        ("onnxruntime on CUDA", "", 0, {"instance_num": 2}),
    ],
)
def test_instances_are_where_triton_has_them(
    tmp_path: Path,
    write_linear: Any,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    groups: str,
    gpus: int,
    keys: dict[str, Any],
) -> None:
    monkeypatch.setattr(complete, "gpu_count", lambda: gpus)
    backend, _, provider = backend.partition(" on ")
    why = "" if provider else "this onnxruntime is for CPUs"
    monkeypatch.setattr(complete, "why_not", lambda provider: (why, True))
    folder = write_linear(tmp_path)
    (folder / "1" / "model.py").write_text("")
    (folder / "1" / "model.pt").write_bytes(b"")
    tensors = (folder / "config.pbtxt").read_text().partition("max_batch_size")[2]
    text = f'backend: "{backend}"\ninstance_group [ {groups} ]\nmax_batch_size{tensors}'
    tables = translate(parse_config(text), folder, "1")
    assert tables.problems == []
    node = tables.nodes["linear"]
    assert {key: node[key] for key in ("instance_num", "device") if key in node} == keys
