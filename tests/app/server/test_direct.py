"""The direct way of predict requests (direct.py) against ASGI: the same bytes come back."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from penstock import create_app
from penstock.app.server import connection
from penstock.app.server.direct import Direct
from penstock.app.server.direct_predict import DirectPredict
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.config.load import load
from penstock.pipelines.node.queue import Entry

from .doors import Door, normal, open_door, request, wait_until

GATE = threading.Event()
INSIDE = threading.Event()


@register_backend("DirectProbe")
class DirectProbe(Backend):
    """Does what `data` says."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            data = item["data"]
            if isinstance(data, np.ndarray):  # it can't be compared
                if data.size and data.flat[0] == 13:
                    raise ValueError("secret of /etc/model")
                item["result"] = np.ones(200_000) if data.size == 3 else data + 1
                continue
            if data == b"wait":
                INSIDE.set()
                GATE.wait(60)
            if data == b"fail":
                raise ValueError("secret of /etc/model")
            if data == b"soft":
                item["error"] = InvalidInput("not an image file")
            elif data == b"odd":
                item["result"] = object()
            elif data == b"large":
                item["result"] = np.zeros(100_000)
            elif not isinstance(data, bytes) or data != b"none":
                item["result"] = [len(data), float("nan")]


@pytest.fixture(autouse=True)
def gate() -> Iterator[None]:
    GATE.clear()
    INSIDE.clear()
    yield
    GATE.set()


PIPELINES: list[dict[str, Any]] = [
    {"pipeline": {"name": "one"}, "probe": {"backend": "DirectProbe", "max": 8}},
    {
        "pipeline": {"name": "chain", "timeout": 60},
        "first": {"backend": "Identity", "next": "probe"},
        "probe": {"backend": "DirectProbe", "max": 8, "priority_levels": 2},
    },
    {
        "pipeline": {
            "name": "tensors",
            "inputs": {"INPUT0": {"kind": "tensor", "dtype": "FP64", "shape": [-1]}},
            "outputs": {"OUTPUT0": {"kind": "tensor", "dtype": "FP64", "shape": [-1]}},
        },
        "probe": {"backend": "DirectProbe"},
    },
    {
        "pipeline": {"name": "text", "inputs": {"data": {"kind": "text"}}},
        "probe": {"backend": "DirectProbe"},
    },
    {
        "pipeline": {"name": "value", "inputs": {"data": {"kind": "json"}}},
        "probe": {"backend": "DirectProbe"},
    },
    {
        "pipeline": {"name": "graph"},
        "a": {"backend": "Identity", "next": "b,c"},
        "b": {"backend": "Identity", "next": "d"},
        "c": {"backend": "Identity", "next": "d"},
        "d": {"backend": "DirectProbe", "map": "b[result:data], c[result:other]"},
    },
]
SETTINGS = Settings(
    max_body=150_000,
    max_images=3,
    admin_token=SecretStr("admin"),
    allow_trace=True,
    max_json_depth=20,
)


@contextlib.contextmanager
def door(running: Any, direct: bool, settings: Settings = SETTINGS, **app: Any) -> Iterator[Door]:
    served = create_app([load(pipeline) for pipeline in PIPELINES], settings=settings, **app)
    with open_door(running, served, settings, direct) as opened:
        yield opened


@pytest.fixture
def calls(monkeypatch: Any) -> list[str]:
    """The pipelines of the requests that took the direct way."""
    seen: list[Any] = []

    def start(self: Any, body: bytes | None = None) -> None:
        seen.append(self.head.name if isinstance(self, DirectPredict) else self.head.names["model"])
        started(self, body)

    started = Direct.start
    monkeypatch.setattr(Direct, "start", start)
    return seen


@pytest.fixture(scope="module")
def doors(running: Any) -> Iterator[tuple[Door, Door]]:
    with door(running, True) as direct, door(running, False) as asgi:
        yield direct, asgi


IMAGE = "Content-Type: image/png"
JSON = "Content-Type: application/json"
FORM = "Content-Type: multipart/form-data; boundary=b"


def form(field: str = "image", data: bytes = b"data") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="f"\r\n\r\n'
    return head.encode() + data + b"\r\n--b--\r\n"


def as_json(data: bytes = b"data", key: str = "image") -> bytes:
    return json.dumps({key: base64.b64encode(data).decode()}).encode()


CASES: dict[str, bytes] = {
    "raw": request("/predict/one", b"data", IMAGE),
    "sniffed": request(),
    "octets": request("/predict/one", b"data", "Content-Type: application/octet-stream"),
    "a text": request("/predict/text", b"d\xe4ta", "Content-Type: text/a; charset=latin-1"),
    "text in json": request("/predict/text", b'"data"', JSON),
    "text in a form": request("/predict/text", form("data"), FORM),
    "no text": request("/predict/text", b"\xff", "Content-Type: text/plain"),
    "image for text": request("/predict/text", b"data", IMAGE),
    "a value": request("/predict/value", b'{"a": 1}', JSON),
    "a value of no type": request("/predict/value", b"[1]"),
    "no value": request("/predict/value", b"[1"),
    "read by a helper": request("/predict/value", b"[%b1]" % (b"1," * 70_000), JSON),
    "refused by a helper": request("/predict/value", b"[%b]" % (b"1," * 70_000), JSON),
    "in several": request("/predict/value/batch", b"[[1], [2]]", JSON),
    "put": request(method="PUT"),
    "get": request(method="GET"),
    "chain": request("/predict/chain"),
    "graph": request("/predict/graph"),
    "query": request("/predict/one?a=b&c"),
    "full URL": request("http://x/predict/one"),
    "escaped": request("/predict/%6fne"),
    "version": request("/predict/one/versions/1"),
    "no version": request("/predict/one/versions/9"),
    "unknown": request("/predict/two"),
    "no name": request("/predict/"),
    "deep": request("/predict/one/two"),
    "batch": request("/predict/one/batch", form("images"), FORM),
    "json": request("/predict/one", as_json(), JSON),
    "sniffed json": request("/predict/one", as_json()),
    "bad json": request("/predict/one", b"{", JSON),
    "deep json": request("/predict/one", b"[" * 30, JSON),
    "wrong key": request("/predict/one", as_json(key="picture"), JSON),
    "url": request("/predict/one", b'{"url":"http://x/"}', JSON),
    "form": request("/predict/one", form(), FORM),
    "wrong field": request("/predict/one", form("file"), FORM),
    "no boundary": request("/predict/one", form(), "Content-Type: multipart/form-data"),
    "html form": request("/predict/one", b"a=b", "Content-Type: application/x-www-form-urlencoded"),
    "text": request("/predict/one", b"data", "Content-Type: text/html"),
    "empty": request("/predict/one", b""),
    "no length": request("/predict/one", b"", length=-1),
    "chunked": request(
        "/predict/one", b"4\r\ndata\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=-1
    ),
    "gzip": request("/predict/one", b"data", "Content-Encoding: gzip"),
    "identity": request("/predict/one", b"data", "Content-Encoding: identity"),
    "empty encoding": request("/predict/one", b"data", "Content-Encoding: "),
    "unknown encoding": request("/predict/one", b"data", "Content-Encoding: br"),
    "id": request("/predict/one", b"data", "X-Request-Id: mine-1"),
    "unfit id": request("/predict/one", b"data", "X-Request-Id: a b"),
    "deadline": request("/predict/one", b"data", "Penstock-Deadline-Ms: 60000"),
    "no deadline": request("/predict/one", b"data", "Penstock-Deadline-Ms: soon"),
    "passed deadline": request("/predict/one", b"data", "Penstock-Deadline-Ms: -1"),
    "priority": request("/predict/chain", b"data", "Penstock-Priority: 1"),
    "odd priority": request("/predict/chain", b"data", "Penstock-Priority: high"),
    "large priority": request("/predict/chain", b"data", "Penstock-Priority: 9"),
    "trace": request("/predict/one", b"data", "Penstock-Trace: 1"),
    "trace with token": request(
        "/predict/one", b"fail", "Penstock-Trace: 1", "Authorization: Bearer wrong"
    ),
    "traced": request(
        "/predict/chain", b"data", "Penstock-Trace: 1", "Authorization: Bearer admin"
    ),
    "traced failure": request(
        "/predict/chain", b"fail", "Penstock-Trace: 1", "Authorization: Bearer admin"
    ),
    "untraced": request("/predict/one", b"data", "Penstock-Trace: 0"),
    "events": request("/predict/one", b"data", "Accept: application/json, text/html;q=0.1"),
    "fail": request("/predict/one", b"fail"),
    "fail in chain": request("/predict/chain", b"fail"),
    "fail in graph": request("/predict/graph", b"fail"),
    "soft": request("/predict/one", b"soft"),
    "odd": request("/predict/one", b"odd"),
    "none": request("/predict/one", b"none"),
    "large": request("/predict/one", b"large"),
    "large body": request("/predict/one", bytes(140_000), IMAGE),
    "too large": request("/predict/one", bytes(160_000), IMAGE),
    "upgrade": request("/predict/one", b"data", "Connection: Upgrade", "Upgrade: h2c"),
    "expects": request("/predict/one", b"data", "Expect: 100-continue"),
    "twice": request("/predict/one", b"data", "Content-Type: text/html", IMAGE),
    "two lengths": request("/predict/one", b"data", "Content-Length: 5"),
    "no host": b"POST /predict/one HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    "v2": request("/v2/models/one/infer", b"{}"),
    "health": request("/health/live", b"", method="GET"),
}


def tensors(data: list[float], *lines: str, model: str = "tensors", **document: Any) -> bytes:
    array = {"name": "INPUT0", "datatype": "FP64", "shape": [len(data)], "data": data}
    body = json.dumps({"inputs": [array], **document}).encode()
    return request(f"/v2/models/{model}/infer", body, *lines)


def binary(data: list[float], *lines: str, header: int | None = None, raw: bool = False) -> bytes:
    blob = np.array(data).tobytes()
    array: dict[str, Any] = {"name": "INPUT0", "datatype": "FP64", "shape": [len(data)]}
    array["parameters"] = {"binary_data_size": len(blob)}
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    text = b"" if raw else json.dumps({"inputs": [array], "outputs": outputs}).encode()
    length = f"Inference-Header-Content-Length: {len(text) if header is None else header}"
    return request("/v2/models/tensors/infer", text + blob, length, *lines)


CASES |= {
    "v2 json": tensors([1, 2]),
    "v2 version": tensors([1, 2], model="tensors/versions/1"),
    "v2 no version": tensors([1, 2], model="tensors/versions/7"),
    "v2 unknown": tensors([1, 2], model="nothing"),
    "v2 binary": binary([1, 2]),
    "v2 raw": binary([1, 2], raw=True),
    "v2 wrong header": binary([1, 2], header=9999),
    "v2 odd header": request(
        "/v2/models/tensors/infer", b"{}", "Inference-Header-Content-Length: x"
    ),
    "v2 id": tensors([1, 2], id="a-b"),
    "v2 two ids": tensors([1, 2], "X-Request-Id: mine", id="a-b"),
    "v2 unfit id": tensors([1, 2], id="a b"),
    "v2 fail": tensors([13]),
    "v2 large answer": tensors([1, 2, 3]),
    "v2 timeout": tensors([1, 2], parameters={"timeout": 1}),
    "v2 wrong timeout": tensors([1, 2], parameters={"timeout": "soon"}),
    "v2 priority": tensors([1, 2], parameters={"priority": 1}),
    "v2 wrong name": tensors([1, 2], outputs=[{"name": "OUTPUT9"}]),
    "v2 classes": tensors(
        [1, 2], outputs=[{"name": "OUTPUT0", "parameters": {"classification": 1}}]
    ),
    "v2 malformed": request("/v2/models/tensors/infer", b"{"),
    "v2 empty": request("/v2/models/tensors/infer", b""),
    "v2 encoding": tensors([1, 2], "Accept-Encoding: gzip"),
    "v2 gzip": tensors([1, 2], "Content-Encoding: gzip"),
    "v2 put": tensors([1, 2]).replace(b"POST", b"PUT", 1),
    "v2 too large": request("/v2/models/tensors/infer", bytes(160_000)),
    "v2 other": request("/v2/models/tensors/ready", b"{}"),
}

LAST = request("/predict/one", b"the last", IMAGE, last=True)


@pytest.mark.parametrize("name", CASES)
def test_same_answer(doors: tuple[Door, Door], name: str) -> None:
    # Twice, because the second head is known.
    direct, asgi = (normal(door.exchange(CASES[name] * 2 + LAST)) for door in doors)
    assert direct == asgi
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in direct)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": SecretStr("key"), "admin_token": SecretStr("admin")},
        {"restricted_api": SecretStr("inference:secret=word")},
        {"max_memory": 1000},
    ],
)
def test_same_answer_with_settings(running: Any, calls: list[Any], settings: Any) -> None:
    given = Settings(**settings)
    with door(running, True, given) as direct, door(running, False, given) as asgi:
        for lines in (
            [],
            ["Authorization: Bearer key"],
            ["Authorization: Bearer admin"],
            ["Authorization: Bearer wrong"],
            ["Authorization: Bearer key"] * 2,
            ["Secret: word"],
            ["Secret: word"] * 2,
            ["Penstock-Trace: 1"],
        ):
            for data in (
                request("/predict/one", b"data", *lines),
                request("/predict/one", bytes(1500), *lines),
                tensors([1, 2], *lines),
                request("/predict/nothing", b"data", *lines),
            ):
                data = data + LAST
                assert normal(direct.exchange(data)) == normal(asgi.exchange(data))
    assert len(calls) >= 32


@pytest.mark.parametrize("piece", [1, 7, 60])
@pytest.mark.parametrize(
    "name",
    [
        "raw",
        "json",
        "form",
        "text",
        "deadline",
        "passed deadline",
        "v2 json",
        "v2 binary",
        "chunked",
    ],
)
def test_same_answer_to_pieces(doors: tuple[Door, Door], name: str, piece: int) -> None:
    direct, asgi = (normal(door.exchange(CASES[name] + LAST, piece)) for door in doors)
    assert direct == asgi


@pytest.mark.parametrize("name", ["raw", "large body", "too large", "text", "v2 json", "unknown"])
@pytest.mark.parametrize("missing", [1, 3])
def test_same_answer_to_a_late_body(
    running: Any, calls: list[str], name: str, missing: int
) -> None:
    settings = Settings(max_body=150_000, body_timeout=0.1, discard_timeout=0.1)
    with door(running, True, settings) as direct, door(running, False, settings) as asgi:
        held = budget.used
        data = CASES[name][:-missing]
        assert normal(direct.exchange(data)) == normal(asgi.exchange(data))
        wait_until(lambda: budget.used == held)
        assert direct.connections.closed == asgi.connections.closed
    assert calls


def test_a_body_in_pieces_takes_the_direct_way(running: Any, calls: list[str]) -> None:
    with door(running, True) as server, server.connect() as client:
        head, _, body = CASES["json"].partition(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n")
        wait_until(lambda: calls == ["one"])
        client.sendall(body[:5])
        client.sendall(body[5:] + CASES["raw"])
        received = b""
        while received.count(b'{"result"') < 2:
            received += client.recv(1 << 16)
    assert calls == ["one", "one"]


def test_a_client_that_leaves_during_its_body(running: Any, calls: list[str]) -> None:
    with door(running, True) as server:
        held = budget.used
        with server.connect() as client:
            client.sendall(CASES["large body"][:-5])
            wait_until(lambda: calls == ["one"] and budget.used > held)
        wait_until(lambda: budget.used == held)
        assert server.exchange(LAST).startswith(b"HTTP/1.1 200")


def spoilt(seed: int) -> bytes:
    """Return some requests in a row, of which one has a few bytes changed, left out or repeated."""
    chance = random.Random(seed)
    names = chance.sample([name for name in CASES if "large" not in name], 3)
    requests = [CASES[name] for name in names]
    one = bytearray(requests[1])
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(one))
        one[place : place + chance.randint(0, 2)] = chance.choice(
            [b"", bytes([chance.randrange(256)]), b"\r\n", b"0", b"%", b" ", one[:4]]
        )
    return requests[0] + bytes(one) + requests[2] + LAST + b"\r\n\r\n" + LAST


@pytest.mark.parametrize("seed", range(60))
def test_same_answers_to_spoilt_requests(doors: tuple[Door, Door], seed: int) -> None:
    direct, asgi = (normal(door.exchange(spoilt(seed))) for door in doors)
    assert direct == asgi


def test_small_requests_take_the_direct_way(running: Any, calls: list[Any]) -> None:
    with door(running, True) as server:
        server.exchange(CASES["raw"] + CASES["json"] + CASES["graph"] + LAST)
        assert calls == ["one", "one", "graph", "one"]
        calls.clear()
        server.exchange(CASES["gzip"] + CASES["escaped"] + CASES["expects"] + CASES["batch"] + LAST)
        assert calls == ["one"]
        calls.clear()
        server.exchange(CASES["v2 json"] + CASES["v2 binary"] + CASES["v2 encoding"] + LAST)
        assert calls == ["tensors", "tensors", "tensors", "one"]
        calls.clear()
        server.exchange(CASES["v2 gzip"] + CASES["v2 other"] + LAST)
        assert calls == ["one"]


class Passing:
    """A middleware that changes nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize(
    "options",
    [
        {"middleware": [Middleware(Passing)]},
        {"settings": Settings(allowed_hosts="x")},
        {"settings": Settings(cors_origins="http://x")},
        {"settings": Settings(allow_url=True)},
    ],
)
def test_with_anything_before_it_the_app_answers(
    running: Any, calls: list[Any], options: Any
) -> None:
    with door(running, True, **options) as server:
        assert server.exchange(LAST).startswith(b"HTTP/1.1 ")
    assert not calls


@pytest.mark.parametrize("pipeline", ["one", "chain", "graph"])
def test_a_client_that_leaves_while_it_queues(
    running: Any, calls: list[Any], pipeline: str
) -> None:
    with door(running, True) as server:
        held = budget.used
        with server.connect() as busy:
            busy.sendall(request("/predict/one", b"wait"))
            assert INSIDE.wait(60)
            with server.connect() as leaving:
                leaving.sendall(request(f"/predict/{pipeline}", b"wait"))
                wait_until(lambda: len(calls) == 2)
            wait_until(lambda: len(server.connections.open) == 1)
            GATE.set()
            assert busy.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert server.exchange(LAST).startswith(b"HTTP/1.1 200")
        wait_until(lambda: budget.used == held)
    assert calls == ["one", pipeline, "one"]


def test_requests_leave_no_garbage(running: Any, calls: list[Any]) -> None:
    with door(running, True) as server:
        names = (
            "raw",
            "fail",
            "soft",
            "graph",
            "odd",
            "v2 json",
            "v2 binary",
            "v2 fail",
            "v2 large answer",
        )
        data = b"".join(CASES[name] for name in names) + LAST
        server.exchange(data)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                server.exchange(data)
            gc.collect()
            assert not [found for found in gc.garbage if isinstance(found, Direct | Entry)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert len(calls) == 4 * 10


def test_a_failure_of_ours_costs_no_neighbour(running: Any, monkeypatch: Any, caplog: Any) -> None:
    """One batch, of which one answer can't be written: the others have theirs."""

    def write(self: Any, data: bytes) -> None:
        if b"broken" in data:
            raise ValueError("a mistake")
        written(self, data)

    written = connection.Connection.write
    monkeypatch.setattr(connection.Connection, "write", write)
    with door(running, True) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        clients[0].sendall(request("/predict/one", b"wait"))
        assert INSIDE.wait(60)
        for client, name in zip(clients[1:], ("first", "broken", "last"), strict=True):
            client.sendall(request("/predict/one", b"data", f"X-Request-Id: {name}"))
        GATE.set()
        answers = [client.recv(1 << 16) for client in clients]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 2 + [b"", b"HTTP/1.1 200"]
    assert "request broken could not be answered" in caplog.text


@pytest.mark.parametrize("target", ["predict", "v2"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_client_that_does_not_read_costs_one_answer(
    running: Any, calls: list[str], monkeypatch: Any, direct: bool, target: str
) -> None:
    """The kernel takes some answers, and the server holds one. What the client sends waits."""

    def count(self: Any, keep_alive: bool) -> None:
        answers.append(keep_alive)
        answered(self, keep_alive)

    answers: list[bool] = []
    answered = connection.Connection.answered
    large = request("/predict/one", b"large") if target == "predict" else tensors([1.0, 2.0, 3.0])
    number = 100
    with door(running, direct) as server:
        size = len(server.exchange(large.replace(b"Host: x", b"Host: x\r\nConnection: close")))
        monkeypatch.setattr(connection.Connection, "answered", count)
        held = budget.used
        with server.connect() as client:
            client.sendall(large * number)
            (found,) = wait_for_one(server)

            def waits() -> bool:
                """Return whether it holds one answer. The kernel may take that, and it the next."""
                unsent = found._transport.get_write_buffer_size()
                return found.writing_paused and (
                    budget.used - held <= size + 4 * connection.UNCOUNTED_BYTES
                    and unsent <= size + connection.UNCOUNTED_BYTES
                )

            for _ in range(20):  # others are answered, and it goes on waiting
                wait_until(waits)
                server.exchange(request(last=True))
            assert 0 < len(answers) - 20 < number // 2
            # It reads no more than one piece of what the client goes on to send.
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(large * number)
            server.exchange(request(last=True))
            assert len(found._buffer) <= 1 << 18
        wait_until(lambda: budget.used == held)
    assert bool(calls) is direct


def wait_for_one(server: Door) -> list[Any]:
    """Return the connections of a server, once the earlier ones are gone."""
    wait_until(lambda: len(server.connections.open) == 1)
    return list(server.connections.open)
