"""Serving a Triton repository as it is: versions, loads, configurations."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.errors import ConfigError
from penstock.pipelines.repository import Repository
from penstock.pipelines.triton import messages

LINEAR = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "COUNTS" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
ROW = {"inputs": [{"name": "COUNTS", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
ADMIN = {"Authorization": "Bearer adm1n"}
MAY_LOAD = Settings(
    admin_token=SecretStr("adm1n"),
    allow_model_control=True,
    allow_model_overrides=True,
)

SEQUENCES = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] }
  ]
  state [
    { input_name: "SUM" output_name: "SUM_NEXT" data_type: TYPE_FP32 dims: [ 1 ]
      initial_state: { name: "first" data_type: TYPE_FP32 dims: [ 1 ] data_file: "first" } }
  ]
}
"""


def running_sum() -> Any:
    """Return a model Y = SUM_NEXT = SUM + X + 1000 * START."""
    thousand = helper.make_tensor("thousand", TensorProto.FLOAT, [1], [1000.0])
    nodes = [
        helper.make_node("Mul", ["START", "thousand"], ["bonus"]),
        helper.make_node("Add", ["SUM", "X"], ["sum"]),
        helper.make_node("Add", ["sum", "bonus"], ["SUM_NEXT"]),
        helper.make_node("Identity", ["SUM_NEXT"], ["Y"]),
    ]
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in names]
        for names in (("X", "START", "SUM"), ("Y", "SUM_NEXT"))
    )
    graph = helper.make_graph(nodes, "sum", given, made, [thousand])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def repository(tmp_path: Path, write_linear: Any) -> Path:
    write_linear(tmp_path, config=LINEAR + "version_policy { all {} }", versions=(1, 2))
    write_linear(tmp_path, "latest", versions=(1, 2, 10))
    write_linear(tmp_path, "bare", config=None, versions=(3,))
    write_linear(tmp_path, "wrong", config='backend: "onnxruntime"\nmax_batch_size: {\n')
    write_linear(tmp_path, "gone", config=LINEAR + "version_policy { specific { versions: 7 } }")
    folder = tmp_path / "sums"
    (folder / "1").mkdir(parents=True)
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "first").write_bytes(b"\0\0\x20\x41")  # 10 as FP32
    (folder / "config.pbtxt").write_text(SEQUENCES)
    onnx.save(running_sum(), folder / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
async def client(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(repository, settings=MAY_LOAD)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def scores(client: httpx.AsyncClient, path: str, request: Any = ROW) -> Any:
    answer = await client.post(f"/v2/models/{path}/infer", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


async def load(client: httpx.AsyncClient, name: str, config: Any = None) -> httpx.Response:
    body = {} if config is None else {"parameters": {"config": json.dumps(config)}}
    path = f"/v2/repository/models/{name}/load"
    return await client.post(path, json=body, headers=ADMIN)


async def test_a_repository_is_served_as_it_is(client: httpx.AsyncClient) -> None:
    assert await scores(client, "linear/versions/1") == [10.0] * 3
    assert await scores(client, "linear/versions/2") == [20.0] * 3
    assert await scores(client, "linear") == [20.0] * 3
    assert await scores(client, "latest") == [100.0] * 3
    assert await scores(client, "bare") == [30.0] * 3
    index = (await client.post("/v2/repository/index")).json()
    assert {(model["name"], model["version"], model["state"]) for model in index} == {
        ("linear", "1", "READY"),
        ("linear", "2", "READY"),
        ("latest", "10", "READY"),
        ("bare", "3", "READY"),
        ("sums", "1", "READY"),
        ("wrong", "1", "UNAVAILABLE"),
        ("gone", "1", "UNAVAILABLE"),
    }
    metadata = (await client.get("/v2/models/bare")).json()
    assert metadata == {
        "name": "bare",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "COUNTS", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "SCORES", "datatype": "FP32", "shape": [-1, 3]}],
    }
    config = (await client.get("/v2/models/bare/config")).json()
    # What Triton fills in: the size of batches, and that they are gathered.
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"]["preferred_batch_size"] == [4]
    assert config["input"][0]["dims"] == [4]
    assert config["backend"] == "onnxruntime"
    assert config["default_model_filename"] == "model.onnx"
    assert config["instance_group"][0]["count"] == 2


async def test_sequences_keep_their_state(client: httpx.AsyncClient) -> None:
    async def step(value: float, sequence: int, **flags: bool) -> Any:
        tensor = {"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        request = {"parameters": {"sequence_id": sequence, **flags}, "inputs": [tensor]}
        return await scores(client, "sums", request)

    assert await step(1, 5, sequence_start=True) == [1011.0]
    assert await step(2, 6, sequence_start=True) == [1012.0]
    assert await step(3, 5) == [1014.0]
    assert await step(4, 5, sequence_end=True) == [1018.0]
    metadata = (await client.get("/v2/models/sums")).json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["X"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["Y"]


async def test_a_given_configuration_replaces_that_of_the_file(
    client: httpx.AsyncClient, repository: Path
) -> None:
    config = {
        "backend": "onnxruntime",
        "max_batch_size": 2,
        "version_policy": {"specific": {"versions": [1, 2]}},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
    }
    answer = await load(client, "latest", config)
    assert answer.status_code == 200, answer.text
    own = (await client.get("/v2/models/latest/config")).json()
    assert (own["max_batch_size"], own["instance_group"][0]["count"]) == (2, 1)
    assert own["input"][0]["name"] == "COUNTS"  # completed from the model
    metadata = (await client.get("/v2/models/latest")).json()
    assert metadata["versions"] == ["1", "2"]
    rows = {"name": "COUNTS", "shape": [3, 4], "datatype": "FP32", "data": [1] * 12}
    answer = await client.post("/v2/models/latest/infer", json={"inputs": [rows]})
    assert answer.status_code == 400
    assert "batch-size must be <= 2 for 'latest'" in answer.text
    # One whose file is wrong can be loaded with another configuration, too.
    assert (await load(client, "wrong", {"backend": "onnxruntime"})).status_code == 200
    assert await scores(client, "wrong") == [10.0] * 3
    # What the server reports can be sent back.
    assert (await load(client, "latest", own)).status_code == 200
    assert (await client.get("/v2/models/latest/config")).json() == own
    # Without parameters, the file counts again.
    assert (await load(client, "latest")).status_code == 200
    own = (await client.get("/v2/models/latest/config")).json()
    assert own["max_batch_size"] == 16
    assert await scores(client, "latest") == [100.0] * 3


async def test_files_make_a_triton_model(client: httpx.AsyncClient, repository: Path) -> None:
    config = {
        "platform": "onnxruntime_onnx",
        "max_batch_size": 2,
        "version_policy": {"all": {}},
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    files = {
        f"file:{version}/model.onnx": base64.b64encode(
            (repository / "latest" / str(version) / "model.onnx").read_bytes()
        ).decode()
        for version in (1, 2)
    }
    body = {"parameters": {"config": json.dumps(config), **files}}
    answer = await client.post("/v2/repository/models/brought/load", json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    metadata = (await client.get("/v2/models/brought")).json()
    assert (metadata["versions"], metadata["platform"]) == (["1", "2"], "onnxruntime_onnx")
    assert await scores(client, "brought/versions/1") == [10.0] * 3
    assert await scores(client, "brought") == [20.0] * 3
    own = (await client.get("/v2/models/brought/config")).json()
    assert (own["max_batch_size"], own["input"][0]["name"]) == (2, "COUNTS")


REFUSED: list[tuple[Any, str]] = [
    ({"max_batch_size": "many"}, "Invalid config override"),
    ({"batch": 3}, "Invalid config override"),
    ({"name": "other"}, "expected 'linear'"),
    ({"default_model_filename": "../../latest/1/model.onnx"}, "file in the model's folder"),
    ({"default_model_filename": "/etc/passwd"}, "file in the model's folder"),
    (
        {"backend": "python", "parameters": {"EXECUTION_ENV_PATH": {"string_value": "x.tar"}}},
        "can't be changed by a load",
    ),
    ({"version_policy": {"specific": {"versions": [9]}}}, "no version that version_policy"),
]


async def test_configurations_that_are_refused(client: httpx.AsyncClient) -> None:
    for config, message in REFUSED:
        answer = await load(client, "linear", config)
        assert answer.status_code == 400 and message in answer.json()["error"], answer.text
    assert await scores(client, "linear") == [20.0] * 3


async def test_changes_of_the_repository_are_loaded(
    client: httpx.AsyncClient, repository: Path, write_linear: Any
) -> None:
    write_linear(repository, "later", versions=(4,))
    index = (await client.post("/v2/repository/index")).json()
    assert {"name": "later"} in index
    assert (await load(client, "later")).status_code == 200
    assert await scores(client, "later") == [40.0] * 3
    file = repository / "wrong" / "config.pbtxt"
    answer = await load(client, "wrong")
    assert answer.status_code == 400 and "config.pbtxt: line 2, column 17" in answer.json()["error"]
    file.write_text(LINEAR)
    assert (await load(client, "wrong")).status_code == 200
    assert await scores(client, "wrong") == [10.0] * 3
    # A new version takes the place of the latest one.
    shutil.copytree(repository / "bare" / "3", repository / "latest" / "11")
    assert (await load(client, "latest")).status_code == 200
    assert await scores(client, "latest") == [30.0] * 3
    metadata = (await client.get("/v2/models/latest")).json()
    assert metadata["versions"] == ["11"]
    assert (
        await client.post("/v2/repository/models/latest/unload", headers=ADMIN)
    ).status_code == 200
    answer = await client.post("/v2/models/latest/infer", json=ROW)
    assert answer.status_code == 400 and "unknown model: 'latest'" in answer.text


def test_other_ways_to_name_what_is_served(repository: Path, tmp_path: Path) -> None:
    assert [*Repository.read(repository / "latest").configs] == ["latest"]
    assert [*Repository.read(repository / "latest" / "config.pbtxt").configs] == ["latest"]
    (repository / "linked").symlink_to(tmp_path / "bare")
    assert Repository.read(repository / "linked").configs["linked"].version == "3"
    (repository / "linked").rename(repository / "two words")
    (warning,) = Repository.read(repository / "two words").configs["two_words"].warnings
    assert "it is served as 'two_words'" in warning
    (repository / "two words").unlink()
    # Beside TOML files, a folder without a configuration holds the models that they name.
    (repository / "plain.toml").write_text(
        '[node]\nbackend = "OnnxTensor"\nmodel = "bare/3/model.onnx"'
    )
    (repository / "latest" / "10" / "pipeline.toml").write_text('[node]\nbackend = "Identity"')
    found = Repository.read(repository)
    assert {*found.configs} == {"linear", "latest", "plain", "sums"}
    assert found.configs["latest"].model_config is None  # its own file counts


def test_without_the_extra_it_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages._load.cache_clear()
    monkeypatch.delitem(sys.modules, messages.MODULE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    try:
        with pytest.raises(ConfigError, match=r"pip install 'penstock-serve\[triton\]'"):
            Repository.read(repository)
    finally:
        messages._load.cache_clear()


async def test_a_reload_takes_what_has_changed(
    repository: Path, write_linear: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipelines = Repository.read(repository)
    await pipelines.start()
    try:
        before = dict(pipelines.pipelines)
        await pipelines.reload_changed()
        assert pipelines.pipelines == before
        shutil.copytree(repository / "bare" / "3", repository / "latest" / "11")
        file = repository / "linear" / "config.pbtxt"
        file.write_text(file.read_text().replace("16", "8"))
        await pipelines.reload_changed()
        assert [*pipelines.versions["latest"]] == ["11"]
        assert pipelines.pipelines["bare"] is before["bare"]
        config = pipelines.pipelines["linear"].config.model_config
        assert config is not None and config["max_batch_size"] == 8
    finally:
        await pipelines.close(0)


def test_requests_wait_as_long_as_triton_lets_them(tmp_path: Path, write_linear: Any) -> None:
    write_linear(tmp_path)
    config = Repository.read(tmp_path).configs["linear"]
    assert (config.timeout, config.max_wait, config.max_requests) == (3600, None, 65_536)
    assert config.nodes["linear"].stuck_after == 3600
