"""Triton's Python models: what a `model.py` sees, and what its clients get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from penstock import Settings, create_app

LOOPS = ("debug",)

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
import sys
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
        if command == 3:
            array = array.astype(np.int64)  # declared as FP32
        more = pb_utils.get_input_tensor_by_name(request, "MORE")
        seen = {
            "word": WORD,
            "same": helper.WORD == WORD,
            "greeting": self.config["parameters"]["greeting"]["string_value"],
            "name": self.args["model_name"],
            "version": self.args["model_version"],
            "instance": self.args["model_instance_name"],
            "kind": self.args["model_instance_kind"],
            "arguments": sys.argv if self.args["model_name"] == "process" else [""],
            "dir": pb_utils.get_model_dir() == self.args["model_repository"] + "/1",
            "more": None if more is None else more.as_numpy().tolist()[0][0].decode(),
            "parameters": json.loads(request.parameters()),
            "id": request.request_id(),
            "sequence": [request.correlation_id(), request.flags()],
            "timeout": request.timeout(),
            "outputs": sorted(request.requested_output_names()),
        }
        text = np.full((len(array), 1), json.dumps(seen), dtype=object)
        more = {}
        if hasattr(pb_utils.InferenceResponse, "parameters"):  # Triton has it since 2.60
            more = {"count": len(array), "kind": "plain", "good": True, "share": 0.5}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("TEXT", text), pb_utils.Tensor("OUT", array * 2)],
            **({"parameters": more} if more else {}),
        )
"""


def write_model(repository: Path, name: str, config: str, model: str = MODEL) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(model)
    (folder / "1" / "helper.py").write_text(f"WORD = {name!r}")


ADMIN = {"Authorization": "Bearer t"}
THREAD = 'parameters { key: "PENSTOCK_EXECUTOR" value: { string_value: "thread" } }'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    write_model(folder, "process", CONFIG)
    write_model(folder, "thread", CONFIG + THREAD)
    write_model(folder, "other", CONFIG + THREAD)
    return folder


@asynccontextmanager
async def served(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        repository, settings=Settings(admin_token=SecretStr("t"), allow_model_control=True)
    )
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with served(repository) as client:
        yield client


def request(*values: float, **more: Any) -> dict[str, Any]:
    shape = [1, len(values)]
    return {
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": shape, "data": list(values)}],
        **more,
    }


@pytest.mark.parametrize("model", ["process", "thread", "other"])
async def test_a_model_sees_what_triton_shows_it(client: httpx.AsyncClient, model: str) -> None:
    parameters = {"a": 1, "b": "x", "c": True, "timeout": 9_000_000, "sequence_id": 7}
    asked = request(4, 5, id="r-1", parameters=parameters | {"sequence_end": True})
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
        "arguments": [""],
        "dir": True,
        "more": "é",
        "parameters": {"a": 1, "b": "x", "c": True},
        "id": "r-1",
        "sequence": [7, 2],
        "timeout": 9_000_000,
        "outputs": ["OUT", "TEXT"],
    }
    assert answer.json()["parameters"] == ANSWERED


ANSWERED = {"count": 1, "kind": "plain", "good": True, "share": 0.5}


async def test_an_answer_has_the_outputs_asked_for_and_the_models_parameters(
    client: httpx.AsyncClient,
) -> None:
    asked = request(4, 5, outputs=[{"name": "TEXT"}])
    for _ in range(2):
        answer = (await client.post("/v2/models/thread/infer", json=asked)).json()
        assert [output["name"] for output in answer["outputs"]] == ["TEXT"]
        seen = json.loads(answer["outputs"][0]["data"][0])
        assert (seen["outputs"], seen["id"]) == (["TEXT"], "")
        assert answer["parameters"] == ANSWERED
    generated = await client.post("/v2/models/thread/generate", json={"IN": [4, 5]})
    assert generated.json().items() >= ANSWERED.items()


async def test_the_real_triton_answers_the_same(
    client: httpx.AsyncClient, repository: Path, triton: Any
) -> None:
    triton.add(repository / "process")
    parameters = {"a": 1, "b": "x", "w": 1.5, "timeout": 9_000_000, "sequence_id": "s"}
    asked = [
        request(4, 5, id="r-1", parameters=parameters | {"sequence_start": True}),
        request(4, outputs=[{"name": "OUT"}]),
        request(1),
        request(2),
        request(3),
    ]
    async with httpx.AsyncClient(base_url=f"http://{triton.address}") as other:
        for document in asked:
            ours, theirs = [
                await each.post("/v2/models/process/infer", json=document)
                for each in (client, other)
            ]
            assert ours.status_code == theirs.status_code
            own, their_own = ours.json(), theirs.json()
            if "error" in own:
                # Theirs has more: where it was raised, with paths of the server.
                assert their_own["error"].startswith(own["error"])
                continue
            del own["parameters"]
            outputs = {output["name"]: output for output in own.pop("outputs")}
            assert outputs == {output["name"]: output for output in their_own.pop("outputs")}
            assert own == their_own


@pytest.mark.parametrize("model", ["process", "thread"])
async def test_a_models_errors_are_its_clients(client: httpx.AsyncClient, model: str) -> None:
    found = await client.post(f"/v2/models/{model}/infer", json=request(1))
    assert (found.status_code, found.json()) == (404, {"error": "there is none"})
    failed = await client.post(f"/v2/models/{model}/infer", json=request(2))
    assert failed.status_code == 500
    assert failed.json()["error"] == (
        f"Failed to process the request(s) for model '{model}_0', message: ValueError: I can't"
    )


COUNTING = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        kinds = pb_utils.MetricFamily
        self.calls = kinds("calls_of_models", "Calls.", kinds.COUNTER).Metric({"model": "m"})
        self.last = kinds("last_value", "The last value.", kinds.GAUGE).Metric()
        self.sizes = kinds("sizes", "Sizes.", kinds.HISTOGRAM).Metric(buckets=[1.0, 10.0])
        self.refused = []
        for call in (
            lambda: self.calls.increment(-1),
            lambda: self.calls.set(3),
            lambda: kinds("last_value", "Now a counter.", kinds.COUNTER),
            lambda: kinds("penstock_ready", "Ours.", kinds.GAUGE),
            lambda: kinds("more_sizes", "No buckets.", kinds.HISTOGRAM).Metric(),
        ):
            try:
                call()
            except pb_utils.TritonModelException as error:
                self.refused.append(str(error))

    def execute(self, requests):
        responses = []
        for request in requests:
            value = float(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().flat[0])
            self.calls.increment(1)
            self.last.set(value)
            self.sizes.observe(value)
            out = np.array([[self.calls.value(), len(self.refused)]], np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out)]))
        return responses
"""


async def test_metrics_of_models_are_among_the_servers(tmp_path: Path) -> None:
    write_model(tmp_path, "one", CONFIG + THREAD, COUNTING)
    write_model(tmp_path, "two", CONFIG, COUNTING)  # in a process
    async with served(tmp_path) as client:
        counted = [
            (await client.post(f"/v2/models/{name}/infer", json=request(value))).json()
            for name, value in (("one", 5), ("two", 50))
        ]
        assert [answer["outputs"][0]["data"] for answer in counted] == [[1, 5], [2, 5]]
        lines = set((await client.get("/metrics")).text.splitlines())
        assert {
            "# TYPE calls_of_models counter",
            'calls_of_models{model="m"} 2.0',
            "last_value 50.0",
            'sizes_bucket{le="1"} 0.0',
            'sizes_bucket{le="10"} 1.0',
            'sizes_bucket{le="+Inf"} 2.0',
            "sizes_sum 55.0",
        } <= lines
        assert (
            await client.post("/v2/repository/models/two/unload", headers=ADMIN)
        ).status_code == 200
        assert "calls_of_models" in (await client.get("/metrics")).text
        await client.post("/v2/repository/models/one/unload", headers=ADMIN)
        assert "calls_of_models" not in (await client.get("/metrics")).text


WITHOUT_INPUTS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        out = pb_utils.Tensor("OUT", np.array([7], np.int32))
        return [pb_utils.InferenceResponse([out]) for request in requests if not request.inputs()]
"""


async def test_a_model_without_inputs(tmp_path: Path) -> None:
    outputs = 'output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]'
    write_model(tmp_path, "seven", f'backend: "python" {outputs} {THREAD}', WITHOUT_INPUTS)
    async with served(tmp_path) as client:
        answer = await client.post("/v2/models/seven/infer", json={"inputs": []})
        assert answer.json()["outputs"][0]["data"] == [7], answer.text
