"""Infer requests on the direct way (direct.py) against ASGI: large ones, compressed answers, shared
memory, and what is read and written on a helper thread.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from penstock import create_app
from penstock.app.server.direct import Direct
from penstock.app.server.direct_predict import DirectPredict
from penstock.app.settings import Settings
from penstock.app.v2.infer.infer_call import InferCall
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load

from .doors import Door, normal, open_door, request, wait_until

DTYPES = {"FP32": "FP32", "BOOL": "BOOL", "BYTES": "BYTES", "GATE": "FP64"}
"""The datatypes of the models."""

GATE = threading.Event()
INSIDE = threading.Event()


@register_backend("DirectInferGate")
class DirectInferGate(Backend):
    """Answers its input. 13 waits at the gate."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = item["data"]
            if item["data"].flat[0] == 13:
                INSIDE.set()
                GATE.wait(60)


PIPELINES = [
    {
        "pipeline": {
            "name": name,
            "inputs": {"IN": {"kind": "tensor", "dtype": DTYPES[name], "shape": [-1, -1]}},
            "outputs": {"OUT": {"kind": "tensor", "dtype": DTYPES[name], "shape": [-1, -1]}},
        },
        "same": {"backend": "Identity" if name != "GATE" else "DirectInferGate"},
    }
    for name in DTYPES
]
SETTINGS = Settings(allow_shared_memory=True, admin_token=SecretStr("admin"), max_body=3_000_000)
LAST = request("/v2/models/FP32/infer", b"{}", last=True)


@contextlib.contextmanager
def door(running: Any, direct: bool, settings: Settings = SETTINGS) -> Iterator[Door]:
    app = create_app([load(pipeline) for pipeline in PIPELINES], settings=settings)
    with open_door(running, app, settings, direct) as opened:
        yield opened


@pytest.fixture(scope="module")
def doors(running: Any) -> Iterator[tuple[Door, Door]]:
    with door(running, True) as direct, door(running, False) as asgi:
        yield direct, asgi


@pytest.fixture
def calls(monkeypatch: Any) -> list[str]:
    """The models of the requests that took the direct way."""
    seen: list[Any] = []

    def start(self: Any, body: bytes | None = None) -> None:
        seen.append("predict" if isinstance(self, DirectPredict) else self.head.names["model"])
        started(self, body)

    started = Direct.start
    monkeypatch.setattr(Direct, "start", start)
    return seen


def infer(
    array: Any,
    *lines: str,
    model: str = "FP32",
    binary: bool = False,
    parameters: Any = None,
    output: Any = None,
    timeout: int = 0,
    last: bool = False,
) -> bytes:
    """Make a request. `binary`: the array's bytes follow the JSON, and the answer is the same."""
    tensor: dict[str, Any] = {
        "name": "IN",
        "datatype": DTYPES[model],
        "shape": array.shape,
    }
    blob = b""
    if parameters is not None:
        tensor["parameters"] = parameters
    elif binary:
        blob = array.tobytes()
        tensor["parameters"] = {"binary_data_size": len(blob)}
    else:
        tensor["data"] = array.reshape(-1).tolist()
    wanted = {"binary_data": binary} if output is None else output
    outputs = [{"name": "OUT", "parameters": wanted}]
    document: dict[str, Any] = {"inputs": [tensor], "outputs": outputs}
    if timeout:
        document["parameters"] = {"timeout": timeout}
    text = json.dumps(document).encode()
    if binary:
        lines = (*lines, f"Inference-Header-Content-Length: {len(text)}")
    return request(f"/v2/models/{model}/infer", text + blob, *lines, last=last)


IMAGE = np.random.default_rng(0).random((1, 3 * 224 * 224), np.float32)
FLAGS = (IMAGE > 0.5).reshape(1, -1)

LARGE = {
    "image": infer(IMAGE, binary=True),
    "image as JSON": infer(IMAGE[:, :40_000]),
    "image, JSON answer": infer(IMAGE[:, :100_000], binary=True, output={}),
    "image, answer of classes": infer(IMAGE, binary=True, output={"classification": 3}),
    "flags": infer(FLAGS, binary=True, model="BOOL"),
    "too large": infer(np.zeros((1, 750_000), np.float32), binary=True),
    "wrong size": infer(IMAGE, binary=True).replace(b'"shape": [1, ', b'"shape": [2, '),
    "malformed": request("/v2/models/FP32/infer", b"{" * 200_000),
    "wrong header": request(
        "/v2/models/FP32/infer", bytes(300_000), "Inference-Header-Content-Length: 400000"
    ),
    "header of no bytes": request(
        "/v2/models/FP32/infer", bytes(300_000), "Inference-Header-Content-Length: 0"
    ),
}


@pytest.mark.parametrize("piece", [0, 60_000, 199_999])
@pytest.mark.parametrize("name", LARGE)
def test_same_answer_to_a_large_request(
    doors: tuple[Door, Door], calls: list[str], name: str, piece: int
) -> None:
    held = budget.used
    direct, asgi = (normal(door.exchange(LARGE[name] + LAST, piece)) for door in doors)
    assert direct == asgi
    assert calls[0] in DTYPES
    wait_until(lambda: budget.used == held)


def test_an_image_comes_back(doors: tuple[Door, Door]) -> None:
    for door in doors:
        answer = door.exchange(infer(IMAGE, binary=True, last=True))
        assert answer.endswith(IMAGE.tobytes())


TEXTS = np.array([["penstock" * 40] * 20], np.object_)
NOISE = np.random.default_rng(1).integers(33, 126, (1, 3000)).astype("U1")


@pytest.mark.parametrize(
    "accepted",
    [
        "gzip",
        "deflate",
        "gzip, deflate",
        "gzip, deflate, br, zstd",
        "br",
        "identity",
        "gzip;q=0",
        "gzip;q=0, deflate;q=0.5",
        "GZIP",
        "*",
        "",
        ",",
    ],
)
@pytest.mark.parametrize(
    "data",
    [
        infer(np.zeros((1, 4), np.float32)),
        infer(np.zeros((1, 4), np.float32), binary=True),
        infer(np.zeros((1, 2000), np.float32)),
        infer(np.zeros((1, 2000), np.float32), binary=True),
        infer(IMAGE[:, :8000]),
        infer(IMAGE, binary=True),
        infer(np.zeros((1, 80_000), np.float32)),
        infer(TEXTS, model="BYTES"),
        infer(NOISE, model="BYTES"),
        infer(np.zeros((2, 4), np.float32)).replace(b"FP32", b"FP16"),
    ],
    ids=[
        "few zeros",
        "few binary zeros",
        "zeros",
        "binary zeros",
        "part of an image",
        "binary image",
        "many zeros",
        "texts",
        "noise",
        "wrong datatype",
    ],
)
def test_same_answer_with_accept_encoding(
    doors: tuple[Door, Door], calls: list[str], data: bytes, accepted: str
) -> None:
    data = data.replace(b"Host: x\r\n", b"Host: x\r\nAccept-Encoding: %b\r\n" % accepted.encode())
    direct, asgi = (normal(door.exchange(data + LAST)) for door in doors)
    assert direct == asgi
    assert len(calls) == 2


@pytest.mark.parametrize("mapped", [False, True])
def test_same_answer_with_shared_memory(running: Any, calls: list[str], mapped: bool) -> None:
    settings = Settings(
        allow_shared_memory=True, admin_token=SecretStr("admin"), map_shared_memory=mapped
    )
    images = [
        shared_memory.SharedMemory(f"direct_{os.getpid()}_{name}", create=True, size=IMAGE.nbytes)
        for name in ("in", "out")
    ]
    buffers = [memory.buf for memory in images]
    assert buffers[0] is not None and buffers[1] is not None
    buffers[0][: IMAGE.nbytes] = IMAGE.tobytes()
    source, target = (
        {
            "shared_memory_region": name,
            "shared_memory_byte_size": IMAGE.nbytes,
        }
        for name in ("in", "out")
    )
    registrations = b"".join(
        request(
            f"/v2/systemsharedmemory/region/{name}/register",
            json.dumps({"key": memory.name, "byte_size": IMAGE.nbytes}).encode(),
            "Authorization: Bearer admin",
        )
        for name, memory in zip(("in", "out"), images, strict=True)
    )
    requests = [
        infer(IMAGE, parameters=source, output=target),
        infer(IMAGE, parameters=source, output=target),
        infer(IMAGE, parameters=source, binary=True),
        infer(IMAGE, parameters={**source, "shared_memory_offset": 4}, output=target),
        infer(IMAGE, parameters={**source, "shared_memory_region": "no"}, output=target),
        infer(IMAGE, parameters=source, output={**target, "shared_memory_byte_size": 100}),
        infer(IMAGE[:, :40_000], output=target),
        infer(IMAGE, binary=True, output=target),
    ]
    try:
        held = budget.used
        with door(running, True, settings) as direct, door(running, False, settings) as asgi:
            for data in (registrations, *requests):
                assert normal(direct.exchange(data + LAST)) == normal(asgi.exchange(data + LAST))
            wait_until(lambda: budget.used == held)
        assert calls.count("FP32") == len(requests) + len((registrations, *requests))
        assert bytes(buffers[1][: IMAGE.nbytes]) == IMAGE.tobytes()
    finally:
        buffers.clear()
        for memory in images:
            memory.close()
            memory.unlink()


@pytest.mark.parametrize("step", ["read", "write"])
def test_a_client_that_leaves_while_a_thread_works(
    running: Any, monkeypatch: Any, caplog: Any, step: str
) -> None:
    """What the thread uses stays as it is until the thread has ended."""
    inside, gate = threading.Event(), threading.Event()
    submitted: list[str] = []

    def slow(self: Any, *arguments: Any) -> Any:
        if threading.get_ident() != loops_thread:
            inside.set()
            assert gate.wait(60)
        return step_of(self, *arguments)

    def submit(self: Any, *arguments: Any) -> Any:
        submitted.append(step)
        return submit_of(self, *arguments)

    step_of, submit_of = getattr(InferCall, step), InferCall.submit
    loops_thread = 0

    def look(self: Any) -> None:
        nonlocal loops_thread
        loops_thread = threading.get_ident()
        begin_of(self)

    begin_of = InferCall.begin
    with door(running, True) as server:
        monkeypatch.setattr(InferCall, "begin", look)
        server.exchange(LAST)
        held = budget.used
        monkeypatch.setattr(InferCall, step, slow)
        monkeypatch.setattr(InferCall, "submit", submit)
        with server.connect() as client:
            client.sendall(LARGE["image as JSON" if step == "read" else "image, JSON answer"])
            assert inside.wait(60)
            assert budget.used > held
        wait_until(lambda: not server.connections.open)
        assert budget.used > held
        gate.set()
        wait_until(lambda: budget.used == held)
        assert len(submitted) == (step == "write")
        monkeypatch.undo()
        assert server.exchange(LAST).startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_an_answer_that_is_read_slowly(doors: tuple[Door, Door]) -> None:
    """Its tensors leave without a copy, long after the request has ended."""
    with doors[0].connect() as client:
        client.sendall(infer(IMAGE, binary=True) * 3 + LAST)
        received = client.recv(1000)
        for _ in range(3):
            doors[0].exchange(infer(IMAGE + 1, binary=True) + LAST)
        while more := client.recv(1 << 16):
            received += more
    assert received.count(IMAGE.tobytes()) == 3


def test_large_requests_are_calls_of_ours(doors: tuple[Door, Door], calls: list[str]) -> None:
    for data in (LARGE["image"], LARGE["flags"], infer(IMAGE[:, :4], "Accept: x")):
        doors[0].exchange(data + LAST)
    assert calls == ["FP32", "FP32", "BOOL", "FP32", "FP32", "FP32"]


# Other moments than that of a whole request alone.


@pytest.fixture
def closed_gates(running: Any, calls: list[str]) -> Iterator[list[Door]]:
    """Two servers, of which each has a batch at the gate."""
    INSIDE.clear()
    GATE.clear()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(door(running, direct)) for direct in (True, False)]
        for server in opened:
            client = stack.enter_context(server.connect())
            client.sendall(infer(np.full((1, 1), 13.0), model="GATE"))
            assert INSIDE.wait(60)
            INSIDE.clear()
        yield opened
        GATE.set()
    assert "GATE" in calls


def test_a_late_outcome_is_no_answer_to_the_next_request(closed_gates: list[Door]) -> None:
    """The first of two requests on a connection expires in the queue."""
    late = infer(np.full((1, 1), 1.0), model="GATE", timeout=1000)
    later = infer(np.full((1, 1), 2.0), model="GATE", last=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for server in closed_gates]
        for client in clients:
            client.sendall(late + later)
        received = [client.recv(1 << 16) for client in clients]
        assert all(b"Request timeout expired" in answer for answer in received)
        GATE.set()
        for index, client in enumerate(clients):
            while more := client.recv(1 << 16):
                received[index] += more
    direct, asgi = map(normal, received)
    assert direct == asgi
    assert len(direct) == 2 and b'"data":[2.0]' in direct[1]


def test_a_client_that_leaves_with_pipelined_requests(closed_gates: list[Door]) -> None:
    held = budget.used
    for server in closed_gates:
        with server.connect() as client:
            client.sendall(infer(np.full((1, 1), 1.0), model="GATE") * 3)
            wait_until(lambda: budget.used > held)
        wait_until(lambda server=server: len(server.connections.open) == 1)  # type: ignore[misc]
        wait_until(lambda: budget.used == held)
    GATE.set()
    for server in closed_gates:
        answer = server.exchange(infer(np.full((1, 1), 2.0), model="GATE", last=True))
        assert b'"data":[2.0]' in answer


def test_pipelined_requests_are_answered_in_order(doors: tuple[Door, Door]) -> None:
    requests = [
        infer(np.full((1, 4), value, np.float32), binary=value % 2 == 0) for value in range(9)
    ]
    direct, asgi = (normal(door.exchange(b"".join(requests) + LAST)) for door in doors)
    assert direct == asgi
    assert len(direct) == 10


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("way", ["direct", "asgi"])
def test_a_signal_half_way_through_a_body(spawn: Any, tmp_path: Path, way: str, rest: bool) -> None:
    """The server ends when the request has its answer, or after `drain_grace` without its rest.

    It is new work, so it is refused once the pipelines have closed.
    """
    (tmp_path / "same.toml").write_text(
        "[pipeline.inputs]\n"
        'IN = { kind = "tensor", dtype = "FP32", shape = [-1, -1] }\n'
        "[pipeline.outputs]\n"
        'OUT = { kind = "tensor", dtype = "FP32", shape = [-1, -1] }\n'
        '[same]\nbackend = "Identity"\n'
    )
    settings = {"PENSTOCK_DRAIN_GRACE": "60" if rest else "0.2"}
    if way == "asgi":
        settings["PENSTOCK_ALLOWED_HOSTS"] = "x,127.0.0.1"
    server = spawn("serve", tmp_path / "same.toml", "--port", 0, **settings)
    data = infer(IMAGE, binary=True).replace(b"/FP32/", b"/same/")
    with server.listening() as http:
        server.wait_for("ready")
        address = (http.base_url.host, http.base_url.port)
        with socket.create_connection(address, 60) as client:
            client.sendall(data[:400_000])
            wait_until(lambda: _memory_used(http.get("/metrics").text) >= IMAGE.nbytes)
            server.process.terminate()
            server.wait_for("draining")
            if rest:
                client.sendall(data[400_000:])
            received = b""
            while more := client.recv(1 << 16):
                received += more
    assert b"\r\nconnection: close\r\n" in received
    if rest and received.startswith(b"HTTP/1.1 200"):
        assert received.endswith(IMAGE.tobytes())
    else:
        assert received.startswith(b"HTTP/1.1 503")
        closed = b"is closed" in received or b"is draining" in received
        assert closed if rest else b"shutting down" in received
    assert server.end() == 0


def _memory_used(metrics: str) -> float:
    line = re.search(r"^penstock_memory_bytes\S* (\S+)$", metrics, re.MULTILINE)
    assert line, metrics
    return float(line[1])


def test_requests_leave_no_garbage(running: Any, calls: list[str]) -> None:
    """Small and large, refused, compressed, read and written on a helper thread."""
    requests = [
        *LARGE.values(),
        infer(np.zeros((1, 4), np.float32)),
        infer(np.zeros((1, 4), np.float32), binary=True),
        infer(np.zeros((1, 2000), np.float32), "Accept-Encoding: gzip"),
        infer(np.zeros((1, 80_000), np.float32), "Accept-Encoding: gzip"),
        infer(np.zeros((1, 4), np.float32)).replace(b"FP32", b"FP16"),
    ]
    with door(running, True) as server:
        for data in requests:
            server.exchange(data + LAST)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for data in requests:
                server.exchange(data + LAST)
            gc.collect()
            found = {type(garbage) for garbage in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not [kind for kind in found if kind.__module__.startswith(("penstock", "numpy"))]
    assert len(calls) == 4 * len(requests) - 2  # the body that is too large ends its connection


def test_same_access_log(doors: tuple[Door, Door], caplog: Any) -> None:
    requests = [*LARGE.values(), infer(IMAGE[:, :4]), infer(IMAGE[:, :4]).replace(b"/infer", b"/x")]
    requests += [
        request("/v2/models/FP32/infer?a=%20b&c", b"{}"),
        request("/predict/FP32", b"data"),
        request("/predict/nothing?x", b"data"),
        request("/predict/FP32", b'{"url":"http://x/"}', "Content-Type: application/json"),
    ]
    logs: list[list[str]] = []
    for door in doors:
        caplog.clear()
        with caplog.at_level(logging.INFO, "penstock.access"):
            for data in requests:
                door.exchange(data + LAST)
        messages = [record for record in caplog.records if record.name == "penstock.access"]
        logs.append([re.sub(r":[0-9]+ -", ":port -", record.message) for record in messages])
    assert logs[0] == logs[1]
    assert len(logs[0]) >= len(requests) + 5
