"""What the history remembers of each request, by every door, and what it forgets."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from penstock import Backend, create_app
from penstock.app.factory import lifespan
from penstock.app.history.record import MAX_VISITS, Failure, Record
from penstock.app.history.ring import MAX_KEPT, History
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings
from penstock.backends import timeline
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.node.queue import Batch, BatchStart, Visit
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository
from penstock.pipelines.runs.pace import Pace
from penstock.testing import Gate

GATE = Gate()


@register_backend("RingWork")
def work(data: Any) -> Any:
    """Fail, or wait at the gate, if the data says so."""
    if data == "unreadable":
        raise InvalidInput("this can't be read")
    if data == "fail":
        raise KeyError("secret")
    if data == "wait":
        GATE.wait()
    return data


@register_backend("RingEcho")
async def echo(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        if chunk == "fail":
            raise KeyError("secret")
        yield chunk


@register_backend("RingPair")
async def pair(item: Any, call: Any) -> Any:
    first = await call("one", {"data": item["data"]})
    return (await call("two", {"data": first["result"]}))["result"]


@register_backend("RingPieces")
class Engine(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            with timeline.span("assembly", rows=1):
                item["result"] = item["data"]
            with timeline.span("run", rows=1):
                pass


TEXT = {"data": {"kind": "text"}}
PIPELINES: list[Any] = [
    {"pipeline": {"name": "one", "inputs": TEXT}, "net": {"backend": "RingWork"}},
    {
        "pipeline": {"name": "chain", "inputs": TEXT},
        "first": {"backend": "Identity", "next": "then"},
        "then": {"backend": "RingWork"},
    },
    {"pipeline": {"name": "engine", "inputs": TEXT}, "net": {"backend": "RingPieces"}},
    {
        "pipeline": {"name": "graph", "inputs": TEXT},
        "first": {"backend": "Identity", "next": "then"},
        "then": {"backend": "RingWork", "filter": "Run", "map": "first[result:data]"},
    },
    {
        "pipeline": {"name": "full", "inputs": TEXT, "max_requests": 1},
        "net": {"backend": "RingWork"},
    },
    {
        "pipeline": {"name": "echo", "inputs": {"data": {"kind": "text", "stream": True}}},
        "logic": {"backend": "RingEcho"},
    },
    {
        "pipeline": {"name": "parts", "inputs": {"data": {"kind": "json"}}},
        "each": {"backend": "MapReduce", "jump": "net"},
        "net": {"backend": "Identity", "max": 100},
    },
    {
        "pipeline": {"name": "logic", "inputs": TEXT, "entry": "logic"},
        "logic": {"backend": "RingPair"},
        "one": {"backend": "Identity"},
        "two": {"backend": "RingWork"},
    },
]


class Served(NamedTuple):
    client: httpx.Client
    app: FastAPI

    def find(self, request_id: str) -> Record:
        """Return the only record of a request, which may have ended a moment ago."""
        end = time.monotonic() + 30
        while True:
            history: History = self.app.state.history.copy()
            found = [record for record in history if record.id == request_id]
            if found or time.monotonic() > end:
                (record,) = found
                return record
            time.sleep(0.001)


@pytest.fixture(scope="module", params=["direct", "asgi"])
def served(request: Any, running: Any) -> Iterator[Served]:
    settings = Settings(request_history=500, max_body=1000)
    app = create_app([load(one) for one in PIPELINES], settings=settings)
    connections = Connections(settings)
    connections.direct = request.param == "direct"
    with running(app, http=connections, proxy_headers=False) as client:
        yield Served(client, app)


def infer(data: str, timeout: int | None = None) -> str:
    port = {"name": "data", "shape": [1], "datatype": "BYTES", "data": [data]}
    more = {} if timeout is None else {"parameters": {"timeout": timeout}}
    return json.dumps({"inputs": [port], **more})


LATE = {"Penstock-Deadline-Ms": "0.0001"}
EVENTS = {"Accept": "text/event-stream"}
JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/one/infer"
INTERNAL = "backend_error"

Case = tuple[str, str, dict[str, str], str, int, str, str, list[str]]
CASES: list[Case] = [
    # path, body, headers; door, status, outcome, code, nodes
    ("/predict/one", "x", {}, "predict", 200, "ok", "", ["net"]),
    ("/predict/chain", "x", {}, "predict", 200, "ok", "", ["first", "then"]),
    ("/predict/graph", "x", {}, "predict", 200, "ok", "", ["first", "then"]),
    ("/predict/graph", "fail", {}, "predict", 500, "failed", INTERNAL, ["first", "then"]),
    ("/predict/one", "unreadable", {}, "predict", 422, "bad input", "invalid_input", ["net"]),
    ("/predict/one", "fail", {}, "predict", 500, "failed", INTERNAL, ["net"]),
    ("/predict/chain", "fail", {}, "predict", 500, "failed", INTERNAL, ["first", "then"]),
    ("/predict/one", "x", LATE, "predict", 504, "expired", "deadline_exceeded", ["net"]),
    ("/predict/one", "", {}, "predict", 400, "bad input", "invalid_request", []),
    ("/predict/one", "x" * 1001, {}, "predict", 413, "bad input", "too_large", []),
    ("/predict/none", "x", {}, "predict", 404, "bad input", "not_found", []),
    ("/predict/parts", "[1, 2]", JSON, "predict", 200, "ok", "", ["each", "net", "net"]),
    ("/predict/logic", "x", {}, "predict", 200, "ok", "", ["logic", "one", "two"]),
    ("/predict/logic", "fail", {}, "predict", 500, "failed", INTERNAL, ["logic", "one", "two"]),
    ("/predict/parts/batch", "[[1], [2, 3]]", JSON, "batch", 200, "ok", "",
     ["each", "net", "each", "net", "net"]),
    ("/predict/parts/batch", "[[1], 2]", JSON, "batch", 200, "failed", INTERNAL,
     ["each", "net", "each"]),
    ("/predict/parts/batch", "[", JSON, "batch", 400, "bad input", "invalid_request", []),
    (INFER, infer("x"), JSON, "v2", 200, "ok", "", ["net"]),
    (INFER, infer("unreadable"), JSON, "v2", 400, "bad input", "invalid_input", ["net"]),
    (INFER, infer("fail"), JSON, "v2", 500, "failed", INTERNAL, ["net"]),
    (INFER, "{}", JSON, "v2", 400, "bad input", "invalid_request", []),
    (INFER.replace("one", "none"), infer("x"), JSON, "v2", 400, "bad input", "invalid_request", []),
    ("/predict/one", "x", EVENTS, "stream", 200, "ok", "", ["net"]),
    ("/predict/one", "fail", EVENTS, "stream", 500, "failed", INTERNAL, ["net"]),
    ("/predict/echo", "x", {}, "stream", 200, "ok", "", ["logic"]),
    ("/predict/echo", "x", EVENTS, "stream", 200, "ok", "", ["logic"]),
    ("/predict/echo", "fail", {}, "stream", 500, "failed", INTERNAL, ["logic"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_door_and_end_has_one_record(served: Served, number: int) -> None:
    path, body, headers, door, status, outcome, code, nodes = CASES[number]
    began = time.monotonic()
    headers = {"Content-Type": "text/plain", **headers, "X-Request-Id": f"case-{number}"}
    answer = served.client.post(path, content=body, headers=headers)
    record = served.find(f"case-{number}")
    assert (record.door, record.status, record.outcome) == (door, status, outcome), answer.text
    assert answer.status_code == status
    assert record.code == code and (code != "backend_error" or "secret" not in record.detail)
    if outcome != "expired":  # it may come to its end before or behind the queue
        assert [visit.node for visit in record.walk()] == nodes
    assert record.pipeline == (None if "none" in path else path.split("/")[2 + ("v2" in path)])
    assert began <= record.started + 0.1  # uvloop's clock has milliseconds
    assert record.started <= record.ended <= time.monotonic()
    for visit in record.walk():
        if outcome != "expired":
            assert visit.batch is not None and visit.batch.executor is None
            assert visit.enqueued <= visit.batch.started <= visit.batch.ended <= record.ended


def test_a_refusal(served: Served) -> None:
    GATE.reset()
    first = send_raw(served, "/predict/full", "wait", "held")
    GATE.wait_entered()
    headers = {"X-Request-Id": "refused", "Content-Type": "text/plain"}
    assert served.client.post("/predict/full", content="x", headers=headers).status_code == 429
    GATE.open()
    with first:
        assert first.recv(20)
    assert served.find("held").outcome == "ok"
    record = served.find("refused")
    assert (record.outcome, record.code, record.status) == ("refused", "queue_full", 429)


def test_a_client_that_left(served: Served) -> None:
    for name in ("one", "chain", "graph"):
        GATE.reset()
        send_raw(served, f"/predict/{name}", "wait", f"left-{name}").close()
        GATE.wait_entered()
        record = served.find(f"left-{name}")
        GATE.open()
        assert (record.outcome, record.status, record.failure) == ("left", 499, None)
        last = record.visits[-1]
        assert last.node == ("net" if name == "one" else "then")
        assert last.batch is not None and last.batch.started >= last.enqueued


def test_the_pieces_of_an_engine(served: Served) -> None:
    for name in ("e1", "e2"):  # from the second batch of a thread on
        headers = {"Content-Type": "text/plain", "X-Request-Id": name}
        assert served.client.post("/predict/engine", content="x", headers=headers).is_success
    batch = served.find("e2").visits[0].batch
    assert batch is not None and [name for name, _ in batch.pieces] == ["assembly", "run"]
    assert 0 <= sum(seconds for _, seconds in batch.pieces) <= batch.ended - batch.started


def test_sockets(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.client.base_url.port}/predict"
    for name, message, outcome in (("s1", "x", "ok"), ("s2", "fail", "failed")):
        headers = {"X-Request-Id": name}
        with (
            contextlib.suppress(ConnectionClosed),  # a failure closes it, maybe before the end
            connect(f"{url}/echo/stream", additional_headers=headers, open_timeout=30) as client,
        ):
            client.send(message)
            client.send("")
            while True:
                client.recv(30)
        record = served.find(name)
        assert (record.door, record.status, record.outcome) == ("socket", 101, outcome)
        assert [visit.node for visit in record.walk()] == ["logic"]


def send_raw(served: Served, path: str, body: str, request_id: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", served.client.base_url.port or 0))
    client.settimeout(60)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return client


async def test_a_mounted_app_remembers_and_a_bad_key_leaves_no_trace() -> None:
    settings = Settings(api_key=SecretStr("key"))
    models = create_app(load(PIPELINES[0]), settings=settings)
    host = FastAPI(lifespan=lambda host: lifespan(models))
    host.mount("/models", models)
    transport = httpx.ASGITransport(host)
    async with (
        host.router.lifespan_context(host),
        httpx.AsyncClient(transport=transport, base_url="http://host") as client,
    ):
        for key in ("key", "wrong"):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "text/plain"}
            await client.post("/models/predict/one", content="x", headers=headers)
    assert [record.status for record in models.state.history] == [200]


async def test_off() -> None:
    app = create_app(load(PIPELINES[0]), settings=Settings(request_history=0))
    assert app.state.history is None
    async with lifespan(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            headers = {"Content-Type": "text/plain"}
            answer = await client.post("/predict/one", content="x", headers=headers)
            assert answer.status_code == 200
        run = app.state.penstock.get("one").submit_nowait({"data": "x"})
        await run.future
        batch = run.visits()[0].batch
        assert batch.start is None and batch.parts is None


# what is kept


def quick(history: History, pace: Pace, name: str, seconds: float = 0.001) -> None:
    """Remember a request as the direct way does."""
    now = time.monotonic()
    batch = batch_of_one(now - seconds)
    one = (name, pace, "predict", 0.0, now - seconds, now, batch, 1)
    history.append(one)  # type: ignore[arg-type]
    if seconds > pace.slow:
        history.add_slow(one)  # type: ignore[arg-type]


def chain(history: History, pace: Pace, name: str, seconds: float, nodes: int = 2) -> None:
    """Remember a good request that passed several nodes."""
    began = time.monotonic() - seconds
    trail = [(batch_of_one(began), began) for _ in range(nodes)]
    history.add_trail(name, pace, "predict", began, trail, 1)


def batch_of_one(now: float) -> Batch:
    batch = Batch("a node of this name", None, [], 1, now + 1e-6)
    batch.start = BatchStart._make(now + n for n in range(len(BatchStart._fields)))
    batch.ended = now + 1e-3
    batch.pieces = (("assembly", now), ("run", now + 1))
    batch.memo = (b"a" * 60, b"b" * 100)
    batch.forget()
    return batch


def add(history: History, pace: Pace, name: str, code: str, status: int, visits: int = 0) -> None:
    failure = Failure(code, "\U0001f600" * 600) if code else None
    history.add(
        name,
        pace,
        door="predict",
        status=status,
        failure=failure,
        started=time.monotonic() - 5,
        runs=[Passed(visits)],  # type: ignore[list-item]
    )


class Passed:
    """A run that has passed many nodes."""

    rows = 1

    def __init__(self, count: int) -> None:
        self.count = count

    def visits(self) -> list[Visit]:
        now = time.monotonic()
        return [Visit("node", now + n, batch_of_one(now + n)) for n in range(self.count)]


def pace_of(mean: float) -> Pace:
    pace = Pace("pipeline", "1")
    pace.mean, pace.slow = mean, 3 * mean
    return pace


def test_a_flood_of_quick_and_refused_requests_leaves_the_slow_and_failed_ones() -> None:
    history, pace = History(100), pace_of(1.5)
    add(history, pace, "failed", "backend_error", 500)
    add(history, pace, "expired", "deadline_exceeded", 504)
    quick(history, pace, "slow", 10.0)
    chain(history, pace, "slow chain", 5.0)
    for number in range(300):
        chain(history, pace, f"chain {number}", 0.001)
        quick(history, pace, f"quick {number}")
        add(history, pace, f"refused {number}", "overloaded", 429)
    assert len(history) == 100 and len(list(history.recent())) == 100
    newest_three = [record.id for record in history.recent()][:3]
    assert newest_three == ["refused 299", "quick 299", "chain 299"]
    assert [record.id for record in history.slow()] == ["slow chain", "slow", "expired", "failed"]
    assert [record.id for record in history.failed()] == ["failed"]
    assert [record.id for record in history][-3:] == ["slow", "expired", "failed"]
    slow = history.find("slow")
    assert slow is not None and slow.slow and slow.usual == 1.5
    assert history.find("quick 0") is None
    newest = history.find("quick 299")
    assert newest is not None and not newest.slow and newest.outcome == "ok"


def test_a_full_ring_takes_less_than_20_mb() -> None:
    """Ids of 128 characters, errors of four bytes a character, batches of one, many nodes."""
    pace = pace_of(1e-9)  # everything is slow
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        history = History(4096)
        for number in range(4200):
            quick(history, pace, f"{number:0128}")
        for number in range(4200):
            chain(history, pace, f"{number:0128}", 0.0)
        for number in range(4200):
            add(history, pace, f"{number:0128}", "overloaded", 429)
        many = MAX_VISITS + 10
        for number in range(220):
            add(history, pace, f"{number:0128}", "", 200, many)
        for number in range(220):
            add(history, pace, f"{number:0128}", "backend_error", 500, many)
        for number in range(MAX_KEPT + 10):
            quick(history, pace, f"{number:0128}")
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 4e6 < after - before < 20e6
    last = next(history.failed())
    assert len(last.visits) == MAX_VISITS and last.more_visits == 10 and len(last.detail) == 500


def test_parts_are_bounded(served: Served) -> None:
    body = json.dumps(list(range(200)))
    headers = {"X-Request-Id": "many-parts", **JSON}
    assert served.client.post("/predict/parts", content=body, headers=headers).status_code == 200
    record = served.find("many-parts")
    assert [visit.node for visit in record.walk()] == ["each"] + ["net"] * 64
    assert record.more_parts == 136
    assert sorted(visit.item for visit in record.walk() if visit.part_of) == list(range(64))


class Model:
    """What a backend holds."""


MODELS: list[weakref.ref[Model]] = []


ANSWERS: weakref.WeakSet[Answer] = weakref.WeakSet()


class Answer:
    """What a backend makes of an item."""

    def __init__(self) -> None:
        ANSWERS.add(self)


@register_backend("RingModel")
class Held(Backend):
    def init(self, params: Any, context: Any) -> None:
        self.model = Model()
        MODELS.append(weakref.ref(self.model))

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = Answer()
            if item["data"] == b"fail":
                raise KeyError(item["result"])


@pytest.fixture
def silence() -> Iterator[None]:
    """pytest keeps what is logged, and with it the frames of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("silence")
async def test_the_history_keeps_no_model_item_or_pipeline_alive() -> None:
    nodes = {"net": {"backend": "RingModel", "next": "then"}, "then": {"backend": "RingLen"}}
    config = load({"pipeline": {"name": "held"}, **nodes})
    repository = Repository([config])
    app = create_app(repository)
    await repository.start()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        answers = [await client.post("/predict/held", content=body) for body in (b"x", b"fail")]
        assert [answer.status_code for answer in answers] == [200, 500]
        pipeline = repository.get("held")
        old = [weakref.ref(each) for each in (pipeline, *pipeline.nodes)]
        del pipeline
        await repository.load(config)
        await repository.wait_idle()
        assert (await client.post("/predict/held", content=b"x")).status_code == 200
    gc.collect()
    assert [model() is None for model in MODELS] == [True, False]
    assert [each() for each in old] == [None] * 3 and not list(ANSWERS)
    assert len(app.state.history) == 3
    await repository.close(1)


@register_backend("RingLen")
def length(data: Any) -> int:
    return 1


# how long requests take lately


def test_the_pace_follows_the_mean() -> None:
    pipeline = Pipeline.load({"a": {"backend": "Identity"}}, name="p")
    pace, requests = pipeline.pace, pipeline.statistics
    assert (pace.name, pace.mean) == ("p", 0.0) and not pace.slow < 1e9

    def end(count: int, seconds: float, now: float) -> None:
        requests.succeeded += count
        requests.seconds += count * seconds
        pace.observe(requests, now)

    end(1, 0.1, 1.0)
    assert pace.mean == pytest.approx(0.1) and pace.slow == pytest.approx(0.3)
    end(3, 0.3, 1.0)  # the mean of the first ones
    assert pace.mean == pytest.approx(0.25)
    end(0, 0.0, 2.0)
    for second in range(60):
        end(1000, 0.001, 2.0 + second)
    assert pace.mean == pytest.approx(0.001, rel=0.2)
    end(10_000, 0.0001, 1000.0)
    assert pace.slow == 0.001  # a jitter of less than a millisecond makes none slow
    end(1, 10.0, 2000.0)  # one request after long has its weight, not more
    assert pace.mean < 0.2
