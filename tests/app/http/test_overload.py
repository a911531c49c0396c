"""What clients see of refusals, at every door: whom they hit, when to come again, and the
connection that stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.middleware import Middleware

from penstock import create_app
from penstock.app.http.errors import problem
from penstock.app.v2.call import error_answer
from penstock.backends.base import Backend
from penstock.backends.errors import Overloaded, QueueFull
from penstock.backends.expressions.registry import register_backend
from penstock.testing import Gate

from .test_clients import Untouched

GATE = Gate()
LARGE_BYTES = 300_000
"""More than is thrown away to keep a connection."""


@register_backend("OverloadGate")
class OverloadGate(Backend):
    """Waits for the gate if the text begins with `wait`. Answers the length."""

    max = 1

    def forward(self, batch: Any) -> None:
        for item in batch:
            data = item["data"]  # bytes of a predict request, text of an infer request
            if data[:4] in ("wait", b"wait"):
                GATE.wait()
            item["result"] = str(len(data))


PIPELINE = {
    "pipeline": {
        "name": "gate",
        "max_requests": 1,
        "inputs": {"data": {"kind": "text"}},
        "outputs": {"result": {"kind": "text"}},
    },
    "node": {"backend": "OverloadGate", "priority_levels": 3},
}


@pytest.fixture(autouse=True)
def gate() -> Iterator[None]:
    GATE.reset()
    yield
    GATE.open()


Ask = Callable[..., httpx.Response]
"""Send a text with a priority; `size` fills the body up to so many bytes."""


def predict(client: httpx.Client, text: str, priority: int, size: int = 0) -> httpx.Response:
    headers = {"penstock-priority": str(priority), "content-type": "application/octet-stream"}
    return client.post("/predict/gate", content=text.ljust(size), headers=headers)


def batch(client: httpx.Client, text: str, priority: int, size: int = 0) -> httpx.Response:
    headers = {"penstock-priority": str(priority)}
    return client.post("/predict/gate/batch", json=[text.ljust(size)], headers=headers)


def infer(client: httpx.Client, text: str, priority: int, size: int = 0) -> httpx.Response:
    data = [text.ljust(size)]
    tensor = {"name": "data", "shape": [1], "datatype": "BYTES", "data": data}
    body = {"inputs": [tensor], "parameters": {"priority": priority}}
    return client.post("/v2/models/gate/infer", json=body)


@pytest.fixture(params=["direct", "middleware"])
def client(running: Any, request: Any) -> Iterator[httpx.Client]:
    middleware = [Middleware(Untouched)] if request.param == "middleware" else []
    app = create_app(PIPELINE, middleware=middleware)
    with running(app, http="penstock", proxy_headers=False) as served:
        yield served


@pytest.mark.parametrize("size", [0, LARGE_BYTES])
@pytest.mark.parametrize("ask", [predict, infer])
def test_no_request_is_refused_for_those_of_lower_levels(
    client: httpx.Client, ask: Ask, size: int
) -> None:
    with ThreadPoolExecutor() as pool:
        inside = pool.submit(ask, client, "wait", 2)
        GATE.wait_entered()
        for level in (2, 3):
            assert ask(client, "next", level, size).status_code in (429, 503)
        higher = pool.submit(ask, client, "next", 1, size)
        while client.get("/metrics").text.count('in_flight{pipeline="gate"} 2.0') == 0:
            assert not higher.done()
        assert ask(client, "next", 1, size).status_code in (429, 503)  # for one of its own level
        GATE.open()
        assert (inside.result().status_code, higher.result().status_code) == (200, 200)


@pytest.mark.parametrize(
    ("ask", "status", "text"),
    [
        (predict, 429, "too many requests in flight"),
        (batch, 429, "too many requests in flight"),
        (infer, 503, "Exceeds maximum queue size"),
    ],
)
def test_a_refusal_says_when_to_come_again_and_keeps_the_connection(
    client: httpx.Client, ask: Ask, status: int, text: str
) -> None:
    connections = httpx.Limits(max_connections=1)
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=client.base_url, limits=connections, timeout=30) as one,
    ):
        waiting = pool.submit(ask, client, "wait", 2)
        GATE.wait_entered()
        opened: list[Any] = []
        for size in (0, 100_000, 150_000):
            refused = one.post("/predict/none", content=b"")  # any answer tells the connection
            opened.append(refused.extensions["network_stream"].get_extra_info("client_addr"))
            refused = ask(one, "next", 2, size)
            opened.append(refused.extensions["network_stream"].get_extra_info("client_addr"))
            assert refused.status_code == status and text in refused.text
            assert 1 <= int(refused.headers["retry-after"]) <= 30
            assert refused.headers.get("connection") != "close"
        assert len(set(opened)) == 1
        GATE.open()
        assert waiting.result().status_code == 200


@pytest.mark.parametrize("kind", [QueueFull, Overloaded])
def test_retry_after_is_what_the_refusal_says(kind: type[Exception]) -> None:
    error: Any = kind("more requests come than can be answered")
    assert (b"retry-after", b"1") in problem(error)[1]  # it says nothing
    error.retry_after = 17
    assert (b"retry-after", b"17") in problem(error)[1]
    answer = error_answer(error)
    assert (b"retry-after", b"17") in answer.headers
    assert json.loads(answer.body)["error"].startswith("Exceeds maximum queue size: ")
