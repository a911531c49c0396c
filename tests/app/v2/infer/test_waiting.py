"""Infer requests that wait: timeouts, refusals, departures, slow uploads, failing backends."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.http import InferInput
from tritonclient.utils import InferenceServerException

from penstock import create_app, lifespan
from penstock.app.settings import Settings
from penstock.app.v2.models.model_config import configure
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.testing import Gate

GATE = Gate()
SEEN: list[Any] = []
"""The records of the backends: data, threads, references."""


@register_backend("InferGate")
class InferGate(Backend):
    """Answers its data. The request parameter `wait` makes it wait for the gate."""

    max = 1

    def forward(self, batch: Any) -> None:
        for item in batch:
            SEEN.append(item["data"])
            if item["data"] == "wait":
                GATE.wait()
            if item["data"] == "fail":
                raise ValueError("secret of /etc/model")
            if item["data"] == "odd":
                item["result"] = object()
            else:
                item["result"] = item["data"]


@pytest.fixture(autouse=True)
def gate() -> Any:
    GATE.reset()
    SEEN.clear()
    yield GATE
    GATE.open()


@pytest.fixture
def http(running: Any) -> Any:
    """Run a new server in which one request is in flight and waits."""
    config = load(
        {
            "pipeline": {"name": "gate", "inputs": {"data": {"kind": "text"}}, "max_requests": 3},
            "node": {"backend": "InferGate"},
        }
    )
    with (
        running(create_app(config)) as client,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(client.post, "/v2/models/gate/infer", json=request("wait"))
        GATE.wait_entered()
        yield client
        GATE.open()
        assert waiting.result().status_code == 200


def request(text: Any, **parameters: Any) -> Any:
    return {
        "inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": [text]}],
        "parameters": parameters,
    }


def inside(http: Any) -> float:
    """Return how many requests are in flight."""
    lines = http.get("/metrics").text.splitlines()
    (value,) = [line for line in lines if line.startswith("penstock_requests_in_flight{")]
    return float(value.rpartition(" ")[2])


def until(condition: Callable[[], object]) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_timeout_is_in_microseconds(http: Any) -> None:
    with tritonclient.http.InferenceServerClient(str(http.base_url)[7:].rstrip("/")) as client:
        port = InferInput("data", [1], "BYTES")
        port.set_data_from_numpy(np.array([b"late"], np.object_))
        with pytest.raises(InferenceServerException, match=r"\[503\] Request timeout expired"):
            client.infer("gate", [port], timeout=50_000)
    assert SEEN == ["wait"]


def test_too_many_requests(http: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(http.post, "/v2/models/gate/infer", json=request("queues"))
            for _ in range(2)
        ]
        until(lambda: inside(http) == 3)
        for _ in range(6):
            answer = http.post("/v2/models/gate/infer", json=request("refused"))
            assert answer.status_code == 503 and answer.headers["retry-after"] in ("1", "2")
            assert answer.json()["error"].startswith("Exceeds maximum queue size")
        GATE.open()
        assert [other.result().status_code for other in others] == [200, 200]
    assert SEEN == ["wait", "queues", "queues"]


def with_policy(running: Any, **policy: int) -> Any:
    """Run a server whose model has this policy of Triton's for its queue."""
    config = load(
        {
            "pipeline": {"name": "gate", "inputs": {"data": {"kind": "text"}}},
            "node": {"backend": "InferGate"},
        }
    )
    batching = {"dynamic_batching": {"default_queue_policy": policy}}
    return running(create_app(configure(config, batching)))


def test_max_queue_size_is_of_what_waits(running: Any) -> None:
    with with_policy(running, max_queue_size=2) as client, ThreadPoolExecutor() as pool:
        path = "/v2/models/gate/infer"
        sent = [pool.submit(client.post, path, json=request("wait"))]
        GATE.wait_entered()  # what runs does not wait
        sent += [pool.submit(client.post, path, json=request("next")) for _ in range(2)]
        pending = 'nv_inference_pending_request_count{model="gate",version="1"} 2.0'
        while pending not in client.get("/metrics").text:
            assert not any(answer.done() for answer in sent)
        refused = client.post(path, json=request("more"))
        assert refused.status_code == 503
        assert refused.json()["error"].startswith("Exceeds maximum queue size")
        assert int(refused.headers["retry-after"]) >= 1
        GATE.open()
        assert [answer.result().status_code for answer in sent] == [200] * 3


def test_default_timeout_is_of_the_queue_alone(running: Any) -> None:
    policy = {"default_timeout_microseconds": 3_000_000}
    with with_policy(running, **policy) as client, ThreadPoolExecutor() as pool:
        path = "/v2/models/gate/infer"
        runs = pool.submit(client.post, path, json=request("wait"))
        GATE.wait_entered()
        expired = client.post(path, json=request("next"))  # after three seconds
        assert expired.status_code == 503
        assert expired.json()["error"].startswith("Request timeout expired")
        GATE.open()
        assert runs.result().status_code == 200


def test_a_client_that_leaves_is_not_served(http: Any) -> None:
    body = b'{"inputs":[{"name":"data","shape":[1],"datatype":"BYTES","data":["left"]}]}'
    head = b"POST /v2/models/gate/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    full = request("last", timeout=200_000)
    for _ in range(
        3
    ):  # each takes the place that the previous one left; the bound is 3, two places are taken
        with socket.create_connection((http.base_url.host, http.base_url.port), 60) as connection:
            connection.sendall(head + body)
            until(lambda: inside(http) == 2)
        until(lambda: inside(http) == 1)
        assert "timeout expired" in http.post("/v2/models/gate/infer", json=full).text
    GATE.open()
    assert http.post("/v2/models/gate/infer", json=request("after")).status_code == 200
    assert SEEN == ["wait", "after"]


def test_a_body_must_come_in_time(running: Any) -> None:
    app = create_app({"backend": "InferGate"}, settings=Settings(body_timeout=0.3))
    with (
        running(app) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), 60) as connection,
    ):
        connection.sendall(
            b"POST /v2/models/pipeline/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = connection.recv(65536)
    assert (
        answer.startswith(b"HTTP/1.1 400")
        and b"the body did not arrive within 0.3 s (body_timeout)" in answer
    )
    assert b"connection: close" in answer


def test_the_text_of_a_backends_exception_is_not_answered(http: Any) -> None:
    GATE.open()
    for text, message in (
        ("fail", "node 'node': backend InferGate raised ValueError"),
        ("odd", "the answer can't be written as JSON: Type is not JSON serializable: object"),
    ):
        answer = http.post("/v2/models/gate/infer", json=request(text))
        assert answer.status_code == 500 and list(answer.json()) == ["error"]
        assert answer.json()["error"].partition(";")[0] == message


async def upload_slowly(document: Any, clock: Any) -> Any:
    """Return the answers to a client that takes a tenth of a second for its body.

    The client leaves once its request is being served and `body_timeout` has passed. Returns
    statuses and bodies.
    """
    config = load(
        {
            "pipeline": {"name": "gate", "inputs": {"data": {"kind": "text"}}},
            "node": {"backend": "InferGate"},
        }
    )
    app = create_app(config)
    body = json.dumps(document).encode()
    messages = [{"body": body[:10], "more_body": True}, {"body": body[10:], "more_body": False}]
    answers: list[Any] = []

    async def receive() -> Any:
        if not messages:
            await GATE.entered()
            clock.advance_here(Settings().body_timeout)
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}
        await asyncio.sleep(0.05)  # the upload is slow: the answer does not wait for its end
        return {"type": "http.request", **messages.pop(0)}

    async def send(message: Any) -> None:
        answers.append(message)

    async with lifespan(app):
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/gate/infer",
            "headers": [],
            "http_version": "1.1",
        }
        await app(scope, receive, send)
        assert app.state.penstock.pipelines["gate"].in_flight == 0
        GATE.open()
    return answers[0]["status"], answers[1]["body"]


def test_after_a_slow_body_its_timer_stops_and_a_departure_counts(clock: Any) -> None:
    assert clock.run_until_complete(upload_slowly(request("wait"), clock)) == (499, b"")


def test_a_timeout_counts_from_the_first_byte(clock: Any) -> None:
    late = upload_slowly(request("late", timeout=90_000), clock)
    status, body = clock.run_until_complete(late)
    assert (status, json.loads(body)) == (
        503,
        {"error": "Request timeout expired: the timeout passed before the body had arrived"},
    )
    assert SEEN == []


async def test_many_strings_are_read_on_a_helper_thread() -> None:
    """A helper thread reads them, and the loop goes on meanwhile.

    On the loop itself it would stand still.
    """
    config = load(
        {
            "pipeline": {"name": "same", "inputs": {"X": {"kind": "tensor"}}},
            "node": {"backend": "Identity"},
        }
    )
    app = create_app(config)
    given = {
        "name": "X",
        "shape": [400_001],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": 1_600_000},
    }
    text = json.dumps(
        {"inputs": [given | {"shape": [400_000]}, given]}
    ).encode()  # refused once the first chunk has been read
    answers: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": text + bytes(1_600_000), "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async with lifespan(app):
        headers = [(b"inference-header-content-length", b"%d" % len(text))]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/same/infer",
            "headers": headers,
            "http_version": "1.1",
        }
        answering = asyncio.create_task(app(scope, receive, send))
        rounds = 0
        while not answering.done():
            rounds += 1
            await asyncio.sleep(0)
    assert answers[0]["status"] == 400 and b"already exists" in answers[1]["body"]
    assert rounds > 50


@pytest.mark.parametrize(("size", "beside"), [(1 << 18, True), (9, False)])
async def test_a_large_raw_body_is_read_on_a_helper_thread(size: int, beside: bool) -> None:
    app = create_app(
        load(
            {
                "pipeline": {"name": "read", "inputs": {"data": {"kind": "json"}}},
                "node": {"backend": "Identity"},
            }
        )
    )
    answers: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(size), "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async with lifespan(app):
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(thread_name_prefix="raw-helper")
        )
        headers = [(b"inference-header-content-length", b"0")]
        await app(
            {
                "type": "http",
                "method": "POST",
                "path": "/v2/models/read/infer",
                "headers": headers,
                "http_version": "1.1",
            },
            receive,
            send,
        )
    assert answers[0]["status"] == 400 and b"is not valid JSON" in answers[1]["body"]
    assert any(thread.name.startswith("raw-helper") for thread in threading.enumerate()) == beside


async def test_a_model_that_is_replaced_during_an_upload_answers_as_the_new_one() -> None:
    def numbers(datatype: Any, name: Any) -> Any:
        ports = {
            "inputs": {"X": {"kind": "tensor", "dtype": datatype}},
            "outputs": {name: {"kind": "tensor"}},
        }
        return load({"pipeline": {"name": "numbers", **ports}, "node": {"backend": "Identity"}})

    app = create_app(numbers("FP32", "old"))
    body = json.dumps(
        {"inputs": [{"name": "X", "shape": [2], "datatype": "INT32", "data": [1, 2]}]}
    ).encode()
    messages = [{"body": body[:10], "more_body": True}, {"body": body[10:], "more_body": False}]
    answers: list[Any] = []

    async def receive() -> Any:
        if not messages:
            return await asyncio.Event().wait()
        if len(messages) == 1:
            old = app.state.penstock.pipelines["numbers"]
            await app.state.penstock.load(numbers("INT32", "new"))
            while old.state == "ready":  # the task that drains it has not begun yet
                await asyncio.sleep(0)
        return {"type": "http.request", **messages.pop(0)}

    async def send(message: Any) -> None:
        answers.append(message)

    async with lifespan(app):
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/numbers/infer",
            "headers": [],
            "http_version": "1.1",
        }
        await app(scope, receive, send)
    assert json.loads(answers[1]["body"])["outputs"] == [
        {"name": "new", "datatype": "INT32", "shape": [2], "data": [1, 2]}
    ]


class Lazy:
    """An answer that records which thread makes an array of it."""

    def __init__(self, size: Any) -> None:
        self.shape = (size,)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        SEEN.append(threading.current_thread())
        return np.zeros(self.shape, np.float32)


@register_backend("InferLazy")
class InferLazy(Backend):
    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = Lazy(item["data"])


@pytest.mark.parametrize(
    ("size", "asked", "beside"),
    [(1 << 18, {}, True), (1 << 18, {"binary_data": True}, False), (9, {}, False)],
)
async def test_many_numbers_are_written_on_a_helper_thread(
    size: int, asked: Any, beside: bool
) -> None:
    ports = {
        "inputs": {"data": {"kind": "integer"}},
        "outputs": {"Y": {"kind": "tensor", "dtype": "FP32"}},
    }
    app = create_app(
        load({"pipeline": {"name": "lazy", **ports}, "node": {"backend": "InferLazy"}})
    )
    document = {
        "inputs": [{"name": "data", "shape": [1], "datatype": "INT64", "data": [size]}],
        "outputs": [{"name": "Y", "parameters": asked}],
    }
    messages = [{"type": "http.request", "body": json.dumps(document).encode(), "more_body": False}]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answers.append(message)

    async with lifespan(app):
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/lazy/infer",
            "headers": [],
            "http_version": "1.1",
        }
        await app(scope, receive, send)
    assert answers[0]["status"] == 200, answers
    assert [thread is not threading.current_thread() for thread in SEEN] == [beside]


@register_backend("InferKeeper")
class InferKeeper(Backend):
    """Records its array by a weak reference, and waits for the gate."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            SEEN.append(weakref.ref(item["data"]))
            GATE.wait()
            item["result"] = 1


async def test_a_slow_request_makes_no_cycle_that_keeps_its_tensors() -> None:
    config = load(
        {
            "pipeline": {"name": "kept", "inputs": {"x": {"kind": "tensor"}}},
            "node": {"backend": "InferKeeper"},
        }
    )
    app = create_app(config)
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    ).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    listening = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        listening.set()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        pass

    async with lifespan(app):
        gc.collect()
        gc.disable()
        try:
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v2/models/kept/infer",
                "headers": [],
                "http_version": "1.1",
            }
            answering = asyncio.create_task(app(scope, receive, send))
            await asyncio.wait_for(listening.wait(), 60)  # the watch has found that it is slow
            GATE.open()
            await answering
            del answering
            async with asyncio.timeout(60):  # the listening task ends, and the executor lets go
                while [array() for array in SEEN] != [None]:
                    await asyncio.sleep(0.001)
        finally:
            gc.enable()
