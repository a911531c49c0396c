"""Steps of sequences by predict requests: the query, /batch, and what a client that leaves ends."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.sync.client import connect

from penstock import create_app
from penstock.app.http.sequence_query import step_of
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidRequest
from penstock.backends.expressions.registry import register_backend
from penstock.testing import Gate

from ..server.doors import Door, open_door, request, wait_until

BACKEND = """
class Chain:
    '''Keeps a text for each sequence: its id, and all texts so far.'''

    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            sequence.state = (sequence.state or f"{sequence.id!r}:") + item["data"]
            item["result"] = sequence.state


def plain(text):
    return text


async def talk(item, call):
    sequence = item["sequence"]
    async for chunk in item["data"]:
        sequence.state = (sequence.state or "") + chunk
        yield sequence.state
"""
TEXT = {"data": {"kind": "text"}}
GATE = Gate()
ENDS: queue.Queue[tuple[int | str, str]] = queue.Queue()


@register_backend("HeldSteps")
class HeldSteps(Backend):
    """Answers the number of the step, once the gate is open."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            sequence = item["sequence"]
            sequence.state = (sequence.state or 0) + 1
            sequence.on_end = lambda reason, one=sequence.id: ENDS.put((one, reason))
            GATE.wait()
            item["result"] = str(sequence.state)


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "asgi"])
def door(
    request: Any, tmp_path_factory: pytest.TempPathFactory, running: Any
) -> Iterator[tuple[Door, Any]]:
    """Serve pipelines, with and without the direct way of answering. Yields the app too."""
    ops = tmp_path_factory.mktemp("sequences") / "chain.py"
    ops.write_text(BACKEND)
    app = create_app(
        [
            {
                "pipeline": {"name": "held", "inputs": TEXT},
                "held": {"backend": "HeldSteps", "sequence": {}},
            },
            {
                "pipeline": {"name": "chain", "inputs": TEXT},
                "chain": {"backend": f"Python[{ops}:Chain]", "max": 8, "sequence": {}},
            },
            {
                "pipeline": {"name": "talk", "inputs": {"words": {"kind": "text", "stream": True}}},
                "talk": {"backend": f"Python[{ops}:talk]", "sequence": {}},
            },
            {
                "pipeline": {"name": "plain", "inputs": TEXT},
                "plain": {"backend": f"Python[{ops}:plain]"},
            },
        ]
    )
    with open_door(running, app, Settings(), request.param) as door:
        yield door, app


@pytest.fixture
def client(door: tuple[Door, Any]) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{door[0].port}/predict/"
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        yield client


def step(client: httpx.Client, text: str, **query: Any) -> str:
    answer = client.post("chain", content=text, params=query)
    assert answer.status_code == 200, answer.text
    result: str = answer.json()["result"]
    return result


def test_the_first_step_begins_and_the_one_with_end_ends(client: httpx.Client) -> None:
    assert step(client, "a", sequence="cam-7") == "'cam-7':a"
    assert step(client, "x", sequence="кам 8", sequence_start=True) == "'кам 8':x"
    assert step(client, "b", sequence="cam-7", sequence_end=False) == "'cam-7':ab"
    assert step(client, "c", sequence="cam-7", sequence_end=True) == "'cam-7':abc"
    assert step(client, "d", sequence="cam-7") == "'cam-7':d"
    assert step(client, "e", sequence="cam-7", sequence_start=True) == "'cam-7':e"
    assert step(client, "y", sequence="кам 8", sequence_end=1) == "'кам 8':xy"
    assert step(client, "f", sequence="cam-7", sequence_end="True") == "'cam-7':ef"


def test_an_id_of_digits_is_an_integer(client: httpx.Client) -> None:
    assert step(client, "a", sequence="7", sequence_end=True) == "7:a"
    assert step(client, "a", sequence="07", sequence_end=True) == "'07':a"


def test_a_batch_is_the_steps_of_one_sequence_in_order(client: httpx.Client) -> None:
    def batch(texts: str, **query: Any) -> list[str]:
        files = [("data", text.encode()) for text in texts]
        answer = client.post("chain/batch", files=files, params=query)
        assert answer.status_code == 200, answer.text
        return [one["result"] for one in answer.json()["results"]]

    assert batch("ab", sequence="many") == ["'many':a", "'many':ab"]
    assert batch("cd", sequence="many", sequence_end=True) == ["'many':abc", "'many':abcd"]
    assert batch("ef", sequence="many", sequence_start=True, sequence_end=True) == [
        "'many':e",
        "'many':ef",
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "must specify a non-zero or non-empty correlation ID"),
        ("other=1", "must specify a non-zero or non-empty correlation ID"),
        ("sequence_start=true", "no sequence"),
        ("sequence=", "sequence"),
        ("sequence=0", "sequence"),
        ("sequence=18446744073709551616", "2^64 - 1"),
        ("sequence=" + "9" * 5000, "128"),
        ("sequence=" + quote("ж" * 129), "128"),
        ("sequence=a&sequence=b", "2 times"),
        ("sequence=a&sequence_end=yes", "sequence_end is 'yes'"),
        ("sequence=%FF", "UTF-8"),
    ],
)
def test_a_query_that_names_no_step_is_refused(client: httpx.Client, query: str, said: str) -> None:
    answer = client.post(f"chain?{query}", content="a")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert said in answer.json()["detail"]


def test_a_pipeline_without_sequences_refuses_an_id(client: httpx.Client) -> None:
    answer = client.post("plain?sequence=a", content="a")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert "sequence" in answer.json()["detail"]
    assert client.post("plain?other=a", content="a").json() == {"result": "a"}


def test_a_query_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        step_of(b"sequence=\xff")


INFER = {
    "inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["x"]}],
    "parameters": {"sequence_id": "left", "sequence_start": True},
}


@pytest.mark.parametrize(
    ("target", "body", "lines"),
    [
        ("/predict/held?sequence=left", b"x", ()),
        ("/predict/held/batch?sequence=left", b'["x", "y"]', ("Content-Type: application/json",)),
        ("/v2/models/held/infer", json.dumps(INFER).encode(), ()),
    ],
)
def test_a_client_that_leaves_ends_its_sequence(
    door: tuple[Door, Any], target: str, body: bytes, lines: tuple[str, ...]
) -> None:
    GATE.reset()
    while not ENDS.empty():  # of an earlier test
        ENDS.get()
    server, app = door
    failures = app.state.penstock.pipelines["held"].statistics.failures
    before = failures["cancelled"]
    with server.connect() as connection:
        connection.sendall(request(target, body, *lines))
        GATE.wait_entered()
    wait_until(lambda: failures["cancelled"] > before)
    GATE.open()
    assert ENDS.get(timeout=60) == ("left", "departure")


def test_why_tells_of_the_wait_for_a_turn(door: tuple[Door, Any], client: httpx.Client) -> None:
    GATE.reset()
    pipeline = door[1].state.penstock.pipelines["held"]

    def send(name: str) -> httpx.Response:
        return client.post("held?sequence=turns", content="x", headers={"X-Request-Id": name})

    def get(path: str) -> httpx.Response:
        return client.get(f"http://127.0.0.1:{door[0].port}{path}")

    with ThreadPoolExecutor(2) as threads, ExitStack() as opened:
        opened.callback(GATE.open)
        first = threads.submit(send, "first")
        GATE.wait_entered()
        second = threads.submit(send, "second")
        wait_until(lambda: pipeline.in_flight == 2)
        status = get("/status").json()["pipelines"]
        GATE.open()
        assert [one.result().json()["result"] for one in (first, second)] == ["1", "2"]
    (sequences,) = (one["sequences"] for one in status if one["name"] == "held")
    assert (sequences["live"], sequences["waiting"]) == (1, 0)
    story = get("/requests/second").json()
    (turn,) = (span for span in story["spans"] if span["name"] == "turn")
    (visit,) = story["nodes"]
    assert turn["end_ms"] == visit["queued_at_ms"]
    assert turn["words"].startswith("It waited ")
    assert any("for its turn" in text for text in story["summary"])
    spans = get("/requests/first").json()["spans"]
    assert "turn" not in [span["name"] for span in spans]
    metrics = get("/metrics").text
    assert 'penstock_sequences{pipeline="held",state="live"} 1.0' in metrics
    assert 'penstock_sequences_ended_total{pipeline="held",reason="departure"} 3.0' in metrics


def test_a_socket_is_a_step(door: tuple[Door, Any]) -> None:
    """Its sequence goes on in the next one, unless its client leaves before it has ended it."""
    server, app = door
    url = f"ws://127.0.0.1:{server.port}/predict/talk/stream?sequence=socket"
    for word, kept in (("a", "a"), ("b", "ab")):
        with connect(url) as client:
            client.send(word)
            assert json.loads(client.recv(60)) == {"result": kept}
            client.send("")
            assert list(client) == []
    sequences = app.state.penstock.pipelines["talk"].sequences
    assert (sequences.live, sequences.ended["departure"]) == (1, 0)
    with connect(url) as client:
        client.send("c")
        assert json.loads(client.recv(60)) == {"result": "abc"}
    wait_until(lambda: sequences.ended["departure"] == 1)
