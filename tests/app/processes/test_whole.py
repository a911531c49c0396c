"""A server of several processes, real ones, as clients of every kind see it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import trustme
from tritonclient.utils import shared_memory
from websockets.sync.client import connect

from ...ports import free_port

KEY = {"Authorization": "Bearer k3y"}
ADMIN = {"Authorization": "Bearer adm1n"}
FRONTS = 2
CLIENTS = 2 * FRONTS
"""Each front has two of so many connections."""

CODE = """
import os
from pathlib import Path

VERSION = {version!r}


def echo(data):
    return data.decode() + VERSION


def slow(data):
    directory = Path(__file__).parent  # each open waits for the other end of a FIFO
    open(directory / "inside", "w").close()
    open(directory / "gate").close()
    return "slow"


def double(data):
    return data * 2


async def loud(item, call):
    async for chunk in item["data"]:
        yield chunk.upper()
"""

PIPELINES = {
    "echo.toml": """
[pipeline]
name = "echo"
inputs = { data = { kind = "bytes" } }

[echo]
backend = "Python[code.py:echo]"
""",
    "slow.toml": """
[pipeline]
name = "slow"
inputs = { data = { kind = "bytes" } }

[slow]
backend = "Python[code.py:slow]"
""",
    "picture.toml": """
[pipeline]
name = "picture"
inputs = { data = { kind = "image" } }

[decode]
backend = "S[DecodeMat,ResizeMat]"
resize_h = 2
resize_w = 2
next = "look"

[look]
backend = "Python[code.py:shape]"
""",
    "loud.toml": """
[pipeline]
name = "loud"
inputs = { data = { kind = "text", stream = true } }

[loud]
backend = "Python[code.py:loud]"
""",
    "double.toml": """
[pipeline]
name = "double"
inputs = { X = { kind = "tensor", dtype = "FP32", shape = [-1, 4] } }
outputs = { Y = { kind = "tensor", dtype = "FP32", shape = [-1, 4] } }

[double]
backend = "Python[code.py:double]"
max = 8
""",
}

SHAPE = """

def shape(data):
    return list(data.shape)
"""


class Server:
    """The parent process, and what clients need to reach the server."""

    def __init__(self, process: Any, folder: Path, grpc_port: int, tls: Any = False) -> None:
        self.process = process
        self.folder = folder
        process.wait_for("processes are ready")
        self.url: str = process.wait_for(r"listening on (https?://\S+),")[1]
        self.grpc = f"127.0.0.1:{grpc_port}"
        self._tls = tls

    @property
    def address(self) -> str:
        return self.url.partition("//")[2]

    def client(self) -> httpx.Client:
        """Return a client, whose requests use one connection."""
        return httpx.Client(base_url=self.url, timeout=30, verify=self._tls, headers=KEY)

    @contextlib.contextmanager
    def clients(self) -> Iterator[list[httpx.Client]]:
        """Yield clients with open connections, so many to each front."""
        with contextlib.ExitStack() as open_ones:
            clients = [open_ones.enter_context(self.client()) for _ in range(CLIENTS)]
            for client in clients:
                # Over the link: a connection that still has a tunnel ends with the model process.
                assert client.post("/predict/echo", content=b"x").status_code == 200
            yield clients

    def pids(self) -> dict[str, int]:
        with self.client() as client:
            processes = client.get("/status").json()["processes"]
        return {process["name"]: process["pid"] for process in processes}


def write(folder: Path, version: str = "") -> None:
    (folder / "code.py").write_text(CODE.format(version=version) + SHAPE)
    for name, text in PIPELINES.items():
        (folder / name).write_text(text)
    for number in (1, 2):
        versioned = folder / "versioned" / str(number)
        versioned.mkdir(parents=True)
        (versioned / "code.py").write_text(CODE.format(version=f" of version {number}"))
        (versioned / "pipeline.toml").write_text(
            PIPELINES["echo.toml"].replace('echo"', 'versioned"', 1)
        )
    for name in ("inside", "gate"):
        os.mkfifo(folder / name)


@pytest.fixture(scope="module")
def server(spawn_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    grpc_port = free_port()
    process = spawn_shared(
        "serve",
        folder,
        "--port",
        0,
        "--processes",
        FRONTS,
        "--grpc-port",
        grpc_port,
        "--allow-model-control",
        "--allow-shared-memory",
        PENSTOCK_API_KEY="k3y",
        PENSTOCK_ADMIN_TOKEN="adm1n",
    )
    one = Server(process, folder, grpc_port)
    yield one
    process.process.terminate()
    assert process.end() == 0


def test_requests_of_all_shapes(server: Server, digit: bytes) -> None:
    large = b"x" * 300_000
    with server.clients() as clients:
        for client in clients:
            assert client.post("/predict/echo", content=b"one").json()["result"] == "one"
            assert client.post("/predict/echo", content=large).json()["result"] == large.decode()
            answer = client.post("/predict/echo", json={"data": "b25l"})
            assert answer.json()["result"] == "one"
            assert client.post("/predict/echo", content=iter([b"a", b"b"])).json()["result"] == "ab"
            answer = client.post("/predict/picture", content=digit)
            assert answer.json()["result"] == [2, 2, 3]
            assert "decode" in answer.headers["server-timing"]
            assert client.post("/predict/picture", content=b"no image").status_code == 422
            assert client.post("/predict/nothing", content=b"x").status_code == 404
            assert client.get("/").headers["content-type"].startswith("text/html")


def test_requests_are_counted_once(server: Server, digit: bytes) -> None:
    def counted() -> tuple[int, int]:
        metrics = clients[0].get("/metrics").text
        return tuple(
            int(float(line.split()[-1]))
            for name in ("decode", "look")
            for line in metrics.splitlines()
            if line.startswith("penstock_batch_size_sum") and f'node="{name}"' in line
        )  # type: ignore[return-value]

    with server.clients() as clients:
        before = counted()
        for client in clients:
            client.post("/predict/picture", content=digit)
        assert counted() == (before[0] + CLIENTS, before[1] + CLIENTS)
        statistics = clients[0].get("/v2/models/picture/stats").json()["model_stats"][0]
        assert statistics["inference_stats"]["success"]["count"] >= CLIENTS


def test_versions(server: Server) -> None:
    with server.clients() as clients:
        for client in clients:
            answers = [
                client.post(f"/predict/versioned{path}", content=b"one").json()["result"]
                for path in ("", "/versions/1", "/versions/2")
            ]
            assert answers == [f"one of version {number}" for number in (2, 1, 2)]


def test_a_load_is_seen_by_every_front_at_once(server: Server) -> None:
    def results() -> list[Any]:
        answers = [client.post("/predict/echo", content=b"one") for client in clients]
        return [answer.json().get("result", answer.status_code) for answer in answers]

    with server.clients() as clients:
        assert results() == ["one"] * CLIENTS
        (server.folder / "code.py").write_text(CODE.format(version=" again") + SHAPE)
        assert clients[1].post("/pipelines/echo/load", headers=ADMIN).status_code == 200
        assert results() == ["one again"] * CLIENTS
        assert clients[2].post("/pipelines/echo/unload", headers=ADMIN).status_code == 200
        assert results() == [404] * CLIENTS
        assert clients[3].post("/v2/repository/models/echo/load", headers=ADMIN).status_code == 200
        assert results() == ["one again"] * CLIENTS


def test_front_nodes_follow_a_load(server: Server, digit: bytes) -> None:
    """A picture that crosses while its pipeline is replaced is decoded by the new one."""
    file = server.folder / "picture.toml"
    with server.clients() as clients:
        for size in (3, 2):
            file.write_text(PIPELINES["picture.toml"].replace("= 2", f"= {size}"))
            assert clients[0].post("/pipelines/picture/load", headers=ADMIN).status_code == 200
            for client in clients:
                answer = client.post("/predict/picture", content=digit).json()
                assert answer["result"] == [size, size, 3]


def test_keys_hold_at_every_front(server: Server, digit: bytes) -> None:
    with server.clients() as clients:
        for client in clients:
            for path in ("/predict/echo", "/predict/picture", "/v2/models/double/infer"):
                answer = client.post(path, content=digit, headers={"Authorization": "Bearer no"})
                assert answer.status_code == 401
            assert client.post("/pipelines/echo/load").status_code in (401, 403)


def test_streams_go_through_tunnels_and_give_their_connection_back(server: Server) -> None:
    with server.clients() as clients:
        for client in clients:
            headers = {"Accept": "text/event-stream"}
            answer = client.post("/predict/loud", content=iter([b"one"]), headers=headers)
            assert answer.text.startswith('data: {"result":"ONE"}')
            assert client.post("/predict/echo", content=b"one").status_code == 200
    url = server.url.replace("http", "ws") + "/predict/loud/stream"
    for _ in range(FRONTS):
        with connect(url, additional_headers=KEY) as web_socket:
            web_socket.send("one")
            assert json.loads(web_socket.recv()) == {"result": "ONE"}
            web_socket.send("")
            assert list(web_socket) == []


def test_tritonclient_and_shared_memory(server: Server) -> None:
    """A region that is registered by one front is every front's."""
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    key = f"/penstock_{os.getpid()}_whole"
    region = shared_memory.create_shared_memory_region("region", key, values.nbytes)
    with contextlib.ExitStack() as stack:
        stack.callback(shared_memory.destroy_shared_memory_region, region)
        shared_memory.set_shared_memory_region(region, [values])
        clients = [
            stack.enter_context(tritonclient.http.InferenceServerClient(server.address))
            for _ in range(CLIENTS)
        ]
        clients[0].register_system_shared_memory("region", key, values.nbytes, headers={**ADMIN})
        for client in clients:
            assert client.is_server_ready(headers={**KEY})
            sent = tritonclient.http.InferInput("X", [2, 4], "FP32")
            sent.set_data_from_numpy(values)
            result: Any = client.infer("double", [sent], headers={**KEY})
            assert np.array_equal(result.as_numpy("Y"), 2 * values)
            sent.set_shared_memory("region", values.nbytes)
            result = client.infer("double", [sent], headers={**KEY})
            assert np.array_equal(result.as_numpy("Y"), 2 * values)
        clients[1].unregister_system_shared_memory(headers={**ADMIN})
        assert clients[2].get_system_shared_memory_status(headers={**ADMIN}) == []


def test_grpc(server: Server) -> None:
    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        sent = tritonclient.grpc.InferInput("X", [1, 4], "FP32")
        sent.set_data_from_numpy(values)
        headers = {name.lower(): value for name, value in KEY.items()}
        result: Any = client.infer("double", [sent], headers=headers)
        assert np.array_equal(result.as_numpy("Y"), 2 * values)


def test_a_killed_front_takes_only_its_own_connections(server: Server) -> None:
    host, _, port = server.address.partition(":")
    with contextlib.ExitStack() as open_ones:
        clients = []  # httpx would connect again, unseen
        for _ in range(CLIENTS):
            clients.append(http.client.HTTPConnection(host, int(port), timeout=30))
            open_ones.callback(clients[-1].close)
            clients[-1].connect()
        assert all(_is_answered(client) for client in clients)
        os.kill(server.pids()["front 1"], signal.SIGKILL)
        server.process.wait_for("front 1 .*restarting")
        answered = [_is_answered(client) for client in clients]
        assert sorted(answered) == [False] * (CLIENTS // FRONTS) + [True] * (CLIENTS // FRONTS)
        server.process.wait_for("front 1 .*ready again")


def _is_answered(client: http.client.HTTPConnection) -> bool:
    """Send a request on a connection that may have been broken."""
    try:
        client.request("POST", "/predict/echo", b"x", KEY)
        with client.getresponse() as answer:
            answer.read()
    except OSError:
        return False
    return answer.status == 200


def test_a_killed_model_process_is_answered_for(server: Server) -> None:
    """Its requests get 503. All connections stay open, and answer when there is a new one."""
    answers: list[httpx.Response] = []
    with server.clients() as clients:
        waiting = clients.pop()
        thread = threading.Thread(
            target=lambda: answers.append(waiting.post("/predict/slow", content=b"x"))
        )
        thread.start()
        (server.folder / "inside").open().close()
        os.kill(server.pids()["models"], signal.SIGKILL)
        thread.join(30)
        assert (answers[0].status_code, answers[0].json()["code"]) == (503, "not_ready")
        assert "retry-after" in answers[0].headers
        server.process.wait_for("models .*ready again")
        results = [client.post("/predict/echo", content=b"x").status_code for client in clients]
        assert results == [200] * len(clients)


def test_tls(spawn: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    (tmp_path / "pipelines").mkdir()
    write(tmp_path / "pipelines")
    process = spawn(
        "serve", tmp_path / "pipelines", "--port", 0, "--processes", 2, "--balance", "kernel",
        "--ssl-certfile", chain, "--ssl-keyfile", key,
    )  # fmt: skip
    server = Server(process, tmp_path, 0, context)
    with server.clients() as clients:
        for client in clients:
            assert client.post("/predict/echo", content=b"one").json()["result"] == "one"
            assert "echo" in client.get("/metrics").text
    with connect(server.url.replace("http", "ws") + "/predict/loud/stream", ssl=context) as socket:
        socket.send("one")
        assert json.loads(socket.recv()) == {"result": "ONE"}
    process.process.terminate()
    assert process.end() == 0
