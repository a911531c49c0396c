"""Pipelines as models of Triton: what runs there is loaded into the real Triton and asked."""

from __future__ import annotations

import queue
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient as GrpcClient
from tritonclient.grpc import InferInput as GrpcInput
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner, Result

import penstock
from penstock.app.cli.main import command_line
from penstock.app.factory import create_app
from penstock.pipelines.directory import read_source

from ...triton_server import TritonServer

OPS = """
from penstock import InvalidInput


def words(text):
    if not text.strip():
        raise InvalidInput("there is no word")
    return text.split()


def spell(data):
    for letter in data:
        yield letter


class Count:
    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            sequence.state = (sequence.state or 0) + int(item["data"][0])
            item["result"] = sequence.state
"""
WORDS = """
[pipeline.inputs]
text = { kind = "text" }

[pipeline.outputs]
result = { kind = "list", items = { kind = "text" } }

[split]
backend = "Python[ops.py:words]"
next = "name"

[name]
backend = "Identity"
"""
SPELL = """
[pipeline.inputs]
text = { kind = "text" }

[pipeline.outputs]
result = { kind = "text" }

[spell]
backend = "Python[ops.py:spell]"
"""
TWICE = """
[pipeline.inputs]
x = { kind = "tensor", dtype = "FP32", shape = [-1, 4] }

[twice]
backend = "S[OnnxTensor,OnnxTensor]"
model = "square.onnx"
max = 8
batching_timeout = 1
"""
COUNT = """
[pipeline.inputs]
x = { kind = "tensor", dtype = "INT32", shape = [1] }

[pipeline.outputs]
sum = { kind = "tensor", dtype = "INT64", shape = [1] }

[count]
backend = "Python[ops.py:Count]"
sequence = { max_sequences = 4 }
"""
LINEAR = """
[pipeline.outputs]
y = { kind = "tensor", dtype = "FP32", shape = [-1, 4], labels = "labels.txt" }

[linear]
backend = "OnnxTensor"
model = "square.onnx"
max = 16
instance_num = 2
batching_timeout = 3
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, ["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    files = {"words": WORDS, "spell": SPELL, "twice": TWICE, "count": COUNT, "linear": LINEAR}
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "ops.py").write_text(OPS)
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"])], "square", values[:1], values[1:]
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.save(model, folder / "square.onnx")
    return folder


@pytest.fixture(scope="module")
def repository(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("repository") / "models"
    result = run(pipelines, "-o", output)
    assert result.exit_code == 0, result.output
    return output


def test_a_model_of_onnx_runtime(
    repository: Path, tmp_path: Path, running: Callable[..., Any]
) -> None:
    folder = repository / "linear"
    assert " ".join((folder / "config.pbtxt").read_text().split()) == (
        'name: "linear" version_policy { all { } } max_batch_size: 16 '
        'input { name: "x" data_type: TYPE_FP32 dims: 4 } '
        'output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" } '
        "instance_group { count: 2 kind: KIND_CPU } "
        'default_model_filename: "square.onnx" '
        "dynamic_batching { max_queue_delay_microseconds: 3000 } "
        'backend: "onnxruntime"'
    )
    assert sorted(file.name for file in (folder / "1").iterdir()) == ["square.onnx"]
    shutil.copytree(folder, tmp_path / "linear")
    with running(create_app(tmp_path)) as client:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        answer = client.post("/v2/models/linear/infer", json={"inputs": [tensor]}).json()
        assert answer["outputs"][0]["data"] == [1, 4, 9, 16]


@pytest.fixture(scope="module")
def client(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, running: Callable[..., Any]
) -> Iterator[httpx.Client]:
    """Penstock itself, which runs the Python models that pipelines have become on threads."""
    folder = tmp_path_factory.mktemp("threads")
    for name in ("words", "twice", "count"):
        shutil.copytree(repository / name, folder / name)
        with (folder / name / "config.pbtxt").open("a") as file:
            file.write('parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }')
    with running(create_app(folder)) as client:
        yield client


def infer(client: httpx.Client, model: str, tensor: dict[str, Any], **parameters: Any) -> Any:
    request = {"inputs": [tensor], "parameters": parameters}
    return client.post(f"/v2/models/{model}/infer", json=request).json()


def test_values(client: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["one two é"]}
    answer = infer(client, "words", tensor)
    assert answer["outputs"][0]["data"] == ["one", "two", "é"]
    assert "there is no word" in infer(client, "words", tensor | {"data": [" "]})["error"]


def test_rows(client: httpx.Client) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [*range(8)]}
    output = infer(client, "twice", tensor)["outputs"][0]
    assert output["data"] == [value**4 for value in range(8)]


def test_sequences(client: httpx.Client) -> None:
    tensor = {"name": "x", "datatype": "INT32", "shape": [1], "data": [5]}
    sums = [
        infer(
            client,
            "count",
            tensor,
            sequence_id=7,
            sequence_start=step == 0,
            sequence_end=step == 2,
        )["outputs"][0]["data"]
        for step in range(3)
    ]
    assert sums == [[5], [10], [15]]


@pytest.fixture(scope="module")
def loaded(repository: Path, triton: TritonServer) -> InferenceServerClient:
    for name in ("spell", "twice"):
        # As if Penstock were installed in Triton's Python, whose NumPy is its own.
        file = repository / name / "1" / "model.py"
        places = [str(Path(penstock.__file__).parents[1]), *sys.path]
        file.write_text(f"import sys\nsys.path += {places!r}\n{file.read_text()}")
        triton.add(repository / name)
    return triton.client


def test_batches_in_the_real_triton(loaded: InferenceServerClient) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor = InferInput("x", [2, 4], "FP32").set_data_from_numpy(rows)
    answer = loaded.infer("twice", [tensor]).as_numpy("y")
    assert answer is not None and np.array_equal(answer, rows**4)
    assert loaded.get_model_config("twice")["max_batch_size"] == 8
    wrong = InferInput("x", [1, 4], "FP32").set_data_from_numpy(rows[:1])
    wrong.set_shape([4, 1])
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'x'"):
        loaded.infer("twice", [wrong])


def test_a_stream_in_the_real_triton(loaded: InferenceServerClient, triton: TritonServer) -> None:
    assert loaded.get_model_config("spell")["model_transaction_policy"]["decoupled"] is True
    parts: queue.Queue[Any] = queue.Queue()
    with GrpcClient(triton.grpc_address) as grpc:
        grpc.start_stream(lambda result, error: parts.put((result, error)))
        tensor = GrpcInput("text", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"abc"], object))
        grpc.async_stream_infer("spell", [tensor])
        found = [parts.get(timeout=60) for _ in range(3)]
        grpc.stop_stream()
    assert [result.as_numpy("result").tolist() for result, _ in found] == [[b"a"], [b"b"], [b"c"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[a]\nbackend = "OnnxTensor"\nmodel = "none.onnx"\n', "it must be loaded to learn"),
        (
            '[pipeline.inputs]\ndata = { kind = "text", stream = true }\n'
            '[a]\nbackend = "Python[loud.py:loud]"\n',
            "'data' is a stream: Triton has no such inputs",
        ),
        ('[a]\nbackend = "Identity"\n# "../../outside.txt"\n', "names '../../outside.txt'"),
        ('[a]\nbackend = "Identity"\n# "../b/../../outside.txt"\n', "names '../b/../../out"),
        ('[a]\nbackend = "Identity"\n# "../.."\n', "names '../..'"),
        (
            '[pipeline.inputs]\nx = { kind = "tensor", shape = [-1, 1] }\n'
            '[pipeline.outputs]\ny = { kind = "tensor", dtype = "FP32", shape = [-1, 1] }\n'
            '[a]\nbackend = "Ensemble"\n'
            'steps = [{ model = "b", inputs = { IN = "x" }, outputs = { OUT = "y" } }]\n',
            "Triton needs its dtype and shape: 'x' has not both",
        ),
    ],
)
def test_what_triton_can_not_have(tmp_path: Path, text: str, reason: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "outside.txt").write_text("")
    (folder / "wrong.toml").write_text(text)
    loud = "async def loud(item, call):\n    async for part in item['data']:\n        yield part\n"
    (folder / "loud.py").write_text(loud)
    result = run(folder / "wrong.toml", "-o", tmp_path / "out")
    assert (result.exit_code, reason in " ".join(result.output.split())) == (1, True), result.output


def test_the_files_of_a_pipeline_go_along(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines" / "own"
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "a.txt").write_text("")
    for name in ("big.onnx", "big.onnx.data", "unused.onnx", "code.py", "../labels.txt"):
        (folder / name).write_text("")
    (folder / "own.toml").write_text(
        '[pipeline]\nversion = "1.0"\n[own]\nbackend = "Python[code.py:own]"\n'
        'parts = ["big.onnx", "words", "../labels.txt"]\n'
    )
    (folder / "code.py").write_text("class own:\n    def forward(self, batch):\n        pass\n")
    result = run(folder / "own.toml", "-o", tmp_path / "out")
    assert result.exit_code == 0 and "version 1.0 is 1" in result.output, result.output
    files = [
        file.relative_to(tmp_path / "out").as_posix()
        for file in sorted((tmp_path / "out").rglob("*"))
        if file.is_file()
    ]
    assert files == [
        "own/1/big.onnx",
        "own/1/big.onnx.data",
        "own/1/code.py",
        "own/1/model.py",
        "own/1/penstock.toml",
        "own/1/words/a.txt",
        "own/config.pbtxt",
        "own/labels.txt",
    ]


def test_images_that_are_decoded_stay_so(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "pixels.toml").write_text(
        "[pipeline.inputs]\n"
        'a = { kind = "tensor", dtype = "FP32", shape = [-1, 3, 4, 4], decode = "imagenet" }\n'
        'b = { kind = "tensor", dtype = "UINT8", shape = [-1, 4, 4, 3], decode = "raw" }\n'
        'c = { kind = "tensor", dtype = "UINT8", shape = [-1, 4, 4, 3] }\n'
        '[pixels]\nbackend = "Identity"\n'
    )
    result = run(folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    again = run(tmp_path / "out", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    served = read_source(tmp_path / "out" / "pixels").configs[0].inputs
    written = read_source(tmp_path / "again").configs[0].inputs
    presets = [
        [port.decode.preset if port.decode else None for port in ports]
        for ports in (served, written)
    ]
    assert presets == [["imagenet", "raw", None]] * 2


def test_versions_that_triton_has_not(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    for version, dtype in (("1.0", "FP32"), ("1.1", "FP32"), ("1.2", "INT32")):
        (folder / f"a{version}.toml").write_text(
            f'[pipeline]\nname = "a"\nversion = "{version}"\n'
            f'[pipeline.inputs]\nx = {{ kind = "tensor", dtype = "{dtype}", shape = [-1, 1] }}\n'
            '[a]\nbackend = "Identity"\n'
        )
    result = run(folder, "-o", tmp_path / "out")
    assert result.exit_code == 1 and "its versions differ" in result.output
    (folder / "a1.2.toml").unlink()
    result = run(folder, "-o", tmp_path / "out")
    assert result.exit_code == 0 and "version 1.1 is 2" in result.output, result.output
    assert (tmp_path / "out" / "a" / "2" / "penstock.toml").is_file()
