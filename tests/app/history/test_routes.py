"""/requests and /requests/{id}, over HTTP, and what `penstock why` makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from penstock import create_app, create_router
from penstock.app.cli.main import command_line
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.testing import Gate

GATE = Gate()


@register_backend("WhyWork")
def work(text: str) -> str:
    """Wait at the gate for `wait`, fail for `fail`, and return the text."""
    if text == "wait":
        GATE.wait()
    if text == "fail":
        raise KeyError("secret")
    return text


@register_backend("WhyYield")
async def yields(item: Item, call: Any) -> Any:
    for number in range(3):
        yield number


TEXT = {"data": {"kind": "text"}}
PIPELINES: list[Any] = [
    {
        "pipeline": {"name": "pair", "inputs": TEXT},
        "net": {"backend": "WhyWork", "max": 1, "instance_num": 2},
    },
    {
        "pipeline": {"name": "graph", "inputs": TEXT},
        "split": {"backend": "Identity", "next": "left,right"},
        "left": {"backend": "WhyWork", "next": "join", "filter": "Run"},
        "right": {"backend": "Identity", "next": "join", "filter": "Run"},
        "join": {"backend": "Identity", "map": "left[result:data]"},
    },
    {
        "pipeline": {"name": "parts", "inputs": {"data": {"kind": "json"}}},
        "each": {"backend": "MapReduce", "jump": "one"},
        "one": {"backend": "Identity", "max": 2},
    },
    {"pipeline": {"name": "stream"}, "yields": {"backend": "WhyYield", "next": "then"},
     "then": {"backend": "Identity"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[httpx.Client]:
    app = create_app([load(one) for one in PIPELINES], settings=Settings(request_history=64))
    with running(app, http="penstock") as client:
        yield client


def send(client: httpx.Client, path: str, body: Any, request_id: str, **headers: str) -> int:
    headers |= {"X-Request-Id": request_id}
    return client.post(path, content=body, headers=headers).status_code


def told(client: httpx.Client, request_id: str) -> Any:
    answer = client.get(f"/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def why(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["why", *arguments])


def test_both_instances_are_busy(client: httpx.Client) -> None:
    GATE.reset()
    with ThreadPoolExecutor() as pool:
        first = [pool.submit(send, client, "/predict/pair", b"wait", name) for name in ("p1", "p2")]
        GATE.wait_entered()
        GATE.wait_entered()
        third = pool.submit(send, client, "/predict/pair", b"third", "p3")
        while (
            'penstock_queue_depth{node="net",pipeline="pair"} 1.0'
            not in client.get("/metrics").text
        ):
            pass
        GATE.open()
        assert {one.result() for one in (*first, third)} == {200}
    one = told(client, "p3")
    (node,) = one["nodes"]
    assert node["waits"][0]["why"] == "instance"
    assert "of 2 instances: both were busy." in node["waits"][0]["words"]
    assert node["waits"][0]["words"] in one["summary"]
    assert (one["door"], one["status"], one["outcome"]) == ("predict", 200, "ok")
    text = why("p3", "--url", str(client.base_url)).stdout
    assert "of 2 instances: both were busy." in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_a_failure_is_listed(client: httpx.Client) -> None:
    assert send(client, "/predict/pair", b"fail", "f/1?#%41") == 500
    assert send(client, "/predict/pair", b"good", "g1") == 200
    (listed,) = [
        one
        for one in client.get("/requests?kind=failed&pipeline=pair").json()["requests"]
        if one["id"] == "f/1?#%41"
    ]
    assert (listed["code"], listed["outcome"]) == ("backend_error", "failed")
    assert listed["summary"][0].startswith("Failed: node 'net': backend work raised KeyError")
    assert "nodes" not in listed and "secret" not in json.dumps(listed)
    everything = client.get("/requests").json()
    assert listed in everything["requests"]
    assert everything["request_history"] == 64 and 2 <= everything["remembered"] <= 64
    recent = client.get("/requests?kind=recent&limit=1").json()["requests"]
    assert [one["id"] for one in recent] == ["g1"]
    assert client.get("/requests?pipeline=graph&kind=failed").json()["requests"] == []
    assert told(client, "f%2F1%3F%23%2541") == {
        **listed,
        **{key: told(client, "f%2F1%3F%23%2541")[key] for key in ("spans", "nodes")},
    }
    url = str(client.base_url)
    assert "Failed: node 'net'" in " ".join(why("f/1?#%41", "--url", url).stdout.split())
    assert "f/1?#%41" in why("--url", url).stdout
    assert why("", "--url", url).stdout == why("--url", url).stdout  # a shell's unset variable
    printed = json.loads(why("f/1?#%41", "--url", url, "--json").stdout)
    assert printed["code"] == "backend_error"


def test_several_items(client: httpx.Client) -> None:
    body = json.dumps([{"data": "a"}, {"data": "b"}, {"data": "c"}])
    kind = {"Content-Type": "application/json"}
    assert send(client, "/predict/pair/batch", body, "many", **kind) == 200
    one = told(client, "many")
    assert (one["door"], one["rows"]) == ("batch", 3)
    assert sorted(node["item"] for node in one["nodes"]) == [0, 1, 2]
    assert told(client, "many/2")["id"] == "many"  # as the log has it


def test_the_open_inference_protocol(client: httpx.Client) -> None:
    body = {
        "id": "v2-1",
        "inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["x"]}],
    }
    answer = client.post("/v2/models/pair/infer", json=body, headers={"X-Request-Id": "v2-1"})
    assert answer.status_code == 200, answer.text
    one = told(client, "v2-1")
    assert (one["door"], one["pipeline"]) == ("v2", "pair")
    assert [node["node"] for node in one["nodes"]] == ["net"]


def test_a_graph_with_branches(client: httpx.Client) -> None:
    assert send(client, "/predict/graph", b"x", "branches") == 200
    nodes = {node["node"]: node for node in told(client, "branches")["nodes"]}
    assert set(nodes) == {"split", "left", "right", "join"}
    assert nodes["join"]["queued_at_ms"] >= nodes["left"]["ended_at_ms"]


def test_parts(client: httpx.Client) -> None:
    kind = {"Content-Type": "application/json"}
    assert send(client, "/predict/parts", b"[1, 2, 3]", "parts", **kind) == 200
    each, *parts = told(client, "parts")["nodes"]
    assert (each["node"], each["part_of"], each["words"].endswith("for its 3 parts")) == (
        "each", None, True,
    )  # fmt: skip
    assert [(one["node"], one["item"], one["part_of"]) for one in parts] == [
        ("one", 0, 0), ("one", 1, 0), ("one", 2, 0),
    ]  # fmt: skip


def test_a_streamed_answer(client: httpx.Client) -> None:
    assert send(client, "/predict/stream", b"x", "events", Accept="text/event-stream") == 200
    one = told(client, "events")
    assert one["pipeline"] == "stream" and one["nodes"]


def test_a_deadline_that_passes_in_the_queue(client: httpx.Client) -> None:
    GATE.reset()
    with ThreadPoolExecutor() as pool:
        first = [pool.submit(send, client, "/predict/pair", b"wait", name) for name in ("d1", "d2")]
        GATE.wait_entered()
        GATE.wait_entered()
        late = {"Penstock-Deadline-Ms": "30"}
        status = send(client, "/predict/pair", b"x", "late", **late)
        GATE.open()
        assert {one.result() for one in first} == {200}
    one = told(client, "late")
    assert status == one["status"]
    assert one["outcome"] in ("expired", "refused")  # admission may see that it would be late


def test_errors(client: httpx.Client) -> None:
    assert send(client, "/predict/pair", b"x", "errors") == 200
    unknown = client.get("/requests/nobody%0Aknows").json()
    assert unknown["status"] == 404
    unknown = client.get("/requests/nobody").json()
    assert (unknown["status"], unknown["code"]) == (404, "unknown_request")
    assert "of the last 64 are (request_history), the oldest from" in unknown["detail"]
    for query, text in (("kind=odd", "slow, failed, recent"), ("limit=0", "1 to 500"),
                        ("limit=1e3", "1 to 500")):  # fmt: skip
        answer = client.get(f"/requests?{query}")
        assert answer.status_code == 400 and text in answer.json()["detail"]
    url = str(client.base_url)
    failed = why("nobody", "--url", url)
    assert failed.exit_code == 1 and failed.stderr.startswith("no request 'nobody' is remembered")
    failed = why("x", "--url", "ftp://host")
    assert failed.exit_code == 1 and "--url: 'ftp://host' is not the URL" in failed.stderr
    failed = why("x", "--url", "http://127.0.0.1:9")
    assert failed.exit_code == 1 and "no answer from http://127.0.0.1:9" in failed.stderr
    failed = why("x", "--url", f"{url}/health/live?")
    assert failed.exit_code == 1


def test_answers_are_as_the_document_says(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    send(client, "/predict/graph", b"x", "documented")
    for path, answer in (
        ("/requests", client.get("/requests?kind=recent").json()),
        ("/requests/{id}", told(client, "documented")),
    ):
        responses = document["paths"][path]["get"]["responses"]
        schema = responses["200"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
            answer
        )


async def test_off_by_a_setting() -> None:
    app = create_app(PIPELINES[0], settings=Settings(request_history=0))
    async with app.router.lifespan_context(app), asgi(app) as client:
        assert (await client.post("/predict/pair", content=b"x")).status_code == 200
        for path in ("/requests", "/requests/x"):
            answer = (await client.get(path)).json()
            assert (answer["status"], answer["code"]) == (404, "history_off")
            assert "request_history = 0" in answer["detail"]
        assert "/requests" not in (await client.get("/openapi.json")).json()["paths"]


async def test_they_are_guarded_and_a_router_has_them_too() -> None:
    settings = Settings(api_key=SecretStr("key"), restricted_api=SecretStr("trace:x-s=s3cret"))
    host = FastAPI()
    host.include_router(create_router(PIPELINES[0], settings=settings, prefix="/models"))
    app = create_app(PIPELINES[0], settings=settings)
    key, both = {"Authorization": "Bearer key"}, {"Authorization": "Bearer key", "x-s": "s3cret"}
    for served, prefix in ((app, ""), (host, "/models")):
        async with served.router.lifespan_context(served), asgi(served) as client:
            for path in ("/requests", "/requests/x"):
                statuses = [
                    (await client.get(prefix + path, headers=headers)).status_code
                    for headers in ({}, key, both)
                ]
                assert statuses == [401, 403, 200 if path == "/requests" else 404]
            sent = {**both, "X-Request-Id": "mine"}
            await client.post(f"{prefix}/predict/pair", content=b"x", headers=sent)
            found = await client.get(f"{prefix}/requests/mine", headers=both)
            assert found.json()["nodes"][0]["node"] == "net"


def asgi(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://penstock")
