"""Exact counts of requests, in the protocol's statistics and the metrics with Triton's names."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.v2.models.metrics import TritonCollector
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.repository import Repository

INT = {"kind": "tensor", "dtype": "INT32", "shape": [-1, 2]}
GATE = threading.Event()
ENTERED = threading.Semaphore(0)


class Gated:
    """A backend that runs when the gate is open. It fails for negative numbers."""

    def forward(self, batch: Any) -> None:
        ENTERED.release()
        assert GATE.wait(60)
        for item in batch:
            if item["data"].min() < 0:
                raise RuntimeError("negative")
            item["result"] = item["data"]


def halve(data: Any) -> Any:
    return data / 2


def opaque(data: Any) -> Any:
    return object()


async def logic(item: Any, call: Any) -> Any:
    return item["data"]


@pytest.fixture
def served(running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("penstock.backends.expressions.registry._registered", {})
    for backend in (Gated, halve, opaque, logic):
        register_backend(backend.__name__, backend)
    GATE.set()
    inputs = {"inputs": {"X": INT}, "outputs": {"Y": INT}}
    sources = [
        {
            "pipeline": {"name": "one", "max_requests": 9, **inputs},
            "node": {"backend": "Gated", "max": 8},
        },
        {
            "pipeline": {"name": "two", "version": "7", **inputs},
            "a": {"backend": "Identity", "next": "b"},
            "b": {"backend": "Gated"},
        },
        {"pipeline": {"name": "logic", **inputs}, "node": {"backend": "logic"}},
        {"pipeline": {"name": "opaque"}, "node": {"backend": "opaque"}},
        {"pipeline": {"name": "unwritten", **inputs}, "node": {"backend": "halve"}},
    ]
    with running(
        create_app(Repository.read(sources)),
        http="penstock",
    ) as client:
        yield client


@pytest.fixture
def client(served: Any) -> Any:
    with tritonclient.http.InferenceServerClient(
        served.base_url.netloc.decode(), concurrency=16
    ) as client:
        yield client


def infer(client: Any, model: Any, rows: Any = 1, value: Any = 1, **more: Any) -> Any:
    given = tritonclient.http.InferInput("X", [rows, 2], "INT32").set_data_from_numpy(
        np.full((rows, 2), value, np.int32)
    )
    return client.infer(model, [given], **more)


GIVEN = {"name": "X", "shape": [1, 2], "datatype": "INT32", "data": [1, 1]}


def post(served: Any, model: Any = "one", **more: Any) -> Any:
    """Send an infer request from any thread, which tritonclient's synchronous client can't."""
    document = {"inputs": [GIVEN], **more.pop("document", {})}
    return served.post(f"/v2/models/{model}/infer", json=document, **more)


def wait_for_pending(served: Any, count: int) -> None:
    """Wait until `count` requests queue at model `one`."""
    while (
        f'nv_inference_pending_request_count{{model="one",version="1"}} {count}.0'
        not in served.get("/metrics").text
    ):
        pass


def statistics(client: Any, model: Any) -> Any:
    (entry,) = client.get_inference_statistics(model)["model_stats"]
    return entry


def counts(entry: Any) -> Any:
    return {
        name: duration["count"]
        for name, duration in entry["inference_stats"].items()
        if duration["count"]
    }


def metrics(served: Any, name: Any) -> Any:
    families = text_string_to_metric_families(served.get("/metrics").text)
    return {
        tuple(sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_before_the_first_request(client: Any) -> None:
    nothing = {"count": 0, "ns": 0}
    assert statistics(client, "two") == {
        "name": "two",
        "version": "7",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": dict.fromkeys(
            (
                "success",
                "fail",
                "queue",
                "compute_input",
                "compute_infer",
                "compute_output",
                "cache_hit",
                "cache_miss",
            ),
            nothing,
        ),
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


def test_counts_of_requests_rows_and_batches(client: Any, served: Any) -> None:
    before = time.time_ns() // 1_000_000
    for rows in (1, 3, 3, 8):
        infer(client, "one", rows)
    with pytest.raises(InferenceServerException, match=r"\[500\]"):
        infer(client, "one", 2, value=-1)
    entry = statistics(client, "one")
    assert (entry["inference_count"], entry["execution_count"]) == (15, 5)
    assert counts(entry) == {
        "success": 4,
        "fail": 1,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 4,
    }
    spent = {name: duration["ns"] for name, duration in entry["inference_stats"].items()}
    parts = [
        spent["queue"],
        spent["compute_input"],
        spent["compute_infer"],
        spent["compute_output"],
    ]
    assert min(parts) > 0 and sum(parts) <= spent["success"] and spent["fail"] > 0
    batches = {batch["batch_size"]: batch for batch in entry["batch_stats"]}
    assert {size: batch["compute_infer"]["count"] for size, batch in batches.items()} == {
        1: 1,
        2: 1,
        3: 2,
        8: 1,
    }
    assert all(
        batch["compute_input"]["count"] == batch["compute_infer"]["count"]
        for batch in batches.values()
    )
    # A request's time ends with its delivery, a little after its batch. The batch of 2 failed.
    good = sum(batch["compute_infer"]["ns"] for size, batch in batches.items() if size != 2)
    assert 0 < good <= spent["compute_infer"] + 4  # each figure is rounded
    assert before <= entry["last_inference"] <= time.time_ns() // 1_000_000 + 1


def test_requests_that_share_a_batch(client: Any, served: Any) -> None:
    """One runs; eight wait for it and then run together."""
    GATE.clear()
    while ENTERED.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(9) as pool:
        requests = [pool.submit(post, served)]
        assert ENTERED.acquire(timeout=60)
        requests += [pool.submit(post, served) for _ in range(8)]
        wait_for_pending(served, 8)
        with pytest.raises(InferenceServerException, match=r"\[503\] Exceeds maximum queue size"):
            infer(client, "one")
        GATE.set()
        for request in requests:
            request.result().raise_for_status()
    entry = statistics(client, "one")
    assert (entry["inference_count"], entry["execution_count"]) == (9, 2)
    assert {
        batch["batch_size"]: batch["compute_infer"]["count"] for batch in entry["batch_stats"]
    } == {1: 1, 8: 1}
    assert counts(entry)["success"] == 9 and counts(entry)["fail"] == 1
    assert metrics(served, "nv_inference_request_failure")["one", "REJECTED", "1"] == 1
    assert entry["inference_stats"]["queue"]["ns"] > 0


def test_a_pipeline_of_several_nodes_runs_once_a_request(client: Any) -> None:
    for rows in (1, 4):
        infer(client, "two", rows)
    entry = statistics(client, "two")
    assert (entry["inference_count"], entry["execution_count"], entry["batch_stats"]) == (5, 2, [])
    assert counts(entry)["success"] == counts(entry)["compute_infer"] == 2
    spent = {name: duration["ns"] for name, duration in entry["inference_stats"].items()}
    parts = [
        spent["queue"],
        spent["compute_input"],
        spent["compute_infer"],
        spent["compute_output"],
    ]
    assert min(parts) > 0 and sum(parts) <= spent["success"]


def test_an_answer_that_can_not_be_written_counts_as_a_failure(client: Any, served: Any) -> None:
    """The pipeline has answered, but the client gets an error."""
    assert post(served, "unwritten").status_code == 500
    entry = statistics(client, "unwritten")
    assert counts(entry) == {"fail": 1} and entry["inference_count"] == 0
    assert [
        entry["inference_stats"][part]["ns"] for part in ("compute_input", "compute_output")
    ] == [0, 0]
    assert metrics(served, "nv_inference_request_failure")["unwritten", "OTHER", "1"] == 1
    assert metrics(served, "nv_inference_request_success")["unwritten", "1"] == 0


def test_python_logic_has_a_last_inference(client: Any, served: Any) -> None:
    before = time.time_ns() // 1_000_000
    infer(client, "logic")
    entry = statistics(client, "logic")
    assert before <= entry["last_inference"] <= time.time_ns() // 1_000_000 + 1
    assert (entry["inference_count"], entry["execution_count"]) == (1, 1)
    assert entry["inference_stats"]["compute_infer"]["ns"] > 0


def test_predict_requests_count_too(running: Any, digits: Path, digit: bytes) -> None:
    with running(create_app(digits)) as served:
        served.post("/predict/digits", content=digit).raise_for_status()
        assert served.post("/predict/digits", content=b"no image").status_code == 422
        (entry,) = served.get("/v2/models/digits/stats").json()["model_stats"]
        assert counts(entry) == {
            "success": 1,
            "fail": 1,
            "queue": 1,
            "compute_input": 1,
            "compute_infer": 1,
            "compute_output": 1,
        }
        files = [("images", digit), ("images", digit), ("images", b"no image")]
        served.post("/predict/digits/batch", files=files).raise_for_status()
        (entry,) = served.get("/v2/models/digits/stats").json()["model_stats"]
        assert (counts(entry)["success"], counts(entry)["fail"], entry["inference_count"]) == (
            3,
            2,
            3,
        )


def test_a_predict_answer_that_can_not_be_written_counts_as_a_failure(served: Any) -> None:
    assert served.post("/predict/opaque", content=b"x").status_code == 500
    assert (
        served.post("/predict/opaque/batch", files=[("images", b"x")] * 2).json()["results"][1][
            "code"
        ]
        == "backend_error"
    )
    (entry,) = served.get("/v2/models/opaque/stats").json()["model_stats"]
    assert counts(entry) == {"fail": 3} and entry["execution_count"] >= 2


def test_requests_that_reach_no_model_are_not_counted(client: Any, served: Any) -> None:
    assert served.post("/v2/models/one/infer", content=b"{}").status_code == 400
    assert counts(statistics(client, "one")) == {}


def test_all_models_and_one(client: Any, served: Any) -> None:
    everything = [
        (entry["name"], entry["version"])
        for entry in client.get_inference_statistics()["model_stats"]
    ]
    assert everything == [
        ("logic", "1"),
        ("one", "1"),
        ("opaque", "1"),
        ("two", "7"),
        ("unwritten", "1"),
    ]
    assert client.get_inference_statistics("two", "7") == client.get_inference_statistics("two")
    with pytest.raises(
        InferenceServerException, match=r"\[400\] Request for unknown model: 'none' is not found"
    ):
        client.get_inference_statistics("none")
    with pytest.raises(
        InferenceServerException,
        match=r"\[400\] Request for unknown model: 'two' version 8 is not found",
    ):
        client.get_inference_statistics("two", "8")
    assert "statistics" in client.get_server_metadata()["extensions"]


def test_metrics_under_tritons_names(client: Any, served: Any) -> None:
    for rows in (1, 3):
        infer(client, "one", rows)
    with pytest.raises(InferenceServerException):
        infer(client, "one", value=-1)
    infer(client, "two")

    def above_zero(name: Any) -> Any:
        return {labels: value for labels, value in metrics(served, name).items() if value}

    assert above_zero("nv_inference_request_success") == {("one", "1"): 2, ("two", "7"): 1}
    assert above_zero("nv_inference_count") == {("one", "1"): 4, ("two", "7"): 1}
    assert above_zero("nv_inference_exec_count") == {("one", "1"): 3, ("two", "7"): 1}
    assert above_zero("nv_inference_request_failure") == {("one", "BACKEND", "1"): 1}
    assert above_zero("nv_inference_pending_request_count") == {}
    spent = statistics(client, "one")["inference_stats"]
    for name, key in (
        ("request", "success"),
        ("queue", "queue"),
        *[(f"compute_{part}",) * 2 for part in ("input", "infer", "output")],
    ):
        assert metrics(served, f"nv_inference_{name}_duration_us")["one", "1"] == round(
            spent[key]["ns"] / 1000
        ), name
    text = served.get("/metrics").text
    assert 'nv_inference_request_failure{model="one",reason="BACKEND",version="1"} 1.0' in text
    assert "penstock_items_total" in text
    openmetrics = served.get(
        "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    ).text
    assert 'nv_inference_request_success{model="one",version="1"} 2.0' in openmetrics


@pytest.mark.parametrize(("timeout", "reason"), [(50_000, "REJECTED"), (None, "CANCELED")])
def test_reasons_of_failures(
    client: Any, served: Any, leaving: Any, timeout: int | None, reason: str
) -> None:
    GATE.clear()
    while ENTERED.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, served)
        assert ENTERED.acquire(timeout=60)
        if timeout is None:
            body = json.dumps({"inputs": [GIVEN]}).encode()
            with leaving(served, "/v2/models/one/infer", body):
                wait_for_pending(served, 1)
        else:
            with pytest.raises(InferenceServerException, match="Request timeout expired"):
                infer(client, "one", timeout=timeout)
        while metrics(served, "nv_inference_request_failure")["one", reason, "1"] == 0:
            assert not running.done()
        GATE.set()
        running.result().raise_for_status()
    failures = {
        labels[1]: value
        for labels, value in metrics(served, "nv_inference_request_failure").items()
        if value
    }
    assert failures == {reason: 1}


async def test_a_counter_that_was_shown_never_goes_down() -> None:
    """A scrape comes between a success and the moment it is taken back."""
    repository = Repository.read({"pipeline": {"name": "one"}, "node": {"backend": "Identity"}})
    await repository.start()
    collector = TritonCollector(repository)

    def successes() -> Any:
        (family,) = [
            family
            for family in collector.collect()
            if family.name == "nv_inference_request_success"
        ]
        return [sample.value for sample in family.samples]

    try:
        pipeline = repository.get("one")
        await pipeline({"data": 1})
        assert successes() == [1]
        pipeline.statistics.take_back(1)
        assert successes() == [1]
        for count in (1, 2):
            await pipeline({"data": 1})
            assert successes() == [count]
    finally:
        await repository.close()
