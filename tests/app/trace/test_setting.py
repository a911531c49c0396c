"""Triton's trace settings over HTTP, driven by Triton's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http
from pydantic import SecretStr, ValidationError
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.settings import Settings
from penstock.pipelines.config.load import load

ADMIN = {"Authorization": "Bearer admin"}
PIPELINES = [
    {
        "pipeline": {"name": name, "inputs": {"data": {"kind": "text"}}},
        "one": {"backend": "Identity"},
    }
    for name in ("simple", "other")
]
START = {
    "trace_level": ["TIMESTAMPS"],
    "trace_rate": "1",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}


def served(running: Any, **settings: Any) -> Any:
    asked = Settings(admin_token=SecretStr("admin"), allow_trace_settings=True, **settings)
    return running(create_app([load(one) for one in PIPELINES], settings=asked), http="penstock")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def client(running: Any, file: Path) -> Iterator[httpx.Client]:
    with served(running, trace_mode="triton", trace_file=file, trace_rate=1) as client:
        yield client


@pytest.fixture
def triton(client: httpx.Client, file: Path) -> Iterator[Any]:
    """A client of Triton's that sends the admin token; afterwards the settings are as before."""
    triton = tritonclient.http.InferenceServerClient(
        f"{client.base_url.host}:{client.base_url.port}"
    )

    class Admin:
        def get(self, model: str | None = None) -> Any:
            return triton.get_trace_settings(model)

        def update(self, model: str | None = None, **settings: Any) -> Any:
            return triton.update_trace_settings(model, settings, headers=ADMIN)

    yield Admin()
    cleared = dict.fromkeys(("trace_level", "trace_rate", "trace_count", "log_frequency"))
    for model in ("simple", "other", None):
        triton.update_trace_settings(model, cleared, headers=ADMIN)
    triton.close()


def test_settings_of_the_start(triton: Any, file: Path) -> None:
    assert triton.get() == triton.get("simple") == START | {"trace_file": str(file)}


def test_a_model_follows_all_but_what_it_specifies(triton: Any) -> None:
    triton.update("simple", trace_rate="12", log_frequency="34")
    triton.update(trace_rate="56", trace_count="78", trace_level=["OFF"])
    changed = triton.update(trace_rate=None, trace_count=None)
    assert (changed["trace_rate"], changed["trace_count"]) == ("1", "-1")
    assert changed["trace_level"] == ["OFF"]
    model = triton.get("simple")
    assert (model["trace_rate"], model["log_frequency"]) == ("12", "34")
    assert model["trace_level"] == ["OFF"] and model["trace_count"] == "-1"
    model = triton.update("simple", trace_rate=None, trace_level=None)
    assert (model["trace_rate"], model["log_frequency"]) == ("1", "34")
    assert triton.get("other") == triton.get() == changed


def test_levels_have_an_order(triton: Any) -> None:
    levels = ["TENSORS", "TIMESTAMPS"]
    assert triton.update(trace_level=levels)["trace_level"] == ["TIMESTAMPS", "TENSORS"]
    assert triton.update(trace_level=["TENSORS"])["trace_level"] == ["TENSORS"]


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        (
            {"trace_file": "x"},
            501,
            "trace file location can not be updated through network protocol",
        ),
        ({"trace_mode": "opentelemetry"}, 501, "set it when the server starts"),
        ({"trace_level": ["OFF", "TENSORS"]}, 400, "Expect only one trace level 'OFF' is"),
        ({"trace_level": ["ALL"]}, 400, "Unable to parse 'trace_level', got: ['ALL']"),
        ({"trace_level": "OFF"}, 400, "Unable to parse 'trace_level', got: OFF"),
        ({"trace_level": [1]}, 400, "Unable to parse 'trace_level'"),
        ({"trace_rate": "often"}, 400, "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": 7}, 400, "Unable to parse 'trace_rate', got: 7"),
        (
            {"trace_rate": "99999999999999999999"},
            400,
            "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 9999",
        ),
        (
            {"trace_rate": "0"},
            400,
            "Attempting to set invalid trace setting :sample rate must be non-zero",
        ),
        ({"trace_count": "-2"}, 400, "'trace_count'. Expecting value >= -1, got:-2"),
        ({"trace_count": "1e3"}, 400, "Unable to parse 'trace_count', got: 1e3"),
        (
            {"trace_count": "2147483648"},
            400,
            "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ]",
        ),
        ({"log_frequency": "x"}, 400, "Unable to parse 'log_frequency', got: x"),
        ({"trace_rates": "1"}, 400, "unknown trace setting 'trace_rates': expected one of"),
    ],
)
def test_what_can_not_be_set(client: httpx.Client, changes: Any, status: int, text: str) -> None:
    before = client.get("/v2/trace/setting").json()
    good = {"log_frequency": "9"}  # nothing of a request is set that has a fault
    answer = client.post("/v2/trace/setting", json=good | changes, headers=ADMIN)
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    assert client.get("/v2/trace/setting").json() == before


def test_unknown_model(triton: Any) -> None:
    for call in (triton.get, lambda model: triton.update(model, trace_rate="2")):
        with pytest.raises(InferenceServerException, match="Request for unknown model : none"):
            call("none")


def test_changes_need_the_admin_token(client: httpx.Client, running: Any) -> None:
    changes = {"trace_rate": "2"}
    assert client.post("/v2/trace/setting", json=changes).status_code == 401
    assert client.post("/v2/trace/setting", json={}).json()["trace_rate"] == "1"
    app = create_app(load(PIPELINES[0]), settings=Settings(admin_token=SecretStr("admin")))
    with running(app, http="penstock") as off:
        answer = off.post("/v2/trace/setting", json=changes, headers=ADMIN)
        assert answer.status_code == 501
        assert "Start the server with '--allow-trace-settings'" in answer.json()["error"]
        assert "trace" in off.get("/v2").json()["extensions"]


def test_without_a_file_nothing_can_be_traced(running: Any) -> None:
    with served(running) as client:
        assert client.get("/v2/models/simple/trace/setting").json() == {
            "trace_level": ["OFF"],
            "trace_rate": "1000",
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "triton",
        }
        changes = {"trace_level": ["TIMESTAMPS"]}
        answer = client.post("/v2/trace/setting", json=changes, headers=ADMIN)
        assert answer.status_code == 400
        assert "invalid trace setting :trace file name is not given" in answer.json()["error"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trace_mode": "triton"}, "trace_mode = triton needs trace_file"),
        ({"trace_mode": "triton", "trace_file": "/no/folder/x"}, "there is no folder /no/folder"),
        ({"trace_mode": "triton", "trace_file": "x", "trace_rate": 0}, "trace_rate = 0 is for"),
        ({"trace_mode": "opentelemetry", "trace_level": "TENSORS"}, "needs trace_mode = triton"),
        ({"trace_level": "MAX"}, "expected OFF, TIMESTAMPS, TENSORS"),
        ({"trace_url": "localhost:4318"}, "is not a URL"),
        ({"trace_resource": "service.name"}, "expected key=value"),
    ],
)
def test_settings_that_do_not_fit(settings: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Settings(**settings)
