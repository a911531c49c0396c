"""Requests that run here too, and what is reported of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from penstock.app.grpc.messages import messages
from penstock.app.http.json_text import JsonLimits
from penstock.app.settings import Settings
from penstock.app.shadow.comparisons import Comparisons
from penstock.app.shadow.facts import NO_FACTS, Facts, facts_of_json
from penstock.app.shadow.model import ShadowedModel
from penstock.app.shadow.options import ShadowOptions
from penstock.app.shadow.report import full
from penstock.app.shadow.rpc_forwarding import RpcRequest
from penstock.app.shadow.rpc_stream import Pending

from .conftest import Shadowing, Theirs, models, step, two_inputs, until
from .raw_server import RawServer, ok, raw_server

INFER = "/v2/models/simple/infer"


@pytest.fixture(scope="module")
def server(theirs: Theirs, shadowing: Any, ops: Path) -> Iterator[Shadowing]:
    """It agrees with the server that it shadows, except in one output of `simple`."""
    sources = models(ops, simple="add_sub_apart")
    with shadowing(sources, theirs.url, grpc=theirs.grpc) as one:
        yield one


def triton_inputs(client: Any, *arrays: Any, names: Any = ("INPUT0", "INPUT1")) -> list[Any]:
    inputs = []
    for name, array in zip(names, arrays, strict=True):
        kind = {"f": "FP32", "i": "INT32", "O": "BYTES"}[array.dtype.kind]
        inputs.append(client.InferInput(name, array.shape, kind))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def test_a_disagreement_is_told(server: Shadowing) -> None:
    before = server.model().get("requests", 0)
    got = server.client.post(INFER, json=two_inputs(), headers={"x-request-id": "mine"})
    assert got.json()["outputs"][0]["data"] == [5, 5, 5, 5]  # theirs
    model = server.model(requests=before + 1, compared=before + 1)
    assert (model["agreed"], model["disagreed"]) == (0, before + 1)
    assert model["largest_differences"]["OUTPUT0"] == {"absolute": 0.5, "relative": 0.1}
    assert model["largest_differences"]["OUTPUT1"] == {"absolute": 0.0, "relative": 0.0}
    assert model["examples"][-1]["request_id"] == "mine"
    assert model["examples"][-1]["differences"] == [
        "output 'OUTPUT0': 5 at Triton, 5.5 here, at [0, 0]; 4 of 4 values differ by more than "
        "1e-05 + 0.001 × |Triton's|"
    ]
    assert model["latency_ms"]["triton"]["p50"] > 0
    assert model["latency_ms"]["penstock"]["p99"] > 0
    report = server.report()
    assert report["memory"]["penstock"]["rss_bytes"] > 1 << 20
    lines = "\n".join(full(report))
    assert "output 'OUTPUT0' differs by at most 0.5 (relative 0.1)" in lines
    assert " mine: output 'OUTPUT0': 5 at Triton" in lines
    assert "MB here" in lines


@pytest.mark.parametrize("client", [tritonclient.http, tritonclient.grpc])
def test_every_form_of_an_answer_is_compared(server: Shadowing, client: Any) -> None:
    address = server.client.base_url.netloc.decode() if client is tritonclient.http else server.grpc
    triton = client.InferenceServerClient(address)
    before = server.model("loud").get("agreed", 0)
    text = np.array([[b"a"], [b"b"]], object)
    inputs = triton_inputs(client, text, names=("TEXT",))
    packing = (
        {"response_compression_algorithm": "gzip", "request_compression_algorithm": "deflate"}
        if client is tritonclient.http
        else {"compression_algorithm": "gzip"}
    )
    assert triton.infer("loud", inputs).as_numpy("LOUD").tolist() == [[b"a!"], [b"b!"]]
    triton.infer("loud", inputs, **packing)
    if client is tritonclient.http:
        wanted = [client.InferRequestedOutput("LOUD", binary_data=False)]
        triton.infer("loud", inputs, outputs=wanted)
        before += 1
    with pytest.raises(Exception, match="already exists"):
        triton.infer("loud", inputs * 2)  # both refuse it
    server.model("loud", agreed=before + 3, disagreed=0)
    simple = server.model().get("compared", 0)
    inputs = triton_inputs(client, *np.array([[[1, 2, 3, 4]], [[1, 1, 1, 1]]], np.float32))
    wanted = [client.InferRequestedOutput("OUTPUT0", class_count=2)]
    assert triton.infer("simple", inputs, outputs=wanted).as_numpy("OUTPUT0").tolist() == [
        [b"5.000000:3", b"4.000000:2"]
    ]
    said = "output 'OUTPUT0': b'5.000000:3' at Triton, b'5.500000:3' here"
    assert server.model(compared=simple + 1)["examples"][-1]["differences"][0].startswith(said)
    triton.close()


def test_steps_are_compared_in_order(server: Shadowing) -> None:
    """Also those of a sequence whose end comes only after many others have come."""
    for number in (1, 2):
        for value in range(3):
            body = step(number, value, start=value == 0, end=value == 2)
            assert server.client.post("/v2/models/total/infer", json=body).status_code == 200
    server.model("total", agreed=6, disagreed=0)


def test_a_sequence_that_began_before_is_not_compared(server: Shadowing, theirs: Theirs) -> None:
    before = server.model("total")["compared"]
    start = theirs.client.post("/v2/models/total/infer", json=step(9, 1, start=True))
    assert start.status_code == 200
    got = server.client.post("/v2/models/total/infer", json=step(9, 1, end=True))
    assert got.json()["outputs"][0]["data"] == [2]
    assert server.model("total", not_compared={"sequence_cut": 1})["compared"] == before


def test_streams_by_grpc_are_compared(server: Shadowing) -> None:
    triton: Any = tritonclient.grpc.InferenceServerClient(server.grpc)
    answers: Queue[Any] = Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    before = server.model("total").get("agreed", 0)
    for value in range(2):
        data = triton_inputs(tritonclient.grpc, np.array([[value]], np.int32), names=("INPUT",))
        flags: Any = {"sequence_start": value == 0, "sequence_end": value == 1}
        triton.async_stream_infer("total", data, sequence_id=77, **flags)
    assert [answers.get(timeout=60)[0].as_numpy("OUTPUT").tolist() for _ in range(2)] == [
        [[0]], [[1]],
    ]  # fmt: skip
    server.model("total", agreed=before + 2)
    data = triton_inputs(tritonclient.grpc, np.arange(3, dtype=np.int32), names=("IN",))
    triton.async_stream_infer("count", data, request_id="a", enable_empty_final_response=True)
    parts = [answers.get(timeout=60)[0] for _ in range(4)]
    assert [part.as_numpy("OUT") is None for part in parts] == [False, False, False, True]
    server.model("count", agreed=1, disagreed=0)
    triton.async_stream_infer("count", data, request_id="b")
    for _ in range(3):
        answers.get(timeout=60)
    triton.async_stream_infer("nothing", data)
    assert "unknown model" in str(answers.get(timeout=60)[1])
    triton.stop_stream()
    server.model("count", agreed=2, disagreed=0)
    assert server.model("nothing")["not_compared"] == {"not_served_here": 1}
    triton.close()


def test_generated_streams_are_compared(server: Shadowing) -> None:
    before = server.model("count").get("agreed", 0)
    with server.client.stream(
        "POST", "/v2/models/count/generate_stream", json={"IN": [1, 2]}
    ) as got:
        assert next(line for line in got.iter_lines() if line).startswith("data: {")
    server.model("count", agreed=before + 1, disagreed=0)


def test_changes_by_grpc_are_repeated_too(server: Shadowing) -> None:
    """What Triton refuses is not."""
    client: Any = tritonclient.grpc.InferenceServerClient(server.grpc)
    with pytest.raises(Exception, match="PERMISSION_DENIED"):
        client.unload_model("simple")
    client.unregister_system_shared_memory(headers={"authorization": "Bearer token"})
    (told,) = server.report()["not_repeated"]
    assert told.startswith("SystemSharedMemoryUnregister was not repeated here: ")
    client.close()


def test_parts_that_can_not_be_told_apart_are_not_compared() -> None:
    model = ShadowedModel("m")
    comparisons = Comparisons(ShadowOptions(), lambda model: None, lambda *sequence: None)
    pending = Pending()
    for _ in range(2):
        held = comparisons.begin(model, Any)  # type: ignore[arg-type]  # it is not run
        pending.add(RpcRequest(model, NO_FACTS, ""), held, True)
    pending.answer(messages.ModelStreamInferResponse().SerializeToString())
    assert model.not_compared == {"unmatched": 2}
    assert comparisons.count == 0


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (b'{"parameters":{"sequence_id":7,"sequence_end":true}}', Facts(7, False, True)),
        (b'{"parameters":{"sequence_id":"a","sequence_start":true}}', Facts("a", True)),
        (b'{"parameters":{"sequence_id":0}}', NO_FACTS),
        (b'{"sequence_id":7}', NO_FACTS),
        (b'["sequence_id"]', NO_FACTS),
        (b'{"parameters":["sequence_id"]}', NO_FACTS),
        (b'{"inputs":["shared_memory_region"]}', Facts(shared=True)),
        (b'{"parameters":{"sequence_id":[1]}}', NO_FACTS),
        (b'{"parameters":{"sequence_id":true}}', NO_FACTS),
        (b'{"parameters":{"sequence_id":-1}}', NO_FACTS),
        (b'{"parameters":{"sequence_id":"%b"}}' % (b"x" * 129), NO_FACTS),
        (b'"sequence_id', NO_FACTS),
        (b'{"parameters":{"sequence_id":7}}' + b" " * (1 << 20), Facts(7)),
    ],
)
async def test_the_facts_of_a_request(text: bytes, facts: Facts) -> None:
    assert await facts_of_json(text, JsonLimits(100, 1000)) == facts


async def test_the_log_has_reports(
    raw: RawServer, shadowing: Any, ops: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr("penstock.app.shadow.shadow.REPORT_EVERY_SECONDS", 0.01)
    caplog.set_level("INFO", "penstock.shadow")
    raw.answer = lambda request: ok(b'{"error":"no"}', status=b"400 No")
    with shadowing(models(ops), raw.url) as server:
        server.client.post(INFER, content=b"{}")
        until(lambda: "model simple: 1 requests, 1 of 1 compared agreed" in caplog.text)


def test_a_model_that_is_not_here(server: Shadowing) -> None:
    got = server.client.post("/v2/models/unknown/infer", json=two_inputs())
    assert got.json() == {"error": "Request for unknown model: 'unknown' is not found"}
    assert server.model("unknown")["not_compared"] == {"not_served_here": 1}


def test_what_is_not_compared_is_answered_all_the_same(
    theirs: Theirs, shadowing: Any, ops: Path
) -> None:
    shared = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    tensor = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "parameters": shared}
    direct = theirs.client.post(INFER, json=two_inputs())
    most = len(direct.request.content) + len(direct.content) + 10  # and not our answer
    settings = Settings(max_body=1000)
    with shadowing(models(ops), theirs.url, settings, max_compared_bytes=most) as server:
        for body in (
            two_inputs(),
            two_inputs(range(10**12, 10**12 + 4)),
            {"inputs": [tensor]},
            {"id": "x" * 1000, **two_inputs()},
        ):
            direct = theirs.client.post(INFER, json=body)
            got = server.client.post(INFER, json=body)
            assert (got.status_code, got.content) == (direct.status_code, direct.content)
            until(lambda: server.report()["held"]["requests"] == 0)  # or there is no room for two
        server.model(in_flight_at_triton=0, not_compared={"too_large": 3, "shared_memory": 1})
        assert server.report()["held"] == {"requests": 0, "bytes": 0}


def test_no_more_requests_are_held_than_may_be(
    theirs: Theirs, shadowing: Any, ops: Path, gate: Any
) -> None:
    sources = models(ops)[:2]
    for model in sources:
        model["node"] = {"backend": "ShadowGate"}
    sources[1]["pipeline"]["max_requests"] = 1
    text = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    with shadowing(sources, theirs.url, max_compared=2) as server:
        for _ in range(2):
            got = server.client.post("/v2/models/loud/infer", json={"inputs": [text]})
            assert got.status_code == 200
        server.model("loud", not_compared={"busy_here": 1})
        for _ in range(2):
            assert server.client.post(INFER, json=two_inputs()).status_code == 200
        server.model(not_compared={"no_room": 1}, compared=0)
        assert server.report()["held"]["requests"] == 2
        gate.open()
        server.model(compared=1, disagreed=1)
        server.model("loud", compared=1)


def test_an_error_of_ours_reaches_no_client(theirs: Theirs, shadowing: Any, ops: Path) -> None:
    """A sequence that it breaks takes no place here any more."""
    with shadowing(models(ops, simple="loud", total="Unlucky"), theirs.url) as server:
        assert server.client.post(INFER, json=two_inputs()).status_code == 200
        model = server.model(compared=1)
        said = "status 200 at Triton, status 500 ("
        assert model["examples"][0]["differences"][0].startswith(said)
        for value in (1, 13, 2):
            body = step(4, value, start=value == 1, end=value == 2)
            got = server.client.post("/v2/models/total/infer", json=body)
            assert got.status_code == 200
        server.model("total", agreed=1, disagreed=1, not_compared={"sequence_cut": 1})
        sequences = server.app.state.penstock.pipelines["total"].sequences
        until(lambda: sequences.live == 0)


# Triton's answers are chosen byte by byte from here on.


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with raw_server(lambda request: ok()) as server:
        yield server


@pytest.fixture(scope="module")
def raw_shadow(raw: RawServer, shadowing: Any, ops: Path) -> Iterator[Shadowing]:
    token: Any = "token"
    settings = Settings(admin_token=token, allow_model_control=True)
    with shadowing(models(ops), raw.url, settings, metrics=f"{raw.url}/metrics") as server:
        server.client.headers["authorization"] = "Bearer token"
        yield server


def test_answers_of_triton_that_say_nothing_of_a_model(
    raw: RawServer, raw_shadow: Shadowing
) -> None:
    for answer in (
        ok(b'{"error":"busy"}', status=b"503 No"),
        ok(b"[]"),
        ok(b'{"outputs":[{"name":"OUTPUT0","datatype":"X","shape":[1]}]}'),
        ok(b"not gzip", b"Content-Encoding: gzip"),
    ):
        raw.answer = lambda request, answer=answer: answer  # type: ignore[misc]
        with raw_shadow.client.stream("POST", INFER, content=json.dumps(two_inputs())) as got:
            assert got.status_code in (200, 503)
    raw_shadow.model(not_compared={"failed_at_triton": 1, "unreadable": 3}, compared=0)


def test_changes_of_triton_are_repeated_here(raw: RawServer, raw_shadow: Shadowing) -> None:
    """Here, too, only those may load and unload that the operator allows."""
    raw.answer = lambda request: ok()
    client, path = raw_shadow.client, "/v2/repository/models/loud/unload"
    assert client.post(path, headers={"authorization": "none"}).status_code == 200
    until(lambda: raw_shadow.report()["not_repeated"])
    told = raw_shadow.report()["not_repeated"]
    assert told[0].startswith(f"POST {path} was not repeated here: ")
    assert client.post(path).status_code == 200
    until(lambda: "loud" not in raw_shadow.app.state.penstock.pipelines)


def test_memory_of_a_triton_elsewhere_is_what_its_metrics_say(
    raw: RawServer, raw_shadow: Shadowing
) -> None:
    metrics = b'# HELP x\nnv_gpu_memory_used_bytes{gpu="a"} 1.5e3\n' + (
        b'nv_gpu_memory_used_bytes{gpu="b"} 500\nnv_cpu_memory_used_bytes 7\nother 1\n'
    )
    raw.answer = lambda request: ok(metrics)
    memory = raw_shadow.report()["memory"]["triton"]
    assert memory["rss_bytes"] > 1 << 20  # of this process, which it listens in
    assert (memory["gpu_used_bytes"], memory["machine_used_bytes"]) == (2000.0, 7.0)
    assert b"GET /metrics HTTP/1.1" in raw.requests[-1]
    raw.answer = lambda request: ok(status=b"404 No")
    assert raw_shadow.report()["memory"]["triton"]["metrics_error"].endswith("answers 404")
