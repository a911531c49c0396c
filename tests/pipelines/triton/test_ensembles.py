"""Ensembles of a Triton repository: what the real Triton answers and refuses, we do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.backends.errors import ConfigError
from penstock.pipelines.composites.called_models import joined
from penstock.pipelines.directory import read_directory, read_versions

from ...triton_server import TritonServer

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]

    def execute(self, requests):
        if self.name == "many":
            for request in requests:
                self.count(request)
            return None
        return [self.work(request) for request in requests]

    def count(self, request):
        sender = request.get_response_sender()
        array = self.get(request, "X")
        for number in range(int(array.flat[0])):
            if number == 7:
                error = pb_utils.TritonError("seven", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=error))
                break
            sender.send(self.answer("Y", array + number))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def work(self, request):
        for name, do in (("TEXT", self.split), ("A", self.total), ("X", self.whole)):
            if self.get(request, name) is not None:
                return do(request)

    def split(self, request):
        texts = self.get(request, "TEXT").reshape(-1)
        numbers = [[float(number) for number in text.split()] for text in texts]
        if any(row[0] < 0 for row in numbers):
            error = pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        array = np.array(numbers, np.float32)
        outputs = [pb_utils.Tensor("FIRST", array[:, :2])]
        if array.shape[1] > 2:
            outputs.append(pb_utils.Tensor("REST", array[:, 2:4]))
        return pb_utils.InferenceResponse(outputs)

    def total(self, request):
        first, rest = self.get(request, "A"), self.get(request, "B")
        return self.answer("SUM", first + (1000 if rest is None else rest))

    def whole(self, request):
        array = self.get(request, "X")
        return self.answer("Y", array * array.ndim)

    def get(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def answer(self, name, array):
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array.astype(np.float32))])
"""


def tensors(kind: str, *names: str, dims: str = "2", dtype: str = "FP32", more: str = "") -> str:
    return "".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{dtype} dims: [ {dims} ] {more} }}\n'
        for name in names
    )


def step(model: str, inputs: str, outputs: str, version: int = -1) -> str:
    """Write a step; `inputs` as "X=IN,Y=d": the model's tensor, and the ensemble's."""
    maps = [
        f'{field} {{ key: "{name}" value: "{tensor}" }}'
        for field, text in (("input_map", inputs), ("output_map", outputs))
        for name, _, tensor in (pair.partition("=") for pair in text.split(",") if pair)
    ]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}'


def ensemble(ports: str, *steps: str, batch: int = 8) -> str:
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\n{ports}'
        f"ensemble_scheduling {{ {' '.join(steps)} }}"
    )


MODELS = {
    # Two models in one: each costs the real Triton seconds to load.
    "work": tensors("input", "TEXT", dims="1", dtype="STRING", more="optional: true")
    + tensors("input", "A", "B", more="optional: true")
    + tensors("output", "FIRST", "REST", "SUM"),
    "whole": tensors("input", "X") + tensors("output", "Y"),
    "many": tensors("input", "X", dims="1")
    + tensors("output", "Y", dims="1")
    + "model_transaction_policy { decoupled: true }\n",
}
TEXT_IN = tensors("input", "IN", dims="1", dtype="STRING")
ENSEMBLES = {
    "adds": ensemble(
        TEXT_IN + tensors("output", "OUT", "FIRST"),
        step("work", "A=FIRST,B=rest", "SUM=OUT"),
        step("work", "TEXT=IN", "FIRST=FIRST,REST=rest", version=1),
    ),
    "alone": ensemble(
        tensors("input", "IN") + tensors("output", "OUT"),
        step("whole", "X=IN", "Y=y"),
        step("work", "A=y,B=IN", "SUM=OUT"),
    ),
    "shaped": ensemble(
        tensors("input", "IN", dims="1, 2", more="reshape { shape: [ 2 ] }")
        + tensors("output", "OUT", dims="2, 1", more="reshape { shape: [ 2 ] }"),
        step("work", "A=IN", "SUM=OUT"),
    ),
    "parts": ensemble(
        tensors("input", "IN", dims="1") + tensors("output", "OUT", dims="1"),
        step("many", "X=y", "Y=OUT"),
        step("many", "X=IN", "Y=y"),
        batch=0,
    ),
    "nested": ensemble(
        TEXT_IN + tensors("output", "RESULT"),
        step("adds", "IN=IN", "OUT=sum,FIRST=first"),
        step("work", "A=sum,B=first", "SUM=RESULT"),
    ),
}


def write(repository: Path, name: str, config: str) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    return repository / name


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    for name, ports in MODELS.items():
        batch = 8 if name == "work" else 0
        config = f'backend: "python"\nmax_batch_size: {batch}\n{ports}'
        # Ours runs it on a thread, which starts at once. To Triton it is a parameter like others.
        config += 'parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }'
        (write(repository, name, config) / "1" / "model.py").write_text(MODEL)
    for name, config in ENSEMBLES.items():
        write(repository, name, config)
    return repository


@pytest.fixture(scope="module")
def ours(repository: Path) -> Iterator[TestClient]:
    with TestClient(create_app(repository)) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(repository: Path, triton: TritonServer) -> Iterator[httpx.Client]:
    for name in (*MODELS, *ENSEMBLES):
        triton.add(repository / name)
    with httpx.Client(base_url=f"http://{triton.address}", timeout=60) as client:
        yield client


def text(*rows: str) -> dict[str, Any]:
    return {"name": "IN", "shape": [len(rows), 1], "datatype": "BYTES", "data": [*rows]}


def floats(*rows: list[float]) -> dict[str, Any]:
    data = [number for row in rows for number in row]
    return {"name": "IN", "shape": [len(rows), 2], "datatype": "FP32", "data": data}


@pytest.mark.parametrize(
    ("model", "tensor", "outputs"),
    [
        ("adds", text("1 2 10 20"), None),
        ("adds", text("1 2 10 20", "3 4 30 40"), None),
        ("adds", text("1 2"), None),  # `rest` is not made: the next step goes without it
        ("adds", text("1 2 10 20"), ["OUT"]),
        ("adds", text("-1 2"), None),
        ("adds", floats([1, 2]), None),
        ("adds", text(*["1 2"] * 9), None),
        ("alone", floats([1, 2]), None),
        ("alone", floats([1, 2], [3, 4]), None),
        ("shaped", {**floats([1, 2], [3, 4]), "shape": [2, 1, 2]}, None),
        ("nested", text("1 2 10 20"), None),
        ("nested", text("-1 2"), None),
        ("nested", text("one two"), None),
    ],
)
def test_an_ensemble_answers_as_tritons_does(
    ours: TestClient, theirs: httpx.Client, model: str, tensor: Any, outputs: list[str] | None
) -> None:
    body: dict[str, Any] = {"inputs": [tensor]}
    if outputs is not None:
        body["outputs"] = [{"name": name} for name in outputs]
    own, other = (client.post(f"/v2/models/{model}/infer", json=body) for client in (ours, theirs))
    if other.status_code == 200:
        assert _by_name(own) == _by_name(other)
    else:
        # Ours ends earlier: after an exception Triton's has the places in the model's file.
        expected = other.json()["error"].replace("[request id: <id_unknown>] ", "")
        own_text = own.json()["error"]
        assert own.status_code == other.status_code and expected.startswith(own_text)


@pytest.mark.parametrize("number", [0, 1, 3, 8])
def test_each_part_of_a_step_passes_the_steps_after_it(
    ours: TestClient, theirs: httpx.Client, number: int
) -> None:
    own, other = (
        client.post("/v2/models/parts/generate_stream", json={"IN": number}).text
        for client in (ours, theirs)
    )

    def outputs(events: str) -> list[Any]:
        parts = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
        return [part.get("OUT", part.get("error")) for part in parts]

    if number < 8:
        assert outputs(own) == outputs(other)
    else:  # what came before the error depends on luck there
        assert outputs(own)[-1] == outputs(other)[-1] == "in ensemble 'parts', seven"
    policies = [
        client.get("/v2/models/parts/config").json()["model_transaction_policy"]
        for client in (ours, theirs)
    ]
    assert policies == [{"decoupled": True}] * 2


def _by_name(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


INPUT, OUTPUT = tensors("input", "IN"), tensors("output", "OUT")
WHOLE = step("whole", "X=IN", "Y=OUT")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ensemble(INPUT + OUTPUT, step("whole", "X=other", "Y=OUT")), "ensemble input 'IN'"),
        (ensemble(INPUT + OUTPUT, step("whole", "X=IN", "Y=y")), "ensemble output 'OUT'"),
        (ensemble(INPUT + OUTPUT, WHOLE, WHOLE), "can appear in an output map only once"),
        (
            ensemble(INPUT + OUTPUT, step("work", "A=IN,B=y", "SUM=OUT")),
            "at least one of its depending tensors, 'y', is not connected",
        ),
        (
            ensemble(INPUT + OUTPUT, WHOLE, step("whole", "X=IN", "Y=y")),
            "ensemble tensor 'y' is unused",
        ),
        (
            ensemble(INPUT + OUTPUT, step("nowhere", "X=IN", "Y=OUT")),
            "contains models that are not available",
        ),
        (ensemble(INPUT + OUTPUT, step("bad", "IN=IN", "OUT=OUT")), "circular dependency"),
        (
            ensemble(INPUT + OUTPUT, step("whole", "", "Y=OUT")),
            "must specify 'input_map' in step 0",
        ),
        (
            ensemble(INPUT + OUTPUT, step("", "X=IN", "Y=OUT")),
            "must specify 'model_name' in step 0",
        ),
        (
            ensemble(
                tensors("input", "IN", dims="1") + tensors("output", "OUT", "MORE", dims="1"),
                step("many", "X=IN", "Y=OUT"),
                step("many", "X=OUT", "Y=MORE"),
                batch=0,
            ),
            "originate",
        ),
        (ensemble(INPUT + OUTPUT, step("whole", "Z=IN", "Y=OUT")), "mapping to non-existing input"),
        (
            ensemble(INPUT + OUTPUT, step("whole", "X=IN", "Z=OUT")),
            "mapped from non-existing output",
        ),
        (
            ensemble(tensors("input", "IN", dtype="INT32") + OUTPUT, WHOLE),
            "inconsistent data type",
        ),
        (ensemble(tensors("input", "IN", dims="3") + OUTPUT, WHOLE), "inconsistent shape"),
        (
            ensemble(INPUT + OUTPUT, step("work", "A=IN", "SUM=OUT"), batch=16),
            "which only allows maximum batch size to be 8",
        ),
    ],
)
def test_an_ensemble_that_triton_refuses_is_refused(
    repository: Path, theirs: object, triton: TritonServer, tmp_path: Path, config: str, words: str
) -> None:
    bad = write(tmp_path, "bad", config)
    with pytest.raises(InferenceServerException) as refused:
        triton.add(bad)
    found = read_directory(repository).configs
    with pytest.raises(ConfigError) as refused_here:
        (own,) = read_versions(bad).configs
        known = {model.name: model for model in (*found, own)}
        joined(own, lambda name, _: known.get(name))
    assert words in str(refused.value)
    assert words in str(refused_here.value)
