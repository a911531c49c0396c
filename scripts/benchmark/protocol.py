"""Infer requests of the Open Inference Protocol: binary ones against a bare ASGI app that echoes the same bytes, and those whose tensors
lie in shared memory against binary ones. wrk, in alternation.
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
LEAST = {"identity": 0.6, "add_sub": 0.5}
WHAT = {"identity": "FP32 3×224×224, identity", "add_sub": "INT32[16], add_sub"}
LEAST_SHARED = 2.0
TENSOR = 4 * 3 * 224 * 224
"""Bytes of the identity's tensor."""
ADMIN = ("--admin-token", "bench", "--allow-shared-memory", "--map-shared-memory")


def measure(quick: bool) -> list[Figure]:
    if shutil.which("wrk") is None:
        raise RuntimeError(
            "wrk is not installed (apt install wrk); the generator in Python is slower than these servers"
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
        with process(bare_command, "/") as bare, penstock(models, *ADMIN) as ours, _regions(ours):
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
    """Shared memory for an input and an output of the identity, registered as `input` and `output`."""
    made = [SharedMemory(create=True, size=TENSOR) for _ in range(2)]
    try:
        for name, memory in zip(("input", "output"), made, strict=True):
            memory.buf[:] = bytes(TENSOR)  # so that the kernel has given it
            wanted = json.dumps({"key": f"/{memory.name}", "byte_size": TENSOR}).encode()
            path = f"/v2/systemsharedmemory/region/{name}/register"
            if ask(server.port, "POST", path, wanted, {"Authorization": "Bearer bench"}) != 200:
                raise RuntimeError(f"the server registers no shared memory: {path}")
        yield
    finally:
        for memory in made:
            memory.close()
            memory.unlink()


def _write_shared(folder: Path) -> None:
    """The script that has wrk send a request whose tensors lie in shared memory."""
    folder.mkdir()
    shared = [
        {"shared_memory_region": name, "shared_memory_byte_size": TENSOR}
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
    """The request's bytes, and the script that has wrk send them."""
    folder.mkdir()
    if model == "identity":
        ports = [("INPUT0", "FP32", [1, 3, 224, 224], TENSOR)]
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
    text = json.dumps(
        {"inputs": inputs, "parameters": {"binary_data_output": True}}
    ).encode()  # as tritonclient sends it
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
"""A server, the path that is asked for, and where the script for wrk lies."""


def _compare(
    yardstick: Side, ours: Server, model: str, connections: int, *, quick: bool, folder: Path
) -> Figure:
    seconds, pairs = (1, 5) if quick else (2, 9)
    side = (ours, f"/v2/models/{model}/infer", folder)
    sides = [yardstick, side]
    runs: dict[Side, list[Run]] = {yardstick: [], side: []}
    for pair in range(-1, pairs):  # the first is to warm up
        for each in sides:
            server, path, script = each
            run = wrk(server, path, connections, seconds, script)
            if pair >= 0:
                runs[each].append(run)
        sides.reverse()  # so that a drift of the machine favours neither
    ratios = [our.rate / other.rate for our, other in zip(runs[side], runs[yardstick], strict=True)]
    shared = yardstick[0] is ours
    say(f"{PART}, {folder.name}, {connections}: {[round(ratio, 3) for ratio in ratios]}")
    our, other = (
        Run(*(median(values) for values in zip(*runs[each], strict=True)))
        for each in (side, yardstick)
    )
    costs = f"server's CPU {our.processor:.0f} to {other.processor:.0f} µs a request"
    note = f"{our.rate:,.0f} to {other.rate:,.0f} requests/s; {costs}; p50 {our.p50:.3g} to {other.p50:.3g} ms"
    against = "in shared memory: rate ÷ in the body" if shared else "rate ÷ bare ASGI app's"
    what = f"{WHAT[model]}, {against}, {connections} connection{'s' if connections > 1 else ''}"
    return of_runs(PART, what, ratios, least=LEAST_SHARED if shared else LEAST[model], note=note)
