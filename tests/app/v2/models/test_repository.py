"""Index, load and unload; what a load may bring along, and what it may not."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.settings import Settings
from penstock.pipelines import repository as repository_module
from penstock.pipelines.directory import read_again

ADMIN = "adm1n"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
ON: dict[str, Any] = {
    "admin_token": ADMIN,
    "allow_model_control": True,
    "allow_model_overrides": True,
}

ECHO = """
[pipeline]
version = "{version}"
inputs.X = {{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }}
outputs.Y = {{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }}
[node]
backend = "Identity"
max = 4
"""


def onnx_model(factor: Any, external: Any = None, bytes_only: Any = True) -> Any:
    """Return a model y = x * factor. `external` is the file that it names for the factor."""
    weights = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    if external is not None:
        weights.ClearField("float_data")
        weights.raw_data = b""
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", "4")):
            weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString() if bytes_only else model


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    (tmp_path / "echo.toml").write_text(ECHO.format(version=1))
    (tmp_path / "chain.toml").write_text(
        '[a]\nbackend = "Identity"\nnext = "b"\n[b]\nbackend = "Identity"\nmax = 16\n'
    )
    return tmp_path


@contextlib.contextmanager
def serve(running: Any, app: Any) -> Any:
    with (
        running(app, http="penstock") as server,
        tritonclient.http.InferenceServerClient(server.base_url.netloc.decode()) as client,
    ):
        yield client, server


@pytest.fixture
def app(folder: Path) -> Any:
    return create_app(folder, settings=Settings(**ON))


@pytest.fixture
def served(running: Any, app: Any) -> Any:
    with serve(running, app) as client_and_server:
        yield client_and_server


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the directory in which temporary directories are made."""
    directory = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def states(client: Any) -> Any:
    return {
        entry["name"]: (entry.get("state"), entry.get("reason"))
        for entry in client.get_model_repository_index()
    }


def infer(client: Any, model: Any, name: Any = "X", value: Any = 1.0, rows: Any = 1) -> Any:
    given = tritonclient.http.InferInput(name, [rows, 2], "FP32").set_data_from_numpy(
        np.full((rows, 2), value, np.float32)
    )
    return client.infer(model, [given])


def test_index_load_unload(served: Any, folder: Path) -> None:
    client, server = served
    assert client.get_model_repository_index() == [
        {"name": "chain", "version": "1", "state": "READY", "reason": ""},
        {"name": "echo", "version": "1", "state": "READY", "reason": ""},
    ]
    client.unload_model("echo", headers=HEADERS)
    assert states(client)["echo"] == ("UNAVAILABLE", "unloaded")
    assert (
        not client.is_model_ready("echo")
        and client.is_model_ready("chain")
        and client.is_server_ready()
    )
    with pytest.raises(
        InferenceServerException, match=r"\[400\] Request for unknown model: 'echo' is not found"
    ):
        infer(client, "echo")
    ready = server.post("/v2/repository/index", json={"ready": True}).json()
    assert [entry["name"] for entry in ready] == ["chain"]
    (folder / "echo.toml").write_text(ECHO.format(version=2))
    (folder / "later.toml").write_text(
        ECHO.format(version=1).replace("[pipeline]", '[pipeline]\nname = "other"')
    )
    assert client.get_model_repository_index()[-1] == {"name": "other"}
    client.load_model("echo", headers=HEADERS)
    client.load_model("other", headers=HEADERS)
    assert client.is_model_ready("echo", "2") and client.is_model_ready("other")
    assert infer(client, "echo").as_numpy("Y").tolist() == [[1.0, 1.0]]
    client.unload_model("echo", unload_dependents=True, headers=HEADERS)
    client.unload_model("none", headers=HEADERS)  # not loaded: not an error
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(
        client.get_server_metadata()["extensions"]
    )


def test_models_that_can_not_be_loaded(served: Any, folder: Path) -> None:
    client, _ = served
    with pytest.raises(
        InferenceServerException,
        match=r"\[404\] failed to load 'none', failed to poll from model repository",
    ):
        client.load_model("none", headers=HEADERS)
    (folder / "echo.toml").write_text('[node]\nbackend = "Identit"\n')
    with pytest.raises(
        InferenceServerException,
        match=r"\[400\] failed to load 'echo', .*there is no backend 'Identit'",
    ):
        client.load_model("echo", headers=HEADERS)
    assert client.is_model_ready("echo")  # the old one still serves
    (folder / "absent.toml").write_text('[node]\nbackend = "OnnxTensor"\nmodel = "none.onnx"\n')
    with pytest.raises(
        InferenceServerException, match=r"\[500\] failed to load 'absent', .*none\.onnx"
    ):
        client.load_model("absent", headers=HEADERS)
    state, reason = states(client)["absent"]
    assert state == "UNAVAILABLE" and "log" in reason and "onnx" not in reason


GATED = """
import time
from pathlib import Path

def gate(data):
    'Waits for the file `open` beside this one; says that it is inside by making another.'
    folder = Path(__file__).parent
    (folder / "inside").touch()
    while not (folder / "open").exists():
        time.sleep(0.005)
    return data
"""


def until(condition: Any, seconds: Any = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_unload_lets_requests_in_flight_end(served: Any, folder: Path) -> None:
    client, server = served
    (folder / "gate.py").write_text(GATED)
    (folder / "gated.toml").write_text(
        ECHO.format(version=3).replace('"Identity"', '"Python[gate.py:gate]"')
    )
    client.load_model("gated", headers=HEADERS)
    with ThreadPoolExecutor() as pool:
        document = {
            "inputs": [{"name": "X", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]
        }
        inside = [
            pool.submit(server.post, "/v2/models/gated/infer", json=document) for _ in range(3)
        ]
        until((folder / "inside").exists)
        until(
            lambda: (
                'penstock_requests_in_flight{pipeline="gated"} 3.0' in server.get("/metrics").text
            )
        )
        unloading = pool.submit(server.post, "/v2/repository/models/gated/unload", headers=HEADERS)
        until(lambda: states(client)["gated"] == ("UNLOADING", "requests are in flight"))
        assert not client.is_model_ready("gated") and client.is_server_ready()
        with pytest.raises(
            InferenceServerException,
            match=r"\[400\] Request for unknown model: 'gated' is not found",
        ):
            infer(client, "gated")
        assert not unloading.done() and not any(request.done() for request in inside)
        (folder / "open").touch()
        assert unloading.result().status_code == 200
        assert [request.result().json()["outputs"][0]["data"] for request in inside] == [
            [1.0, 2.0]
        ] * 3
    assert states(client)["gated"] == ("UNAVAILABLE", "unloaded")


def test_loads_under_traffic_lose_no_request(served: Any) -> None:
    """Several loads of one model at a time, plain and with a configuration."""
    client, server = served
    document = {"inputs": [{"name": "X", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    stop = threading.Event()

    def ask() -> Any:
        answers = set()
        while not stop.is_set():
            answers.add(server.post("/v2/models/echo/infer", json=document).text)
        return answers

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        bodies = [None, {"parameters": {"config": '{"max_batch_size": 2}'}}] * 5
        loads = [
            pool.submit(server.post, "/v2/repository/models/echo/load", headers=HEADERS, json=body)
            for body in bodies
        ]
        assert {load.result().status_code for load in loads} == {200}
        stop.set()
        assert len(set().union(*(asked.result() for asked in asking))) == 1
    assert states(client)["echo"] == ("READY", "")
    client.load_model("echo", headers=HEADERS)
    assert client.get_model_config("echo")["max_batch_size"] == 4


def test_exposed_nodes_are_models_of_their_pipeline(served: Any, folder: Path) -> None:
    """They are listed; they are loaded and unloaded with their pipeline."""
    client, server = served
    port = '{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }'
    exposed = f"[pipeline.expose.b.inputs]\nX = {port}\n[pipeline.expose.b.outputs]\nY = {port}\n"
    (folder / "chain.toml").write_text(
        f'[pipeline]\nversion = "2"\n{exposed}{(folder / "chain.toml").read_text()}'
    )
    client.load_model("chain", headers=HEADERS)
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["version"]) for entry in index] == [
        ("chain", "2"),
        ("chain.b", "2"),
        ("echo", "1"),
    ]
    assert {entry["state"] for entry in index} == {"READY"}
    assert all(client.is_model_ready(entry["name"], entry["version"]) for entry in index)
    for verb in ("load", "unload"):
        answer = server.post(f"/v2/repository/models/chain.b/{verb}", headers=HEADERS)
        assert answer.status_code == 400 and "is a node of a pipeline" in answer.json()["error"]
    client.unload_model("chain", headers=HEADERS)
    assert states(client)["chain.b"] == ("UNAVAILABLE", "unloaded")
    assert not client.is_model_ready("chain.b")


@pytest.mark.parametrize("name", ["%2e%2e", "%2e", "a%5cb", "a%00", "a..b"])
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_names_with_path_traversal(served: Any, name: str, verb: str) -> None:
    _, server = served
    url = httpx.URL(server.base_url).copy_with(
        raw_path=f"/v2/repository/models/{name}/{verb}".encode()
    )
    answer = server.post(url, headers=HEADERS)
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "model name must not contain path traversal characters"},
    )


@pytest.mark.parametrize("name", ["", "..%2fecho", "%2fetc%2fpasswd", "a%2fb"])
def test_names_that_no_route_matches(served: Any, name: str) -> None:
    _, server = served
    url = httpx.URL(server.base_url).copy_with(
        raw_path=f"/v2/repository/models/{name}/load".encode()
    )
    assert server.post(url, headers=HEADERS).status_code == 404


def test_unknown_names_are_not_found(served: Any) -> None:
    document = {"parameters": {"config": "{}"}}
    for name in ("none", "not%20one"):
        assert (
            served[1]
            .post(f"/v2/repository/models/{name}/load", headers=HEADERS, json=document)
            .status_code
            == 404
        )


def test_other_repositories_are_not_supported(served: Any) -> None:
    _, server = served
    for path in ("r/index", "r/models/echo/load", "r/models/echo/unload"):
        answer = server.post(f"/v2/repository/{path}", headers=HEADERS)
        assert answer.status_code == 501 and "repository" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("index", {"ready": "yes"}, "'ready' is a JSON string"),
        ("index", [], "expected an object"),
        ("models/echo/load", {"parameters": []}, "'parameters' is a JSON array"),
        (
            "models/echo/unload",
            {"parameters": {"unload_dependents": 1}},
            "'unload_dependents' is a JSON number",
        ),
    ],
)
def test_malformed_bodies(served: Any, path: str, body: Any, message: str) -> None:
    answer = served[1].post(f"/v2/repository/{path}", headers=HEADERS, json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]


@pytest.mark.parametrize(
    ("settings", "token", "statuses"),
    [
        ({}, None, (403, 403, 403)),
        ({"admin_token": ADMIN}, ADMIN, (403, 403, 403)),
        ({"admin_token": ADMIN, "allow_model_overrides": True}, ADMIN, (403, 403, 403)),
        (ON, None, (401, 401, 401)),
        (ON | {"api_key": "k3y"}, "k3y", (403, 403, 403)),
        (ON | {"allow_model_overrides": False}, ADMIN, (200, 200, 403)),
        (ON, ADMIN, (200, 200, 200)),
    ],
)
def test_who_may_load(running: Any, folder: Path, settings: Any, token: Any, statuses: Any) -> None:
    with serve(running, create_app(folder, settings=Settings(**settings))) as (_, server):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        override = {"parameters": {"config": "{}"}}
        answered = [
            server.post("/v2/repository/models/echo/unload", headers=headers).status_code,
            server.post("/v2/repository/models/echo/load", headers=headers).status_code,
            server.post(
                "/v2/repository/models/echo/load", headers=headers, json=override
            ).status_code,
        ]
        assert tuple(answered) == statuses
        assert server.post("/v2/repository/index", headers=headers).status_code == 200


# overrides


def test_a_configuration_overrides_the_file(served: Any) -> None:
    client, _ = served
    assert client.get_model_config("echo")["max_batch_size"] == 4
    wanted = {
        "max_batch_size": "2",
        "instance_group": [{"count": 3, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": 1500,
            "priority_levels": 5,
            "default_priority_level": 2,
        },
    }
    client.load_model("echo", config=json.dumps(wanted), headers=HEADERS)
    config = client.get_model_config("echo")
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (2, 3)
    batching = config["dynamic_batching"]
    assert (
        batching["max_queue_delay_microseconds"],
        batching["priority_levels"],
        batching["default_priority_level"],
    ) == (1500, 5, 2)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 2 for 'echo'"):
        infer(client, "echo", rows=3)
    client.load_model(
        "echo", config="{}", headers=HEADERS
    )  # of the file, not of the override before
    assert client.get_model_config("echo")["max_batch_size"] == 4
    client.load_model("echo", config=json.dumps(wanted), headers=HEADERS)
    client.load_model("echo", headers=HEADERS)
    assert client.get_model_config("echo")["max_batch_size"] == 4


@pytest.mark.parametrize(
    ("nodes", "reported", "most"),
    [
        # The nodes after an engine may work on one row: requests have one, and still share batches.
        (
            '[a]\nbackend = "S[OnnxTensor,SoftmaxArgMaxTensor]"\nmodel = "scale.onnx"\nmax = 32\n',
            1,
            [32],
        ),
        # nodes that set none keep their own
        (
            ECHO.format(version=1).replace("[node]", "[a]")
            + 'next = "b"\n[b]\nbackend = "Identity"\n',
            4,
            [4, 8],
        ),
    ],
)
def test_a_reported_batch_size_changes_no_node(
    served: Any, app: Any, folder: Path, nodes: str, reported: int, most: Any
) -> None:
    client, _ = served
    (folder / "scale.onnx").write_bytes(onnx_model(2.0))
    (folder / "again.toml").write_text(nodes)
    client.load_model("again", headers=HEADERS)
    for count in (2, 3):  # also that of a changed one
        config = client.get_model_config("again")
        assert config["max_batch_size"] == reported
        config["instance_group"][0]["count"] = count
        client.load_model("again", config=json.dumps(config), headers=HEADERS)
        assert [node.scheduler.max for node in app.state.penstock.pipelines["again"].nodes] == most
        assert client.get_model_config("again")["instance_group"][0]["count"] == count


def test_an_override_is_reported_and_can_be_loaded_again(served: Any) -> None:
    """A value that was given before stays if only another key is changed."""
    client, _ = served
    policy = {"max_queue_size": 7, "default_timeout_microseconds": 2500000}
    wanted = {
        "max_batch_size": 1,
        "dynamic_batching": {
            "priority_levels": 3,
            "default_priority_level": 1,
            "default_queue_policy": policy,
        },
    }
    client.load_model("echo", config=json.dumps(wanted), headers=HEADERS)
    reported = client.get_model_config("echo")
    assert reported["dynamic_batching"]["default_queue_policy"].items() >= policy.items()
    client.load_model("echo", config=json.dumps(reported), headers=HEADERS)
    assert client.get_model_config("echo") == reported


def test_more_rows_than_the_file_says(served: Any, folder: Path) -> None:
    """A node's `max` is also its engine's."""
    client, _ = served
    (folder / "scale.onnx").write_bytes(onnx_model(2.0))
    (folder / "scale.toml").write_text(
        '[node]\nbackend = "S[OnnxTensor]"\nmodel = "scale.onnx"\nmax = 2\n'
    )
    client.load_model("scale", headers=HEADERS)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 2 for 'scale'"):
        infer(client, "scale", "x", rows=5)
    client.load_model("scale", config=json.dumps({"max_batch_size": 5}), headers=HEADERS)
    assert client.get_model_config("scale")["max_batch_size"] == 5
    assert infer(client, "scale", "x", rows=5).as_numpy("y").shape == (5, 2)


def test_more_rows_than_the_backend_takes(served: Any, folder: Path) -> None:
    client, _ = served
    (folder / "few.toml").write_text(
        ECHO.format(version=1).replace('"Identity"\nmax = 4', '"Identity"\nforce_range = "1,8"')
    )
    client.load_model("few", headers=HEADERS)
    with pytest.raises(
        InferenceServerException, match="'max_batch_size' is 9, but Identity takes at most 8 rows"
    ):
        client.load_model("few", config=json.dumps({"max_batch_size": 9}), headers=HEADERS)
    assert client.get_model_config("few")["max_batch_size"] == 8


def test_the_reported_configuration_can_be_loaded(served: Any) -> None:
    """A configuration can be read, changed and sent back."""
    client, _ = served
    for name in ("echo", "chain"):
        before = client.get_model_config(name)
        client.load_model(name, config=json.dumps(before), headers=HEADERS)
        assert client.get_model_config(name) == before
    client.load_model(
        "chain", config=json.dumps({"instance_group": [{"name": "b", "count": 2}]}), headers=HEADERS
    )
    assert [group["count"] for group in client.get_model_config("chain")["instance_group"]] == [
        1,
        2,
    ]


def test_a_configuration_applies_to_what_the_repository_has_now(served: Any, folder: Path) -> None:
    """Our own route may have read the file again since the last load."""
    client, server = served
    client.load_model("echo", config=json.dumps({"max_batch_size": 2}), headers=HEADERS)
    (folder / "echo.toml").write_text(ECHO.format(version=7).replace("max = 4", "max = 16"))
    assert server.post("/pipelines/echo/load", headers=HEADERS).status_code == 200
    client.load_model("echo", config="{}", headers=HEADERS)
    assert client.is_model_ready("echo", "7")
    assert client.get_model_config("echo")["max_batch_size"] == 16


def test_a_load_that_fails_leaves_the_model_that_serves(served: Any, folder: Path) -> None:
    client, _ = served
    client.load_model("echo", config=json.dumps({"max_batch_size": 2}), headers=HEADERS)
    (folder / "echo.toml").write_text("")
    with pytest.raises(InferenceServerException, match=r"\[400\] failed to load 'echo'"):
        client.load_model("echo", headers=HEADERS)
    client.load_model(
        "scale", config="{}", files={"file:1/model.onnx": onnx_model(2.0)}, headers=HEADERS
    )
    with pytest.raises(InferenceServerException, match=r"\[404\] failed to load 'scale'"):
        client.load_model("scale", headers=HEADERS)
    assert client.get_model_config("echo")["max_batch_size"] == 2
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[6.0, 6.0]]
    assert states(client)["scale"] == states(client)["echo"] == ("READY", "")
    (folder / "echo.toml").write_text(ECHO.format(version=1))
    client.load_model("echo", headers=HEADERS)
    assert client.get_model_config("echo")["max_batch_size"] == 4


def test_a_load_that_fails_keeps_the_override_that_serves(
    served: Any, app: Any, folder: Path, temporary: Path
) -> None:
    client, server = served
    repository = app.state.penstock
    files = {"file:1/model.onnx": onnx_model(2.0)}
    client.load_model("scale", config="{}", files=files, headers=HEADERS)
    client.load_model("echo", config=json.dumps({"max_batch_size": 2}), headers=HEADERS)
    (folder / "echo.toml").write_text("")
    for name in ("scale", "echo"):
        assert server.post(f"/v2/repository/models/{name}/load", headers=HEADERS).is_client_error
        assert repository.configs[name] is repository.pipelines[name].config
    assert server.post("/pipelines/scale/load", headers=HEADERS).status_code == 200
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[6.0, 6.0]]


def test_files_stay_while_a_pipeline_may_read_them(served: Any, temporary: Path) -> None:
    """A second pipeline of the same files replaces the first one."""
    client, server = served
    files = {"file:1/model.onnx": onnx_model(2.0)}
    client.load_model("scale", config="{}", files=files, headers=HEADERS)
    assert server.post("/pipelines/scale/load", headers=HEADERS).status_code == 200
    client.get_model_metadata("scale")  # the model of the first pipeline is forgotten
    gc.collect()
    assert len(list(temporary.iterdir())) == 1
    assert server.post("/pipelines/scale/load", headers=HEADERS).status_code == 200
    client.unload_model("scale", headers=HEADERS)
    assert "scale" not in states(client)
    assert server.post("/pipelines/scale/load", headers=HEADERS).status_code == 404
    client.get_model_metadata("echo")
    until(lambda: not gc.collect() and not list(temporary.iterdir()))


@pytest.mark.parametrize("path", ["/v2/repository/models/{}/unload", "/pipelines/{}/unload"])
def test_an_unload_ends_an_override_and_removes_its_files(
    served: Any, temporary: Path, path: str
) -> None:
    client, server = served
    client.load_model("echo", config=json.dumps({"max_batch_size": 2}), headers=HEADERS)
    client.load_model(
        "scale", config="{}", files={"file:1/model.onnx": onnx_model(2.0)}, headers=HEADERS
    )
    infer(client, "scale", "x")
    gc.disable()
    try:
        for name in ("echo", "scale"):
            assert server.post(path.format(name), headers=HEADERS).is_success
        assert not list(temporary.iterdir())
    finally:
        gc.enable()
    assert "scale" not in states(client)
    for again in ("/v2/repository/models/scale/load", "/pipelines/scale/load"):
        assert server.post(again, headers=HEADERS).status_code == 404
    client.load_model("echo", config="{}", headers=HEADERS)
    assert client.get_model_config("echo")["max_batch_size"] == 4


def test_files_of_a_replaced_override_go_at_once(served: Any, temporary: Path) -> None:
    client, _ = served
    for factor in (2.0, 5.0):
        files = {"file:1/model.onnx": onnx_model(factor)}
        client.load_model("scale", config="{}", files=files, headers=HEADERS)
    until(lambda: len(list(temporary.iterdir())) == 1)
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[15.0, 15.0]]


def test_loads_of_one_name_run_one_after_another_at_both_routes(
    served: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that read the file before it changed must not win over one that read it after."""
    client, server = served
    reading, change = threading.Event(), threading.Event()
    read = read_again

    def hold(*args: Any) -> Any:
        config = read(*args)
        if not reading.is_set():
            reading.set()
            assert change.wait(20)
        return config

    monkeypatch.setattr(repository_module, "read_again", hold)
    url = str(server.base_url)
    with ThreadPoolExecutor(2) as threads:

        def load(path: str) -> int:
            return httpx.post(url + path, headers=HEADERS, timeout=30).status_code

        first = threads.submit(load, "/v2/repository/models/echo/load")
        assert reading.wait(20)
        (folder / "echo.toml").write_text(ECHO.format(version=2))
        second = threads.submit(load, "/pipelines/echo/load")
        states(client)  # the second load has come by now, or comes later: it must wait
        change.set()
        assert (first.result(), second.result()) == (200, 200)
    assert client.get_model_metadata("echo")["versions"] == ["2"]


X = {"name": "X", "data_type": "TYPE_FP32", "dims": [2]}
Y = {"name": "Y", "data_type": "TYPE_FP32", "dims": ["2"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input": [{**X, "dims": [3]}]}, r"'dims' of input 'X' is [3], and the model's is [2]"),
        ({"input": [{**X, "data_type": "TYPE_INT8"}]}, "'data_type' of input 'X' is \"TYPE_INT8"),
        ({"input": [{**X, "name": "Z"}]}, '\'input\' has ["Z"], expected the model\'s own: ["X"]'),
        ({"input": [X, X]}, '\'input\' has ["X", "X"]'),
        ({"input": [{"dims": [2]}]}, "'input' has [null]"),
        ({"input": {"name": "X"}}, "'input' is a JSON object, expected an array"),
        ({"input": ["X"]}, "'input' is a JSON string, expected an object"),
        ({"input": [{**X, "reshape": {"shape": [1]}}]}, "'reshape' of input 'X' can't be set here"),
        ({"input": [{**X, "optional": True}]}, "'optional' of input 'X' is true"),
        ({"output": [X]}, "'output' has [\"X\"]"),
        ({"output": [{**Y, "label_filename": "a.txt"}]}, "'label_filename' of output 'Y'"),
    ],
)
def test_declared_tensors_must_be_the_models_own(served: Any, config: Any, message: str) -> None:
    client, server = served
    wanted = json.dumps({"max_batch_size": 2, **config})
    answer = server.post(
        "/v2/repository/models/echo/load", headers=HEADERS, json={"parameters": {"config": wanted}}
    )
    assert answer.status_code == 400
    assert f"Invalid config override: {message}" in answer.json()["error"]
    assert client.get_model_config("echo")["max_batch_size"] == 4


def test_declared_tensors_of_files_are_compared_with_their_model(
    served: Any, temporary: Path
) -> None:
    client, _ = served
    files = {"file:1/model.onnx": onnx_model(2.0)}
    given = {"name": "x", "data_type": "TYPE_FP32", "dims": [2], "reshape": None}
    config = json.dumps({"max_batch_size": 8, "input": [given], "output": []})
    client.load_model("scale", config=config, files=files, headers=HEADERS)
    client.unload_model("scale", headers=HEADERS)
    with pytest.raises(InferenceServerException, match=r"input\[0\].dims: found \[4\] for 'x'"):
        client.load_model(
            "scale", config=config.replace("[2]", "[4]"), files=files, headers=HEADERS
        )
    assert not list(temporary.iterdir())
    assert client.get_model_config("echo")["max_batch_size"] == 4


def test_the_smallest_max_of_the_nodes_is_the_bound(served: Any, app: Any) -> None:
    client, _ = served
    for bound, a, b in ((16, 16, 16), (8, 8, 16), (2, 2, 2), (0, 8, 16)):
        client.load_model("chain", config=json.dumps({"max_batch_size": bound}), headers=HEADERS)
        assert [node.scheduler.max for node in app.state.penstock.pipelines["chain"].nodes] == [
            a,
            b,
        ]


def test_policies_of_the_queue(served: Any, app: Any) -> None:
    policy = {"max_queue_size": 7, "default_timeout_microseconds": "2500000"}
    served[0].load_model(
        "chain",
        config=json.dumps({"dynamic_batching": {"default_queue_policy": policy}}),
        headers=HEADERS,
    )
    config = app.state.penstock.pipelines["chain"].config
    assert (config.queue_size, config.queue_timeout) == (7, 2.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Invalid config override: failed to parse"),
        ("[]", "Invalid config override: expected an object, got a JSON array"),
        ("[" * 200 + "]" * 200, "Invalid config override: JSON nesting depth exceeds"),
        (1, "Invalid config override: expected a string"),
        ({"name": "other"}, "'name' is not 'echo'"),
        ({"backend": "python"}, "'backend' can't be set here"),
        ({"backend": "pytorch"}, "'backend' can't be set here"),
        ({"backend": ["onnxruntime"]}, "'backend' can't be set here"),
        ({"platform": "pytorch_libtorch"}, "'platform' can't be set here"),
        ({"node": {"backend": "Python[os:system]"}}, "'node' can't be set here"),
        ({"parameters": {"model": "/etc/passwd"}}, "'parameters' can't be set here"),
        ({"model": "model.pt2"}, "'model' can't be set here"),
        ({"ensemble_scheduling": {"step": [1]}}, "'ensemble_scheduling' can't be set here"),
        ({"max_batch_size": -1}, "'max_batch_size' must be a whole number"),
        ({"max_batch_size": 1.5}, "'max_batch_size' must be a whole number"),
        ({"max_batch_size": True}, "'max_batch_size' must be a whole number"),
        ({"instance_group": {}}, "'instance_group' is a JSON object, expected an array"),
        ({"instance_group": [1]}, "'instance_group' is a JSON number, expected an object"),
        ({"instance_group": [{"count": 10**6}]}, "'count' must be a whole number"),
        ({"instance_group": [{"kind": "KIND_TPU"}]}, "'kind' of an instance group"),
        ({"instance_group": [{"kind": "KIND_CPU", "gpus": [0]}]}, "KIND_CPU must have no 'gpus'"),
        ({"instance_group": [{"gpus": 1}]}, "'gpus' of an instance group"),
        ({"dynamic_batching": []}, "'dynamic_batching' is a JSON array, expected an object"),
        (
            {"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}},
            "'default_priority_level' must be from 1 to 2",
        ),
        ({"default_model_filename": "net.onnx"}, "'default_model_filename' can't be set here"),
    ],
)
def test_malformed_configurations(served: Any, config: Any, message: str) -> None:
    text = json.dumps(config) if isinstance(config, dict) else config
    answer = served[1].post(
        "/v2/repository/models/echo/load", headers=HEADERS, json={"parameters": {"config": text}}
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert served[0].get_model_config("echo")["max_batch_size"] == 4  # nothing has changed


def test_files_of_a_load_that_fails_are_removed(served: Any, temporary: Path) -> None:
    client, _ = served
    for config in ('{"max_batch_size": -1}', '{"instance_group": 7}'):
        with pytest.raises(InferenceServerException, match=r"\[400\] .*Invalid config override"):
            client.load_model(
                "scale",
                config=config,
                files={"file:1/model.onnx": onnx_model(2.0)},
                headers=HEADERS,
            )
    assert list(temporary.iterdir()) == []


def test_a_file_that_can_not_be_read_is_not_in_the_index(served: Any, folder: Path) -> None:
    client, _ = served
    (folder / "broken.toml").write_text("[")
    (folder / "deep.toml").write_text("a = " + "[" * 100_000)
    (folder / "latin.toml").write_bytes(b"a = '\xff'")
    (folder / "odd.toml").write_text("pipeline = 7")
    (folder / "new.toml").write_text('[pipeline]\nname = "other"\n')
    assert states(client).keys() == {"chain", "echo", "odd", "other"}


def test_files_make_a_model_of_their_own(served: Any, temporary: Path) -> None:
    client, _ = served
    config = json.dumps({"backend": "onnxruntime", "max_batch_size": 8})
    client.load_model(
        "scale", config=config, files={"file:1/model.onnx": onnx_model(2.0)}, headers=HEADERS
    )
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[6.0, 6.0]]
    assert client.get_model_config("scale")["max_batch_size"] == 8
    assert len(list(temporary.iterdir())) == 1
    client.load_model(
        "scale",
        config=config,
        files={"file:3/model.onnx": onnx_model(5.0), "file:2/other": b"x"},
        headers=HEADERS,
    )
    assert client.is_model_ready("scale", "3")
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[15.0, 15.0]]
    client.unload_model("scale", headers=HEADERS)
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        infer(client, "scale", "x")
    with pytest.raises(
        InferenceServerException,
        match=r"\[404\] failed to load 'scale', failed to poll from model repository",
    ):
        client.load_model("scale", headers=HEADERS)
    gc.collect()
    assert not list(temporary.iterdir())


def test_an_unloaded_model_is_let_go(served: Any, temporary: Path) -> None:
    """This holds for any model that is requested next."""
    client, _ = served
    client.load_model(
        "scale", config="{}", files={"file:1/model.onnx": onnx_model(2.0)}, headers=HEADERS
    )
    infer(client, "scale", "x")
    client.unload_model("scale", headers=HEADERS)
    client.get_model_metadata("echo")
    gc.collect()
    assert not list(temporary.iterdir())


def test_files_instead_of_a_pipeline(served: Any) -> None:
    """A plain load brings back what the repository has."""
    client, _ = served
    config = json.dumps({"default_model_filename": "net.onnx"})
    client.load_model(
        "echo", config=config, files={"file:1/net.onnx": onnx_model(2.0)}, headers=HEADERS
    )
    assert infer(client, "echo", "x", 3.0).as_numpy("y").tolist() == [[6.0, 6.0]]
    client.load_model("echo", headers=HEADERS)
    assert infer(client, "echo", "X", 3.0).as_numpy("Y").tolist() == [[3.0, 3.0]]


def test_weights_beside_the_model(served: Any) -> None:
    client, _ = served
    files = {
        "file:1/model.onnx": onnx_model(0.0, external="factor.bin"),
        "file:1/factor.bin": np.float32(4.0).tobytes(),
    }
    client.load_model("scale", config="{}", files=files, headers=HEADERS)
    assert infer(client, "scale", "x", 3.0).as_numpy("y").tolist() == [[12.0, 12.0]]


@pytest.mark.parametrize("where", ["../echo.toml", "/etc/passwd", "factor.bin", "./model.onnx"])
def test_weights_elsewhere(served: Any, temporary: Path, where: str) -> None:
    client, _ = served
    with pytest.raises(
        InferenceServerException, match=r"\[400\] .*keeps weights in a file that was not given"
    ):
        client.load_model(
            "scale",
            config="{}",
            files={"file:1/model.onnx": onnx_model(0.0, external=where)},
            headers=HEADERS,
        )
    assert not list(temporary.iterdir())


def test_weights_elsewhere_in_a_branch(served: Any) -> None:
    """Weights of a graph in an attribute of a node."""
    inner = onnx_model(0.0, external="/etc/passwd", bytes_only=False).graph
    del inner.input[:]
    outer = onnx_model(1.0, bytes_only=False)
    outer.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    )
    answer = load_files(served, **{"file:1/model.onnx": outer.SerializeToString()})
    assert answer.status_code == 400 and "keeps weights" in answer.json()["error"]


def load_files(served: Any, config: Any = "{}", name: Any = "scale", **files: Any) -> Any:
    parameters = {
        key: value
        if isinstance(value, int | str) or key == "config"
        else base64.b64encode(value).decode()
        for key, value in files.items()
    }
    if config is not None:
        parameters.setdefault("config", config)
    return served[1].post(
        f"/v2/repository/models/{name}/load", headers=HEADERS, json={"parameters": parameters}
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"file:1/model.pt": b"x"},
            "overrides bring ONNX models, and no Python, TorchScript, .pt2",
        ),
        ({"file:1/model.py": b"x"}, "overrides bring ONNX models"),
        (
            {"config": '{"default_model_filename": "model.py"}', "file:1/model.py": b"x"},
            "overrides bring ONNX models",
        ),
        ({"file:1/model.pt2": b"x"}, "overrides bring ONNX models"),
        (
            {"file:2/model.py": b"x", "file:1/model.onnx": b"x"},
            "expected its model as 'file:2/model.onnx'",
        ),
        ({"file:../model.onnx": b"x"}, "unexpected parameter 'file:../model.onnx'"),
        ({"file:1/../model.onnx": b"x"}, "unexpected parameter"),
        ({"file:1//etc/x": b"x"}, "unexpected parameter"),
        ({"file:1/.hidden": b"x"}, "unexpected parameter"),
        ({"file:1/a\0": b"x"}, "unexpected parameter"),
        ({"file:model.onnx": b"x"}, "unexpected parameter"),
        ({"other": b"x"}, "unexpected parameter 'other'"),
        ({"file:1/model.onnx": 5}, "is a JSON number, expected base64"),
        ({"file:1/model.onnx": "no base64!"}, "is not valid base64"),
        ({"file:1/model.onnx": b"\xff\xff"}, "its model is not a valid ONNX file"),
        ({"file:1/model.onnx": b""}, "failed to load 'scale'"),
    ],
)
def test_files_that_are_refused(served: Any, temporary: Path, files: Any, message: str) -> None:
    answer = load_files(served, **files)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert not list(temporary.iterdir())
    assert "scale" not in states(served[0]) or states(served[0])["scale"][0] == "UNAVAILABLE"


def test_files_may_be_base64_in_lines(served: Any) -> None:
    text = base64.encodebytes(onnx_model(2.0)).decode()
    assert "\n" in text[:-1]
    answer = load_files(served, **{"file:1/model.onnx": text})
    assert answer.status_code == 200, answer.text


def test_files_need_a_configuration_and_a_name(served: Any) -> None:
    files = {"file:1/model.onnx": onnx_model(1.0)}
    answer = load_files(served, None, **files)
    assert (
        answer.status_code == 400
        and "'config' must be specified for model with override files" in answer.json()["error"]
    )
    answer = load_files(served, name="a b", **files)
    assert answer.status_code == 400 and "expected a name of letters" in answer.json()["error"]
    for filename in ("../../x.onnx", 7, "model.py"):
        answer = load_files(served, json.dumps({"default_model_filename": filename}), **files)
        assert answer.status_code == 400
