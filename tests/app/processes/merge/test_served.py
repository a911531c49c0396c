"""What a server of several processes, real ones, tells of all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

PICTURE = """
[pipeline]
name = "picture"

[decode]
backend = "S[DecodeMat,ResizeMat]"
resize_h = 2
resize_w = 2
next = "look"

[look]
backend = "Identity"
"""
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
ADMIN = {"Authorization": "Bearer adm1n"}
FRONTS = ("front 1", "front 2")

Samples = dict[str, float]


class Server:
    """A server of two front processes, and clients with a connection to each."""

    def __init__(self, process: Any, clients: list[httpx.Client]) -> None:
        self.process = process
        self.clients = clients

    def processes(self, client: httpx.Client) -> dict[str, Any]:
        return {one["name"]: one for one in client.get("/status").json()["processes"]}

    def samples(self, client: httpx.Client) -> Samples:
        """Return each sample by its name and labels. The parser rejects those that come twice."""
        parse: Any = text_string_to_metric_families
        families = parse(client.get("/metrics", headers=OPENMETRICS).text)
        return {
            " ".join((one.name, *(f"{key}={one.labels[key]}" for key in sorted(one.labels)))): (
                one.value
            )
            for family in families
            for one in family.samples
        }

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Stop a process for a while: it answers nothing, and does not end."""
        pid = self.processes(self.clients[0])[name]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def server(
    spawn_shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, digit: bytes
) -> Iterator[Server]:
    file: Path = tmp_path_factory.mktemp("picture") / "picture.toml"
    file.write_text(PICTURE)
    options = ("--port", 0, "--processes", 2, "--allow-log-settings")
    process = spawn_shared("serve", file, *options, PENSTOCK_ADMIN_TOKEN="adm1n")
    process.wait_for("processes are ready")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(process.listening()) for _ in FRONTS]
        for client in clients:  # each connection goes to the front with the fewest
            client.post("/predict/picture", content=digit).raise_for_status()
        yield Server(process, clients)
    process.process.terminate()
    assert process.end() == 0


def test_the_same_is_told_over_every_connection(server: Server, digit: bytes) -> None:
    before = server.samples(server.clients[0])
    for client in server.clients:
        for _ in range(3):
            client.post("/predict/picture", content=digit).raise_for_status()
    for client in server.clients:
        samples = server.samples(client)
        for node in ("decode", "look"):
            name = f"penstock_items_total node={node} outcome=ok pipeline=picture"
            assert samples[name] == before[name] + 6
        assert samples["penstock_executors node=decode pipeline=picture"] == 3
        # One of them is a tunnel at this moment, which is no connection more.
        assert samples["penstock_connections"] == 2
        (pipeline,) = client.get("/status").json()["pipelines"]
        instances = [one["name"] for one in pipeline["nodes"][0]["executors"]]
        assert instances == [f"{place}picture/decode#0" for place in ("", "front 1 ", "front 2 ")]
        processes = server.processes(client)
        assert [*processes] == ["parent", "models", *FRONTS]
        assert [processes[name]["connections"] for name in FRONTS] == [1, 1]
        for name, process in processes.items():
            assert process["state"] == "up" and process["restarts"] == 0
            assert samples[f"process_resident_memory_bytes process={name}"] > 0
            assert samples[f"penstock_process_up process={name}"] == 1


def test_refused_connections_are_counted_where_they_came(server: Server) -> None:
    name = "penstock_connections_closed_total reason=malformed"
    before = server.samples(server.clients[0])[name]
    send_nonsense(server)
    assert server.samples(server.clients[0])[name] == before + 2


def test_log_settings_hold_in_every_process(server: Server) -> None:
    ports: dict[bool, list[int]] = {}
    for on in (False, True):
        changed = server.clients[0].post("/v2/logging", json={"log_warning": on}, headers=ADMIN)
        assert changed.json()["log_warning"] is on
        ports[on] = send_nonsense(server)
    warned = [
        server.process.wait_for(rf"WARNING penstock.connection \[(.+)\] request from .*:{port} ")[1]
        for port in ports[True]
    ]
    assert sorted(warned) == [*FRONTS]
    # What one process logs comes in order, so a warning from before would be here by now.
    lines = "".join(server.process.lines)
    assert not [port for port in ports[False] if f":{port} " in lines]


def send_nonsense(server: Server) -> list[int]:
    """Send what is not HTTP to each front, over a connection of its own, and wait until these are
    closed. Return their ports.
    """
    address = server.clients[0].base_url.host, server.clients[0].base_url.port
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(address, 30)) for _ in FRONTS]
        ports = [connection.getsockname()[1] for connection in opened]
        for connection in opened:
            connection.sendall(b"nonsense\r\n\r\n")
        for connection in opened:
            while connection.recv(4096):
                pass
    return ports


def test_a_front_that_does_not_answer_is_named(server: Server) -> None:
    with ThreadPoolExecutor() as threads, server.stopped("front 1"):
        # One of the two clients is connected to it, and has its answer when it goes on.
        asked = [threads.submit(client.get, "/metrics") for client in server.clients]
        answered, waiting = wait(asked, return_when=FIRST_COMPLETED)
        assert len(waiting) == 1
        answer = answered.pop().result().text
        assert 'penstock_process_up{process="front 1"} 0.0' in answer
        assert 'penstock_process_up{process="front 2"} 1.0' in answer
        assert "\npenstock_connections 1.0\n" in answer
        server.process.wait_for("front 1 has not reported in 1 s")
    assert server.processes(server.clients[0])["front 1"]["state"] == "up"


def test_no_counter_goes_back_when_a_front_dies(server: Server, digit: bytes) -> None:
    before = server.samples(server.clients[0])
    pid = server.processes(server.clients[0])["front 2"]["pid"]
    os.kill(pid, signal.SIGKILL)
    server.process.wait_for(r"front 2 \(process \d+\): ready again")
    with server.process.listening() as client:
        client.post("/predict/picture", content=digit).raise_for_status()
        after = server.samples(client)
        grown = [name for name in before if is_counter(name)]
        assert [name for name in grown if after[name] < before[name]] == []
        name = "penstock_items_total node=decode outcome=ok pipeline=picture"
        assert after[name] == before[name] + 1
        assert after["penstock_process_restarts_total process=front 2"] == 1
        assert server.processes(client)["front 2"]["restarts"] == 1


def is_counter(name: str) -> bool:
    ends = ("_total", "_count", "_sum", "_bucket")
    return name.split(maxsplit=1)[0].endswith(ends) or name.startswith("nv_inference_request")
