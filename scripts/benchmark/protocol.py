"""Binary infer requests of the Open Inference Protocol against a bare ASGI app that echoes the same bytes: wrk, in alternation."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from figures import Figure, of_runs, say
from http_noop import Run, wrk
from servers import Server, penstock, process

PART = "Open Inference Protocol"
CONNECTIONS = (1, 16, 64)

ADD_SUB = """
def add_sub(data):
    first, second = data
    return [first + second, first - second]
"""
PIPELINES = {
    "identity": """
[pipeline.inputs]
INPUT0 = { kind = "tensor", dtype = "FP32", shape = [-1, 3, 224, 224] }

[pipeline.outputs]
OUTPUT0 = { kind = "tensor", dtype = "FP32", shape = [-1, 3, 224, 224] }

[identity]
backend = "Identity"
max = 32
""",
    "add_sub": """
[pipeline.inputs]
INPUT0 = { kind = "tensor", dtype = "INT32", shape = [-1, 16] }
INPUT1 = { kind = "tensor", dtype = "INT32", shape = [-1, 16] }

[pipeline.outputs]
OUTPUT0 = { kind = "tensor", dtype = "INT32", shape = [-1, 16] }
OUTPUT1 = { kind = "tensor", dtype = "INT32", shape = [-1, 16] }

[add_sub]
backend = "Python[ops.py:add_sub]"
max = 32
""",
}
LEAST = {"identity": 0.6, "add_sub": 0.5}
WHAT = {"identity": "FP32 3×224×224, identity", "add_sub": "INT32[16], add_sub"}


def measure(quick: bool) -> list[Figure]:
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed (apt install wrk); the generator in Python is slower than these servers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        (models / "ops.py").write_text(ADD_SUB)
        for model, text in PIPELINES.items():
            (models / f"{model}.toml").write_text(text)
            _write_request(folder / model, model)
        bare_command = [sys.executable, str(Path(__file__).with_name("bare.py"))]
        with process(bare_command, "/") as bare, penstock(models) as ours:
            return [
                _compare(bare, ours, model, connections, quick=quick, folder=folder / model)
                for model in PIPELINES
                for connections in CONNECTIONS
            ]


def _write_request(folder: Path, model: str) -> None:
    """The request's bytes, and the script that has wrk send them."""
    folder.mkdir()
    if model == "identity":
        ports = [("INPUT0", "FP32", [1, 3, 224, 224], 4 * 3 * 224 * 224)]
    else:
        ports = [(port, "INT32", [1, 16], 64) for port in ("INPUT0", "INPUT1")]
    inputs = [
        {"name": port, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
        for port, datatype, shape, size in ports
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()  # as tritonclient sends it
    body = folder / "body"
    body.write_bytes(text + bytes(sum(size for *_, size in ports)))
    (folder / "post.lua").write_text(f"""
wrk.method = "POST"
local file = io.open({json.dumps(str(body))}, "rb")
wrk.body = file:read("*a")
file:close()
wrk.headers["Inference-Header-Content-Length"] = "{len(text)}"
""")


def _compare(bare: Server, ours: Server, model: str, connections: int, *, quick: bool, folder: Path) -> Figure:
    seconds, pairs = (1, 5) if quick else (2, 9)
    sides = [(bare, "/echo"), (ours, f"/v2/models/{model}/infer")]
    runs: dict[Server, list[Run]] = {bare: [], ours: []}
    for pair in range(-1, pairs):  # the first is to warm up
        for server, path in sides:
            run = wrk(server, path, connections, seconds, folder)
            if pair >= 0:
                runs[server].append(run)
        sides.reverse()  # so that a drift of the machine favours neither
    ratios = [our.rate / other.rate for our, other in zip(runs[ours], runs[bare], strict=True)]
    say(f"{PART}, {model}, {connections}: {[round(ratio, 3) for ratio in ratios]}")
    our, other = (Run(*(median(values) for values in zip(*runs[server], strict=True))) for server in (ours, bare))
    costs = f"server's CPU {our.processor:.0f} to {other.processor:.0f} µs a request"
    note = f"{our.rate:,.0f} to {other.rate:,.0f} requests/s; {costs}; p50 {our.p50:.3g} to {other.p50:.3g} ms"
    what = f"{WHAT[model]}: rate ÷ bare ASGI app's, {connections} connection{'s' if connections > 1 else ''}"
    return of_runs(PART, what, ratios, least=LEAST[model], note=note)
