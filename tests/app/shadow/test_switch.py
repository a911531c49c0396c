"""This server takes over, and no request fails in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from penstock.app.settings import Settings
from penstock.app.shadow.compare import Comparison
from penstock.app.shadow.facts import Facts
from penstock.app.shadow.options import ShadowOptions
from penstock.app.shadow.switch import Switch

from .conftest import Shadowing, Theirs, models, step, their_server, two_inputs, until

INFER = "/v2/models/simple/infer"
TOTAL = "/v2/models/total/infer"


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, verify=False, headers={"connection": "close"})


@contextmanager
def load(*send: Callable[[], None]) -> Iterator[None]:
    """Call functions again and again, each in a thread, until the end of the block."""
    end, failures = threading.Event(), list[BaseException]()

    def run(one: Callable[[], None]) -> None:
        try:
            while not end.is_set():
                one()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in send]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(60)
    assert not failures


def simple(url: str) -> Callable[[], None]:
    client = client_of(url)

    def send() -> None:
        got = client.post(INFER, json=two_inputs())
        assert (got.status_code, got.json()["outputs"][0]["data"]) == (200, [5, 5, 5, 5])

    return send


def sequences(url: str, number: int) -> Callable[[], None]:
    client = client_of(url)

    def send() -> None:
        for value in range(4):
            body = step(number, value, start=value == 0, end=value == 3)
            got = client.post(TOTAL, json=body)
            assert got.status_code == 200, got.text
            assert got.json()["outputs"][0]["data"] == [sum(range(value + 1))]

    return send


class GrpcStream:
    """One stream for sequences of `total`. It outlives the switch."""

    def __init__(self, target: str, number: int) -> None:
        self._number = number
        self._answers: Queue[Any] = Queue()
        self.client: Any = tritonclient.grpc.InferenceServerClient(target)
        self.client.start_stream(lambda result, error: self._answers.put((result, error)))

    def step(self, value: int, *, start: bool = False, end: bool = False) -> int:
        data = tritonclient.grpc.InferInput("INPUT", [1, 1], "INT32")
        data.set_data_from_numpy(np.array([[value]], np.int32))
        flags: Any = {"sequence_start": start, "sequence_end": end}
        self.client.async_stream_infer("total", [data], sequence_id=self._number, **flags)
        result, error = self._answers.get(timeout=60)
        assert error is None, error
        return int(result.as_numpy("OUTPUT").item())

    def send(self) -> None:
        for value in range(4):
            got = self.step(value, start=value == 0, end=value == 3)
            assert got == sum(range(value + 1))

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


def unary(target: str) -> Callable[[], None]:
    client: Any = tritonclient.grpc.InferenceServerClient(target)

    def send() -> None:
        inputs = []
        for name in ("INPUT0", "INPUT1"):
            inputs.append(tritonclient.grpc.InferInput(name, [1, 4], "FP32"))
            inputs[-1].set_data_from_numpy(np.ones((1, 4), np.float32))
        assert client.infer("simple", inputs).as_numpy("OUTPUT0").tolist() == [[2, 2, 2, 2]]

    return send


def at_triton(server: Shadowing) -> Any:
    return server.report()["switch"]["nothing_left_at_triton"]


def test_no_request_fails_in_the_switch_and_triton_may_be_stopped(
    running: Any, shadowing: Any, ops: Path
) -> None:
    with their_server(running, models(ops)) as theirs:
        serving = shadowing(models(ops), theirs.url, grpc=theirs.grpc)
        server: Shadowing = serving.__enter__()
        url = str(server.client.base_url)
        stream = GrpcStream(server.grpc, 5)
        loaded = load(
            simple(url), sequences(url, 1), sequences(url, 2), stream.send, unary(server.grpc)
        )
        loaded.__enter__()
        until(lambda: all(server.model(name).get("agreed", 0) > 9 for name in ("simple", "total")))
        assert server.switch().json()["done"] is True
        until(lambda: at_triton(server))
    # Triton is gone.
    counts = server.app.state.penstock.pipelines["simple"].statistics
    now = counts.succeeded
    until(lambda: counts.succeeded > now + 9)
    loaded.__exit__(None, None, None)
    assert server.model()["disagreed"] == server.model("total")["disagreed"] == 0
    assert server.client.get("/v2/models/simple").json()["name"] == "simple"
    assert server.client.get("/v2/health/ready").status_code == 200
    assert stream.client.get_model_metadata("simple").name == "simple"
    assert stream.client.is_server_ready()
    stream.close()
    serving.__exit__(None, None, None)


def test_a_model_is_switched_once_enough_requests_have_agreed(
    theirs: Theirs, shadowing: Any, ops: Path
) -> None:
    with shadowing(models(ops), theirs.url, switch_after=2) as server:
        for _ in range(2):
            assert server.model().get("answered_by", "triton") == "triton"
            server.client.post(INFER, json=two_inputs())
            server.model(in_flight_at_triton=0)
            server.until_compared()
        before = theirs.count()
        assert server.model()["answered_by"] == "penstock"
        assert server.client.post(INFER, json=two_inputs()).status_code == 200
        assert server.client.get("/v2/models/simple/config").status_code == 200
        assert theirs.count() == before
        report = server.report()["switch"]
        assert (report["after"], report["done"]) == (2, False)  # the other models had no requests
        before = theirs.count("loud")
        text = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
        for _ in range(3):
            server.client.post("/v2/models/loud/infer", json={"inputs": [text]})
            server.until_compared()
        assert theirs.count("loud") == before + 2


def test_disagreement_begins_the_count_anew(theirs: Theirs, shadowing: Any, ops: Path) -> None:
    sources = models(ops, simple="add_sub_apart")
    with shadowing(sources, theirs.url, switch_after=1) as server:
        for _ in range(3):
            server.client.post(INFER, json=two_inputs())
        assert server.model(compared=3)["answered_by"] == "triton"


def test_a_pipeline_that_is_loaded_anew_has_agreed_with_nothing() -> None:
    class Loaded:
        sequences = None

    repository: Any = SimpleNamespace(pipelines={"m": Loaded()}, configs={"m": None, "n": None})
    switch = Switch(repository, ShadowOptions(switch_after=3))
    model = switch.model("m")

    def compared() -> bool:
        model.note(Comparison([], {}), 0.1, 0.1, "")
        switch.compared(model)
        return model.is_here

    assert [compared(), compared()] == [False, False]
    repository.pipelines["m"] = Loaded()
    assert [compared(), compared(), compared()] == [False, False, True]


def test_names_that_no_one_serves_are_counted_together_if_there_are_many() -> None:
    repository: Any = SimpleNamespace(pipelines={}, configs={})
    switch = Switch(repository, ShadowOptions())
    for number in range(400):
        switch.model(f"m{number}").skip("not_served_here")
    assert len(switch.models) == 257
    assert switch.model("(others)").not_compared == {"not_served_here": 144}


def test_no_more_sequences_are_known_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.app.shadow.switch.MAX_SEQUENCES", 2)
    repository: Any = SimpleNamespace(pipelines={}, configs={"m": None})
    switch = Switch(repository, ShadowOptions())
    model = switch.model("m")
    for sequence in (1, 2, 1, 3):
        switch.begins_at_triton(model, Facts(sequence))
    assert list(model.sequences) == [1, 3]
    switch.ended_at_triton(model, Facts(2, end=True))
    assert 2 not in model.sequences


def test_sequences_that_end_without_a_word_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("penstock.app.shadow.switch.time.monotonic", lambda: now)
    idle: Any = SimpleNamespace(sequences=SimpleNamespace(idle_timeout=5))
    repository: Any = SimpleNamespace(pipelines={"m": idle}, configs={"m": None})
    switch = Switch(repository, ShadowOptions())
    model, called = switch.model("m"), list[str]()
    for sequence in (1, 2, 1):
        switch.begins_at_triton(model, Facts(sequence))
        now += 3
        switch.ended_at_triton(model, Facts(sequence))
    switch.on_switch.add(lambda: called.append("here"))
    switch.take_all()
    assert list(model.sequences) == [2, 1]
    assert switch.goes_to_triton(model, Facts(2)) and not switch.goes_to_triton(model, Facts(3))
    called.clear()
    now += 3
    switch.look()
    assert (list(model.sequences), called, switch.is_left) == ([1], ["here"], True)
    now += 3
    switch.look()
    assert not switch.is_left


def test_sequences_end_where_they_began(theirs: Theirs, shadowing: Any, ops: Path) -> None:
    """By HTTP and in a stream by gRPC. Their steps run here too, so that their places are free:
    the model has two.
    """
    with shadowing(models(ops), theirs.url, grpc=theirs.grpc) as server:

        def post(*arguments: Any, **flags: Any) -> int:
            body = json.dumps(step(*arguments, **flags)).encode() + b" " * (1 << 19)
            got = server.client.post(TOTAL, content=body)  # in pieces
            assert got.status_code == 200, got.text
            return int(got.json()["outputs"][0]["data"][0])

        stream = GrpcStream(server.grpc, 11)
        before = theirs.count("total")
        assert (post(10, 1, start=True), stream.step(5, start=True)) == (1, 5)
        server.model("total", agreed=2)
        server.switch()
        left = server.report()
        assert left["switch"]["nothing_left_at_triton"] is False
        assert left["models"]["total"]["sequences_at_triton"] == 2
        assert (post(10, 2), stream.step(6)) == (3, 11)  # there
        assert (post(10, 3, end=True), stream.step(7, end=True)) == (6, 18)
        assert theirs.count("total") == before + 6
        until(lambda: at_triton(server))
        assert server.model("total", compared=6)["agreed"] == 6
        assert (post(10, 7, start=True), stream.step(8, start=True)) == (7, 8)  # here
        assert (post(10, 1, end=True), stream.step(1, end=True)) == (8, 9)
        assert theirs.count("total") == before + 6
        stream.close()


def test_what_would_fail_is_in_the_way_of_the_switch(
    theirs: Theirs, shadowing: Any, ops: Path
) -> None:
    with shadowing(models(ops)[1:], theirs.url) as server:
        assert server.client.post(INFER, json=two_inputs()).status_code == 200
        server.model(in_flight_at_triton=0)
        got = server.switch()
        assert got.status_code == 409
        said = "model 'simple' is asked for, and is not ready here"
        assert said in got.json()["detail"]
        assert server.report()["switch"]["in_the_way"] == [said]
        assert server.switch("?force=true").json()["done"] is True
        assert server.client.post(INFER, json=two_inputs()).status_code in (400, 404)


def test_a_triton_that_can_not_be_reached_by_grpc(running: Any, shadowing: Any, ops: Path) -> None:
    """Keys are checked here all the same."""
    with their_server(running, models(ops)) as theirs:
        target = theirs.grpc
    secrets: dict[str, Any] = {"api_key": "key"}
    settings = Settings(grpc_port=0, **secrets)
    with shadowing(models(ops), None, settings, grpc=target) as server:
        client: Any = tritonclient.grpc.InferenceServerClient(server.grpc)
        data = tritonclient.grpc.InferInput("INPUT", [1, 1], "INT32")
        data.set_data_from_numpy(np.array([[1]], np.int32))
        key = {"authorization": "Bearer key"}
        for headers, said in (({}, "UNAUTHENTICATED"), (key, "UNAVAILABLE")):
            with pytest.raises(Exception, match="UNAVAILABLE"):
                client.is_server_ready(headers)  # it needs no key
            with pytest.raises(Exception, match=said):
                client.get_model_metadata("total", headers=headers)
            with pytest.raises(Exception, match=said):
                client.infer("total", [data], headers=headers)
            answers: Queue[Any] = Queue()
            client.start_stream(lambda result, error: answers.put(error), headers=headers)
            with suppress(InferenceServerException):  # it may be over already
                client.async_stream_infer("total", [data])
            assert said in str(answers.get(timeout=60))
            client.stop_stream()
        client.close()
