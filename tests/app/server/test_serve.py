"""`penstock serve` as a process: it starts, drains on a signal, and ends."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from ...ports import free_port

OPERATORS = """
import time
from pathlib import Path
from penstock.backends.base import Backend

class Gate(Backend):
    'Makes a file to show that it runs, then waits for the file that its data names.'

    def forward(self, batch):
        for item in batch:
            path = Path(item["data"].decode())
            path.with_suffix(".inside").touch()
            while not path.exists():
                time.sleep(0.005)
            item["result"] = "done"

class Slow(Backend):
    def init(self, params, context):
        Path(context.directory / "loading").touch()
        while not (context.directory / "loaded").exists():
            time.sleep(0.005)

    def forward(self, batch):
        for item in batch:
            item["result"] = 1

class Broken(Backend):
    def init(self, params, context):
        raise ValueError("no weights here")
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    """A function that writes a pipeline of one of these operators."""

    def write(name: Any) -> Any:
        (tmp_path / "operators.py").write_text(OPERATORS)
        file = tmp_path / "gate.toml"
        file.write_text(
            f'[pipeline]\nname = "gate"\n[node]\nbackend = "Python[operators.py:{name}]"\n'
        )
        return file

    return write


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_serves_and_ends(spawn: Any, digits: Path, digit: bytes) -> None:
    server = spawn("serve", digits, "--port", 0)
    with server.listening() as client:
        server.wait_for("ready after .* s: digits")
        assert client.put("/predict/digits", content=digit).json()["label"] == "three"
        server.process.terminate()
        assert server.end() == 0
    assert not [line for line in server.lines if " WARNING " in line or " ERROR " in line]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_in_flight_work_finishes_and_new_work_is_refused(
    spawn: Any, pipeline: Any, tmp_path: Path, sign: Any
) -> None:
    # A client that stands still must not lose its connection before it has sent its request.
    server = spawn("serve", pipeline("Gate"), "--port", 0, PENSTOCK_DRAIN_GRACE="20")
    with server.listening() as client, ThreadPoolExecutor() as threads:
        server.wait_for("ready")
        running, queued = (
            threads.submit(client.post, "/predict/gate", content=str(tmp_path / name).encode())
            for name in ("a", "b")
        )
        until(lambda: list(tmp_path.glob("?.inside")))  # either may come first
        until(
            lambda: (
                'penstock_requests_in_flight{pipeline="gate"} 2.0' in client.get("/metrics").text
            )
        )
        server.process.send_signal(sign)
        server.wait_for("draining: 2 requests")
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()) == (
            503,
            {"ready": False, "reason": "the server is draining"},
        )
        assert client.get("/health/live").status_code == 200
        answer = client.post("/predict/gate", content=b"x")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready") and answer.headers[
            "retry-after"
        ]
        assert not running.done() and not queued.done()
        (tmp_path / "a").touch()
        (tmp_path / "b").touch()
        assert running.result().json() == queued.result().json() == {"result": "done"}
        assert server.end() == 0


def test_requests_that_do_not_end_in_time_fail(spawn: Any, pipeline: Any, tmp_path: Path) -> None:
    server = spawn("serve", pipeline("Gate"), "--port", 0, PENSTOCK_DRAIN_TIMEOUT="0.2")
    with server.listening() as client, ThreadPoolExecutor() as threads:
        server.wait_for("ready")
        running = threads.submit(client.post, "/predict/gate", content=str(tmp_path / "a").encode())
        until((tmp_path / "a.inside").exists)
        server.process.terminate()
        answer = running.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert server.end() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_now(
    spawn: Any, pipeline: Any, tmp_path: Path, second: Any
) -> None:
    server = spawn("serve", pipeline("Gate"), "--port", 0)
    with server.listening() as client, ThreadPoolExecutor() as threads:
        server.wait_for("ready")
        running = threads.submit(client.post, "/predict/gate", content=str(tmp_path / "a").encode())
        until((tmp_path / "a.inside").exists)
        server.process.terminate()
        server.wait_for("draining")
        server.process.send_signal(second)
        assert server.end() == -second
        assert running.exception() is not None


def test_listens_while_it_loads(spawn: Any, pipeline: Any, tmp_path: Path) -> None:
    server = spawn("serve", pipeline("Slow"), "--port", 0)
    with server.listening() as client:
        until((tmp_path / "loading").exists)
        assert client.get("/health/live").status_code == 200
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["reason"]) == (503, "pipeline 'gate' is loading")
        answer = client.post("/predict/gate", content=b"x")
        assert answer.status_code == 503 and answer.json()["detail"] == "pipeline 'gate' is loading"
        assert client.post("/predict/gat", content=b"x").status_code == 404
        (tmp_path / "loaded").touch()
        server.wait_for("ready after")
        assert client.get("/health/ready").status_code == 200
        assert client.post("/predict/gate", content=b"x").json() == {"result": 1}


def test_a_signal_while_it_loads(spawn: Any, pipeline: Any, tmp_path: Path) -> None:
    server = spawn("serve", pipeline("Slow"), "--port", 0)
    with server.listening():
        until((tmp_path / "loading").exists)
        server.process.terminate()
        assert server.end() == 0


def test_a_pipeline_that_can_not_be_loaded_ends_it(spawn: Any, pipeline: Any) -> None:
    server = spawn("serve", pipeline("Broken"), "--port", 0)
    server.wait_for("a pipeline can't be loaded: .*no weights here")
    assert server.end() == 1
    assert "Traceback" not in "".join(server.lines)


def test_a_port_that_is_taken(spawn: Any, digits: Path) -> None:
    first = spawn("serve", digits, "--port", 0)
    with first.listening() as client:
        second = spawn("serve", digits, "--port", client.base_url.port)
        assert second.end() != 0
        assert "address already in use" in "".join(second.lines) and "Traceback" not in "".join(
            second.lines
        )


@pytest.mark.parametrize(
    "offer",
    [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
        "Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n",
    ],
)
def test_an_offer_to_upgrade_is_ignored(spawn: Any, digits: Path, digit: bytes, offer: Any) -> None:
    server = spawn("serve", digits, "--port", 0)
    with server.listening() as client:
        server.wait_for("ready")
        chunked = (
            f"Transfer-Encoding: chunked\r\n\r\n{len(digit):x}\r\n".encode()
            + digit
            + b"\r\n0\r\n\r\n"
        )
        sized = f"Content-Length: {len(digit)}\r\n\r\n".encode() + digit
        for body in (sized, chunked):
            request = f"POST /predict/digits HTTP/1.1\r\nHost: x\r\n{offer}".encode() + body
            for pieces in (
                [request * 2],
                [request[:80], request[80:] + request],
                [request[:-20], request[-20:], request],
            ):
                with (
                    socket.create_connection(
                        (client.base_url.host, client.base_url.port), 60
                    ) as wire,
                    wire.makefile("rb") as file,
                ):
                    for piece in pieces:
                        wire.sendall(piece)
                        time.sleep(0.01)  # so that they arrive one by one
                    for _ in range(2):
                        assert b"200" in file.readline()
                        headers = http.client.parse_headers(file)
                        assert (
                            orjson.loads(file.read(int(headers["content-length"])))["label"]
                            == "three"
                        )
        with (
            socket.create_connection((client.base_url.host, client.base_url.port), 60) as wire,
            wire.makefile("rb") as file,
        ):
            wire.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"400" in file.readline()
        server.process.terminate()
        assert server.end() == 0


def test_json_logs_and_the_access_log(spawn: Any, digits: Path) -> None:
    server = spawn(
        "serve",
        digits,
        "--port",
        0,
        "--access-log",
        PENSTOCK_LOG_FORMAT="json",
        PENSTOCK_ADMIN_TOKEN="t",
    )
    with server.listening() as client:
        client.get("/health/live?x=%0aforged")
        server.process.terminate()
        assert server.end() == 0
    entries = [orjson.loads(line) for line in server.lines]
    assert {"time", "level", "logger", "message"} <= entries[0].keys()
    assert any(
        "GET /health/live" in entry["message"]
        for entry in entries
        if entry["logger"] == "penstock.access"
    )


def test_a_bare_model(spawn: Any, digits: Path) -> None:
    directory = digits.parent
    server = spawn(
        "serve", directory / "digits.onnx", "--labels", directory / "labels.txt", "--port", 0
    )
    with server.listening() as client:
        server.wait_for("ready after .* s: digits")
        answer = client.put("/predict/digits", content=(directory / "digit.png").read_bytes())
        assert answer.status_code == 200 and isinstance(answer.json()["label"], str)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_signal_before_the_server_starts() -> None:
    """uvicorn captures signals, then imports the app, then starts."""
    server = run_python(
        """
import signal, sys, uvicorn
from penstock.app.server.serve import serve
from penstock.app.settings import Settings
from penstock.pipelines.repository import Repository

class Interrupted(uvicorn.Config):
    def load(self):
        super().load()
        signal.raise_signal(signal.SIGTERM)

uvicorn.Config = Interrupted
sys.exit(serve(Repository.read({"backend": "Identity"}), Settings(port=0)))
"""
    )
    assert server.returncode == 0, server.stderr
    assert "draining: 0 requests" in server.stderr and "Traceback" not in server.stderr


def test_only_the_server_starts_the_repository() -> None:
    """However late its start comes, the app's lifespan does not start it too."""
    server = run_python(
        """
import asyncio, signal, sys
from penstock.app.server.serve import serve
from penstock.app.settings import Settings
from penstock.pipelines.repository import Repository

class Late(Repository):
    starts = 0

    async def start(self):
        self.starts += 1
        for _ in range(20):
            await asyncio.sleep(0)
        await super().start()
        signal.raise_signal(signal.SIGTERM)

repository = Late.read({"backend": "Identity"})
code = serve(repository, Settings(port=0))
print(repository.starts, repository.state)
sys.exit(code)
"""
    )
    assert (server.returncode, server.stdout) == (0, "1 closed\n"), server.stderr
    assert " ERROR " not in server.stderr


def test_the_server_imports_no_command_line() -> None:
    code = """
import sys, penstock.app.server.serve
print([name for name in ('typer', 'rich', 'torch') if name in sys.modules])
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


USES_NUMPY = """
import asyncio, sys
import httpx
import penstock.app.server.serve
from penstock import create_app, lifespan

async def main(source, path, body):
    app = create_app(source)
    async with lifespan(app):
        loaded = "numpy" in sys.modules
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(path, content=body)
        assert answer.status_code == 200, answer.text
        print(loaded, "numpy" in sys.modules, answer.text)

asyncio.run(main(*eval(sys.argv[1])))
"""
V2_TEXT = b'{"inputs":[{"name":"data","shape":[1],"datatype":"BYTES","data":["ab"]}]}'
V2_NUMBERS = b'{"inputs":[{"name":"data","shape":[1,1],"datatype":"FP32","data":[1]}]}'
PORT = {"data": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 1]}}


@pytest.mark.parametrize(
    ("pipeline", "path", "body", "expected"),
    [
        (
            {"a": {"backend": "Python[builtins:len]"}},
            "/predict/pipeline",
            b"abc",
            'False False {"result":3}',
        ),
        (
            {"a": {"backend": "Python[builtins:len]"}},
            "/v2/models/pipeline/infer",
            V2_TEXT,
            "False True",
        ),
        (
            {"pipeline": {"inputs": PORT}, "a": {"backend": "Identity"}},
            "/v2/models/pipeline/infer",
            V2_NUMBERS,
            "True True",
        ),
    ],
)
def test_numpy_is_imported_by_the_load_of_who_needs_it(
    pipeline: object, path: str, body: bytes, expected: str
) -> None:
    """It takes 12 MB of a server whose pipelines have no arrays, and 0.1 s of a first request."""
    done = run_python(USES_NUMPY, repr((pipeline, path, body)))
    assert done.stdout.startswith(expected), done.stdout + done.stderr


def test_embedding_changes_nothing_of_the_process() -> None:
    code = """
import asyncio, gc, logging, signal, sys

def state():
    handlers = [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)]
    return handlers, sys.getswitchinterval(), list(logging.getLogger().handlers)

before = state()
from penstock import create_app, lifespan
import cv2
threads = cv2.getNumThreads()
async def run():
    async with lifespan(create_app({"backend": "Identity"})):
        pass
asyncio.run(run())
print(before == state(), gc.get_freeze_count(), cv2.getNumThreads() == threads)
print(logging.getLogger("penstock").handlers)
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "True 0 True\n[]\n"), done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(digits: Path, digit: bytes, closed: str) -> None:
    port = free_port()
    command = f'exec "$0" -m penstock serve "$1" --port {port} {closed}'
    server = subprocess.Popen(["sh", "-c", command, sys.executable, str(digits)])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while server.poll() is None:
                with contextlib.suppress(httpx.ConnectError):
                    if client.get("/health/ready").status_code == 200:
                        break
            assert client.post("/predict/digits", content=digit).status_code == 200
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
