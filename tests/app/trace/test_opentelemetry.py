"""Requests as OpenTelemetry's spans, received by a collector."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.errors import ConfigError, InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.testing import Gate

from .collector import Collector, collecting

TEXT = {"data": {"kind": "text"}}
GATE = Gate()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
"""The context of a caller, without the last digit of its flags."""


@register_backend("SpanGate")
def gate(text: str) -> str:
    if text == "wait":
        GATE.wait()
    return text


@register_backend("SpanFail")
def fail(text: str) -> str:
    if text == "unreadable":
        raise InvalidInput("not a text")
    raise KeyError("secret")


@register_backend("SpanHeaders")
class Headers:
    takes_traceparent = True

    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = [item["traceparent"], item["tracestate"]]


@register_backend("SpanLogic")
async def logic(item: Any, call: Any) -> Any:
    inner = await call("seen", {"data": item["data"]})
    other = await call("other", {"data": item["data"]})
    return [call.traceparent, inner["result"][0], other["result"][0], call.tracestate]


@register_backend("SpanYield")
async def yields(item: Any, call: Any) -> Any:
    for letter in item["data"]:
        yield letter


@register_backend("SpanChunks")
async def chunks(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        yield f"{chunk} {call.traceparent}"


def one(name: str, backend: str, inputs: Any = TEXT, **node: Any) -> dict[str, Any]:
    return {"pipeline": {"name": name, "inputs": inputs}, "net": {"backend": backend, **node}}


PIPELINES: list[Any] = [
    {
        "pipeline": {"name": "chain", "inputs": TEXT},
        "first": {"backend": "Identity", "next": "second"},
        "second": {"backend": "Identity"},
    },
    one("gated", "SpanGate", max=4),
    one("failing", "SpanFail"),
    one("seen", "SpanHeaders"),
    {"pipeline": {"name": "other", "inputs": TEXT}, "ask": {"backend": "SpanHeaders"}},
    {
        "pipeline": {"name": "logic", "inputs": TEXT, "entry": "think"},
        "think": {"backend": "SpanLogic"},
        "seen": {"backend": "SpanHeaders"},
    },
    {
        "pipeline": {"name": "graph", "inputs": TEXT},
        "first": {"backend": "Identity", "next": "then"},
        "then": {"backend": "SpanHeaders", "filter": "Run"},
    },
    {
        "pipeline": {"name": "rounds", "inputs": TEXT, "loop": True},
        "ask": {"backend": "SpanHeaders"},
    },
    {
        "pipeline": {"name": "kept", "inputs": TEXT, "cache": True},
        "net": {"backend": "SpanGate"},
    },
    one("letters", "SpanYield"),
    one("chunks", "SpanChunks", {"data": {"kind": "text", "stream": True}}),
    {
        "pipeline": {
            "name": "tensor",
            "inputs": {"X": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 1]}},
            "outputs": {"Y": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 1]}},
        },
        "net": {"backend": "Identity"},
    },
]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as environment, collecting() as collector:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=vision")
        yield collector


def settings_of(collector: Collector, **more: Any) -> Settings:
    asked: dict[str, Any] = {"trace_rate": 1} | more
    return Settings(trace_mode="opentelemetry", trace_url=collector.url, **asked)


@pytest.fixture(scope="module")
def app(collector: Collector) -> Any:
    settings = settings_of(
        collector, request_history=0, trace_resource="service.name=ocr, team=vision"
    )
    return create_app([load(each) for each in PIPELINES], settings=settings)


@pytest.fixture(scope="module")
def client(running: Any, app: Any) -> Iterator[httpx.Client]:
    # Nothing is between the connection and the app, so the connection answers by itself.
    with running(app, http="penstock", proxy_headers=False) as client:
        yield client


def send(
    client: httpx.Client, name: str, request_id: str, body: bytes = b"x", **headers: str
) -> httpx.Response:
    headers |= {"X-Request-Id": request_id}
    return client.post(f"/predict/{name}", content=body, headers=headers)


def test_a_request_and_its_nodes(client: httpx.Client, collector: Collector) -> None:
    answer = send(client, "chain", "c1", traceparent=f"{PARENT}1", tracestate="vendor=1")
    assert answer.status_code == 200
    request, *nodes = collector.of("c1")
    assert (request.name, request.kind) == ("POST /predict/{pipeline}", 2)
    assert request.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_id == "b7ad6b7169203331" and request.state == "vendor=1"
    assert not request.error
    expected = {
        "http.request.method": "POST",
        "http.route": "/predict/{pipeline}",
        "http.response.status_code": 200,
        "penstock.pipeline": "chain",
        "penstock.version": "1",
        "penstock.rows": 1,
    }
    assert request.attributes | expected == request.attributes
    assert request.resource["service.name"] == "ocr" and request.resource["team"] == "vision"
    assert collector.headers["x-tenant"] == "vision"
    assert [node.name for node in nodes] == ["first", "second"]
    assert {node.parent_id for node in nodes} == {request.span_id}
    first, second = nodes
    assert request.start <= first.start <= first.end <= second.start <= second.end <= request.end
    assert first.attributes["penstock.instance"] == "chain/first#0"
    assert first.attributes["penstock.queue_ms"] >= 0


def test_a_batch_is_linked_to_its_requests(client: httpx.Client, collector: Collector) -> None:
    GATE.reset()
    with ThreadPoolExecutor() as pool:
        held = pool.submit(send, client, "gated", "g0", b"wait")
        GATE.wait_entered()
        together = [pool.submit(send, client, "gated", f"g{number}") for number in (1, 2)]
        depth = 'penstock_queue_depth{node="net",pipeline="gated"} 2.0'
        while depth not in client.get("/metrics").text:
            pass
        GATE.open()
        assert {one.result().status_code for one in (held, *together)} == {200}
    nodes = [collector.of(f"g{number}")[1] for number in (1, 2)]
    assert nodes[0].trace_id != nodes[1].trace_id
    (link,) = nodes[0].links
    assert nodes[1].links == [link]
    (batch,) = collector.wait_for(lambda: [s for s in collector.spans if s.place == link])
    assert batch.name == "batch net" and not batch.parent_id
    assert sorted(batch.links) == sorted(node.place for node in nodes)
    assert batch.attributes["penstock.batch.rows"] == 2
    assert nodes[0].start < batch.start < batch.end == nodes[0].end


def test_failures(client: httpx.Client, collector: Collector) -> None:
    assert send(client, "failing", "f1").status_code == 500
    assert send(client, "failing", "f2", b"unreadable").status_code == 422
    failed, node = collector.of("f1")
    assert failed.error and "raised KeyError" in failed.message and "secret" not in failed.message
    assert failed.attributes["error.type"] == "backend_error"
    assert failed.attributes["http.response.status_code"] == 500 and node.name == "net"
    refused = collector.of("f2")[0]
    assert not refused.error and refused.attributes["error.type"] == "invalid_input"


def test_an_answer_of_the_cache_has_no_nodes(client: httpx.Client, collector: Collector) -> None:
    for number in range(3):  # it is kept when it was asked for twice
        assert send(client, "kept", f"kept{number}").json()["result"] == "x"
    first, last = (collector.of(f"kept{number}") for number in (0, 2))
    assert [span.name for span in first[1:]] == ["net"]
    assert "penstock.answered_from" not in first[0].attributes
    assert len(last) == 1 and last[0].attributes["penstock.answered_from"] == "cache"


def test_code_of_users_sees_the_context(client: httpx.Client, collector: Collector) -> None:
    headers = {"traceparent": f"{PARENT}1", "tracestate": "a=1,b=2"}
    seen = send(client, "seen", "s1", b"x", **headers).json()["result"]
    called_with = send(client, "logic", "s2").json()["result"]
    others = [send(client, name, name).json()["result"] for name in ("graph", "rounds")]
    for name, sent in (("s1", seen), ("graph", others[0]), ("rounds", others[1])):
        request = collector.of(name)[0]
        state = "a=1,b=2" if name == "s1" else ""
        assert sent == [f"00-{request.trace_id}-{request.span_id}-01", state], name
    request, *nodes = collector.of("s2")
    mine = f"00-{request.trace_id}-{request.span_id}-01"
    assert called_with == [mine, mine, mine, ""]
    think, *called = nodes
    assert [node.name for node in called] == ["seen", "ask"]
    assert {node.parent_id for node in called} == {think.span_id}


def test_a_caller_decides(client: httpx.Client, collector: Collector) -> None:
    headers = {"traceparent": f"{PARENT}0", "tracestate": "c=1"}
    assert send(client, "seen", "d1", b"x", **headers).json()["result"] == [f"{PARENT}0", "c=1"]
    bad = [
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        f"{PARENT}1-more",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "nonsense",
    ]
    seen = [send(client, "seen", name, traceparent=name).json()["result"] for name in bad]
    for name, (traceparent, state) in zip(bad, seen, strict=True):
        request = collector.of(name)[0]
        assert not request.parent_id and request.trace_id in traceparent and not state, name
    assert not [s for s in collector.spans if s.attributes.get("penstock.request_id") == "d1"]


def test_every_door(client: httpx.Client, collector: Collector) -> None:
    document = {
        "id": "v1",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1]}],
    }
    assert client.post("/v2/models/tensor/infer", json=document).status_code == 200
    assert client.post("/v2/models/tensor/generate", json={"X": [1], "id": "v2"}).is_success
    headers = {"X-Request-Id": "b1", "Content-Type": "application/json"}
    client.post("/predict/chain/batch", content=b'["x", "y"]', headers=headers)
    assert "event" in send(client, "letters", "e1", b"ab", Accept="text/event-stream").text
    port = client.base_url.port
    with connect(
        f"ws://127.0.0.1:{port}/predict/chunks/stream",
        additional_headers={"X-Request-Id": "w1", "traceparent": f"{PARENT}1"},
    ) as socket:
        socket.send("chunk")
        chunk, seen = json.loads(socket.recv())["result"].split()
        assert chunk == "chunk"
        socket.send("")
    found = {name: collector.of(name) for name in ("v1", "v2", "b1", "e1", "w1")}
    assert {name: spans[0].name for name, spans in found.items()} == {
        "v1": "POST /v2/models/{model}/infer",
        "v2": "POST /v2/models/{model}/generate",
        "b1": "POST /predict/{pipeline}/batch",
        "e1": "POST /predict/{pipeline}",
        "w1": "GET /predict/{pipeline}/stream",
    }
    items = [span.attributes["penstock.item"] for span in found["b1"][1:]]
    assert sorted(items) == [0, 0, 1, 1]
    socket_span = found["w1"][0]
    assert socket_span.parent_id == "b7ad6b7169203331"
    assert seen == f"00-{socket_span.trace_id}-{socket_span.span_id}-01"
    assert [span.name for span in found["e1"][1:]] == ["net"]


def traces(client: httpx.Client) -> tuple[int, int]:
    """Return how many traces were exported and dropped."""
    text = client.get("/metrics").text
    numbers = [
        re.search(rf"^penstock_traces{name}_total (\d+)", text, re.MULTILINE)
        for name in ("", "_dropped")
    ]
    assert numbers[0] and numbers[1]
    return int(numbers[0][1]), int(numbers[1][1])


def test_what_is_lost_is_counted_and_the_exporter_goes_on(
    client: httpx.Client, app: Any, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    send(client, "chain", "l0")
    collector.of("l0")
    exported, dropped = traces(client)
    collector.answer = 400
    try:
        assert send(client, "chain", "l1").status_code == 200
        while traces(client)[1] == dropped:
            pass
        assert traces(client)[1] == dropped + 1
        assert any("can't be exported" in message for message in caplog.messages)
    finally:
        collector.answer = 200
    send(client, "chain", "l2")
    collector.of("l2")
    while traces(client)[0] <= exported:
        pass
    before = app.state.tracing.handover.sink.pid
    os.kill(before, signal.SIGKILL)
    number = 0
    while app.state.tracing.handover.sink.pid in (before, None):  # it is started again
        assert send(client, "chain", f"k{number}").status_code == 200
        number += 1
    send(client, "chain", "l3")
    collector.of("l3")
    assert any("has ended" in message for message in caplog.messages)


def test_the_end_of_the_server_sends_what_waits(
    running: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    app = create_app(load(PIPELINES[0]), settings=settings_of(collector, trace_rate=0))
    with running(app, http="penstock") as client:
        for number, flags in enumerate("0101"):
            send(client, "chain", f"end{number}", traceparent=f"{PARENT}{flags}")
        send(client, "chain", "end4")
    found = [s.attributes.get("penstock.request_id", "") for s in collector.spans]
    assert [name for name in found if name.startswith("end")] == ["end1", "end3"]
    assert app.state.tracing.handover.sink.pid is None
    assert app.state.tracing.handover.sink.written == 2


def test_a_missing_extra_is_told(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("penstock.app.trace.start.find_spec", find)
    with pytest.raises(ConfigError, match=r"needs the extra otel.*pip install 'penstock-serve"):
        create_app(load(PIPELINES[0]), settings=settings_of(collector))
