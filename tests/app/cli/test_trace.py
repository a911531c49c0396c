"""The trace of a request: what each backend made of the item, as text, and over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from penstock import create_app
from penstock.app.cli.trace import ForwardRecorder, describe, trace_lines
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.trace import Step

ADMIN = {"Authorization": "Bearer token"}
TRACED = ADMIN | {"Penstock-Trace": "1"}
RAN = {"queue_ms": 0.25, "run_ms": 12.5, "batch": 3}


class Shout(Backend):
    max = 4

    def warm_up(self) -> None:
        self.forward([{"data": b"warm-up"}])

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if item["data"] == "fail":
                raise KeyError("secret")
            if item["data"] == "unreadable":
                item["error"] = InvalidInput("no \udcff <b>text</b>")
            else:
                item["result"] = str(item["data"]).upper()


class OneByOne(Shout):
    max = 1


class OnCopies(Backend):
    child_count = (1, 1)
    max = 4

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            copy = {"data": item["data"]}
            self.children[0].forward([copy])
            item["result"] = copy["result"]


class Decoded(Shout):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["data"] = item["data"].decode()
        super().forward(batch)


async def stream(item: Item, call: Any) -> AsyncIterator[str]:
    for word in item["data"].decode().split():
        yield word


register_backend("TraceShout", Shout)
register_backend("TraceOneByOne", OneByOne)
register_backend("TraceOnCopies", OnCopies)
register_backend("TraceDecoded", Decoded)
register_backend("TraceStream", stream)


async def steps_of(nodes: dict[str, Any], data: Any, times: int = 1) -> list[Step]:
    """Send `data` to a recorded pipeline so many times, and return the steps of the last."""
    recorder = ForwardRecorder(load(nodes))
    trace = recorder.trace()
    async with Pipeline(recorder.config) as pipeline:
        recorder.active = True
        for _ in range(times):
            trace = recorder.trace()
            try:
                await pipeline.submit_nowait({"data": data}, trace=trace).future
            except Exception as error:
                assert "Shout raised" in str(error)
    return trace.steps


async def test_recording_leaves_the_configuration_as_it_was() -> None:
    config = load(
        {"a": {"backend": "S[TraceShout,Identity]", "next": "b"}, "b": {"backend": "TraceShout"}}
    )
    (group,) = config.nodes["a"].instance_groups
    cls = group.spec.cls
    recorder = ForwardRecorder(config)
    assert config.nodes["a"].instance_groups == (group,) and group.spec.cls is cls
    async with Pipeline(recorder.config) as pipeline:
        trace = recorder.trace()
        await pipeline.submit_nowait({"data": "ab"}, trace=trace).future
        assert not any("in" in step for step in trace.steps)  # not active
        recorder.active = True
        trace = recorder.trace()
        await pipeline.submit_nowait({"data": "ab"}, trace=trace).future
    assert [step["in"] for step in trace.steps] == [{"data": "'ab'"}, {"data": "'AB'"}]
    assert json.loads(json.dumps(trace.steps)) == trace.steps


async def test_members_of_an_expression() -> None:
    (step,) = await steps_of(
        {"a": {"backend": "S[TraceShout,S[Identity,TraceOneByOne]]", "max": 4}}, "x", times=2
    )
    members = [
        (member["backend"], member["depth"], member["out"]["data"]) for member in step["members"]
    ]
    assert members == [
        ("TraceShout", 1, "'x'"),
        ("S", 1, "'X'"),
        ("Identity", 2, "'X'"),
        ("TraceOneByOne", 2, "'X'"),
    ]
    assert step["out"] == {"data": "'X'", "result": "'X'"}


async def test_each_item_of_a_batch_has_its_own_steps() -> None:
    nodes = {
        "each": {"backend": "MapReduce", "jump": "a"},
        "a": {"backend": "S[TraceShout,TraceOneByOne]", "max": 4},
    }
    (step,) = await steps_of(nodes, ["x", "y", "z"])
    parts = [part for (part,) in step["parts"]]
    assert [part["batch"] for part in parts] == [3] * 3
    assert [part["in"]["data"] for part in parts] == ["'x'", "'y'", "'z'"]
    assert [[member["out"]["result"] for member in part["members"]] for part in parts] == [
        ["'X'"] * 2,
        ["'Y'"] * 2,
        ["'Z'"] * 2,
    ]


async def test_a_member_that_gets_copies() -> None:
    (step,) = await steps_of({"a": {"backend": "TraceOnCopies[TraceShout]"}}, "x")
    assert [(member["backend"], member["out"]) for member in step["members"]] == [
        ("TraceShout", {"data": "'x'", "result": "'X'"})
    ]


async def test_a_backend_that_raises() -> None:
    nodes = {
        "each": {"backend": "MapReduce", "jump": "a"},
        "a": {"backend": "S[Identity,TraceShout]", "max": 4},
    }
    (step,) = await steps_of(nodes, ["x", "fail"])
    (good,), (bad,) = step["parts"]
    assert good["out"]["result"] == "'X'" and "error" not in good
    assert bad["error"] == "KeyError: 'secret'" and bad["in"] == {"data": "'fail'"}
    assert bad["members"][-1]["error"] == "KeyError: 'secret'"
    assert step["error"].startswith("BackendError: node 'a'")


async def test_a_logical_node_is_recorded_where_it_runs() -> None:
    steps = await steps_of({"a": {"backend": "TraceShout", "next": "a.2"}, "a.2": {}}, "x")
    assert [step["out"] for step in steps] == [
        {"data": "'x'", "result": "'X'"},
        {"data": "'X'", "result": "'X'"},
    ]


def test_describe() -> None:
    assert describe([1, 2]) == "[1, 2]" and describe(list(range(9))) == "list of 9"
    assert len(describe("x" * 100)) == 64


# as text


def text(*steps: Step) -> list[str]:
    return list(trace_lines(steps))


def test_the_usual_status_of_default_filters_is_left_out() -> None:
    for filter_name in ("swap", "Run"):
        step = {
            "node": "a",
            "filter": filter_name,
            "status": "Run",
            "keys": ["data"],
            **RAN,
            "left": ["data", "result"],
        }
        assert text(step) == [
            "a: queue 0.250 ms, run 12.500 ms, batch 3",
            "    in: data",
            "    out: data, result",
        ]


def test_what_filters_decided() -> None:
    assert text(
        {
            "node": "a",
            "filter": "or",
            "status": "Skip",
            "reason": "it has a result",
            "keys": ["data"],
        }
    ) == ["a: or says Skip (it has a result)"]
    assert text({"node": "a", "filter": "swap", "status": "Break", "keys": []}) == [
        "a: swap says Break"
    ]
    assert text({"node": "a", "status": "skipped with b"}) == ["a: skipped with b"]
    assert text({"node": "a", "filter": "or", "status": "Run", "keys": ["data"], **RAN})[0] == (
        "a: or says Run, queue 0.250 ms, run 12.500 ms, batch 3"
    )


def test_a_node_that_did_not_finish() -> None:
    assert text({"node": "a", "keys": ["data"]}) == [
        "a: dropped before it finished",
        "    in: data",
    ]
    assert (
        text({"node": "a", "keys": ["data"], **RAN, "error": "ValueError: no"})[2]
        == "    out: raised ValueError: no"
    )
    assert (
        text({"node": "a", "keys": ["data"], **RAN, "left": ["data", "error"], "error": "no"})[2]
        == "    out: data, error (no)"
    )


def test_members_and_values() -> None:
    step = {
        "node": "a", "keys": ["data"], **RAN, "note": "on a thread for the trace",
        "in": {"data": "1"}, "out": {"data": "1"}, "left": ["data"],
        "members": [
            {"backend": "Sequential", "depth": 1, "ms": 1.0, "out": {"data": "2"}},
            {"backend": "Inner", "depth": 2, "ms": 0.5, "out": {"data": "2"}, "error": "KeyError"},
        ],
    }  # fmt: skip
    assert text(step) == [
        "a: queue 0.250 ms, run 12.500 ms, batch 3, on a thread for the trace",
        "    in: data: 1",
        "    Sequential    1.000 ms  data: 2",
        "      Inner       0.500 ms  data: 2 raised KeyError",
        "    out: data: 1",
    ]


def test_parts_and_yields() -> None:
    part = [{"node": "b", "status": "skipped with a"}]
    assert text(
        {
            "node": "a",
            "keys": [],
            "parts": [part, part],
            "more_parts": 3,
            "yields": [part],
            "left": ["data"],
            **RAN,
        }
    )[1:] == [
        "    in:",
        "    part 1 of 5",
        "        b: skipped with a",
        "    part 2 of 5",
        "        b: skipped with a",
        "    … and 3 more",
        "    yield 1 of 1",
        "        b: skipped with a",
        "    out: data",
    ]


def test_nothing_in_a_trace_steers_the_terminal() -> None:
    lines = text(
        {"node": "a", "keys": ["\x1b[2J", "a\nb: run"], **RAN, "error": "gone\r\x9b31m…\udcff"}
    )
    assert lines[1:] == ["    in: \\x1b[2J, a\\nb: run", "    out: raised gone\\r\\x9b31m…\\udcff"]


# over HTTP


def app(**settings: Any) -> FastAPI:
    configs = [
        load(
            {
                "pipeline": {"name": "text"},
                "shout": {"backend": "TraceShout", "next": "end"},
                "end": {"backend": "Identity"},
            }
        ),
        load(
            {
                "pipeline": {"name": "decoded"},
                "shout": {"backend": "TraceDecoded", "next": "end"},
                "end": {"backend": "Identity"},
            }
        ),
        load(
            {
                "pipeline": {"name": "words"},
                "stream": {"backend": "TraceStream", "next": "shout"},
                "shout": {"backend": "TraceShout"},
            }
        ),
    ]
    return create_app(configs, settings=Settings(**settings))


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[httpx.Client]:
    with running(app(api_key="key", admin_token="token", allow_trace=True)) as client:
        yield client


def test_the_trace_comes_with_the_answer(client: httpx.Client) -> None:
    answer = client.post("/predict/text", content=b"abc", headers=TRACED)
    assert answer.status_code == 200
    shout, end = answer.json()["trace"]
    assert (shout["node"], shout["keys"], shout["left"], shout["batch"]) == (
        "shout",
        ["data"],
        ["data", "result"],
        1,
    )
    assert (end["node"], end["filter"], end["status"]) == ("end", "swap", "Run")
    assert {"queue_ms", "run_ms"} < set(end)
    assert "queue.end" in answer.headers["server-timing"]


@pytest.mark.parametrize(
    "headers", [ADMIN, ADMIN | {"Penstock-Trace": "0"}, {"Authorization": "Bearer key"}]
)
def test_an_answer_has_no_trace_unless_an_admin_asks(
    client: httpx.Client, headers: dict[str, str]
) -> None:
    assert client.post("/predict/text", content=b"abc", headers=headers).json() == {
        "result": "B'ABC'"
    }
    assert "trace" not in client.post("/predict/text", content=b"", headers=headers).json()


def test_a_request_for_the_trace_without_the_admin_token_is_refused(
    client: httpx.Client, running: Any
) -> None:
    answer = client.post(
        "/predict/text",
        content=b"abc",
        headers={"Authorization": "Bearer key", "Penstock-Trace": "1"},
    )
    assert (answer.status_code, answer.json()["code"]) == (
        403,
        "forbidden",
    ) and "admin token" in answer.json()["detail"]
    with running(app(admin_token="token", allow_trace=True)) as unprotected:
        for headers in (
            {"Penstock-Trace": "1"},
            {"Penstock-Trace": "1", "Authorization": "Bearer tokem"},
        ):
            answer = unprotected.post("/predict/text", content=b"abc", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert (
            len(unprotected.post("/predict/text", content=b"abc", headers=TRACED).json()["trace"])
            == 2
        )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"admin_token": "token"},
        {"admin_token": "token", "allow_model_control": True},
        {"allow_trace": True},
    ],
)
def test_it_is_off_unless_the_operator_allows_it(running: Any, settings: dict[str, Any]) -> None:
    with running(app(**settings)) as client:
        answer = client.post("/predict/text", content=b"abc", headers=TRACED)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "PENSTOCK_ALLOW_TRACE" in answer.json()["detail"]


def test_other_values_of_the_header_are_refused(client: httpx.Client) -> None:
    for path, value in (("text", "yes"), ("text/batch", "1")):
        files = {"images": b"abc"} if value == "1" else None
        answer = client.post(
            f"/predict/{path}",
            files=files,
            content=None if files else b"abc",
            headers=ADMIN | {"Penstock-Trace": value},
        )
        assert (answer.status_code, answer.json()["detail"]) == (
            400,
            "Penstock-Trace is malformed: expected 0, or 1 with a request of one item",
        )


def test_a_failure_has_its_trace_with_the_text_of_the_error(client: httpx.Client) -> None:
    answer = client.post("/predict/decoded", content=b"unreadable", headers=TRACED)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert int(answer.headers["content-length"]) == len(answer.content)
    (step, stopped) = answer.json()["trace"]
    assert (
        step["error"] == "no \\udcff <b>text</b>"
        and stopped["reason"] == "it has an error: no \\udcff <b>text</b>"
    )
    answer = client.post("/predict/decoded", content=b"fail", headers=TRACED).json()
    (step,) = answer["trace"]
    assert answer["code"] == "backend_error" and "secret" not in answer["detail"]
    assert step["error"].endswith("raised KeyError: 'secret'")  # the administrator may see it


def test_the_trace_of_a_stream_comes_with_its_last_event(client: httpx.Client) -> None:
    answer = client.post(
        "/predict/words", content=b"a b", headers=TRACED | {"Accept": "text/event-stream"}
    )
    *parts, last = answer.text.strip().split("\n\n")
    assert parts == ['data: {"result":"A"}', 'data: {"result":"B"}']
    event, data = last.split("\n")
    end = json.loads(data.removeprefix("data: "))
    assert event == "event: end" and end["parts"] == 2
    assert [yielded[0]["node"] for yielded in end["trace"][0]["yields"]] == ["shout", "shout"]
    answer = client.post(
        "/predict/words", content=b"a fail", headers=TRACED | {"Accept": "text/event-stream"}
    )
    event, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert event == "event: error"
    assert "secret" in json.loads(data.removeprefix("data: "))["trace"][0]["yields"][1][0]["error"]
