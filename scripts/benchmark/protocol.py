"""Infer requests of the Open Inference Protocol, sent by wrk to two sides in turn.

Binary requests are compared with a bare ASGI app that echoes the same bytes, and requests whose
tensors lie in shared memory are compared with binary ones.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median

from figures import Figure, of_runs, say
from http_noop import Run, wrk
from servers import Server, ask, penstock, process

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
LEAST_RATIOS = {"identity": 0.6, "add_sub": 0.5}
"""Targets, as shares of the bare app's rate."""
LEAST_SHARED_RATIO = 2.0
"""Target of shared memory, as a multiple of the rate of binary requests."""
DESCRIPTIONS = {"identity": "FP32 3×224×224, identity", "add_sub": "INT32[16], add_sub"}
TENSOR_BYTES = 4 * 3 * 224 * 224
"""The size of the identity's tensor."""
OPTIONS = ("--admin-token", "bench", "--allow-shared-memory", "--map-shared-memory")


def measure(quick: bool) -> list[Figure]:
    if shutil.which("wrk") is None:
        raise RuntimeError(
            "wrk is not installed (apt install wrk); "
            "a generator in Python is slower than these servers"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        (models / "ops.py").write_text(ADD_SUB)
        for model, text in PIPELINES.items():
            (models / f"{model}.toml").write_text(text)
            _write_request(folder / model, model)
        bare_command = [sys.executable, str(Path(__file__).with_name("bare.py"))]
        with process(bare_command, "/") as bare, penstock(models, *OPTIONS) as ours, _regions(ours):
            figures = [
                _compare(
                    (bare, "/echo", folder / model),
                    ours,
                    model,
                    connections,
                    quick=quick,
                    folder=folder / model,
                )
                for model in PIPELINES
                for connections in CONNECTIONS
            ]
            _write_shared(folder / "shared")
            binary = (ours, "/v2/models/identity/infer", folder / "identity")
            return figures + [
                _compare(
                    binary, ours, "identity", connections, quick=quick, folder=folder / "shared"
                )
                for connections in CONNECTIONS
            ]


@contextmanager
def _regions(server: Server) -> Iterator[None]:
    """Register shared memory for the identity's tensors, as the regions `input` and `output`."""
    memories = [SharedMemory(create=True, size=TENSOR_BYTES) for _ in range(2)]
    try:
        for name, memory in zip(("input", "output"), memories, strict=True):
            assert memory.buf is not None  # None only once it is closed
            memory.buf[:] = bytes(TENSOR_BYTES)  # so that the kernel has allocated its pages
            body = json.dumps({"key": f"/{memory.name}", "byte_size": TENSOR_BYTES}).encode()
            path = f"/v2/systemsharedmemory/region/{name}/register"
            status = ask(server.port, "POST", path, body, {"Authorization": "Bearer bench"})
            if status != 200:
                raise RuntimeError(f"the server refused shared memory: POST {path}: {status}")
        yield
    finally:
        for memory in memories:
            memory.close()
            memory.unlink()


def _write_shared(folder: Path) -> None:
    """Write the script with which wrk sends a request whose tensors lie in shared memory."""
    folder.mkdir()
    shared = [
        {"shared_memory_region": name, "shared_memory_byte_size": TENSOR_BYTES}
        for name in ("input", "output")
    ]
    document = {
        "inputs": [
            {
                "name": "INPUT0",
                "shape": [1, 3, 224, 224],
                "datatype": "FP32",
                "parameters": shared[0],
            }
        ],
        "outputs": [{"name": "OUTPUT0", "parameters": shared[1]}],
    }
    (folder / "post.lua").write_text(f"""
wrk.method = "POST"
wrk.body = {json.dumps(json.dumps(document))}
""")


def _write_request(folder: Path, model: str) -> None:
    """Write the bytes of a request, and the script with which wrk sends them."""
    folder.mkdir()
    if model == "identity":
        ports = [("INPUT0", "FP32", [1, 3, 224, 224], TENSOR_BYTES)]
    else:
        ports = [(port, "INT32", [1, 16], 64) for port in ("INPUT0", "INPUT1")]
    inputs = [
        {
            "name": port,
            "shape": shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": size},
        }
        for port, datatype, shape, size in ports
    ]
    # As tritonclient sends it.
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = folder / "body"
    body.write_bytes(text + bytes(sum(size for *_, size in ports)))
    (folder / "post.lua").write_text(f"""
wrk.method = "POST"
local file = io.open({json.dumps(str(body))}, "rb")
wrk.body = file:read("*a")
file:close()
wrk.headers["Inference-Header-Content-Length"] = "{len(text)}"
""")


Side = tuple[Server, str, Path]
"""A server, the path of its requests, and the folder of the script for wrk."""


def _compare(
    baseline: Side, ours: Server, model: str, connections: int, *, quick: bool, folder: Path
) -> Figure:
    seconds, pairs = (1, 5) if quick else (2, 9)
    side = (ours, f"/v2/models/{model}/infer", folder)
    sides = [baseline, side]
    runs: dict[Side, list[Run]] = {baseline: [], side: []}
    for pair in range(-1, pairs):  # the first is to warm up
        for target in sides:
            server, path, script = target
            run = wrk(server, path, connections, seconds, script)
            if pair >= 0:
                runs[target].append(run)
        sides.reverse()  # so that a drift of the machine favours neither
    ratios = [our.rate / other.rate for our, other in zip(runs[side], runs[baseline], strict=True)]
    shared = baseline[0] is ours
    say(f"{PART}, {folder.name}, {connections}: {[round(ratio, 3) for ratio in ratios]}")
    our, other = (
        Run(*(median(values) for values in zip(*runs[target], strict=True)))
        for target in (side, baseline)
    )
    costs = f"server's CPU {our.processor:.0f} to {other.processor:.0f} µs a request"
    note = (
        f"{our.rate:,.0f} to {other.rate:,.0f} requests/s; {costs}; "
        f"p50 {our.p50:.3g} to {other.p50:.3g} ms"
    )
    against = "in shared memory: rate ÷ in the body" if shared else "rate ÷ bare ASGI app's"
    plural = "s" if connections > 1 else ""
    what = f"{DESCRIPTIONS[model]}, {against}, {connections} connection{plural}"
    least = LEAST_SHARED_RATIO if shared else LEAST_RATIOS[model]
    return of_runs(PART, what, ratios, least=least, note=note)
