"""Serving a Triton repository as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import create_app

LINEAR = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "COUNTS" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
ROW = {"inputs": [{"name": "COUNTS", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.fixture
def repository(tmp_path: Path, write_linear: Any) -> Path:
    write_linear(tmp_path, config=LINEAR + "version_policy { all {} }", versions=(1, 2))
    write_linear(tmp_path, "latest", versions=(1, 2, 10))
    write_linear(tmp_path, "bare", config=None, versions=(3,))
    return tmp_path


@pytest.fixture
async def client(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(repository)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def scores(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.post(f"/v2/models/{path}/infer", json=ROW)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


async def test_models_answer_under_tritons_names(client: httpx.AsyncClient) -> None:
    assert await scores(client, "linear/versions/1") == [10.0] * 3
    assert await scores(client, "linear/versions/2") == [20.0] * 3
    assert await scores(client, "linear") == [20.0] * 3
    assert await scores(client, "latest") == [100.0] * 3
    assert await scores(client, "bare") == [30.0] * 3
    index = (await client.post("/v2/repository/index")).json()
    assert {(model["name"], model["version"]) for model in index} == {
        ("linear", "1"),
        ("linear", "2"),
        ("latest", "10"),
        ("bare", "3"),
    }


async def test_metadata_and_configuration_are_tritons(client: httpx.AsyncClient) -> None:
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
