from __future__ import annotations

import gc
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.app.processes import arena, messages
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput, InvalidRequest
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import budget
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.passed import Passed, pack

from ...server.doors import wait_until
from ..fronts import SECONDS, Models, StubFront, models

GATE = threading.Event()
INSIDE = threading.Event()
SEEN: list[Any] = []
"""The arrays that the last tensor backend got."""


@register_backend("CrossedProbe")
class CrossedProbe(Backend):
    """Does what `data` says."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            data = item["data"]
            if isinstance(data, bytes) and data.startswith(b"wait"):
                INSIDE.set()
                GATE.wait(60)
            if isinstance(data, bytes) and data.startswith(b"soft"):
                item["error"] = InvalidInput("not an image file")
            elif isinstance(data, bytes) and b"many" in data:
                item["result"] = np.zeros(100_000)
            else:
                item["result"] = len(data)


@register_backend("CrossedTensor")
class CrossedTensor(Backend):
    """Answers its input plus 1. 13 waits at the gate."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            array = item["data"]
            SEEN[:] = [(array.__array_interface__["data"][0], array.flags.writeable)]
            if array.flat[0] == 13:
                INSIDE.set()
                GATE.wait(60)
            item["result"] = array + 1


TENSOR = {"kind": "tensor", "dtype": "FP32", "shape": [-1, -1]}
PIPELINES: list[dict[str, Any]] = [
    {"pipeline": {"name": "probe"}, "probe": {"backend": "CrossedProbe", "max": 8}},
    {
        "pipeline": {"name": "tensor", "inputs": {"IN": TENSOR}, "outputs": {"OUT": TENSOR}},
        "tensor": {"backend": "CrossedTensor"},
    },
    {
        "pipeline": {
            "name": "cached",
            "inputs": {"IN": TENSOR},
            "outputs": {"OUT": TENSOR},
            "cache": True,
        },
        "tensor": {"backend": "CrossedTensor"},
    },
    {
        "pipeline": {"name": "chain"},
        "first": {"backend": "Identity", "next": "second", "front": True},
        "second": {"backend": "CrossedProbe"},
    },
]
SETTINGS: dict[str, Any] = {"max_body": 3_000_000, "access_log": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Models]:
    with models(*PIPELINES, **SETTINGS) as process:
        yield process


@pytest.fixture
def front(served: Models) -> Iterator[StubFront]:
    GATE.clear()
    INSIDE.clear()
    with served.front() as front:
        yield front
    GATE.set()


def infer(
    front: StubFront,
    array: Any,
    *,
    model: str = "tensor",
    align: bool = True,
    timeout: int = 0,
    first_byte: float = 0.0,
) -> int:
    """Send an infer request whose tensor, a float32 array, follows its JSON in an extent."""
    blob = array.tobytes()
    size = {"binary_data_size": len(blob)}
    tensor = {"name": "IN", "datatype": "FP32", "shape": array.shape, "parameters": size}
    outputs = [{"name": "OUT", "parameters": {"binary_data": True}}]
    document: dict[str, Any] = {"inputs": [tensor], "outputs": outputs}
    if timeout:
        document["parameters"] = {"timeout": timeout}
    text = json.dumps(document).encode()
    place = len(text) if align else len(text) + 1
    extent = front.arena.put(text, blob, align=place)
    assert extent is not None
    header = f"inference-header-content-length: {len(text)}"
    path = f"/v2/models/{model}/infer"
    return front.request(path, extent, header, first_byte=first_byte)


def test_a_request_is_answered(front: StubFront) -> None:
    number = front.request("/predict/probe", b"12345", "x-request-id: of-the-client")
    kind, answered, status, head, body, keep_alive, log = front.receive()
    assert (kind, answered, status, body, keep_alive) == (
        messages.ANSWER,
        number,
        200,
        b'{"result":5}',
        True,
    )
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[-2:] == ["x-request-id: of-the-client", ""]
    assert log[:2] == ("of-the-client", "probe")
    assert log[2] > 0 and log[3] > 0


def test_errors_are_those_of_one_process(front: StubFront) -> None:
    front.request("/predict/missing", b"x")
    _, status, _, body = front.answer()
    assert (status, json.loads(body)["code"]) == (404, "not_found")
    front.request("/predict/probe", b"soft")
    _, status, _, body = front.answer()
    assert (status, json.loads(body)["code"]) == (422, "invalid_input")
    front.request("/v2/models/missing/infer", b"{}")
    _, status, _, body = front.answer()
    assert (status, list(json.loads(body))) == (400, ["error"])


def test_large_bodies_cross_in_extents(front: StubFront) -> None:
    extent = front.arena.put(b"x" * 100_000)
    assert extent is not None
    front.request("/predict/probe", extent)
    _, status, _, body = front.answer()
    assert (status, body) == (200, b'{"result":100000}')
    front.until_free()
    front.request("/predict/probe", b"many")
    _, status, head, body = front.answer()
    assert status == 200
    assert f"content-length: {len(body)}\r\n".encode() in head
    assert body == b'{"result":[' + b",".join([b"0.0"] * 100_000) + b"]}"


def test_large_tensors_stay_where_they_are(front: StubFront) -> None:
    array = np.random.default_rng(0).random((1, 100_000), np.float32)
    infer(front, array)
    _, status, head, body = front.answer()
    assert status == 200
    (length,) = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"inference-header-content-length")
    ]
    assert np.array_equal(np.frombuffer(body[length:], np.float32), array[0] + 1)
    address, writable = SEEN[0]
    assert writable
    assert any(low <= address < high for low, high in shared_memory())
    front.until_free()


def test_an_extent_is_not_freed_while_its_tensor_is_read(front: StubFront) -> None:
    number = infer(front, np.full((1, 100_000), 13, np.float32))
    assert INSIDE.wait(SECONDS)
    front.send(messages.CANCEL, number)  # the backend reads it still
    front.request("/predict/probe", b"12345")
    assert front.answer()[1] == 200  # what was freed by now has been told
    assert front.arena.in_use > 400_000
    GATE.set()
    front.until_free()


def test_tensors_that_are_not_aligned_are_copied(front: StubFront) -> None:
    infer(front, np.zeros((1, 100_000), np.float32), align=False)
    assert front.answer()[1] == 200
    address, writable = SEEN[0]
    assert writable
    assert not any(low <= address < high for low, high in shared_memory())
    front.until_free()


def test_what_a_cache_may_keep_is_copied(front: StubFront) -> None:
    infer(front, np.zeros((1, 100_000), np.float32), model="cached")
    assert front.answer()[1] == 200
    address, _ = SEEN[0]
    assert not any(low <= address < high for low, high in shared_memory())
    front.until_free()


def test_what_stays_in_an_extent_is_counted_by_its_front_alone(front: StubFront) -> None:
    before = budget.used  # of both, which are one process here
    number = infer(front, np.full((1, 100_000), 13, np.float32))
    assert INSIDE.wait(SECONDS)
    assert 400_000 < budget.used - before < 410_000
    front.send(messages.CANCEL, number)
    GATE.set()
    front.until_free()


def shared_memory() -> list[tuple[int, int]]:
    """Return the addresses at which arenas are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "/memfd:penstock" in line]
    return [(int(low, 16), int(high, 16)) for low, high in ranges]


def test_a_request_that_has_left_lets_go_of_its_extent(front: StubFront) -> None:
    array = np.full((1, 100_000), 13, np.float32)
    number = infer(front, array)
    assert INSIDE.wait(SECONDS)
    front.send(messages.CANCEL, number)
    front.request("/predict/probe", b"after")
    assert front.answer()[0] == number + 1
    assert front.arena.in_use > 400_000  # the model still computes with it
    GATE.set()
    front.until_free()


def test_a_request_that_was_asked_for(front: StubFront) -> None:
    number = front.request("/predict/probe", b"", size=5, kind=messages.ASK)
    assert front.receive() == (messages.GO, number)
    front.send(messages.BODY, number, b"12345")
    assert front.answer()[::3] == (number, b'{"result":5}')


def test_a_request_that_was_asked_for_and_is_refused(front: StubFront) -> None:
    front.request("/predict/missing", b"", size=5, kind=messages.ASK)
    assert front.answer()[1] == 404
    front.request("/v2/models/tensor/infer", b"", size=4_000_000, kind=messages.ASK)
    assert front.answer()[1] == 400


def test_a_request_that_was_asked_for_and_has_left(front: StubFront) -> None:
    before = budget.used
    number = front.request("/predict/probe", b"", size=200_000, kind=messages.ASK)
    assert front.receive() == (messages.GO, number)
    assert budget.used == before + 200_000
    front.send(messages.CANCEL, number)
    extent = front.arena.put(b"x" * 200_000)
    assert extent is not None
    front.send(messages.BODY, number, extent)
    front.until_free()
    assert budget.used == before


def test_a_body_that_does_not_come(front: StubFront) -> None:
    error = pickle.dumps(InvalidRequest("the body did not arrive"))
    whole = front.request("/predict/probe", b"", size=9, kind=messages.ASK)
    assert front.receive() == (messages.GO, whole)
    client = ("192.0.2.1", 7)
    front.send(messages.FAIL, whole, b"", client, time.monotonic(), error)
    kind, number, status, _, body, keep_alive, _ = front.receive()
    assert (kind, number, status, keep_alive) == (messages.ANSWER, whole, 400, False)
    assert json.loads(body)["detail"] == "the body did not arrive"
    head = b"POST /v2/models/tensor/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    front.send(messages.FAIL, 77, head, client, time.monotonic(), error)
    kind, number, status, _, body, keep_alive, _ = front.receive()
    assert (kind, number, status, keep_alive) == (messages.ANSWER, 77, 400, False)
    assert json.loads(body) == {"error": "the body did not arrive"}


def test_a_deadline_counts_from_the_first_byte(front: StubFront) -> None:
    late = time.monotonic() - 1
    front.request("/predict/probe", b"x", "penstock-deadline-ms: 500", first_byte=late)
    _, status, _, body = front.answer()
    assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
    front.request("/predict/probe", b"x", "penstock-deadline-ms: 30000", first_byte=late)
    assert front.answer()[1] == 200
    array = np.zeros((1, 100_000), np.float32)
    infer(front, array, timeout=500_000, first_byte=late)  # microseconds
    assert b"timeout passed before the body" in front.answer()[3]
    infer(front, array, timeout=30_000_000, first_byte=late)
    assert front.answer()[1] == 200


def test_what_no_call_takes_is_sent_again(front: StubFront) -> None:
    for path in ("/health/live", "/predict/probe\x01"):
        extent = front.arena.put(b"x" * 40_000)
        assert extent is not None
        number = front.request(path, extent)
        assert front.receive() == (messages.RESEND, number)
        front.until_free()


def test_a_front_that_goes_takes_its_requests_along(served: Models) -> None:
    GATE.clear()
    INSIDE.clear()
    before = budget.used
    with served.front(1) as other, served.front(2) as front:
        front.request("/predict/probe", b"wait")
        infer(front, np.full((1, 100_000), 13, np.float32))
        assert INSIDE.wait(SECONDS)
        front.socket.close()
        wait_until(lambda: in_flight(served) == 0)
        GATE.set()
        other.request("/predict/probe", b"x")
        assert other.answer()[1] == 200
    gc.collect()
    assert budget.used == before


def in_flight(served: Models) -> int:
    return sum(pipeline.in_flight for pipeline in served.repository.served)


def test_answers_wait_for_room_in_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "MOST_BYTES", 1 << 20)  # two answers of 400 kB
    with models(*PIPELINES) as process, process.front() as front:
        for _ in range(5):
            front.request("/predict/probe", b"many")
        first = front.receive()
        second = front.receive()
        front.request("/predict/probe", b"small")  # overtakes those that wait
        assert front.receive()[4] == b'{"result":5}'
        for waiting in (first, second):
            assert len(front.content(waiting[4])) == 400_012
        for _ in range(3):
            assert len(front.answer()[3]) == 400_012


def passed_of(pipeline: Pipeline, result: Any, token: str = "") -> tuple[bytes, list[memoryview]]:
    now = time.monotonic()
    visits = ((now, (now, now, 1, None, False, None, ())),)
    item = {"result": result}
    token = token or pipeline.token
    return pack(Passed(token, 1, "of-the-front", now + 60, False, visits, item=item))


def passes(front: StubFront, number: int, packed: tuple[bytes, list[memoryview]]) -> None:
    payload, buffers = packed
    arrays: list[Any] = []
    for buffer in buffers:
        extent = front.arena.put(buffer)
        assert extent is not None
        arrays.append(extent)
    head = b"POST /predict/chain HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n"
    client = ("192.0.2.1", 7)
    front.send(messages.PASSED, number, head, payload, arrays, client, 0.0, True)


def test_a_request_goes_on_behind_its_front_nodes(front: StubFront, served: Models) -> None:
    pipeline = served.repository.pipelines["chain"]
    assert pipeline.front_nodes == ("first",)
    before = budget.used
    passes(front, 4, passed_of(pipeline, b"wait"))
    assert INSIDE.wait(SECONDS)
    assert budget.used == before  # though its head says that it has a body
    GATE.set()
    assert front.answer()[::3] == (4, b'{"result":4}')
    passes(front, 5, passed_of(pipeline, np.zeros(50_000)))
    number, status, head, body = front.answer()
    assert (number, status, body) == (5, 200, b'{"result":50000}')
    assert b"x-request-id: of-the-front\r\n" in head
    assert b"run.first;dur=" in head and b"run.second;dur=" in head
    front.until_free()
    assert budget.used == before
    passes(front, 6, passed_of(pipeline, "inline"))
    assert front.answer()[::3] == (6, b'{"result":6}')


def test_a_request_whose_pipeline_was_replaced_is_sent_again(
    front: StubFront, served: Models
) -> None:
    before = budget.used
    pipeline = served.repository.pipelines["chain"]
    passes(front, 5, passed_of(pipeline, np.zeros(50_000), token="of-an-old-one"))
    assert front.receive() == (messages.RESEND, 5)
    front.until_free()
    number = front.request("/predict/chain", b"", size=9, kind=messages.ASK)
    assert front.receive() == (messages.GO, number)
    passes(front, number, passed_of(pipeline, b"abc", token="of-an-old-one"))
    assert front.receive() == (messages.RESEND, number)
    assert budget.used == before
    number = front.request("/predict/chain", b"", size=9, kind=messages.ASK)
    assert front.receive() == (messages.GO, number)
    passes(front, number, passed_of(pipeline, b"abc"))
    assert front.answer()[::3] == (number, b'{"result":3}')


def test_pressure_is_told(front: StubFront, served: Models) -> None:
    served.call(lambda: served.repository.on_pressure("token", True))
    assert front.receive() == (messages.PRESSURE, "token", True)


def test_a_message_that_can_not_be_read_is_sent_in_another_form(
    front: StubFront, caplog: pytest.LogCaptureFixture
) -> None:
    before = budget.used
    passes(front, 5, (b"no pickle", []))
    assert front.receive() == (messages.RESEND, 5)
    number = front.request("/predict/probe", b"", size=9, kind=messages.ASK)
    assert front.receive() == (messages.GO, number)
    front.send(messages.FAIL, number, b"", None, 0.0, b"no pickle")
    assert front.receive() == (messages.RESEND, number)
    front.until_free()
    assert budget.used == before
    assert caplog.messages == ["a message of front 1 could not be handled"] * 2
