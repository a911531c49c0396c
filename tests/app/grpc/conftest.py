"""A gRPC server with a few models, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import uvloop

from penstock import create_app
from penstock.app.grpc.server import GrpcServer
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.testing import Gate

OPS = """
import numpy as np


def add_sub(data):
    first, second = data
    return [first + second, first - second]


def where(data):
    flags = [array.flags for array in data]
    return np.array([flag.aligned and flag.writeable for flag in flags], np.int64)


def fail(data):
    raise ValueError("secret")


async def letters(item, call):
    for letter in item["data"]:
        if letter == "!":
            raise ValueError("secret")
        yield letter
"""

DATATYPES = [
    "BOOL",
    *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
]

GATE = Gate()


@register_backend("GrpcGate")
class GrpcGate(Backend):
    """Answers its data, once the gate is open."""

    max = 1

    def forward(self, batch: Any) -> None:
        for item in batch:
            GATE.wait()
            item["result"] = item["data"]


@pytest.fixture
def gate() -> Iterator[Gate]:
    GATE.reset()
    yield GATE
    GATE.open()


def tensor(dtype: str, shape: Sequence[int] = (-1, -1), **more: Any) -> dict[str, Any]:
    return {"kind": "tensor", "dtype": dtype, "shape": shape, **more}


def model(
    name: str, inputs: Any, outputs: Any, backend: str = "Identity", **node: Any
) -> dict[str, Any]:
    return {
        "pipeline": {"name": name, "inputs": inputs, "outputs": outputs},
        "node": {"backend": backend, **node},
    }


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder: Path = tmp_path_factory.mktemp("grpc")
    ops = folder / "ops.py"
    ops.write_text(OPS)
    (folder / "labels.txt").write_text("zero\none\ntwo\n")
    int32 = tensor("INT32", [-1, 16])
    return [
        model(
            "simple",
            {"INPUT0": int32, "INPUT1": int32},
            {"OUTPUT0": int32, "OUTPUT1": int32},
            f"Python[{ops}:add_sub]",
            max=8,
        ),
        *(
            model(f"identity_{name}", {"INPUT0": tensor(name)}, {"OUTPUT0": tensor(name)}, max=8)
            for name in DATATYPES
        ),
        model(
            "where",
            {"A": tensor("UINT8", [-1]), "B": tensor("FP64", [-1])},
            {"C": tensor("INT64", [-1])},
            f"Python[{ops}:where]",
        ),
        model(
            "scores",
            {"X": tensor("FP32")},
            {"Y": tensor("FP32", labels=str(folder / "labels.txt"))},
            max=4,
        ),
        model(
            "decoding",
            {"data": {**tensor("FP32", [-1, 3, 4, 6]), "decode": "raw"}},
            {"result": tensor("FP32", [-1, 3, 4, 6])},
            max=4,
        ),
        model("failing", {"X": tensor("FP32")}, {"Y": tensor("FP32")}, f"Python[{ops}:fail]"),
        model("gated", {"X": tensor("FP32")}, {"Y": tensor("FP32")}, "GrpcGate"),
        model("letters", {"data": {"kind": "text"}}, {}, f"Python[{ops}:letters]"),
    ]


class Served:
    """A running server: its address, its app, a client of Triton's, and what makes it drain."""

    def __init__(self, address: str, app: Any, drain: Callable[[], Any]) -> None:
        self.address = address
        self.drain = drain
        self.app = app
        self.client: Any = tritonclient.grpc.InferenceServerClient(address)

    @property
    def repository(self) -> Any:
        return self.app.state.penstock


@contextlib.contextmanager
def serving(sources: Any, **settings: Any) -> Iterator[Served]:
    """Serve pipelines by gRPC, and by nothing else."""
    chosen = Settings(grpc_port=0, **settings)
    app = create_app(sources, settings=chosen)
    started: list[GrpcServer | BaseException] = []
    ready, end = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        repository = app.state.penstock
        try:
            await repository.start()
            state, most = app.state, chosen.max_connections
            server = GrpcServer(state.protocol, repository, chosen, state.metrics.registry, most)
            await server.start()
            started.append(server)
            ready.set()
            await end.wait()
            await repository.close(5)
            await server.stop(5)
        except BaseException as error:
            started.append(error)
            ready.set()
            raise

    def run_in_thread() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=run_in_thread)
    thread.start()
    try:
        assert ready.wait(60)
        server = started[0]
        if isinstance(server, BaseException):
            raise server
        drain = partial(loops[0].call_soon_threadsafe, end.set)
        served = Served(f"127.0.0.1:{server.port}", app, drain)
        try:
            yield served
        finally:
            served.client.close()
    finally:
        with contextlib.suppress(RuntimeError):  # a drained one has ended by itself
            loops[0].call_soon_threadsafe(end.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(sources: Any) -> Iterator[Served]:
    allowed = {"allow_shared_memory": True, "allow_log_settings": True}
    with serving(sources, max_body=8 << 20, admin_token="admin", **allowed) as one:
        yield one


@pytest.fixture(scope="session")
def serve() -> Any:
    return serving
