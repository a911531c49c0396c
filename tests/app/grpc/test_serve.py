"""`penstock serve --grpc-port`, as a process."""

from __future__ import annotations

import queue
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from penstock import create_app, lifespan
from penstock.app.grpc.errors import GrpcError
from penstock.app.settings import Settings

PIPELINE = """
[pipeline]
name = "same"
[pipeline.inputs]
X = {kind = "tensor", dtype = "FP32", shape = [-1]}
[pipeline.outputs]
Y = {kind = "tensor", dtype = "FP32", shape = [-1]}
[node]
backend = "Identity"
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "same.toml"
    path.write_text(PIPELINE)
    yield path


def infer(client: Any) -> Any:
    tensor = InferInput("X", [2], "FP32")
    tensor.set_data_from_numpy(np.ones(2, np.float32))
    return client.infer("same", [tensor]).as_numpy("Y").tolist()


def test_both_ports_serve_and_a_signal_ends_both(spawn: Any, pipeline: Path) -> None:
    server = spawn("serve", pipeline, "--port", "0", "--grpc-port", "0")
    address = server.wait_for(r"listening for gRPC on (\S+)")[1]
    server.wait_for(r"ready after")
    with closing(tritonclient.grpc.InferenceServerClient(address)) as client:
        assert infer(client) == [1, 1]
        client.start_stream(lambda result, error: None)  # an open stream does not delay the end
        with grpc.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert server.end() == 0
        client.stop_stream()


def test_a_drain_ends_what_is_in_flight_and_refuses_the_rest(
    serve: Any, sources: Any, gate: Any
) -> None:
    def call(client: Any, name: str = "gated", then: Any = None) -> Any:
        tensor = InferInput("X", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        if then is None:
            return client.infer(name, [tensor])
        return client.async_infer(name, [tensor], then)

    answers: queue.Queue[Any] = queue.Queue()
    with serve(sources) as one:
        call(one.client, then=lambda result, error: answers.put((result, error)))
        gate.wait_entered()
        with grpc.insecure_channel(one.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            one.drain()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(InferenceServerException) as refused:
                call(one.client, "failing")
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
            assert not one.client.is_server_ready()
        gate.open()
        result, error = answers.get(timeout=60)
        assert error is None and result.as_numpy("Y").tolist() == [[1]]


async def test_an_app_serves_by_grpc_while_its_lifespan_runs(
    pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(pipeline, settings=Settings(grpc_port=0))
    async with lifespan(app):
        client = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{app.state.grpc.port}")
        tensor = InferInput("X", [2], "FP32")
        tensor.set_data_from_numpy(np.ones(2, np.float32))
        answer: Any = await client.infer("same", [tensor])
        assert answer.as_numpy("Y").tolist() == [1, 1]
        taken = create_app(pipeline, settings=Settings(grpc_port=app.state.grpc.port))
        with pytest.raises(GrpcError, match="can't listen"):
            async with lifespan(taken):
                pass
        await client.close()


async def test_without_the_extra(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "penstock.app.grpc.server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(GrpcError, match=r"pip install 'penstock-serve\[grpc\]'"):
        async with lifespan(create_app(pipeline, settings=Settings(grpc_port=0))):
            pass


def test_a_port_that_is_taken(spawn: Any, pipeline: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = spawn("serve", pipeline, "--port", "0", "--grpc-port", port)
        server.wait_for(rf"grpc_port: can't listen on 127.0.0.1:{port}")
        assert server.end() == 1


def test_tls(spawn: Any, pipeline: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, root = (tmp_path / name for name in ("chain.pem", "key.pem", "root.pem"))
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    server = spawn(
        *("serve", pipeline, "--port", "0", "--grpc-port", "0"),
        *("--ssl-certfile", chain, "--ssl-keyfile", key, "--ssl-ca-certs", root),
    )
    address = server.wait_for(r"listening for gRPC on (\S+)")[1]
    server.wait_for(r"ready after")
    mine = authority.issue_cert("client")
    client_chain, client_key = tmp_path / "mine.pem", tmp_path / "mine.key"
    mine.cert_chain_pems[0].write_to_path(client_chain)
    mine.private_key_pem.write_to_path(client_key)
    with closing(
        tritonclient.grpc.InferenceServerClient(
            address,
            ssl=True,
            root_certificates=str(root),
            private_key=str(client_key),
            certificate_chain=str(client_chain),
        )
    ) as client:
        assert infer(client) == [1, 1]
    credentials = grpc.ssl_channel_credentials(root.read_bytes())
    with grpc.secure_channel(address, credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest())
