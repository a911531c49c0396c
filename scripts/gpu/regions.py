"""CUDA shared memory between processes, by HTTP and by gRPC, against a server of its own.

The client is this process. It allocates by tritonclient's own utility, or by the CUDA runtime if
that is not installed. A second client is killed while its memory is registered.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
SERVER_NEEDS = ("fastapi", "uvicorn", "pydantic_settings", "orjson", "httptools", "wsproto")
GRPC_NEEDS = (*SERVER_NEEDS, "grpc", "grpc_health", "grpc_reflection", "tritonclient")
TOKEN = "token"
REGION_BYTES = 4 << 20
ROW = np.dtype(np.float32).itemsize * 4
"""The bytes of a row of X and Y."""

OPERATORS = """
import time
from pathlib import Path

import numpy as np
import torch

from penstock import Backend


class Where(Backend):
    '''Works on the GPU: answers where its input is.'''

    def init(self, params, context):
        self.device = "cuda:0"

    def forward(self, batch):
        for item in batch:
            data = item["data"]
            on_gpu = isinstance(data, torch.Tensor) and data.is_cuda
            item["result"] = np.full((len(data), 4), float(on_gpu), np.float32)


class Gated(Backend):
    '''Waits for a file.'''

    def forward(self, batch):
        Path("entered").touch()
        while not Path("open").exists():
            time.sleep(0.005)
        for item in batch:
            item["result"] = item["data"] * 2


def host(data):
    assert type(data) is np.ndarray, type(data)
    return data * 2
"""

CLIENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from regions import Memory
memory = Memory(int(sys.argv[2]))
memory.fill(np.full(memory.size // 4, 7.0, np.float32))
print(memory.handle.decode(), flush=True)
time.sleep(600)
"""


class RefusedError(Exception):
    """An answer that is an error."""


class Memory:
    """Memory on the first GPU, which this process allocates for others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.by_triton = bool(find_spec("tritonclient")) and bool(find_spec("cuda.bindings"))
        if self.by_triton:
            from tritonclient.utils import cuda_shared_memory

            self._triton: Any = cuda_shared_memory
            self._region: Any = cuda_shared_memory.create_shared_memory_region("r", size, 0)
            self.handle: bytes = cuda_shared_memory.get_raw_handle(self._region)
            return
        torch.cuda.init()  # type: ignore[no-untyped-call]  # its stubs do not type it
        version = torch.version.cuda or ""
        self._runtime = ctypes.CDLL(f"libcudart.so.{version.partition('.')[0]}")
        self._address = ctypes.c_void_p()
        handle = (ctypes.c_char * 64)()
        self._call("cudaMalloc", ctypes.byref(self._address), ctypes.c_size_t(size))
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), self._address)
        self.handle = base64.b64encode(bytes(handle))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._runtime, name)(*arguments)
        assert code == 0, f"{name} returned {code}"

    def fill(self, array: Any) -> None:
        """Write an array to the beginning."""
        if self.by_triton:
            self._triton.set_shared_memory_region(self._region, [array])
            return
        source = array.ctypes.data_as(ctypes.c_void_p)
        self._call("cudaMemcpy", self._address, source, ctypes.c_size_t(array.nbytes), 1)

    def read(self, offset: int, shape: tuple[int, ...]) -> Any:
        """Read an array of float32."""
        if self.by_triton:
            content = self._triton.get_contents_as_numpy(self._region, np.uint8, [self.size])
        else:
            content = np.empty(self.size, np.uint8)
            target = content.ctypes.data_as(ctypes.c_void_p)
            self._call("cudaMemcpy", target, self._address, ctypes.c_size_t(self.size), 2)
        count = int(np.prod(shape))
        return np.frombuffer(content.tobytes(), np.float32, count, offset).reshape(shape)

    def free(self) -> None:
        if self.by_triton:
            self._triton.destroy_shared_memory_region(self._region)
            self._region = None
        else:
            self._call("cudaFree", self._address)


class Http:
    """The routes, with nothing but the standard library."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/v2"

    def _ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self._root}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {TOKEN}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{error.code} {json.loads(error.read())['error']}") from None
        return json.loads(content) if content else None

    def register(self, name: str, handle: bytes, device: int, size: int) -> None:
        body = {"raw_handle": {"b64": handle.decode()}, "device_id": device, "byte_size": size}
        self._ask(f"cudasharedmemory/region/{name}/register", body)

    def unregister(self, name: str = "") -> None:
        self._ask(f"cudasharedmemory{f'/region/{name}' if name else ''}/unregister", {})

    def status(self) -> dict[str, int]:
        found = self._ask("cudasharedmemory/status", method="GET")
        assert all(region["device_id"] == 0 for region in found), found
        return {region["name"]: region["byte_size"] for region in found}

    def infer(self, model: str, region: str, rows: int, start: int, out: tuple[int, int]) -> None:
        """Run a model on `rows` rows at byte `start`. `out`: the place and size of its output."""

        def place(offset: int, size: int) -> dict[str, Any]:
            return {
                "shared_memory_region": region,
                "shared_memory_offset": offset,
                "shared_memory_byte_size": size,
            }

        given = {"name": "X", "datatype": "FP32", "shape": [rows, 4]}
        body = {
            "inputs": [{**given, "parameters": place(start, rows * ROW)}],
            "outputs": [{"name": "Y", "parameters": place(*out)}],
        }
        self._ask(f"models/{model}/infer", body)


class Grpc:
    """Triton's client for gRPC."""

    def __init__(self, port: int) -> None:
        import tritonclient.grpc

        self._module: Any = tritonclient.grpc
        self._client: Any = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
        self._admin = {"authorization": f"Bearer {TOKEN}"}

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise RefusedError(str(error)) from None

    def register(self, name: str, handle: bytes, device: int, size: int) -> None:
        with self._refusals():
            self._client.register_cuda_shared_memory(
                name, handle, device, size, headers=self._admin
            )

    def unregister(self, name: str = "") -> None:
        with self._refusals():
            self._client.unregister_cuda_shared_memory(name, headers=self._admin)

    def status(self) -> dict[str, int]:
        regions = self._client.get_cuda_shared_memory_status().regions
        return {name: region.byte_size for name, region in regions.items()}

    def infer(self, model: str, region: str, rows: int, start: int, out: tuple[int, int]) -> None:
        given = self._module.InferInput("X", [rows, 4], "FP32")
        given.set_shared_memory(region, rows * ROW, start)
        wanted = self._module.InferRequestedOutput("Y")
        wanted.set_shared_memory(region, out[1], out[0])
        with self._refusals():
            self._client.infer(model, [given], outputs=[wanted])


def refusal(call: Any, *arguments: Any) -> str:
    """Return the text of the error that a call ends with."""
    try:
        call(*arguments)
    except RefusedError as error:
        return str(error)
    raise AssertionError(f"{call.__name__}{arguments} was not refused")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def served(folder: Path, grpc: bool) -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    """Serve the pipelines; yield the ports of HTTP and gRPC, and the process."""
    models = folder / "regions"
    models.mkdir(exist_ok=True)
    (models / "operators.py").write_text(OPERATORS)
    port = '{ kind = "tensor", dtype = "FP32", shape = [-1, 4] }'
    ends = f"[pipeline.inputs]\nX = {port}\n[pipeline.outputs]\nY = {port}\n[node]\n"
    nets = folder / "nets.py"
    for name, node in (
        ("tag", f'backend = "PythonTensor"\nmodel = "{nets}:Tag"\nmax = "8x4"\n'),
        ("where", 'backend = "Python[operators.py:Where]"\nmax = 8\n'),
        ("gated", 'backend = "Python[operators.py:Gated]"\nmax = 1\n'),
        ("host", 'backend = "Python[operators.py:host]"\nmax = 8\n'),
    ):
        (models / f"{name}.toml").write_text(ends + node)
    for left in ("entered", "open"):
        (models / left).unlink(missing_ok=True)
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "penstock", "serve", str(models), "--port", str(http_port)]
    if grpc:
        command += ["--grpc-port", str(grpc_port)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = folder / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--allow-shared-memory"],
            cwd=models,
            stderr=file,
            env={**os.environ, "PYTHONPATH": path, "PENSTOCK_ADMIN_TOKEN": TOKEN},
        )
    try:
        end = time.monotonic() + 300
        while True:
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http_port}/health/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield http_port, grpc_port, server
        assert server.poll() is None, log.read_text()[-4000:]
    except BaseException:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()
        server.wait()


def use(client: Any, models: Path) -> str:
    """Use regions in every way, and return what was seen."""
    memory = Memory(REGION_BYTES)
    values = np.arange(REGION_BYTES // 4, dtype=np.float32) % 1000
    memory.fill(values)
    client.register("r", memory.handle, 0, memory.size)
    assert client.status() == {"r": REGION_BYTES}, client.status()

    out = REGION_BYTES // 2
    times = []
    for start in (0, ROW, 4):  # the second and third: as remembered, and an offset of one element
        for rows in (1, 3, 8):
            given = values[start // 4 :][: rows * 4].reshape(rows, 4)
            for model, expected in (
                ("tag", given * 3 + 1),
                ("host", given * 2),
                ("where", np.ones((rows, 4))),
            ):
                began = time.perf_counter()
                client.infer(model, "r", rows, start, (out + start, rows * ROW))
                times.append(time.perf_counter() - began)
                seen = memory.read(out + start, (rows, 4))
                assert np.allclose(seen, expected), (model, start, rows, seen, expected)
    assert np.array_equal(memory.read(0, (8, 4)), values[:32].reshape(8, 4)), "inputs changed"

    huge = 1 << 40
    wrong = {
        "the name again": (client.register, "r", memory.handle, 0, 64),
        "more than there is": (client.register, "s", memory.handle, 0, huge),
        "a GPU that is not there": (client.register, "s", memory.handle, 99, 64),
        "no handle": (client.register, "s", base64.b64encode(bytes(64)), 0, 64),
        "an unknown region": (client.infer, "tag", "s", 1, 0, (out, ROW)),
        "an input beyond the end": (client.infer, "tag", "r", 1, REGION_BYTES - 4, (out, ROW)),
        "an output beyond the end": (client.infer, "tag", "r", 1, 0, (REGION_BYTES - 4, ROW)),
        "an offset beyond the end": (client.infer, "tag", "r", 1, REGION_BYTES, (out, ROW)),
        "an output that is too small": (client.infer, "tag", "r", 1, 0, (out, ROW - 4)),
    }
    texts = {what: refusal(*call) for what, call in wrong.items()}
    for what, text in texts.items():
        print(f"  {what}: {text}", file=sys.stderr)
        assert not text.startswith("5") and "INTERNAL" not in text, (what, text)
    assert client.status() == {"r": REGION_BYTES}

    with ThreadPoolExecutor(1) as thread:  # unregistered while a request has a slice of it
        pending = thread.submit(client.infer, "gated", "r", 1, 0, (out, ROW))
        try:
            while not (models / "entered").exists():
                assert not pending.done(), pending.result()
                time.sleep(0.005)
            client.unregister("r")
            assert client.status() == {}
            assert "Unable to find" in refusal(client.infer, "tag", "r", 1, 0, (out, ROW))
        finally:
            (models / "open").touch()
        pending.result(60)
    assert np.array_equal(memory.read(out, (1, 4))[0], values[:4] * 2)

    for number in range(
        200
    ):  # nothing stays open: a region is registered and left, again and again
        client.register(f"r{number % 3}", memory.handle, 0, memory.size)
        client.infer("tag", f"r{number % 3}", 1, 0, (out, ROW))
        client.unregister()
    memory.free()
    by = "tritonclient's utility" if memory.by_triton else "the CUDA runtime"
    return (
        f"{len(times)} right answers, median {np.median(times) * 1e3:.2f} ms; {len(texts)} wrong "
        f"uses refused; unregistered in use; 200 times again; memory by {by}"
    )


def outlive(client: Any) -> str:
    """Kill a client whose memory is registered. The server and its other clients go on."""
    mine = Memory(REGION_BYTES)
    mine.fill(np.ones(REGION_BYTES // 4, np.float32))
    client.register("mine", mine.handle, 0, mine.size)
    code = [sys.executable, "-c", CLIENT, str(Path(__file__).parent), str(REGION_BYTES)]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        handle = other.stdout.readline().strip()
        client.register("other", handle, 0, REGION_BYTES)
        client.infer("tag", "other", 1, 0, (REGION_BYTES // 2, ROW))
        other.send_signal(signal.SIGKILL)
        other.wait(60)
    try:
        client.infer("tag", "other", 1, 0, (REGION_BYTES // 2, ROW))
        after = "its memory is still read and written"
    except RefusedError as error:
        after = f"its memory: {error}"
    for _ in range(3):
        client.infer("tag", "mine", 1, 0, (REGION_BYTES // 2, ROW))
        assert np.array_equal(mine.read(REGION_BYTES // 2, (1, 4)), np.full((1, 4), 4.0))
    client.unregister("other")
    client.infer("tag", "mine", 1, 0, (REGION_BYTES // 2, ROW))
    client.unregister()
    assert client.status() == {}
    mine.free()
    return after


def run(folder: Path, grpc: bool) -> str:
    """Run all by HTTP or by gRPC."""
    needed = GRPC_NEEDS if grpc else SERVER_NEEDS
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        return f"NOT RUN: needs {', '.join(missing)}"
    with served(folder, grpc) as (http_port, grpc_port, server):
        client: Any = Grpc(grpc_port) if grpc else Http(http_port)
        seen = use(client, folder / "regions")
        after = outlive(client)
        assert server.poll() is None
    return f"{seen}; after a client was killed, {after}"
