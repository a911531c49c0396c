"""The generate extension over HTTP: what goes in, what comes out, and how streams end."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load

MEGABYTE = "x" * 1_000_000
WRONG_COUNT = "generate expects model to produce exactly 1 response, use generate stream"


class Source:
    """What the node that yields does at present."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.advanced = 0
        self.ended = threading.Event()
        self.go = threading.Event()


SOURCE = Source()


@register_backend("GenerateWords")
async def words(item: Any, call: Any) -> Any:
    """Yield the words of the text, at most `max_tokens`. Some words do something else."""
    try:
        for word in item["data"].split()[: item.get("max_tokens")]:
            SOURCE.advanced += 1
            if word == "fail":
                raise ValueError("secret of /etc/model")
            if word == "unreadable":
                raise InvalidInput("the rest can't be read")
            if word == "wait":
                await asyncio.Event().wait()
            yield {"large": MEGABYTE, "odd": object()}.get(word, word)
    finally:
        SOURCE.ended.set()


@register_backend("GenerateBlocking")
def blocking(text: str) -> Iterator[str]:
    """Yield the words of a text from a thread. After each, wait for `SOURCE.go`."""
    go = SOURCE.go  # that of the test which made the request
    try:
        for word in text.split():
            SOURCE.advanced += 1
            if word == "fail":
                raise ValueError("secret of /etc/model")
            yield word
            go.wait(60)
    finally:
        SOURCE.ended.set()


@register_backend("GenerateScaled")
class Scaled:
    """Reads a parameter of the request, and sets outputs of several kinds."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = item["data"] * item.get("factor", 1)
            item["note"] = item.get("remark", "none")
            item["facts"] = {"rows": len(item["data"]), "odd": [1, None]}


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    SOURCE.reset()
    yield
    SOURCE.go.set()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nothing go that only the collector frees: collections may be hours apart."""
    logging.disable()  # pytest keeps the records, which have tracebacks
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def configs() -> Any:
    text = {"text_input": {"kind": "text"}}
    output = {"text_output": {"kind": "tensor", "dtype": "string", "shape": [1]}}
    words = {"words": {"backend": "GenerateWords"}}
    return [
        load({"pipeline": {"name": "words", "inputs": text, "outputs": output}, **words}),
        load(
            {
                "pipeline": {"name": "blocking", "inputs": text, "outputs": output},
                "words": {"backend": "GenerateBlocking"},
            }
        ),
        load(
            {
                "pipeline": {"name": "alone", "inputs": text, "outputs": output, "max_requests": 1},
                **words,
            }
        ),
        load(
            {
                "pipeline": {
                    "name": "scaled",
                    "inputs": {"data": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}},
                    "outputs": {
                        "result": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]},
                        "note": {"kind": "text"},
                        "facts": {"kind": "json"},
                    },
                },
                "scaled": {"backend": "GenerateScaled", "max": 4},
            }
        ),
        *(
            load(
                {
                    "pipeline": {
                        "name": name,
                        "inputs": {"data": port},
                        "outputs": {"result": port},
                    },
                    "copy": {"backend": "Python[copy:copy]"},
                }
            )
            for name, port in {
                "chat": {"kind": "list"},
                "json": {"kind": "json"},
                "texts": {"kind": "list", "items": {"kind": "text"}},
                "flag": {"kind": "boolean"},
                "number": {"kind": "number"},
                "lists": {"kind": "list", "items": {"kind": "list", "items": {"kind": "integer"}}},
            }.items()
        ),
        load({"pipeline": {"name": "any"}, "copy": {"backend": "Python[copy:copy]"}}),
    ]


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[httpx.Client]:
    settings = Settings(max_body=4 << 20, request_history=64)
    with running(create_app(configs(), settings=settings), http="penstock") as client:
        yield client


def generate(client: httpx.Client, name: str, document: Any, **headers: str) -> httpx.Response:
    path = f"/v2/models/{name}/generate"
    if isinstance(document, bytes):
        return client.post(path, content=document, headers=headers)
    return client.post(path, content=json.dumps(document), headers=headers)


def events(client: httpx.Client, name: str, document: Any, **headers: str) -> list[Any]:
    """Return the events of a stream, each as Triton writes it."""
    path = f"/v2/models/{name}/generate_stream"
    answer = client.post(path, json=document, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def end_blocking(client: httpx.Client) -> None:
    """Wait until the thread of `blocking` has ended what it did for requests before."""
    assert generate(client, "blocking", {"text_input": "x"}).status_code == 200


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def inside(client: httpx.Client) -> float:
    return metric(client, "penstock_requests_in_flight{")


@pytest.mark.parametrize(
    ("name", "document", "answer"),
    [
        ("words", {"text_input": "hello"}, {"text_output": "hello"}),
        ("words", {"text_input": ["hello"]}, {"text_output": "hello"}),
        ("words", {"text_input": "hello", "id": "7"}, {"text_output": "hello", "id": "7"}),
        (
            "words",
            {"text_input": "a b", "stream": False, "parameters": {"max_tokens": 1}},
            {"text_output": "a"},
        ),
        ("words", {"parameters": {"text_input": "a"}}, {"text_output": "a"}),
        (
            "scaled",
            {"data": [1, 2.5], "factor": 2, "remark": "a"},
            {"result": [2.0, 5.0], "note": "a", "facts": {"rows": 1, "odd": [1, None]}},
        ),
        (
            "scaled",
            {"data": [[1, 2], [3, 4]]},
            {"result": [1, 2, 3, 4], "note": "none", "facts": {"rows": 2, "odd": [1, None]}},
        ),
        (
            "chat",
            {"data": [{"role": "user", "content": "hi"}, "b"]},
            {"result": [{"role": "user", "content": "hi"}, "b"]},
        ),
        ("chat", {"data": []}, {"result": []}),
        ("json", {"data": {"a": [1, None]}}, {"result": {"a": [1, None]}}),
        ("chat", {"data": [1]}, {"result": [1]}),
        ("json", {"data": "a"}, {"result": "a"}),
        ("texts", {"data": ["a", "\xe4"]}, {"result": ["a", "\xe4"]}),
        ("flag", {"data": True}, {"result": True}),
        ("number", {"data": 2}, {"result": 2.0}),
        ("lists", {"data": [[1, 2], []]}, {"result": [[1, 2], []]}),
        ("any", {"data": "text"}, {"result": "text"}),
    ],
)
def test_inputs_and_outputs_by_name(
    client: httpx.Client, name: str, document: Any, answer: Any
) -> None:
    response = generate(client, name, document)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    expected = {"model_name": name, "model_version": "1", **answer}
    assert response.json() == expected
    assert events(client, f"{name}/versions/1", document) == [expected]
    assert inside(client) == 0


def test_numbers_that_json_lacks(client: httpx.Client) -> None:
    text = generate(client, "scaled", b'{"data": [NaN, -Infinity]}').text
    assert '"result":[NaN,-Infinity]' in text
    assert '"result":{"a":null}' in generate(client, "json", b'{"data": {"a": NaN}}').text


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("nope", {}, "Request for unknown model: 'nope' is not found"),
        ("words/versions/9", {}, "'words' version 9 is not found"),
        ("words", b"", "expected 1 inputs but got 0 inputs for model 'words'"),
        ("words", {"abc": 123}, "expected 1 inputs but got 0"),
        ("words", {"text_input": 123}, "attempt to access JSON non-string as string"),
        ("words", {"text_input": {"a": 1}}, "attempt to access JSON non-string as string"),
        ("words", {"text_input": None}, "attempt to access JSON non-string as string"),
        ("flag", {"data": "false"}, "attempt to access JSON non-boolean as boolean"),
        ("scaled", {"data": ["a", "b"]}, "attempt to access JSON non-number as number"),
        ("scaled", {"data": [1, 2, 3]}, "can not convert input 'data' to tensor with proper shape"),
        ("scaled", {"data": [1, 2] * 5}, "inference request batch-size must be <= 4"),
        ("words", {"text_input": ["a", "b"]}, "can not convert input 'text_input' to tensor"),
        ("words", {"text_input": "a", "p": {"q": 0}}, "parameter 'p' has invalid type"),
        ("words", {"text_input": "a", "parameters": {"p": {}}}, "parameter 'p' has invalid type"),
        ("words", {"text_input": "a", "parameters": 1}, "Expected JSON object for keyword: 'param"),
        ("words", {"text_input": "a", "node_name": "x"}, "parameter 'node_name' is reserved"),
        ("words", {"text_input": "a", "id": 7}, "Unable to parse 'id'"),
        (
            "words",
            {"text_input": "a", "parameters": {"text_input": "b"}},
            "input 'text_input' already exists in request",
        ),
        (
            "words",
            b'{"text_input": "a", "text_input": "b"}',
            "input 'text_input' already exists in request",
        ),
        ("words", [1], "the request is a JSON array, expected an object"),
        ("words", b"{", "failed to parse the request JSON buffer"),
        ("words", {"text_input": "a b"}, WRONG_COUNT),
        ("words", {"text_input": ""}, WRONG_COUNT),
    ],
)
def test_refusals(client: httpx.Client, name: str, document: Any, message: str) -> None:
    answer = generate(client, name, document)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"] and message in answer.json()["error"]
    until(lambda: inside(client) == 0)


def test_generate_ends_a_stream_at_its_second_part(client: httpx.Client) -> None:
    failed = metric(client, 'nv_inference_request_failure{model="words",reason="OTHER"')
    answer = generate(client, "words", {"text_input": "a b wait"})
    assert answer.status_code == 400 and WRONG_COUNT in answer.json()["error"]
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)
    assert generate(client, "words", {"text_input": ""}).status_code == 400  # no part at all
    assert metric(client, 'nv_inference_request_failure{model="words",reason="OTHER"') == failed + 2


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("generate", "GET", 405),
        ("generate_stream", "HEAD", 405),
        ("generate_stream", "PUT", 405),
        ("generates", "POST", 404),
    ],
)
def test_other_methods_and_paths(client: httpx.Client, path: str, method: str, status: int) -> None:
    answer = client.request(method, f"/v2/models/words/{path}")
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"] == "POST"


def test_an_event_for_each_part(client: httpx.Client) -> None:
    document = {"text_input": "one two three", "id": "story"}
    names = {"id": "story", "model_name": "words", "model_version": "1"}
    assert events(client, "words", document) == [
        {"text_output": word, **names} for word in ("one", "two", "three")
    ]
    assert events(client, "words", {"text_input": ""}) == []


def test_each_part_comes_as_soon_as_it_is_there(client: httpx.Client) -> None:
    path = "/v2/models/words/generate_stream"
    document = {"text_input": "one wait", "id": "story-1"}
    headers = {"Accept-Encoding": "gzip, deflate"}
    with client.stream("POST", path, json=document, headers=headers) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["text_output"] == "one"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"] == "story-1"
        assert "content-encoding" not in answer.headers
        assert not SOURCE.ended.is_set()
    assert SOURCE.ended.wait(60)  # the client has left


@pytest.mark.parametrize("end", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("fail", 500, "raised ValueError"),
        ("unreadable", 400, "the rest can't be read"),
        ("odd", 500, "can't be written as JSON"),
    ],
)
def test_an_error_before_the_first_part_is_an_ordinary_answer(
    client: httpx.Client, end: str, word: str, status: int, message: str
) -> None:
    answer = client.post(f"/v2/models/words/{end}", json={"text_input": f"{word} b"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert message in answer.json()["error"] and "secret" not in answer.text
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)


@pytest.mark.parametrize("word", ["fail", "unreadable", "odd"])
def test_a_later_error_is_the_last_event(client: httpx.Client, word: str) -> None:
    first, last = events(client, "words", {"text_input": f"a {word} b"})
    assert first["text_output"] == "a" and list(last) == ["error"]
    assert "secret" not in last["error"]
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)


def test_a_deadline_that_passes_after_the_first_part(client: httpx.Client) -> None:
    """One that a slow machine meets before: the next is ten times as long."""
    for microseconds in (200_000, 2_000_000, 20_000_000):
        document = {"text_input": "a wait", "parameters": {"timeout": microseconds}}
        answer = client.post("/v2/models/words/generate_stream", json=document)
        if answer.status_code == 200:
            break
        assert answer.json()["error"].startswith("Request timeout expired")
    first, last = (json.loads(line[6:]) for line in answer.text.split("\n\n")[:2])
    assert first["text_output"] == "a" and last["error"].startswith("Request timeout expired")
    assert SOURCE.ended.wait(60)


@pytest.mark.parametrize("end", ["generate", "generate_stream"])
def test_a_client_that_leaves_ends_the_node(client: httpx.Client, leaving: Any, end: str) -> None:
    before = metric(client, 'penstock_items_total{node="words",outcome="cancelled"')
    with leaving(client, f"/v2/models/words/{end}", b'{"text_input": "wait"}'):
        until(lambda: SOURCE.advanced)
        assert not SOURCE.ended.is_set()
    assert SOURCE.ended.wait(60)
    until(lambda: inside(client) == 0)
    assert metric(client, 'penstock_items_total{node="words",outcome="cancelled"') == before + 1


def test_a_client_that_leaves_ends_a_generator_on_a_thread(client: httpx.Client) -> None:
    path = "/v2/models/blocking/generate_stream"
    with client.stream("POST", path, json={"text_input": "one two three"}) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["text_output"] == "one"
        assert not SOURCE.ended.is_set()  # it waits, and so does its thread
    until(lambda: inside(client) == 0)
    SOURCE.go.set()
    assert SOURCE.ended.wait(60)
    assert SOURCE.advanced <= 2
    assert len(events(client, "blocking", {"text_input": "one two three"})) == 3


def test_a_client_that_leaves_while_parts_are_sent(client: httpx.Client) -> None:
    path, document = "/v2/models/words/generate_stream", {"text_input": "large " * 64}
    with client.stream("POST", path, json=document) as answer:
        chunks = answer.iter_raw()  # kept: where it is collected, httpx closes the connection
        assert next(chunks).startswith(b'data: {"text_output":"x')
        assert not SOURCE.ended.is_set()
    assert SOURCE.ended.wait(60)
    assert SOURCE.advanced < 64
    until(lambda: inside(client) == 0)


@pytest.mark.parametrize("end", ["generate", "generate_stream"])
@pytest.mark.parametrize("name", ["words", "blocking"])
@pytest.mark.parametrize("text", ["x", "{} x", "{} fail", "fail {}", "odd {}", "{} odd"])
def test_nothing_is_held_after_an_answer(
    client: httpx.Client, uncollected: None, name: str, end: str, text: str
) -> None:
    SOURCE.go.set()
    document = {"text_input": text.format("x" * 300_000)}
    assert client.post(f"/v2/models/{name}/{end}", json=document).content
    until(lambda: budget.used == 0)
    end_blocking(client)


@pytest.mark.parametrize("end", ["generate", "generate_stream"])
@pytest.mark.parametrize("name", ["words", "blocking"])
def test_nothing_is_held_after_a_client_has_left(
    client: httpx.Client, leaving: Any, uncollected: None, name: str, end: str
) -> None:
    body = json.dumps({"text_input": "x" * 300_000 + " wait"}).encode()
    with leaving(client, f"/v2/models/{name}/{end}", body):
        until(lambda: SOURCE.advanced)
        assert budget.used > 300_000
    SOURCE.go.set()
    until(lambda: budget.used == 0)
    end_blocking(client)


def test_a_slow_reader_slows_the_node(client: httpx.Client) -> None:
    parts = 64
    body = json.dumps({"text_input": "large " * parts}).encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reader.settimeout(60)
        reader.connect((client.base_url.host, client.base_url.port))
        head = (
            b"POST /v2/models/words/generate_stream HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        reader.sendall(head + body)

        def stands_still() -> bool:
            """Return whether the source makes no step during a hundred other requests."""
            before = SOURCE.advanced
            for _ in range(100):
                client.get("/health/live")
            return SOURCE.advanced == before > 0

        until(stands_still)
        assert SOURCE.advanced < parts / 3  # the kernel's buffers hold some of them
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-64:] + reader.recv(1 << 20)
    assert SOURCE.advanced == parts


def test_a_stream_counts_as_a_request_until_it_ends(client: httpx.Client) -> None:
    path = "/v2/models/alone/generate_stream"
    with client.stream("POST", path, json={"text_input": "one wait"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = client.post(path, json={"text_input": "one"})
        assert refused.status_code == 503 and "Exceeds maximum queue size" in refused.text
        assert int(refused.headers["retry-after"]) >= 1
    until(lambda: inside(client) == 0)
    assert len(events(client, "alone", {"text_input": "one"})) == 1


def test_the_history_has_both_routes(client: httpx.Client) -> None:
    generate(client, "words", {"text_input": "a b", "id": "refused-1"})
    events(client, "words", {"text_input": "a fail", "id": "failed-1"})
    for identity, status, code in (
        ("refused-1", 400, "invalid_request"),
        ("failed-1", 200, "backend_error"),
    ):
        found = client.get(f"/requests/{identity}").json()
        assert (found["door"], found["status"], found["code"]) == ("generate", status, code)
        assert found["pipeline"] == "words"


def test_load_reports(client: httpx.Client) -> None:
    path = "/v2/models/alone/generate_stream"
    for form, report in (
        ("json", 'JSON {"application_utilization":1.0,"named_metrics":{"requests_in_flight":1}}'),
        ("text", "TEXT application_utilization=1.0, named_metrics.requests_in_flight=1"),
        ("xml", None),
    ):
        until(lambda: inside(client) == 0)
        headers = {"endpoint-load-metrics-format": form}
        answer = client.post(path, json={"text_input": "a"}, headers=headers)
        assert answer.headers.get("endpoint-load-metrics") == report
    answer = generate(
        client, "words", {"text_input": "a"}, **{"endpoint-load-metrics-format": "text"}
    )
    assert answer.headers["endpoint-load-metrics"].startswith("TEXT application_utilization=")


def test_bodies(client: httpx.Client) -> None:
    document = json.dumps({"text_input": "hello"}).encode()
    answer = generate(client, "words", gzip.compress(document), **{"Content-Encoding": "gzip"})
    assert answer.json()["text_output"] == "hello"
    answer = generate(client, "words", document, **{"Content-Encoding": "br"})
    assert answer.status_code == 501
    answer = generate(client, "words", {"text_input": "x" * (4 << 20)})
    assert answer.status_code == 400 and "max_body" in answer.text
    long = "x" * 300_000  # read and written on helper threads
    assert generate(client, "words", {"text_input": long}).json()["text_output"] == long


def test_models_say_that_they_stream(client: httpx.Client) -> None:
    for name, streams in (("words", True), ("scaled", False)):
        config = client.get(f"/v2/models/{name}/config").json()
        assert config["model_transaction_policy"] == {"decoupled": streams}


def test_keys_and_restrictions(running: Any) -> None:
    settings = Settings(
        api_key=SecretStr("k" * 16), restricted_api=SecretStr("inference:x-operator=secret")
    )
    with running(create_app(configs()[:1], settings=settings), http="penstock") as client:
        for end in ("generate", "generate_stream"):
            path = f"/v2/models/words/{end}"
            document = {"text_input": "a"}
            assert client.post(path, json=document).status_code == 401
            headers = {"Authorization": f"Bearer {'k' * 16}"}
            answer = client.post(path, json=document, headers=headers)
            assert answer.status_code == 403 and "x-operator" in answer.json()["error"]
            headers["x-operator"] = "secret"
            assert client.post(path, json=document, headers=headers).status_code == 200
