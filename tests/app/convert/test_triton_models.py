"""Triton's repositories, converted: both are served, and answer alike."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.app.factory import create_app

LINEAR = """
name: "linear"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "COUNTS" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
dynamic_batching { max_queue_delay_microseconds: 2000 preferred_batch_size: [ 4, 8 ] }
instance_group [ { count: 2 kind: KIND_CPU } ]
version_policy { all {} }
"""
COUNTS = """
backend: "python"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "COUNTS" data_type: TYPE_FP32 dims: [ 4 ] } ]
parameters { key: "letters" value { string_value: "abc" } }
parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }
"""
MODEL = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.letters = config["parameters"]["letters"]["string_value"].encode()
        assert args["model_repository"].endswith("counts"), args

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[:, 0]
        rows = [[len(text), *(text.count(bytes([one])) for one in self.letters)] for text in texts]
        return pb_utils.InferenceResponse([pb_utils.Tensor("COUNTS", np.array(rows, np.float32))])
"""
CLASSIFY = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling {
  step [
    { model_name: "counts" model_version: -1
      input_map { key: "TEXT" value: "TEXT" } output_map { key: "COUNTS" value: "between" } },
    { model_name: "linear" model_version: 1
      input_map { key: "COUNTS" value: "between" } output_map { key: "SCORES" value: "SCORES" } }
  ]
}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, ["convert", *map(str, arguments)])


def save_linear(path: Path, factor: float) -> None:
    """Write a model SCORES (n, 3) = COUNTS (n, 4) @ W, with W from `factor` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(12, dtype=np.float32) + factor
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["COUNTS", "W"], ["SCORES"])],
        "linear",
        [helper.make_tensor_value_info("COUNTS", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("SCORES", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("W", TensorProto.FLOAT, [4, 3], values)],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 3):
        save_linear(folder / "linear" / str(version) / "model.onnx", version)
    (folder / "linear" / "config.pbtxt").write_text(LINEAR)
    (folder / "linear" / "labels.txt").write_text("red\ngreen\nblue\n")
    save_linear(folder / "bare" / "1" / "model.onnx", 0)
    for name, config in (("counts", COUNTS), ("classify", CLASSIFY)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
    (folder / "counts" / "1" / "model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def converted(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "out"
    result = run(repository, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def back(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that the pipeline files become again."""
    output = tmp_path_factory.mktemp("back") / "out"
    result = run(converted, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def clients(
    repository: Path, converted: Path, back: Path, running: Callable[..., Any]
) -> Iterator[list[httpx.Client]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(running(create_app(folder)))
            for folder in (repository, converted, back)
        ]


TEXT = {"name": "TEXT", "datatype": "BYTES", "shape": [2, 1], "data": ["abba", "cab"]}
ROWS = {"name": "COUNTS", "datatype": "FP32", "shape": [1, 4], "data": [4, 2, 2, 0]}


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("counts", TEXT),
        ("linear", ROWS),
        ("linear/versions/1", ROWS),
        ("bare", ROWS),
        ("classify", TEXT),
    ],
)
def test_all_answer_alike(clients: list[httpx.Client], model: str, tensor: dict[str, Any]) -> None:
    answers = [
        client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]}).json()
        for client in clients
    ]
    assert answers[0]["outputs"] and answers[0] == answers[1] == answers[2]


def test_labels_go_along(clients: list[httpx.Client]) -> None:
    request = {
        "inputs": [ROWS],
        "outputs": [{"name": "SCORES", "parameters": {"classification": 1}}],
    }
    answers = [client.post("/v2/models/linear/infer", json=request).json() for client in clients]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["outputs"][0]["data"][0].endswith(":2:blue")


def test_triton_has_its_own_models_again(back: Path) -> None:
    texts = {
        folder.name: " ".join((folder / "config.pbtxt").read_text().split())
        for folder in back.iterdir()
    }
    assert 'backend: "onnxruntime"' in texts["linear"]
    assert 'backend: "python"' in texts["counts"] and 'string_value: "abc"' in texts["counts"]
    assert 'platform: "ensemble"' in texts["classify"]
    assert 'input_map { key: "TEXT" value: "TEXT" }' in texts["classify"]
    assert sorted(file.name for file in (back / "counts" / "1").iterdir()) == ["model.py"]
    assert (back / "linear" / "labels.txt").is_file()


def test_the_file(converted: Path) -> None:
    text = (converted / "linear" / "3" / "pipeline.toml").read_text()
    assert text.startswith("# linear, version 3: converted from linear/config.pbtxt.\n# dynamic_b")
    tables = tomllib.loads(text)
    assert tables["linear"] == {
        "backend": "OnnxTensor",
        "model": "model.onnx",
        "max": 16,
        "instance_num": 2,
        "device": "cpu",
        "batching_timeout": 2.0,
        "batched": True,
        "inputs": ["COUNTS"],
        "outputs": ["SCORES"],
        "stuck_after": 3600,
    }
    assert tables["pipeline"]["outputs"]["SCORES"]["labels"] == "../labels.txt"
    assert not list(converted.rglob("config.pbtxt"))


def test_what_can_not_be_converted(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    save_linear(broken / "good" / "1" / "model.onnx", 1)
    (broken / "bad" / "1").mkdir(parents=True)
    (broken / "bad" / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch: 1\n')
    result = run(broken, "-o", tmp_path / "out")
    assert (result.exit_code, "max_batch" in result.output) == (1, True)
    assert (tmp_path / "out" / "good" / "1" / "pipeline.toml").is_file()
    again = run(repository / "bare", "-o", tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert "give --force" in run(repository / "bare", "-o", tmp_path / "out").output
    assert run(repository / "bare", "-o", tmp_path / "out", "--force").exit_code == 0
    assert "expected another folder" in run(repository, "-o", repository / "out").output
    (tmp_path / "empty").mkdir()
    assert "expected a model repository" in run(tmp_path / "empty", "-o", tmp_path).output
