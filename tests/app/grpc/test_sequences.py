"""Steps of sequences by ModelInfer and ModelStreamInfer."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from penstock.app.v2.tensors import COPY_OFF_LOOP_BYTES
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend

from .conftest import Served, model, tensor
from .test_stream import Stream

ENDS: queue.Queue[tuple[int | str, str]] = queue.Queue()


@register_backend("GrpcChain")
class GrpcChain(Backend):
    """Keeps a number for each sequence: the first values of all its steps, in their order."""

    max = 8

    def forward(self, batch: Any) -> None:
        for item in batch:
            sequence = item["sequence"]
            sequence.state = (sequence.state or 0) * 10 + int(item["data"][0, 0])
            sequence.on_end = lambda reason, one=sequence.id: ENDS.put((one, reason))
            item["result"] = np.array([[sequence.state]], np.int32)


@pytest.fixture(scope="module")
def chained(serve: Any) -> Iterator[Served]:
    ports = {"X": tensor("INT32")}, {"Y": tensor("INT32")}
    with serve([model("chain", *ports, "GrpcChain", sequence={})]) as served:
        yield served


@pytest.fixture(autouse=True)
def no_ends() -> None:
    while not ENDS.empty():
        ENDS.get()


def value(number: int, size: int = 1) -> InferInput:
    given = InferInput("X", [1, size], "INT32")
    given.set_data_from_numpy(np.full((1, size), number, np.int32))
    return given


def step(served: Served, sequence: Any, number: int, **flags: bool) -> int:
    answer = served.client.infer("chain", [value(number)], sequence_id=sequence, **flags)
    return int(answer.as_numpy("Y")[0, 0])


def kept(answer: Any) -> int:
    """Return what a stream's answer says that the model keeps."""
    assert not isinstance(answer, Exception), answer
    return int(answer.as_numpy("Y")[0, 0])


@pytest.fixture
def stream(chained: Served) -> Iterator[Stream]:
    client = tritonclient.grpc.InferenceServerClient(chained.address)
    yield Stream(client)
    client.stop_stream()
    client.close()


def test_a_sequence_keeps_its_state_from_start_to_end(chained: Served) -> None:
    assert step(chained, 1, 1, sequence_start=True) == 1
    assert step(chained, "1", 5, sequence_start=True) == 5
    assert step(chained, 1, 2) == 12
    assert step(chained, "1", 6, sequence_end=True) == 56
    assert step(chained, 1, 3, sequence_end=True) == 123
    assert [ENDS.get(timeout=60) for _ in range(2)] == [("1", "end"), (1, "end")]


def test_what_is_wrong_is_said_in_tritons_words(chained: Served) -> None:
    for sequence, flags, said in (
        (7, {}, "sequence 7 to model 'chain' must specify the START flag"),
        ("a", {}, "sequence a to model 'chain' must specify the START flag"),
        (0, {}, "must specify a non-zero or non-empty correlation ID"),
        (-1, {"sequence_start": True}, "sequence_id"),
        ("a" * 129, {"sequence_start": True}, "128"),
    ):
        with pytest.raises(InferenceServerException, match=said) as caught:
            step(chained, sequence, 1, **flags)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_streams_steps_are_served_in_their_order(stream: Stream) -> None:
    """A large message takes longer to be read than those after it."""
    large = COPY_OFF_LOOP_BYTES // 4 + 1
    stream.send("chain", value(1, large), sequence_id=2, sequence_start=True)
    stream.send("chain", value(7), sequence_id="two", sequence_start=True)
    stream.send("chain", value(2), sequence_id=2)
    stream.send("chain", value(3, large), sequence_id=2)
    stream.send("chain", value(8), sequence_id="two", sequence_end=True)
    stream.send("chain", value(4), sequence_id=2, sequence_end=True)
    assert [kept(stream.next()) for _ in range(6)] == [1, 7, 12, 123, 78, 1234]


def test_an_error_of_a_step_is_an_answer(stream: Stream) -> None:
    stream.send("chain", value(1), sequence_id=3)
    stream.send("chain", value(1), sequence_id=3, sequence_start=True, sequence_end=True)
    assert "must specify the START flag" in str(stream.next())
    assert kept(stream.next()) == 1


def test_sequences_that_began_in_a_stream_end_with_it(chained: Served) -> None:
    assert step(chained, "other", 1, sequence_start=True) == 1
    client = tritonclient.grpc.InferenceServerClient(chained.address)
    stream = Stream(client)
    stream.send("chain", value(1), sequence_id="left", sequence_start=True)
    stream.send("chain", value(1), sequence_id="ended", sequence_start=True, sequence_end=True)
    stream.send("chain", value(2), sequence_id="other")
    assert [kept(stream.next()) for _ in range(3)] == [1, 1, 12]
    client.stop_stream()
    client.close()
    assert {ENDS.get(timeout=60) for _ in range(2)} == {("ended", "end"), ("left", "departure")}
    with pytest.raises(InferenceServerException, match="START"):
        step(chained, "left", 1)
    assert step(chained, "other", 3, sequence_end=True) == 123  # it began elsewhere
    assert ENDS.get(timeout=60) == ("other", "end")
