"""Triton's trace files: what a server writes, as Triton's trace_summary.py reads it."""

from __future__ import annotations

import csv
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load

ADMIN = {"Authorization": "Bearer admin"}
TEXT = {"data": {"kind": "text"}}


@register_backend("TraceFail")
def fail(text: str) -> str:
    raise KeyError("secret")


@register_backend("TraceSum")
def add(data: Any) -> Any:
    return [torch.from_numpy(data[0] + data[1]), data[2]]


def tensor(dtype: str, shape: Any) -> dict[str, Any]:
    return {"kind": "tensor", "dtype": dtype, "shape": shape}


PIPELINES: list[Any] = [
    {"pipeline": {"name": "one", "inputs": TEXT}, "net": {"backend": "Identity"}},
    {
        "pipeline": {"name": "chain", "inputs": TEXT},
        "first": {"backend": "Identity", "next": "second"},
        "second": {"backend": "Identity"},
    },
    {
        "pipeline": {"name": "parts", "inputs": {"data": {"kind": "json"}}},
        "each": {"backend": "MapReduce", "jump": "part"},
        "part": {"backend": "Identity"},
    },
    {"pipeline": {"name": "failing", "inputs": TEXT}, "net": {"backend": "TraceFail"}},
    {
        "pipeline": {
            "name": "sum",
            "inputs": {
                "A": tensor("FP32", [-1, -1]),
                "B": tensor("FP32", [-1, -1]),
                "C": tensor("BYTES", [-1, 1]),
            },
            "outputs": {"D": tensor("FP32", [-1, -1]), "E": tensor("BYTES", [-1, 1])},
        },
        "net": {"backend": "TraceSum", "max": 4},
    },
]

Trace = dict[str, Any]


class Traces:
    """The traces in a file: heads, timestamps (ns by name) and tensors by id."""

    def __init__(self, *paths: Path) -> None:
        self.heads: dict[int, Trace] = {}
        self.stamps: dict[int, dict[str, int]] = defaultdict(dict)
        self.tensors: dict[int, list[Trace]] = defaultdict(list)
        for path in paths:
            for entry in json.loads(path.read_text()):
                if "model_name" in entry:
                    self.heads[entry["id"]] = entry
                elif "tensor" in entry:
                    self.tensors[entry["id"]].append(entry)
                for stamp in entry.get("timestamps", ()):
                    self.stamps[entry["id"]][stamp["name"]] = stamp["ns"]

    def of(self, request_id: str) -> tuple[int, list[int]]:
        """Return the id of a request's trace, and those of its nodes."""
        ids = [number for number, head in self.heads.items() if head["request_id"] == request_id]
        whole, *nodes = sorted(ids)
        return whole, nodes


def infer(client: httpx.Client, data: Any, request_id: str, name: str = "sum") -> Any:
    triton = tritonclient.http.InferenceServerClient(
        f"{client.base_url.host}:{client.base_url.port}"
    )
    inputs = []
    for key, array in data.items():
        datatype = "BYTES" if array.dtype == object else "FP32"
        inputs.append(tritonclient.http.InferInput(key, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    try:
        return triton.infer(name, inputs, request_id=request_id)
    finally:
        triton.close()


@pytest.fixture(scope="module", params=[0, 64], ids=["no history, ASGI", "history, direct"])
def traces(
    request: Any, running: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traces]:
    """What is in the file after some requests to a server that traces all."""
    file = tmp_path_factory.mktemp("trace") / "trace.json"
    settings = Settings(
        trace_mode="triton",
        trace_file=file,
        trace_rate=1,
        trace_level="timestamps, tensors",
        request_history=request.param,
        admin_token=SecretStr("admin"),
        allow_trace=True,
    )
    # Without anything between, a connection of ours answers by itself; else it is ASGI.
    way = {"http": "penstock", "proxy_headers": False} if request.param else {}
    with running(create_app([load(one) for one in PIPELINES], settings=settings), **way) as client:
        for name in ("one", "chain", "failing"):
            client.post(f"/predict/{name}", content=b"x", headers={"X-Request-Id": name})
        wrong = {"Authorization": "Bearer wrong", "Penstock-Trace": "1", "X-Request-Id": "wrong"}
        assert client.post("/predict/one", content=b"x", headers=wrong).status_code == 401
        client.post("/predict/parts", json=[1, 2, 3], headers={"X-Request-Id": "parts"})
        client.post("/predict/one/batch", json=["x", "y"], headers={"X-Request-Id": "batch"})
        rows = np.array([[1.5, 2], [3, np.nan]], np.float32)
        texts = np.array([[b'say "a", b'], [b"\xff"]], object)
        infer(client, {"A": rows, "B": rows, "C": texts}, "sum")
        large = np.zeros((1, 1 << 17), np.float32)  # its trace has no tensors
        infer(client, {"A": large, "B": large, "C": texts[:1]}, "large")
    yield Traces(file)


def test_a_request_to_one_node_is_one_trace(traces: Traces) -> None:
    whole, nodes = traces.of("one")
    assert not nodes
    assert traces.heads[whole] == {
        "id": whole,
        "model_name": "one",
        "model_version": 1,
        "request_id": "one",
    }
    order = [
        "HTTP_RECV_START",
        "HTTP_RECV_END",
        "REQUEST_START",
        "QUEUE_START",
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
        "INFER_RESPONSE_COMPLETE",
        "REQUEST_END",
        "HTTP_SEND_START",
        "HTTP_SEND_END",
    ]
    stamps = traces.stamps[whole]
    assert list(stamps) == order
    assert list(stamps.values()) == sorted(stamps.values())
    assert stamps["COMPUTE_START"] < stamps["COMPUTE_END"]


def test_nodes_are_children(traces: Traces) -> None:
    whole, nodes = traces.of("chain")
    assert "COMPUTE_START" not in traces.stamps[whole]
    assert [traces.heads[node]["model_name"] for node in nodes] == ["first", "second"]
    assert {traces.heads[node]["parent_id"] for node in nodes} == {whole}
    first, second = (traces.stamps[node] for node in nodes)
    assert first["REQUEST_END"] <= second["REQUEST_START"] < second["COMPUTE_END"]
    assert second["REQUEST_END"] == traces.stamps[whole]["REQUEST_END"]


def test_parts_are_children_of_their_composite(traces: Traces) -> None:
    whole, (each, *parts) = traces.of("parts")
    assert traces.heads[each] | {"model_name": "each", "parent_id": whole} == traces.heads[each]
    assert [traces.heads[part]["parent_id"] for part in parts] == [each] * 3
    assert "QUEUE_START" not in traces.stamps[each]
    for part in parts:
        assert traces.stamps[each]["REQUEST_START"] <= traces.stamps[part]["REQUEST_START"]
        assert traces.stamps[part]["REQUEST_END"] <= traces.stamps[each]["REQUEST_END"]


def test_items_are_children(traces: Traces) -> None:
    whole, nodes = traces.of("batch")
    assert {traces.heads[node]["parent_id"] for node in nodes} == {whole} and len(nodes) == 2


def test_requests_that_fail_are_traced(traces: Traces) -> None:
    whole, _ = traces.of("failing")
    stamps = traces.stamps[whole]
    assert list(stamps.values()) == sorted(stamps.values())
    assert {"HTTP_RECV_START", "COMPUTE_END", "HTTP_SEND_END"} <= stamps.keys()


def test_requests_without_a_right_key_are_not_traced(traces: Traces) -> None:
    """Anyone can send them."""
    assert not any(head["request_id"] == "wrong" for head in traces.heads.values())


def test_tensors(traces: Traces) -> None:
    whole, _ = traces.of("sum")
    found = {
        (entry["activity"], entry["tensor"]["name"]): entry["tensor"]
        for entry in traces.tensors[whole]
    }
    a = found["TENSOR_QUEUE_INPUT", "A"]
    assert a == {"name": "A", "data": "1.5,2.0,3.0,nan", "shape": "2,2", "dtype": "FP32"}
    d = found["TENSOR_BACKEND_OUTPUT", "D"]
    assert d == {"name": "D", "data": "3.0,4.0,6.0,nan", "shape": "2,2", "dtype": "FP32"}
    e = found["TENSOR_BACKEND_OUTPUT", "E"]
    assert e["dtype"] == "BYTES"
    assert next(csv.reader([e["data"]])) == ['say "a", b', "\\xff"]
    assert len(found) == 5
    whole, _ = traces.of("large")
    assert [entry["tensor"]["name"] for entry in traces.tensors[whole]] == ["C", "E"]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} has not come"


def ids(*paths: Path) -> list[str]:
    return [head["request_id"] for head in Traces(*paths).heads.values()]


def test_numbered_files_and_counts(running: Any, tmp_path: Path) -> None:
    file = tmp_path / "t"
    settings = Settings(
        trace_mode="triton",
        trace_file=file,
        trace_rate=2,
        log_frequency=2,
        admin_token=SecretStr("admin"),
        allow_trace_settings=True,
    )
    app = create_app([load(one) for one in PIPELINES[:3]], settings=settings)
    with running(app, http="penstock") as client:

        def send(name: str, count: int) -> None:
            for number in range(count):
                headers = {"X-Request-Id": f"{name}{number}"}
                body = b"[1]" if name == "parts" else b"x"
                assert client.post(f"/predict/{name}", content=body, headers=headers).is_success

        def change(path: str, **changes: Any) -> Any:
            answer = client.post(f"/v2{path}/trace/setting", json=changes, headers=ADMIN)
            assert answer.is_success, answer.text
            return answer.json()

        send("one", 7)  # every second one: 1, 3, 5; the last is left over
        change("/models/parts", trace_rate="1", trace_count="3", log_frequency="0")
        send("parts", 5)
        assert client.get("/v2/models/parts/trace/setting").json()["trace_count"] == "0"
        assert client.get("/v2/trace/setting").json()["trace_count"] == "-1"
        wait_for(tmp_path / "t.1")  # it has all that was to be counted
        change("", trace_level=["OFF"])
        wait_for(tmp_path / "t.2")  # the one that was left over
        send("one", 4)
    names = sorted(path.name for path in tmp_path.iterdir())
    found = {name: ids(tmp_path / name) for name in names}
    assert names == ["t.0", "t.1", "t.2"]
    assert found["t.0"] == ["one1", "one3"] and found["t.2"] == ["one5"]
    assert found["t.1"] == [f"parts{number}" for number in range(3) for _ in range(3)]


def test_a_file_that_can_not_be_written(
    running: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    settings = Settings(trace_mode="triton", trace_file=folder / "x", trace_rate=1)
    app = create_app(load(PIPELINES[0]), settings=settings)
    with running(app, http="penstock") as client:
        folder.rmdir()
        for _ in range(2):
            assert client.post("/predict/one", content=b"x").status_code == 200
        app.state.tracing.close()
        assert "penstock_traces_dropped_total 2.0" in client.get("/metrics").text
        assert client.post("/predict/one", content=b"x").status_code == 200  # it goes on
    assert sum("can't be written" in message for message in caplog.messages) == 1
