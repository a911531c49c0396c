"""The RPC TraceSetting, and traces of RPCs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from penstock.app.grpc.calls import STATUS_BY_HTTP
from penstock.app.trace.spans import GRPC_CODES

from ..grpc.conftest import Served, model, serving, tensor
from .collector import collecting
from .test_files import Traces

ADMIN = {"authorization": "Bearer admin"}


def infer(served: Served, request_id: str) -> Any:
    wanted = tritonclient.grpc.InferInput("X", [1, 2], "FP32")
    wanted.set_data_from_numpy(np.array([[1, 2]], np.float32))
    return served.client.infer("echo", [wanted], request_id=request_id)


def test_settings_and_traces(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    echo = model("echo", {"X": tensor("FP32")}, {"Y": tensor("FP32")})
    settings: dict[str, Any] = {
        "trace_mode": "triton",
        "trace_file": file,
        "trace_rate": 1,
        "trace_level": "OFF",
        "admin_token": "admin",
        "allow_trace_settings": True,
    }
    with serving(echo, **settings) as served:
        client = served.client

        def get(name: str | None = None) -> dict[str, Any]:
            answer = client.get_trace_settings(name, as_json=True)
            return {key: value["value"] for key, value in answer["settings"].items()}

        def update(name: str | None = None, **changes: Any) -> Any:
            client.update_trace_settings(name, changes, headers=ADMIN)

        assert (
            get()
            == get("echo")
            == {
                "trace_level": ["OFF"],
                "trace_rate": ["1"],
                "trace_count": ["-1"],
                "log_frequency": ["0"],
                "trace_file": [str(file)],
                "trace_mode": ["triton"],
            }
        )
        infer(served, "untraced")
        update("echo", trace_level=["TENSORS", "TIMESTAMPS"], trace_count="7")
        assert get()["trace_level"] == ["OFF"]
        assert get("echo")["trace_level"] == ["TIMESTAMPS", "TENSORS"]
        infer(served, "traced")
        assert get("echo")["trace_count"] == ["6"]
        update("echo", trace_level=None, trace_count=None)
        assert get("echo") == get()
        with pytest.raises(InferenceServerException, match="unknown model : none"):
            get("none")
        with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*trace file location"):
            update(trace_file="x")
        with pytest.raises(InferenceServerException, match="expect only 1 value for 'trace_rate'"):
            update(trace_rate=["1", "2"])
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.update_trace_settings(settings={"trace_rate": "2"})
        served.app.state.tracing.close()
    traces = Traces(file)
    ((number, head),) = traces.heads.items()
    assert (head["model_name"], head["request_id"]) == ("echo", "traced")
    stamps = list(traces.stamps[number])
    assert stamps[:2] == ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END"]
    assert stamps[-2:] == ["GRPC_SEND_START", "GRPC_SEND_END"]
    assert [entry["tensor"]["data"] for entry in traces.tensors[number]] == ["1.0,2.0"] * 2


def test_a_context_comes_as_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    echo = model("echo", {"X": tensor("FP32")}, {"Y": tensor("FP32")})
    with (
        collecting() as collector,
        serving(
            echo, trace_mode="opentelemetry", trace_url=collector.url, trace_rate=10**6
        ) as served,
    ):
        wanted = tritonclient.grpc.InferInput("X", [1, 2], "FP32")
        wanted.set_data_from_numpy(np.array([[1, 2]], np.float32))
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        served.client.infer("echo", [wanted], request_id="r1", headers=headers)
        request, node = collector.of("r1")
        served.app.state.tracing.close()
    assert request.parent_id == "b7ad6b7169203331" and node.parent_id == request.span_id
    assert request.name == "inference.GRPCInferenceService/ModelInfer"
    expected = {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
    }
    assert request.attributes | expected == request.attributes


def test_spans_have_the_codes_of_calls() -> None:
    """Both have a table: the exporter's child imports nothing of the server."""
    codes = {status: code.value[0] for status, code in STATUS_BY_HTTP.items()}
    assert {status: GRPC_CODES[status] for status in codes} == codes
