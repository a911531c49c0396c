"""Infer requests of the Open Inference Protocol, sent by wrk to two or three sides in turns.

Binary requests are compared with a bare ASGI app that echoes the same bytes, and requests whose
tensors lie in shared memory are compared with binary ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from figures import Figure, of_runs, say
from servers import Server, ask, penstock, process
from wrk import Run, Side, compared, in_turns, of_connections, ratios, require_wrk

PART = "Open Inference Protocol"

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
IDENTITY, ADD_SUB_TENSORS = "FP32 3×224×224, identity", "INT32[16], add_sub"
BARE, BODY, SHARED = "bare ASGI echo", "tensors in the body", "tensors in shared memory"
"""The sides."""
LEAST_ADD_SUB_RATIOS = {1: 0.45, 16: 0.8, 64: 1.0, 256: 1.0}
"""Targets by connections, as multiples of the bare app's rate."""
LEAST_SHARED_RATIO = 2.0
"""Target of shared memory, as a multiple of the rate of binary requests."""
TENSOR_BYTES = 4 * 3 * 224 * 224
"""The size of the identity's tensor."""
OPTIONS = ("--admin-token", "bench", "--allow-shared-memory", "--map-shared-memory")


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        (models / "ops.py").write_text(ADD_SUB)
        for model, text in PIPELINES.items():
            (models / f"{model}.toml").write_text(text)
            _write_request(folder / model, model)
        _write_shared(folder / "shared")
        bare_command = [sys.executable, str(Path(__file__).with_name("bare.py"))]
        bare = running.enter_context(process(bare_command, "/"))
        ours = running.enter_context(penstock(models, *OPTIONS))
        running.enter_context(_regions(ours))

        def side(name: str, model: str, script: str) -> Side:
            lua = folder / script / "post.lua"
            if name == BARE:
                return Side(name, bare, "/echo", lua)
            return Side(name, ours, f"/v2/models/{model}/infer", lua)

        identity = [
            side(BARE, "", "identity"),
            side(BODY, "identity", "identity"),
            side(SHARED, "identity", "shared"),
        ]
        for connections in (1, 16, 64):
            say(f"{PART}, {IDENTITY}")
            runs = in_turns(identity, connections, quick=quick)
            body, among = runs[BODY], of_connections(connections)
            against_bare = f"{IDENTITY}, rate ÷ bare ASGI app's, {among}"
            against_body = f"{IDENTITY}, in shared memory: rate ÷ in the body, {among}"
            figures.append(_ratio(against_bare, body, runs[BARE], 1.0))
            figures.append(_ratio(against_body, runs[SHARED], body, LEAST_SHARED_RATIO))
        add_sub = [side(BARE, "", "add_sub"), side(BODY, "add_sub", "add_sub")]
        for connections, least in LEAST_ADD_SUB_RATIOS.items():
            say(f"{PART}, {ADD_SUB_TENSORS}")
            runs = in_turns(add_sub, connections, quick=quick)
            what = f"{ADD_SUB_TENSORS}, rate ÷ bare ASGI app's, {of_connections(connections)}"
            figures.append(_ratio(what, runs[BODY], runs[BARE], least))
    return figures


def _ratio(what: str, ours: Sequence[Run], other: Sequence[Run], least: float) -> Figure:
    return of_runs(PART, what, ratios(ours, other), least=least, note=compared(ours, other))


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
