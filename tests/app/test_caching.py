"""The cache at every door, and what the server tells of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from pydantic import SecretStr, ValidationError
from starlette.middleware import Middleware

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend
from tests.app.conftest import serving
from tests.app.grpc.conftest import serving as serving_grpc

GATE = threading.Event()
ENTERED = threading.Semaphore(0)
INT = {"kind": "tensor", "dtype": "INT32", "shape": [-1, 2]}


class Held:
    """Answers what it gets, once the gate is open."""

    def forward(self, batch: Any) -> None:
        ENTERED.release()
        assert GATE.wait(60)
        for item in batch:
            if isinstance(item["data"], str) and item["data"] == "odd":
                item["result"] = {1, 2}
            elif isinstance(item["data"], str) and item["data"] == "large":
                item["result"] = [0.5] * 50_000
            else:
                item["result"] = item["data"] * 2


SOURCES: list[dict[str, Any]] = [
    {
        "pipeline": {"name": "text", "cache": True, "inputs": {"data": {"kind": "text"}}},
        "n": {"backend": "Held"},
    },
    {
        "pipeline": {"name": "ints", "cache": True, "inputs": {"X": INT}, "outputs": {"Y": INT}},
        "n": {"backend": "Held", "max": 4},
    },
    {"pipeline": {"name": "plain", "inputs": {"data": {"kind": "text"}}}, "n": {"backend": "Held"}},
]


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("penstock.backends.expressions.registry._registered", {})
    register_backend("Held", Held)
    GATE.set()
    yield
    GATE.set()


class Through:
    """Middleware that does nothing, but keeps requests off the direct way."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(params=["direct", "asgi"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[httpx.Client, Any]]:
    middleware = [Middleware(Through)] if request.param == "asgi" else []
    app = create_app(SOURCES, settings=Settings(), middleware=middleware)
    with serving(app, http="penstock") as client:
        yield client, app.state.penstock.pipelines


def runs_of(pipeline: Any) -> int:
    batches: int = pipeline.nodes[0].statistics.batches
    return batches


def send(client: httpx.Client, text: str, **headers: str) -> httpx.Response:
    return client.post(
        "/predict/text", content=text, headers={"content-type": "text/plain", **headers}
    )


def test_predict_answers_from_the_cache_and_says_so(served: Any) -> None:
    client, pipelines = served
    answers = [send(client, "a", **{"x-request-id": f"r{number}"}) for number in range(3)]
    assert [answer.text for answer in answers] == ['{"result":"aa"}'] * 3
    timings = [answer.headers["server-timing"] for answer in answers]
    assert [timing.startswith("queue.n") for timing in timings] == [True, True, False]
    assert timings[2] == 'cache;desc="hit"'
    assert runs_of(pipelines["text"]) == 2
    first, last = (client.get(f"/requests/r{number}").json() for number in (0, 2))
    assert (first["answered_from"], len(first["nodes"]), first["rows"]) == ("", 1, 1)
    assert (last["answered_from"], last["nodes"], last["rows"]) == ("cache", [], 0)
    assert last["summary"][0].startswith("Answered from the cache in ")
    assert len(client.get("/requests?kind=recent").json()["requests"]) == 3
    # every other door of the same pipeline finds it
    batch = client.post("/predict/text/batch", json=["a", "b", "a", "b"]).json()
    assert [one["result"] for one in batch["results"]] == ["aa", "bb", "aa", "bb"]
    events = send(client, "a", accept="text/event-stream").text
    assert events.startswith('data: {"result":"aa"}\n\nevent: end')
    inputs = [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["a"]}]
    infer = client.post("/v2/models/text/infer", json={"inputs": inputs}).json()
    assert infer["outputs"][0]["data"] == ["aa"]
    assert runs_of(pipelines["text"]) == 3


def test_a_large_answer_is_written_from_the_cache(served: Any) -> None:
    client, pipelines = served
    answers = [send(client, "large").json()["result"] for _ in range(4)]
    assert answers == [[0.5] * 50_000] * 4
    assert runs_of(pipelines["text"]) == 2


def test_one_joins_another_and_the_first_may_leave(served: Any) -> None:
    client, pipelines = served
    text = pipelines["text"]
    GATE.clear()
    assert client.base_url.port is not None
    first = socket.create_connection(("127.0.0.1", client.base_url.port))
    first.sendall(
        b"POST /predict/text HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n"
        b"x-request-id: first\r\ncontent-length: 1\r\n\r\na"
    )
    assert ENTERED.acquire(timeout=60)
    answers: list[httpx.Response] = []
    joining = threading.Thread(
        target=lambda: answers.append(send(client, "a", **{"x-request-id": "second"}))
    )
    joining.start()
    wait_until(lambda: text.in_flight == 2)
    first.close()
    wait_until(lambda: text.in_flight == 1)
    GATE.set()
    joining.join(60)
    assert answers[0].json() == {"result": "aa"}
    assert runs_of(text) == 1
    assert text.statistics.failures["cancelled"] == 1
    story = client.get("/requests/second").json()
    assert (story["answered_from"], story["joined"]) == ("joined", "first")
    assert "Joined an equal request that was under way (first)" in story["summary"][0]


def wait_until(holds: Any) -> None:
    done = threading.Event()
    for _ in range(6000):
        if holds():
            return
        done.wait(0.01)
    raise AssertionError("it never came to hold")


def test_statistics_have_tritons_arithmetic(served: Any) -> None:
    client, _ = served
    port = client.base_url.port
    triton = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}")
    tensor = tritonclient.http.InferInput("X", [3, 2], "INT32")
    tensor.set_data_from_numpy(np.arange(6, dtype=np.int32).reshape(3, 2))
    outputs = [None, [tritonclient.http.InferRequestedOutput("Y")]]
    for number in range(4):
        answer: Any = triton.infer("ints", [tensor], outputs=outputs[number % 2])
        assert answer.as_numpy("Y").tolist() == [[0, 2], [4, 6], [8, 10]]
    (told,) = triton.get_inference_statistics("ints")["model_stats"]
    counts = {name: entry["count"] for name, entry in told["inference_stats"].items()}
    assert counts == {
        "success": 4,
        "fail": 0,
        "queue": 4,
        "compute_input": 2,
        "compute_infer": 2,
        "compute_output": 2,
        "cache_hit": 2,
        "cache_miss": 2,
    }
    assert (told["inference_count"], told["execution_count"]) == (6, 2)
    assert told["inference_stats"]["cache_hit"]["ns"] > 0
    metrics = client.get("/metrics").text
    labels = '{model="ints",version="1"}'
    for line in (
        f"nv_cache_num_hits_per_model{labels} 2.0",
        f"nv_cache_num_misses_per_model{labels} 2.0",
        f"nv_inference_request_success{labels} 4.0",
        f"nv_inference_count{labels} 6.0",
        f"nv_inference_exec_count{labels} 2.0",
        'penstock_cache_requests_total{outcome="hit",pipeline="ints"} 2.0',
        'penstock_cache_requests_total{outcome="miss",pipeline="ints"} 2.0',
        'penstock_cache_answers{pipeline="ints"} 1.0',
    ):
        assert line in metrics
    assert 'nv_cache_num_hits_per_model{model="plain"' not in metrics
    status = client.get("/status").json()
    shown = {one["name"]: one["cache"] for one in status["pipelines"]}
    assert shown["plain"] is None
    assert {key: shown["ints"][key] for key in ("hits", "joined", "misses", "answers")} == {
        "hits": 2,
        "joined": 0,
        "misses": 2,
        "answers": 1,
    }
    assert status["cache"]["used_bytes"] == shown["ints"]["bytes"] > 0
    assert status["cache"]["limit_bytes"] == 64 << 20
    configs = {name: triton.get_model_config(name) for name in ("ints", "plain")}
    enabled = {name: config["response_cache"]["enable"] for name, config in configs.items()}
    assert enabled == {"ints": True, "plain": False}
    triton.close()


def test_an_answer_that_can_not_be_written_is_no_success(served: Any) -> None:
    client, pipelines = served
    for _ in range(3):
        assert send(client, "odd").status_code == 500
    statistics = pipelines["text"].statistics
    assert (statistics.answered, statistics.failures["unwritten"]) == (0, 3)


def test_grpc_shares_it() -> None:
    with serving_grpc(SOURCES) as served:
        tensor = tritonclient.grpc.InferInput("X", [1, 2], "INT32")
        tensor.set_data_from_numpy(np.ones((1, 2), np.int32))
        for _ in range(3):
            answer: Any = served.client.infer("ints", [tensor])
            assert answer.as_numpy("Y").tolist() == [[2, 2]]
        pipeline = served.repository.pipelines["ints"]
        assert (runs_of(pipeline), pipeline.statistics.hits) == (2, 1)


def test_a_load_may_set_it(tmp_path: Path) -> None:
    settings = Settings(
        admin_token=SecretStr("t"), allow_model_control=True, allow_model_overrides=True
    )
    with serving(create_app(SOURCES, settings=settings), http="penstock") as client:

        def load(enable: Any) -> httpx.Response:
            parameters = {"config": json.dumps({"response_cache": {"enable": enable}})}
            return client.post(
                "/v2/repository/models/plain/load",
                json={"parameters": parameters},
                headers={"authorization": "Bearer t"},
            )

        for enable in (True, False):
            assert load(enable).status_code == 200
            config = client.get("/v2/models/plain/config").json()
            assert config["response_cache"] == {"enable": enable}
        answer = load("yes")
        assert answer.status_code == 400
        assert "'enable' of 'response_cache' is a JSON string" in answer.json()["error"]


def test_no_cache_if_it_has_no_room() -> None:
    app = create_app(SOURCES, settings=Settings(cache_size=0))
    with serving(app, http="penstock") as client:
        for _ in range(3):
            send(client, "a")
        assert runs_of(app.state.penstock.pipelines["text"]) == 3


@pytest.mark.parametrize(
    "url", ["http://a:s3cret@b", "s3cret", "redis://", "redis://a:s3cret@b:x", "unix://"]
)
def test_a_wrong_url_of_redis_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValidationError, match="expected") as raised:
        Settings(cache_redis=SecretStr(url))
    assert "s3cret" not in str(raised.value)
    good = Settings(cache_redis=SecretStr("rediss://u:s3cret@b:6380/1"))
    assert "s3cret" not in repr(good)
