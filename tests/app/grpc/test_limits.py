"""What a call may take, who it is from, and what is counted of it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client.exposition import generate_latest

from penstock.app.grpc import unary
from penstock.app.grpc.http2.call import Compressed
from penstock.app.grpc.messages import messages
from penstock.app.grpc.proxies import TrustedProxies
from penstock.app.grpc.uploads import Uploads
from penstock.app.settings import Settings
from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation, budget
from penstock.backends.memory import limited as within

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

MAX_INFLATED = 1 << 20


@pytest.fixture(scope="module")
def limited(serve: Any, sources: Any) -> Iterator[Any]:
    """Has a key and little room, and hears of clients from a proxy."""
    with serve(
        sources,
        api_key="key",
        max_inflated=MAX_INFLATED,
        body_timeout=5,
        trusted_proxies="127.0.0.1",
        access_log=True,
    ) as one:
        yield one


@pytest.fixture(scope="module")
def channel(limited: Any) -> Iterator[Any]:
    with grpc.insecure_channel(limited.address) as one:
        yield one


KEY = (("authorization", "Bearer key"),)


def message(count: int) -> bytes:
    array = np.zeros((1, count), np.float32)
    request = messages.ModelInferRequest(
        model_name="identity_FP32", raw_input_contents=[array.tobytes()]
    )
    request.inputs.add(name="INPUT0", datatype="FP32", shape=array.shape)
    serialised: bytes = request.SerializeToString()
    return serialised


class Silence:
    """A client's messages, of which none comes until `end`."""

    def __init__(self) -> None:
        self._queue: queue.Queue[None] = queue.Queue()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._queue.get()
        raise StopIteration

    def end(self) -> None:
        self._queue.put(None)


@pytest.fixture
def silence() -> Iterator[Silence]:
    one = Silence()
    yield one
    one.end()


@pytest.mark.parametrize("method", [INFER, "/inference.GRPCInferenceService/ModelConfig"])
def test_the_key_is_checked_before_the_message_is_received(
    channel: Any, silence: Silence, method: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(method)(silence)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", [INFER, LIVE, CHECK])
def test_a_message_that_does_not_arrive_is_not_waited_for(
    serve: Any, sources: Any, silence: Silence, method: str
) -> None:
    with (
        serve(sources[:1], body_timeout=0.1) as one,
        grpc.insecure_channel(one.address) as channel,
        pytest.raises(grpc.RpcError, match=r"within 0.1 s \(body_timeout\)") as caught,
    ):
        channel.stream_unary(method)(silence)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [INFER, LIVE, CHECK])
def test_a_call_without_a_message(channel: Any, method: str) -> None:
    with pytest.raises(grpc.RpcError, match="no message") as caught:
        channel.stream_unary(method)(iter(()), metadata=KEY)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("encoding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(channel: Any, encoding: Any) -> None:
    given = {"metadata": KEY, "compression": encoding}
    sent = message(1000)
    answer = messages.ModelInferResponse.FromString(channel.unary_unary(INFER)(sent, **given))
    assert answer.raw_output_contents[0] == bytes(4000)
    (answer,) = channel.stream_stream(STREAM_INFER)(iter([sent]), **given)
    assert bytes(4000) in answer
    service = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    checked = channel.unary_unary(CHECK)(service.SerializeToString(), **given)
    assert health_pb2.HealthCheckResponse.FromString(checked).status == 1
    config = messages.ModelConfigRequest(name="simple").SerializeToString()
    told = channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")(config, **given)
    assert messages.ModelConfigResponse.FromString(told).config.name == "simple"
    # field 7: list_services
    (listed,) = channel.stream_stream(REFLECT)(iter([b"\x3a\x01*"]), **given)
    assert b"GRPCInferenceService" in listed


@pytest.mark.parametrize("encoding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_is_large_only_when_decompressed(channel: Any, encoding: Any) -> None:
    given = {"metadata": KEY, "compression": encoding}
    bomb = message(MAX_INFLATED)
    with pytest.raises(grpc.RpcError, match="max_inflated") as caught:
        channel.unary_unary(INFER)(bomb, **given)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    (answer,) = channel.stream_stream(STREAM_INFER)(iter([bomb]), **given)
    response = messages.ModelStreamInferResponse.FromString(answer)
    assert "max_inflated" in response.error_message


async def test_gzip_that_is_cut_off() -> None:
    uploads, memory = Uploads(Settings()), Reservation(budget)
    with pytest.raises(InvalidRequest, match="can't be decompressed"):
        await uploads.plain(Compressed(b"\x1f\x8bnonsense", b"gzip"), memory)
    memory.close()


def test_a_message_that_only_looks_compressed(channel: Any) -> None:
    with pytest.raises(grpc.RpcError, match="protobuf is malformed") as caught:
        channel.unary_unary(INFER)(b"\x1f\x8bnonsense", metadata=KEY)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_stays_reserved(channel: Any, limited: Any) -> None:
    before = budget.used
    for sent in (message(100_000), b"nonsense", message(MAX_INFLATED)):
        channel.unary_unary(INFER).future(sent, metadata=KEY).exception()
    assert budget.used == before


@pytest.mark.parametrize(
    ("held", "code"),
    [(1 << 19, grpc.StatusCode.UNAVAILABLE), (0, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
def test_memory_that_is_full_now_or_too_small(channel: Any, held: int, code: Any) -> None:
    sent = message((held or 1 << 20) // 4)
    others = Reservation(budget)
    others.resize(held, "a test")
    with within(1 << 20), pytest.raises(grpc.RpcError, match="max_memory") as caught:
        channel.unary_unary(INFER)(sent, metadata=KEY)
    others.close()
    assert caught.value.code() == code


def test_an_unforeseen_error_is_logged_and_its_text_is_not_told(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(unary, "ParseDict", fail)
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(LIVE)(b"")
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert "secret" in caplog.text


def test_connections_are_bounded(serve: Any, sources: Any) -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]  # else two channels share a connection
    with (
        serve(sources[:1], max_connections=1) as one,
        grpc.insecure_channel(one.address, own) as first,
        grpc.insecure_channel(one.address, own) as second,
    ):
        first.unary_unary(LIVE)(b"")
        with pytest.raises(grpc.RpcError) as caught:
            second.unary_unary(LIVE)(b"")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_proxy_tells_the_client(
    channel: Any, caplog: pytest.LogCaptureFixture, limited: Any
) -> None:
    with caplog.at_level(logging.INFO, "penstock.access"):
        forwarded = ("x-forwarded-for", "10.0.0.1, 192.0.2.7, 127.0.0.1")
        channel.unary_unary(INFER)(message(1), metadata=(*KEY, forwarded))
    fields: Any = caplog.records[-1]
    assert fields.access["client"] == "192.0.2.7:0"
    assert fields.access["path"] == INFER and fields.access["status"] == 200


@pytest.mark.parametrize(
    ("rules", "peer", "forwarded", "client"),
    [
        (None, "10.0.0.1", "192.0.2.7", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "198.51.100.1,192.0.2.7, 10.1.1.1", "192.0.2.7"),
        ("10.0.0.0/8", "192.0.2.1", "192.0.2.7", "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.0/8", "10.0.0.1", "unknown", "unknown"),
        ("*", "192.0.2.1", "192.0.2.7, 10.1.1.1", "192.0.2.7"),
    ],
)
def test_whom_a_proxy_is_believed(
    rules: str | None, peer: str, forwarded: str, client: str
) -> None:
    assert TrustedProxies(rules).client(peer, forwarded) == client


def test_metrics_of_calls(channel: Any, limited: Any) -> None:
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(INFER)(message(1))
    channel.unary_unary(INFER)(message(1), metadata=KEY)
    channel.unary_unary(LIVE)(b"")
    text = generate_latest(limited.app.state.metrics.registry).decode()
    for method, code in (("ModelInfer", "OK"), ("ServerLive", "OK")):
        assert f'penstock_grpc_calls_total{{code="{code}",method="{method}"}}' in text
    assert 'penstock_grpc_calls_total{code="UNAUTHENTICATED",method="ModelInfer"}' in text
    assert "penstock_grpc_calls_in_flight 0.0" in text
    (line,) = [line for line in text.splitlines() if line.startswith("penstock_grpc_connections ")]
    assert float(line.split()[1]) >= 1
