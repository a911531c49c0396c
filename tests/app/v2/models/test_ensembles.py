"""Ensembles in the model repository: loading and unloading them with the models that they call."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr
from starlette.testclient import TestClient

from penstock import Settings, create_app
from penstock.pipelines.config.load import load

PORT = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}


def model(name: str, backend: str = "Identity", **keys: Any) -> Any:
    pipeline = {"name": name, "inputs": {"IN": PORT}, "outputs": {"OUT": PORT}}
    return load({"pipeline": pipeline, name: {"backend": backend, **keys}})


def ensemble(name: str, *models: str) -> Any:
    tensors = ["IN", *[f"t{number}" for number in range(1, len(models))], "OUT"]
    steps = [
        {"model": called, "inputs": {"IN": taken}, "outputs": {"OUT": made}}
        for called, taken, made in zip(models, tensors[:-1], tensors[1:], strict=True)
    ]
    return model(name, "Ensemble", steps=steps)


def test_unload_dependents_unloads_the_models_that_no_other_ensemble_calls() -> None:
    configs = [model("own"), model("shared"), ensemble("one", "own", "shared")]
    configs.append(ensemble("other", "shared"))
    settings = Settings(admin_token=SecretStr("secret"), allow_model_control=True)
    headers = {"Authorization": "Bearer secret"}
    with TestClient(create_app(configs, settings=settings), headers=headers) as client:

        def ready() -> set[str]:
            index = client.post("/v2/repository/index", json={"ready": True}).json()
            return {one["name"] for one in index}

        assert ready() == {"own", "shared", "one", "other"}
        body = {"parameters": {"unload_dependents": True}}
        assert client.post("/v2/repository/models/one/unload", json=body).status_code == 200
        assert ready() == {"shared", "other"}
        data = {"name": "IN", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        answer = client.post("/v2/models/other/infer", json={"inputs": [data]})
        assert answer.json()["outputs"][0]["data"] == [1, 2]
        # A model that is gone: the error of the step, in the ensemble's name.
        client.post("/v2/repository/models/shared/unload", json={})
        answer = client.post("/v2/models/other/infer", json={"inputs": [data]})
        assert answer.status_code == 400 and "in ensemble 'other', " in answer.json()["error"]
