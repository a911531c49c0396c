"""Several versions of a model side by side, at every door of a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.settings import Settings

HEADERS = {"Authorization": "Bearer adm1n"}
SETTINGS: dict[str, Any] = {
    "admin_token": "adm1n",
    "allow_model_control": True,
    "allow_model_overrides": True,
}

VERSION = """
{more}
[pipeline.inputs]
X = {{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }}
[pipeline.outputs]
Y = {{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }}
[node]
backend = "Python[scale.py:scale]"
max = {version}
"""


def write(folder: Path, version: int, more: str = "") -> Path:
    """Write a version of the model `scale` that multiplies by its number."""
    home = folder / "scale" / str(version)
    home.mkdir(parents=True, exist_ok=True)
    (home / "scale.py").write_text(
        f"def scale(data):\n    return {version} * data if hasattr(data, 'dtype') else {version}\n"
    )
    file = home / "pipeline.toml"
    file.write_text(VERSION.format(version=version, more=more))
    return file


def break_version(folder: Path, version: int) -> None:
    """Write a version that can be read and not loaded."""
    file = write(folder, version)
    (file.parent / "model.onnx").write_bytes(b"no model")
    file.write_text('[node]\nbackend = "OnnxTensor"\nmodel = "model.onnx"\n')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in (1, 2, 10):
        write(tmp_path, version)
    return tmp_path


@pytest.fixture
def served(running: Any, folder: Path) -> Iterator[tuple[Any, httpx.Client]]:
    app = create_app(folder, settings=Settings(**SETTINGS))
    with (
        running(app) as server,
        tritonclient.http.InferenceServerClient(server.base_url.netloc.decode()) as client,
    ):
        yield client, server


def infer(client: Any, version: str = "", rows: int = 1) -> tuple[float, str]:
    """Return the factor of the version that answers, and what it says it is."""
    given = tritonclient.http.InferInput("X", [rows, 2], "FP32")
    given.set_data_from_numpy(np.ones((rows, 2), np.float32))
    answer = client.infer("scale", [given], model_version=version)
    return float(answer.as_numpy("Y")[0, 0]), answer.get_response()["model_version"]


def test_each_version_answers_by_its_number_and_the_newest_by_the_name(served: Any) -> None:
    client, server = served
    for version, expected in (("1", "1"), ("2", "2"), ("10", "10"), ("", "10")):
        assert infer(client, version) == (float(expected), expected)
        assert client.is_model_ready("scale", version)
        metadata = client.get_model_metadata("scale", version)
        assert metadata["versions"] == ["1", "2", "10"] and metadata["name"] == "scale"
        config = client.get_model_config("scale", version)
        assert config["max_batch_size"] == int(expected)
        assert config["version_policy"] == {"all": {}}
        path = f"/predict/scale/versions/{version}" if version else "/predict/scale"
        scaled = [[int(expected), 2 * int(expected)]]
        assert server.post(path, json=[[1, 2]]).json()["result"] == scaled
        answer = server.post(f"{path}/batch", json=[[[1, 2]]] * 2).json()
        assert [one["result"] for one in answer["results"]] == [scaled] * 2
    answer = server.put("/predict/scale/versions/1", json=[[1, 2]])
    assert answer.json()["result"] == [[1, 2]]
    for path in ("/predict/scale/versions/1", "/predict/scale/versions/1/batch"):
        assert server.get(path).status_code == 405
    assert server.post("/predict/scale/versions/", content=b"x").status_code == 404


def test_an_unknown_version_is_a_client_s_mistake_that_names_those_there_are(served: Any) -> None:
    client, server = served
    message = r"unknown model: 'scale' version 3 is not found: expected one of 1, 2, 10"
    for ask in (infer, lambda client, version: client.get_model_config("scale", version)):
        with pytest.raises(InferenceServerException, match=rf"\[400\] .*{message}"):
            ask(client, "3")
    for route in ("", "/config", "/ready", "/stats"):
        answer = server.get(f"/v2/models/scale/versions/3{route}")
        assert answer.status_code == 400 and "expected one of 1, 2, 10" in answer.json()["error"]
    problem = server.post("/predict/scale/versions/3", content=b"x")
    assert problem.status_code == 404
    assert problem.json()["detail"] == (
        "pipeline 'scale' has no version '3' here: expected one of 1, 2, 10"
    )
    problem = server.post("/predict/scales/versions/3", content=b"x")
    assert problem.status_code == 404 and "did you mean 'scale'?" in problem.json()["detail"]


def test_index_and_statistics_and_metrics_are_of_versions(served: Any) -> None:
    client, server = served
    for version, count in (("1", 1), ("2", 2), ("", 3)):
        for _ in range(count):
            infer(client, version)
    assert client.get_model_repository_index() == [
        {"name": "scale", "version": version, "state": "READY", "reason": ""}
        for version in ("1", "2", "10")
    ]
    for ask in ("/v2/models/stats", "/v2/models/scale/stats"):
        counts = {
            one["version"]: one["inference_count"] for one in server.get(ask).json()["model_stats"]
        }
        assert counts == {"1": 1, "2": 2, "10": 3}
    (one,) = client.get_inference_statistics("scale", "2")["model_stats"]
    assert (one["version"], one["inference_stats"]["success"]["count"]) == ("2", 2)
    samples = {
        (sample.name, sample.labels.get("version")): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if sample.labels.get("outcome", "ok") == "ok"
    }
    for version, count in (("1", 1), ("2", 2), ("10", 3)):
        assert samples["nv_inference_request_success", version] == count
        assert samples["penstock_items_total", version] == count
        assert samples["penstock_queue_seconds_count", version] == count
        assert samples["penstock_pipeline_ready", version] == 1


def test_the_list_of_pipelines_has_the_versions(served: Any) -> None:
    _, server = served
    (listed,) = server.get("/pipelines").json()["pipelines"]
    assert (listed["name"], listed["state"], listed["version"]) == ("scale", "ready", "10")
    assert [(one["version"], one["state"]) for one in listed["versions"]] == [
        ("1", "ready"),
        ("2", "ready"),
        ("10", "ready"),
    ]


def test_load_and_unload_are_of_the_whole_name(served: Any, folder: Path) -> None:
    client, server = served
    client.unload_model("scale", headers=HEADERS)
    assert {
        (entry["version"], entry["state"], entry["reason"])
        for entry in client.get_model_repository_index()
    } == {(version, "UNAVAILABLE", "unloaded") for version in ("1", "2", "10")}
    for version in ("", "1", "10"):
        assert not client.is_model_ready("scale", version)
    write(folder, 11)
    client.load_model("scale", headers=HEADERS)
    assert infer(client) == (11.0, "11") and infer(client, "1") == (1.0, "1")
    write(folder, 12)
    answer = server.post("/pipelines/scale/load", headers=HEADERS).json()
    assert answer["version"] == "12" and len(answer["versions"]) == 5
    assert infer(client) == (12.0, "12")


def test_a_version_that_fails_takes_neither_the_others_nor_the_server_down(
    served: Any, folder: Path
) -> None:
    client, server = served
    break_version(folder, 11)
    for path in ("/v2/repository/models/scale/load", "/pipelines/scale/load"):
        answer = server.post(path, headers=HEADERS)
        assert answer.status_code >= 400 and "version 11: " in answer.text
    assert client.is_server_ready() and server.get("/health/ready").status_code == 200
    assert infer(client) == (10.0, "10")
    index = {entry["version"]: entry for entry in client.get_model_repository_index()}
    assert index["10"]["state"] == "READY"
    assert index["11"]["state"] == "UNAVAILABLE" and "the server's log" in index["11"]["reason"]
    assert client.get_model_metadata("scale")["versions"] == ["1", "2", "10"]
    assert not client.is_model_ready("scale", "11")
    assert server.post("/predict/scale/versions/11", content=b"x").status_code == 503
    write(folder, 11)
    client.load_model("scale", headers=HEADERS)
    assert infer(client) == (11.0, "11")


def test_a_server_starts_without_the_version_that_fails(spawn: Any, folder: Path) -> None:
    break_version(folder, 11)
    write(folder, 12, "nonsense = 1")
    process = spawn("serve", folder, "--port", "0")
    with process.listening() as server:
        process.wait_for(r"ready after .*: scale")
        for version in ("11", "12"):
            process.wait_for(rf"pipeline scale: version {version} can't be loaded: ")
        answer = server.post("/predict/scale", json=[[1, 2]])
        assert answer.json()["result"] == [[10, 20]]


def test_a_change_of_the_configuration_is_for_all_versions(served: Any) -> None:
    client, _ = served
    reported = client.get_model_config("scale")
    config = '{"version_policy": {"all": {}}, "max_batch_size": 1}'
    client.load_model("scale", headers=HEADERS, config=config)
    for version in ("1", "2", "10"):
        assert client.get_model_config("scale", version)["max_batch_size"] == 1
    wrong = '{"version_policy": {"latest": {"num_versions": 1}}}'
    with pytest.raises(InferenceServerException, match=r"'latest' .*can't be set here"):
        client.load_model("scale", headers=HEADERS, config=wrong)
    client.load_model("scale", headers=HEADERS)
    assert client.get_model_config("scale") == reported


@pytest.mark.parametrize(
    ("policy", "reported", "versions"),
    [
        ("{ latest = 2 }", {"latest": {"num_versions": 2}}, ["2", "10"]),
        ("{ specific = [1, 10] }", {"specific": {"versions": [1, 10]}}, ["1", "10"]),
    ],
)
def test_the_version_policy(
    running: Any, folder: Path, policy: str, reported: Any, versions: list[str]
) -> None:
    write(folder, 2, f"[pipeline]\nversion_policy = {policy}\n")
    with running(create_app(folder)) as server:
        assert server.get("/v2/models/scale").json()["versions"] == versions
        for version in versions:
            config = server.get(f"/v2/models/scale/versions/{version}/config").json()
            assert config["version_policy"] == reported
        listed = server.post("/v2/repository/index").json()
        assert [entry["version"] for entry in listed] == versions


def test_exposed_nodes_have_the_versions_of_their_pipelines(running: Any, folder: Path) -> None:
    write(folder, 1, "[pipeline.expose.node]\n")
    write(folder, 2, "[pipeline.expose.node]\n")
    with running(create_app(folder)) as server:
        assert server.get("/v2/models/scale.node").json()["versions"] == ["1", "2"]
        answer = server.get("/v2/models/scale.node/versions/3")
        assert answer.status_code == 400 and "expected one of 1, 2" in answer.json()["error"]
        model = server.get("/v2/models/scale.node/versions/1/stats").json()["model_stats"][0]
        assert (model["name"], model["version"]) == ("scale.node", "1")


def test_a_router_has_the_versions_too(running: Any, folder: Path) -> None:
    from fastapi import FastAPI

    from penstock import create_router

    host = FastAPI()
    host.include_router(create_router(folder), prefix="/models")
    with running(host) as server:
        answer = server.post("/models/predict/scale/versions/2", json=[[1, 2]])
        assert answer.json()["result"] == [[2, 4]]
        answer = server.post("/models/predict/scale", json=[[1, 2]])
        assert answer.json()["result"] == [[10, 20]]
        assert server.get("/models/v2/models/scale/versions/2").json()["versions"][0] == "1"


def test_check_lists_every_version_and_fails_for_one_that_can_not_be_read(
    spawn: Any, folder: Path
) -> None:
    checked = spawn("check", folder)
    assert checked.end() == 0
    write(folder, 2, "nonsense = 1")
    checked = spawn("check", folder)
    assert checked.end() == 1
    assert any("no node knows this key" in line for line in checked.lines)


def test_the_document_describes_each_version(served: Any, folder: Path) -> None:
    _, server = served
    document = server.get("/openapi.json").json()
    for version in ("1", "2", "10"):
        operation = document["paths"][f"/predict/scale/versions/{version}"]["post"]
        assert operation["operationId"] == f"predict_scale_version_{version}"
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith(f"/Prediction_scale_version_{version}")
        assert f"Batch_scale_version_{version}" in document["components"]["schemas"]
        assert f"/predict/scale/versions/{version}/batch" in document["paths"]
    assert "/predict/scale" in document["paths"]
