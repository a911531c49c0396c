"""Servers under a limit of the operating system on their memory survive what clients send, refuse
what does not fit, answer others meanwhile, and hold nothing at the end.

`RLIMIT_AS` makes an allocation beyond the budget fail, and with it the server. It counts
addresses, and glibc reserves 64 MiB of them for the arena of each thread that has one. So the
servers here have two arenas, however many processors there are.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import io
import json
import os
import re
import resource
import select
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

MIB = 1 << 20
ADDRESS_SPACE_BYTES = 1536 * MIB
"""A server needs 850 MiB of addresses before the first request, most of them never touched."""

SLACK_BYTES = 300 * MIB
"""What is not counted: freed memory that the arenas of threads keep, and copies for an instant."""

OPERATORS = """
def shape(data):
    return list(data.shape)


def length(data):
    return len(data)


def total(data):
    return float(data.sum())


def held(data):
    open("gate").close()  # a FIFO: it waits until the test opens that too
    return len(data)


def same(data):
    return data


def joined(data):
    return str(len(data))
"""

PIPELINES = {
    "raw": '[raw]\nbackend = "Python[operators.py:same]"\n',
    "texts": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "BYTES", shape = [-1]}}\n'
    'outputs = {result = {kind = "tensor", dtype = "BYTES", shape = [-1]}}\n'
    '[texts]\nbackend = "Python[operators.py:same]"\n',
    "scores": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "FP32", shape = [-1]}}\n'
    'outputs = {result = {kind = "tensor", dtype = "FP32", shape = [-1]}}\n'
    '[scores]\nbackend = "Python[operators.py:same]"\n',
    "shape": '[pipeline]\n[decode]\nbackend = "DecodeMat"\nnext = "shape"\n'
    '[shape]\nbackend = "Python[operators.py:shape]"\n',
    "pixels": '[pipeline]\n[decode]\nbackend = "DecodeMat"\n',
    "child": "[pipeline]\n"
    '[decode]\nbackend = "DecodeMat"\nexecutor = "process"\nnext = "shape"\n'
    '[shape]\nbackend = "Python[operators.py:shape]"\n',
    "length": '[length]\nbackend = "Python[operators.py:length]"\n',
    "total": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "FP32", shape = [-1]}}\n'
    '[total]\nbackend = "Python[operators.py:total]"\n',
    "held": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "FP32", shape = [-1]}}\n'
    '[held]\nbackend = "Python[operators.py:held]"\n',
    "same": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "FP64", shape = [-1]}}\n'
    '[same]\nbackend = "Python[operators.py:same]"\n',
    "joined": "[pipeline]\nbatched = false\n"
    'inputs = {x = {kind = "tensor", dtype = "BYTES", shape = [-1]}}\n'
    '[joined]\nbackend = "Python[operators.py:joined]"\n',
}


class Served:
    """A server, with what the kernel and its metrics say of its memory."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.connections: list[socket.socket] = []
        pid = process.process.pid
        resource.prlimit(pid, resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        self.client = process.listening()
        process.wait_for("ready after")
        self.status = Path(f"/proc/{pid}/status")
        self.limit = self.metric("penstock_memory_limit_bytes")
        self.resident_at_first = self._resident("VmRSS")

    def metric(self, name: str) -> float:
        text = self.client.get("/metrics").text
        return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

    def _resident(self, field: str) -> int:
        match = re.search(rf"{field}:\s+(\d+) kB", self.status.read_text())
        assert match is not None
        return int(match[1]) << 10

    def check(self, slack: int = SLACK_BYTES) -> None:
        """Assert that the server lives, answers, holds nothing, and never held too much."""
        # In one piece: a short `body_timeout` can't pass between head and body.
        head = "Content-Length: 3\r\nConnection: close"
        with slow(self, "/predict/length", head, b"abc") as wire, wire.makefile("rb") as file:
            answer = file.read()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"result":3}')
        self.until(lambda: not self.metric("penstock_memory_bytes"))
        assert self.process.process.poll() is None
        most = self._resident("VmHWM") - self.resident_at_first
        assert most < self.limit + slack, (most / MIB, self.limit / MIB)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, self.metric("penstock_memory_bytes")
            time.sleep(0.01)

    def send_all(self, path: str, count: int, **request: Any) -> Counter[int]:
        """Send a request many times at once. Return how often each status came."""
        url = self.client.base_url
        with (
            httpx.Client(base_url=url, timeout=300, verify=False) as client,
            ThreadPoolExecutor(count) as threads,
        ):
            answers = list(threads.map(lambda _: client.post(path, **request), range(count)))
        for answer in answers:
            if answer.status_code == 503:
                assert "max_memory" in answer.text or "ulimit -v" in answer.text
                assert answer.headers["retry-after"]
        return Counter(answer.status_code for answer in answers)


@pytest.fixture
def served(spawn: Any, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    servers = []
    (tmp_path / "operators.py").write_text(OPERATORS)

    def start(*names: str, **settings: str) -> Served:
        for name in ("length", *names):
            text = PIPELINES[name]
            head = "" if text.startswith("[pipeline]") else "[pipeline]\n"
            text = head + text
            # A timeout that a loaded machine does not reach: this is about memory.
            keys = f'[pipeline]\nname = "{name}"\ntimeout = 300\n'
            text = text.replace("[pipeline]\n", keys, 1)
            (tmp_path / f"{name}.toml").write_text(text)
        settings["MALLOC_ARENA_MAX"] = "2"
        servers.append(Served(spawn("serve", tmp_path, "--port", 0, **settings)))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        for connection in server.connections:
            connection.close()


def png(width: int, height: int) -> bytes:
    """A PNG of few bytes and many black pixels."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG", optimize=True)
    return file.getvalue()


def slow(server: Served, path: str, headers: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(
        (server.client.base_url.host, server.client.base_url.port), 60
    )
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/predict/length", ""),
        ("/predict/length/batch", "Content-Type: application/json\r\n"),
        ("/v2/models/total/infer", ""),
        ("/v2/models/total/infer", "Inference-Header-Content-Length: 100\r\n"),
        ("/v2/repository/models/new/load", "Authorization: Bearer token\r\n"),
    ],
)
def test_unfinished_uploads(served: Any, path: str, more: str) -> None:
    server = served(
        "total",
        PENSTOCK_ADMIN_TOKEN="token",
        PENSTOCK_ALLOW_MODEL_CONTROL="true",
        PENSTOCK_ALLOW_MODEL_OVERRIDES="true",
        PENSTOCK_BODY_TIMEOUT="300",
    )
    size = 59 * MIB
    head = f"{more}Content-Length: {size}"
    uploads = [slow(server, path, head) for _ in range(17)]
    fit = int(server.limit * 0.75) // size
    refused: list[socket.socket] = []

    def rest_is_refused() -> bool:
        refused[:] = select.select(uploads, [], [], 0)[0]
        return len(refused) == len(uploads) - fit

    server.until(rest_is_refused)
    assert {upload.recv(4096)[9:12] for upload in refused} == {b"503"}
    kept = [upload for upload in uploads if upload not in refused]
    assert server.metric("penstock_memory_bytes") >= len(kept) * size
    for upload in kept:
        upload.settimeout(60)
        upload.sendall(bytes(size - 1))
    # Others are answered meanwhile.
    answer = server.client.post("/predict/length", content=bytes(MIB))
    assert (answer.status_code, answer.json()) == (200, {"result": MIB})
    for upload in uploads:
        upload.close()
    server.check()
    assert server.metric("penstock_memory_refused_total") == len(refused)


@pytest.mark.parametrize("path", ["/predict/length", "/v2/models/total/infer"])
def test_unfinished_uploads_of_unknown_length(served: Any, path: str) -> None:
    server = served("total", PENSTOCK_BODY_TIMEOUT="60")
    piece = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    uploads = [slow(server, path, "Transfer-Encoding: chunked") for _ in range(17)]
    for _ in range(50):
        for upload in uploads:
            with contextlib.suppress(ConnectionError):  # refused, and closed
                upload.sendall(piece)
    assert server.metric("penstock_memory_refused_total")
    for upload in uploads:
        upload.close()
    server.check()


def test_an_upload_that_stops_is_let_go_of_in_time(served: Any) -> None:
    server = served(PENSTOCK_BODY_TIMEOUT="1")
    upload = slow(server, "/predict/length", f"Content-Length: {50 * MIB}", bytes(40 * MIB))
    upload.settimeout(60)
    assert upload.recv(4096).startswith(b"HTTP/1.1 400 ")
    server.check()
    upload.close()


@functools.cache
def bomb(encoding: str, mebibytes: int) -> bytes:
    return (gzip.compress if encoding == "gzip" else zlib.compress)(bytes(mebibytes * MIB))


@pytest.mark.parametrize(
    ("path", "encoding"),
    [
        ("/predict/length", "gzip"),
        ("/predict/length", "deflate"),
        ("/v2/models/total/infer", "gzip"),
        ("/v2/models/total/infer", "deflate"),
    ],
)
def test_compressed_bombs(served: Any, path: str, encoding: str) -> None:
    server = served("total")
    content = bomb(encoding, 64)
    assert len(content) < 70_000
    statuses = server.send_all(path, 16, content=content, headers={"Content-Encoding": encoding})
    assert set(statuses) <= {200, 400, 503}
    server.check()
    more = server.client.post(
        path, content=bomb(encoding, 65), headers={"Content-Encoding": encoding}
    )
    assert more.status_code == (413 if path.startswith("/predict") else 400)
    server.check()


def lists() -> bytes:
    return b"[]," * (60 * MIB // 3) + b"[]"


def keys() -> bytes:
    return b'{"' + '":1,"'.join(map(str, range(4_000_000))).encode() + b'":1}'


# Made when the test runs: every worker would make and keep them.
@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/predict/length", lambda: b'{"image": [' + lists() + b"]}", id="lists"),
        pytest.param(
            "/predict/length/batch", lambda: b'{"images": [' + lists() + b"]}", id="batch"
        ),
        pytest.param("/v2/models/total/infer", lambda: b'{"inputs": [' + lists() + b"]}", id="v2"),
        pytest.param("/predict/length", keys, id="keys"),
        pytest.param("/v2/models/total/infer", keys, id="keys of v2"),
        pytest.param(
            "/v2/models/total/infer",
            lambda: b'{"inputs": [' + b"1," * 30_000_000 + b"1]}",
            id="numbers of v2",
        ),
        pytest.param(
            "/v2/models/total/infer",
            lambda: b'{"inputs": [' + b'"",' * 20_000_000 + b"1]}",
            id="strings of v2",
        ),
        pytest.param(
            "/v2/models/total/infer",
            lambda: b'{"inputs": ["' + b"\\n" * 30_000_000 + b'"]}',
            id="escapes of v2",
        ),
        pytest.param(
            "/predict/length/batch",
            lambda: b'{"images": ["' + b"[" * 60_000_000 + b'"]}',
            id="brackets in a string",
        ),
    ],
)
def test_json_that_would_take_long_or_much(
    served: Any, path: str, body: Callable[[], bytes]
) -> None:
    server = served("total")
    statuses = server.send_all(
        path, 2, content=body(), headers={"Content-Type": "application/json"}
    )
    assert set(statuses) <= {400, 413, 503}
    server.check()


def test_a_large_image_in_json_is_read(served: Any) -> None:
    server = served()
    image = np.random.default_rng(0).bytes(30 * MIB)
    text = base64.b64encode(image).decode()
    for path, document, answer in (
        ("/predict/length", {"image": text}, {"result": len(image)}),
        ("/predict/length/batch", {"images": [text]}, {"results": [{"result": len(image)}]}),
    ):
        assert server.client.post(path, json=document).json() == answer
    server.check()


@pytest.mark.parametrize("name", ["shape", "child"])
def test_images_of_few_bytes_and_many_pixels(served: Any, name: str) -> None:
    server = served(name)
    side = 6000 if name == "shape" else 5000  # there are copies on the way from a child
    image = png(side, side)
    assert len(image) < 12_000
    answer = server.client.post(
        f"/predict/{name}/batch", files=[("images", image) for _ in range(32)]
    )
    results = answer.json()["results"]
    assert len(results) == 32
    fits = {"result": [side, side, 3]}
    assert fits in results
    for result in results:
        assert result == fits or (result["code"], result["status"]) == ("memory_full", 503)
    server.check()
    statuses = server.send_all(f"/predict/{name}", 16, content=image)
    assert set(statuses) <= {200, 503} and statuses[200]
    server.check()
    never = server.client.post(f"/predict/{name}", content=png(10_000, 10_000))
    assert (never.status_code, never.json()["code"]) == (413, "too_large")
    server.check()


def test_answers_that_would_take_much(served: Any) -> None:
    server = served("pixels", "same")
    image = png(5000, 5000)
    statuses = server.send_all("/predict/pixels", 8, content=image)
    assert set(statuses) <= {200, 413, 503}
    server.check()
    numbers = np.full(4_000_000, 1 / 3)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [numbers.size],
                    "datatype": "FP64",
                    "parameters": {"binary_data_size": numbers.nbytes},
                }
            ],
        }
    ).encode()
    request: Any = {
        "content": head + numbers.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }
    assert set(server.send_all("/v2/models/same/infer", 12, **request)) <= {200, 503}
    assert server.send_all("/v2/models/same/infer", 1, **request) == {200: 1}
    server.check()


def test_strings_that_take_more_than_their_bytes(served: Any) -> None:
    server = served("joined")
    count = 8_000_000
    body = b"\x02\0\0\0ab" * count
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [count],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(body)},
                }
            ]
        }
    ).encode()
    statuses = server.send_all(
        "/v2/models/joined/infer",
        3,
        content=head + body,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert set(statuses) <= {400, 503}  # 72 bytes each: they never fit
    server.check()


def infer(datatype: str, shape: list[int], blob: bytes, **members: Any) -> dict[str, Any]:
    """An infer request with one tensor as bytes, for `send_all`."""
    tensor = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [tensor], **members}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return {"content": head + blob, "headers": headers}


def string(content: bytes) -> bytes:
    """A tensor of BYTES with one element."""
    return len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    ("pipeline", "request_of"),
    [
        ("/v2/models/total/infer", lambda: infer("FP32", [1], bytes(4), id="x" * (20 * MIB))),
        ("/predict/raw", lambda: {"content": bytes(30 * MIB)}),
        (
            "/v2/models/texts/infer",
            lambda: infer("BYTES", [1], string(b"\1" * (30 * MIB))),
        ),
        ("/predict/pixels", lambda: {"content": png(2000, 2000)}),
        (
            "/v2/models/scores/infer",
            lambda: infer(
                "FP32",
                [900_000],
                bytes(3_600_000),
                outputs=[{"name": "result", "parameters": {"classification": 900_000}}],
            ),
        ),
        (
            "/v2/models/texts/infer",
            lambda: {
                "content": (
                    '{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["'
                    + "a" * (15 * MIB)
                    + '\U0001f600"]}]}'
                ).encode()
            },
        ),
        (
            "/v2/models/texts/infer",
            lambda: infer("BYTES", [1], string(b"a" * (50 * MIB) + "\U0001f600".encode())),
        ),
        (
            "/v2/models/joined/infer",
            lambda: infer("BYTES", [1], string(b"a" * (50 * MIB) + "\U0001f600".encode())),
        ),
    ],
    ids=["id", "bytes", "escapes", "pixels", "classes", "wide", "wide bytes", "wide text"],
)
def test_what_takes_more_than_its_bytes(
    served: Any, pipeline: str, request_of: Callable[[], dict[str, Any]]
) -> None:
    server = served("total", "raw", "texts", "scores", "pixels", "joined")
    statuses = server.send_all(pipeline, 6, **request_of())
    assert set(statuses) <= {200, 400, 413, 503}
    server.check()
    assert "Traceback" not in "".join(server.process.lines)


LOOPBACK = """
from penstock.app.http.fetch import Fetcher

Fetcher.__init__.__kwdefaults__["exempt"] = ("127.0.0.1",)  # the images' server is there
"""

FETCHED_BYTES = 40 * MIB


class Images(BaseHTTPRequestHandler):
    """Answers with zeros. With `/unknown` it does not say how many."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/unknown":
            self.send_header("Content-Length", str(FETCHED_BYTES))
        self.end_headers()
        with contextlib.suppress(OSError):  # the server has refused the rest
            for _ in range(FETCHED_BYTES // MIB):
                self.wfile.write(bytes(MIB))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's word
        """Say nothing."""


@pytest.mark.parametrize("path", ["/known", "/unknown"])
def test_images_by_url(served: Any, tmp_path: Path, path: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LOOPBACK)  # Python imports it first
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as images:
        threading.Thread(target=images.serve_forever).start()
        try:
            settings = {
                "PYTHONPATH": paths,
                "PENSTOCK_ALLOW_URL": "true",
                "PENSTOCK_URL_PORTS": str(images.server_port),
                "PENSTOCK_URL_TIMEOUT": "300",
            }
            server = served(**settings)
            document = {"url": f"http://127.0.0.1:{images.server_port}{path}"}
            statuses = server.send_all("/predict/length", 32, json=document)
            assert set(statuses) <= {200, 503}, statuses
            assert server.send_all("/predict/length", 1, json=document) == {200: 1}
            # They come in pieces of 64 KiB, which leave holes in the heap.
            server.check(slack=550 * MIB)
        finally:
            images.shutdown()


def test_copies_out_of_shared_memory(served: Any, tmp_path: Path) -> None:
    """The first request is held at its node, so the others wait with their copies."""
    os.mkfifo(tmp_path / "gate")
    operators = tmp_path / "operators.py"
    operators.write_text(operators.read_text().replace('"gate"', repr(str(tmp_path / "gate"))))
    admin = {"PENSTOCK_ADMIN_TOKEN": "token", "PENSTOCK_ALLOW_SHARED_MEMORY": "true"}
    server = served("held", **admin)
    size = 24 * MIB
    region = shared_memory.SharedMemory(create=True, size=size)
    try:
        answer = server.client.post(
            "/v2/systemsharedmemory/region/given/register",
            json={"key": region.name, "byte_size": size},
            headers={"Authorization": "Bearer token"},
        )
        assert answer.status_code == 200, answer.text
        place = {"shared_memory_region": "given", "shared_memory_byte_size": size}
        given = {"name": "x", "shape": [size // 4], "datatype": "FP32", "parameters": place}
        request = {"json": {"inputs": [given]}}
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(server.send_all, "/v2/models/held/infer", 48, **request)
            try:
                server.until(lambda: server.metric("penstock_memory_refused_total"))
            finally:
                gate = os.open(tmp_path / "gate", os.O_RDWR)
            statuses = sending.result()
        assert set(statuses) == {200, 503}, statuses
        assert server.send_all("/v2/models/held/infer", 1, **request) == {200: 1}
        os.close(gate)
        server.check()
    finally:
        region.close()
        region.unlink()
