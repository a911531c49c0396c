"""Triton's Python models: what a `model.py` sees, and what its clients get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from penstock import create_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] },
        { name: "MORE" data_type: TYPE_STRING dims: [ 1 ] optional: true } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] },
         { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
parameters { key: "greeting" value: { string_value: "hello" } }
"""

MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils
import helper
from .helper import WORD


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        command = int(array.flat[0])
        if command == 1:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError("there is none", pb_utils.TritonError.NOT_FOUND)
            )
        if command == 2:
            raise ValueError("I can't")
        more = pb_utils.get_input_tensor_by_name(request, "MORE")
        seen = {
            "word": WORD,
            "same": helper.WORD == WORD,
            "greeting": self.config["parameters"]["greeting"]["string_value"],
            "name": self.args["model_name"],
            "version": self.args["model_version"],
            "instance": self.args["model_instance_name"],
            "kind": self.args["model_instance_kind"],
            "dir": pb_utils.get_model_dir() == self.args["model_repository"] + "/1",
            "more": None if more is None else more.as_numpy().tolist()[0][0].decode(),
            "parameters": json.loads(request.parameters()),
            "id": request.request_id(),
        }
        text = np.full((len(array), 1), json.dumps(seen), dtype=object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("TEXT", text), pb_utils.Tensor("OUT", array * 2)]
        )
"""


def write_model(repository: Path, name: str, config: str, model: str = MODEL) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(model)
    (folder / "1" / "helper.py").write_text(f"WORD = {name!r}")


THREAD = 'parameters { key: "PENSTOCK_EXECUTOR" value: { string_value: "thread" } }'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    write_model(folder, "process", CONFIG)
    write_model(folder, "thread", CONFIG + THREAD)
    write_model(folder, "other", CONFIG + THREAD)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(repository)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def request(*values: float, **more: Any) -> dict[str, Any]:
    shape = [1, len(values)]
    return {
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": shape, "data": list(values)}],
        **more,
    }


@pytest.mark.parametrize("model", ["process", "thread", "other"])
async def test_a_model_sees_what_triton_shows_it(client: httpx.AsyncClient, model: str) -> None:
    asked = request(4, 5, id="r-1", parameters={"a": 1, "b": "x", "c": True, "timeout": 9_000_000})
    asked["inputs"].append({"name": "MORE", "datatype": "BYTES", "shape": [1, 1], "data": ["é"]})
    answer = await client.post(f"/v2/models/{model}/infer", json=asked)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["OUT"] == [8, 10]
    assert json.loads(outputs["TEXT"][0]) == {
        "word": model,
        "same": True,
        "greeting": "hello",
        "name": model,
        "version": "1",
        "instance": f"{model}_0",
        "kind": "CPU",
        "dir": True,
        "more": "é",
        "parameters": {"a": 1, "b": "x", "c": True},
        "id": "r-1",
    }


@pytest.mark.parametrize("model", ["process", "thread"])
async def test_a_models_errors_are_its_clients(client: httpx.AsyncClient, model: str) -> None:
    found = await client.post(f"/v2/models/{model}/infer", json=request(1))
    assert (found.status_code, found.json()) == (404, {"error": "there is none"})
    failed = await client.post(f"/v2/models/{model}/infer", json=request(2))
    assert failed.status_code == 500
    assert failed.json()["error"] == (
        f"Failed to process the request(s) for model '{model}_0', message: ValueError: I can't"
    )
