"""Nodes on the event loop (`executor = "loop"`), seen by clients of a real server."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest

from penstock import create_app
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load

THREADS: set[str] = set()


@register_backend("OnTheLoop")
def on_the_loop(data: bytes) -> int:
    THREADS.add(threading.current_thread().name)
    if data == b"soft":
        raise InvalidInput("not readable")
    if data == b"bad":
        raise SystemExit("of the backend")
    return len(data)


@pytest.fixture(scope="module", params=["httptools", "penstock"])
def client(running: Any, request: Any) -> Any:
    source = {
        "pipeline": {"name": "cheap", "inputs": {"data": {"kind": "bytes"}}},
        "first": {"backend": "OnTheLoop", "executor": "loop", "max": 8, "next": "last"},
        "last": {"backend": "Identity", "executor": "loop", "max": 8},
    }
    with running(create_app(load(source)), http=request.param, proxy_headers=False) as client:
        yield client


def test_answers_have_their_times(client: httpx.Client) -> None:
    THREADS.clear()
    answer = client.post("/predict/cheap", content=b"four")
    assert answer.json() == {"result": 4}
    names = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert {"queue.first", "run.first", "queue.last", "run.last"} <= set(names)
    assert not any("cheap/first" in name for name in THREADS)  # an executor's thread has its name


def test_a_batch_is_one_batch_of_each_node(client: httpx.Client) -> None:
    before = client.get("/metrics").text
    images = [("images", b"x" * size) for size in range(1, 9)]
    results = client.post("/predict/cheap/batch", files=images).json()["results"]
    assert [result["result"] for result in results] == list(range(1, 9))
    after = client.get("/metrics").text
    for node in ("first", "last"):
        pattern = rf'penstock_batch_size_(?:sum|count)\{{[^}}]*node="{node}"[^}}]*\}} (\S+)'
        (count, total), (count_before, total_before) = (
            sorted(map(float, re.findall(pattern, text))) or [0.0, 0.0] for text in (after, before)
        )
        assert (count - count_before, total - total_before) == (1, 8)
        assert re.search(rf'penstock_executors\{{[^}}]*node="{node}"[^}}]*\}} 1\.0', after)


def test_failures(client: httpx.Client) -> None:
    assert client.post("/predict/cheap", content=b"soft").status_code == 422
    assert client.post("/predict/cheap", content=b"bad").status_code == 500
    assert client.post("/predict/cheap", content=b"four").json() == {"result": 4}
    assert client.get("/health/ready").status_code == 200


def test_the_protocol(client: httpx.Client) -> None:
    body = {"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1], "data": ["four"]}]}
    answer = client.post("/v2/models/cheap/infer", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [4]
