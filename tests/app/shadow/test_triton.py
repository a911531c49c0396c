"""The shadow of a real Triton, by `penstock shadow` and by an app."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from .conftest import models, step, two_inputs
from .raw_server import ok, raw_server

if TYPE_CHECKING:
    from ...triton_server import TritonServer

ADD_SUB = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.outputs(request)) for request in requests]

    def outputs(self, request):
        names = ("INPUT0", "INPUT1")
        one, two = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names)
        return [pb_utils.Tensor("OUTPUT0", one + two), pb_utils.Tensor("OUTPUT1", one - two)]
"""

TOTAL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.output(request)]) for request in requests]

    def output(self, request):
        names = ("INPUT", "START", "CORRID")
        value, start, sequence = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names
        )
        before = 0 if start.item() else self.totals[sequence.item()]
        self.totals[sequence.item()] = total = before + value
        return pb_utils.Tensor("OUTPUT", total)
"""

CONFIGS = {
    "simple": """
backend: "python"
max_batch_size: 8
input [
  {name: "INPUT0" data_type: TYPE_FP32 dims: 4},
  {name: "INPUT1" data_type: TYPE_FP32 dims: 4}
]
output [
  {name: "OUTPUT0" data_type: TYPE_FP32 dims: 4},
  {name: "OUTPUT1" data_type: TYPE_FP32 dims: 4}
]
""",
    "total": """
backend: "python"
max_batch_size: 8
input {name: "INPUT" data_type: TYPE_INT32 dims: 1}
output {name: "OUTPUT" data_type: TYPE_INT32 dims: 1}
sequence_batching {
  oldest {max_candidate_sequences: 8}
  control_input {
    name: "START" control {kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1]}
  }
  control_input {
    name: "CORRID" control {kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64}
  }
}
""",
}


@pytest.fixture(scope="module")
def real(triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    folder = tmp_path_factory.mktemp("real")
    for name, code in (("simple", ADD_SUB), ("total", TOTAL)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(CONFIGS[name])
        (folder / name / "1" / "model.py").write_text(code)
    triton.add(folder)
    return triton


def test_a_real_triton_is_shadowed_and_replaced(
    real: TritonServer, shadowing: Any, ops: Path
) -> None:
    options = {"grpc": real.grpc_address, "switch_after": 7}
    with shadowing(models(ops)[:3:2], f"http://{real.address}", **options) as server:
        address = server.client.base_url.netloc.decode()
        for client, place in ((tritonclient.http, address), (tritonclient.grpc, server.grpc)):
            triton: Any = client.InferenceServerClient(place)
            assert triton.is_server_ready()
            inputs = []
            for name in ("INPUT0", "INPUT1"):
                inputs.append(client.InferInput(name, [1, 4], "FP32"))
                inputs[-1].set_data_from_numpy(np.arange(4, dtype=np.float32).reshape(1, 4))
            for classes in (0, 2):
                wanted = [client.InferRequestedOutput("OUTPUT0", class_count=classes)]
                triton.infer("simple", inputs, outputs=wanted)
            with pytest.raises(Exception, match="expected"):
                triton.infer("simple", inputs[:1])
            triton.close()
        for value in range(6):  # two sequences
            body = step(1, value, start=value % 3 == 0, end=value % 3 == 2)
            assert server.client.post("/v2/models/total/infer", json=body).status_code == 200
        assert server.model(agreed=6, disagreed=0)["answered_by"] == "triton"
        assert server.model("total", agreed=6, disagreed=0)["answered_by"] == "triton"
        got = server.client.get("/v2")
        assert got.json()["version"] == real.client.get_server_metadata()["version"]
        assert server.client.post("/v2/models/simple/infer", json=two_inputs()).status_code == 200
        assert server.model(agreed=7)["answered_by"] == "penstock"
        assert server.client.post("/v2/models/simple/infer", json=two_inputs()).status_code == 200
        statistics = real.client.get_inference_statistics("simple")["model_stats"][0]
        assert statistics["inference_stats"]["success"]["count"] == 5
        assert server.switch().json()["done"] is True
        assert server.client.get("/v2").json()["name"] == "penstock"


def test_the_command_reports_at_its_end(spawn: Any, echo: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with raw_server(lambda request: ok(b'{"outputs":[]}')) as raw:
        process = spawn(
            *("shadow", echo, "--from", raw.url, "--port", 0, "--json", report),
            *("--switch", "--switch-after", 5, "--rtol", 0.1),
        )
        client: httpx.Client = process.listening()
        process.wait_for("ready after")
        with client:
            got = client.post("/v2/models/echo/infer", json={"inputs": []})
            assert got.json() == {"outputs": []}
        process.process.send_signal(signal.SIGTERM)
        assert process.end() == 0
    printed = process.process.stdout.read()
    assert printed.startswith("model echo: 1 requests, 0 of 1 compared agreed; p50 ")
    assert "status 200 at Triton, status 400 (" in printed
    written = json.loads(report.read_bytes())
    assert (written["from"]["http"], written["switch"]["after"]) == (raw.url, 5)
    assert written["tolerance"] == {"rtol": 0.1, "atol": 1e-05}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Missing option '--from'"),
        (("--from", "localhost:8000"), "expected http://HOST:PORT"),
        (("--from", "http://a", "--from", "http://b"), "twice for HTTP"),
        (("--from", "http://a?b"), "more than a host, a port and a path"),
        (("--from", "grpc://a"), "as grpc://127.0.0.1:8001"),
        (("--from", "grpc://a:1"), "Expected --grpc-port"),
        (("--from", "http://a", "--grpc-port", "0"), "Expected --from grpc://HOST:PORT too"),
        (("--from", "http://a", "--switch-after", "9"), "--switch-after needs --switch"),
        (("--from", "http://a", "--from-metrics", "x"), "not the URL of an HTTP server"),
        (("--from", "http://a", "--json", "/nowhere/x"), "there is no such directory"),
    ],
)
def test_options_that_can_not_be(echo: Path, options: tuple[str, ...], said: str) -> None:
    from typer.testing import CliRunner

    from penstock.app.cli.main import command_line

    result = CliRunner().invoke(
        command_line, ["shadow", str(echo), *options], env={"COLUMNS": "400"}
    )
    assert result.exit_code != 0
    assert said in result.output
