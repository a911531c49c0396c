"""ModelStreamInfer."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from penstock.app.grpc.messages import messages

EXAMPLES = Path(__file__).parents[3] / "examples"


def text(content: str) -> InferInput:
    tensor = InferInput("data", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([content.encode()], object))
    return tensor


class Stream:
    """A stream of Triton's client for threads."""

    def __init__(self, client: Any, **more: Any) -> None:
        self._client = client
        self._answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **more)

    def send(self, model: str, content: str | InferInput, **more: Any) -> None:
        tensor = text(content) if isinstance(content, str) else content
        self._client.async_stream_infer(model, [tensor], **more)

    def next(self) -> Any:
        """Return the next answer; an error is returned, too."""
        result, error = self._answers.get(timeout=60)
        return result if error is None else error


@pytest.fixture
def stream(served: Any) -> Iterator[Stream]:
    client = tritonclient.grpc.InferenceServerClient(served.address)
    yield Stream(client)
    client.stop_stream()
    client.close()


def is_final(answer: Any) -> bool:
    final: bool = answer.get_response().parameters["triton_final_response"].bool_param
    return final


def test_a_decoupled_model_answers_in_parts(stream: Stream) -> None:
    stream.send("letters", "abc", request_id="1", enable_empty_final_response=True)
    answers = [stream.next() for _ in range(4)]
    assert [answer.as_numpy("result").tolist() for answer in answers[:3]] == [
        [b"a"],
        [b"b"],
        [b"c"],
    ]
    assert [is_final(answer) for answer in answers] == [False, False, False, True]
    assert not answers[3].get_response().outputs
    assert {answer.get_response().id for answer in answers} == {"1"}


def test_an_error_is_an_answer_and_the_stream_goes_on(stream: Stream) -> None:
    stream.send("nope", "a", request_id="1")
    error = stream.next()
    assert isinstance(error, InferenceServerException) and "unknown model" in error.message()
    stream.send("letters", "a!", request_id="2")
    assert stream.next().as_numpy("result").tolist() == [b"a"]
    error = stream.next()
    assert isinstance(error, InferenceServerException) and "secret" not in error.message()
    stream.send("letters", "b", request_id="3")
    assert stream.next().as_numpy("result").tolist() == [b"b"]


def test_answers_come_in_the_order_of_their_requests(stream: Stream, gate: Any) -> None:
    def tensor(name: str) -> InferInput:
        made = InferInput(name, [1, 1], "FP32")
        made.set_data_from_numpy(np.zeros((1, 1), np.float32))
        return made

    stream.send("gated", tensor("X"), request_id="1")
    gate.wait_entered()
    stream.send("identity_FP32", tensor("INPUT0"), request_id="2")
    stream.send("nope", "a", request_id="3")
    stream.send("letters", "a", request_id="4")  # decoupled: it does not wait
    assert stream.next().get_response().id == "4"
    gate.open()
    assert [stream.next().get_response().id for _ in range(2)] == ["1", "2"]
    assert isinstance(stream.next(), InferenceServerException)


def test_an_error_says_of_which_request_it_is(served: Any) -> None:
    requests = [messages.ModelInferRequest(model_name="nope", id="mine")]
    with grpc.insecure_channel(served.address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelStreamInferResponse.FromString,
        )
        (answer,) = call(iter(requests))
    assert answer.infer_response.id == "mine" and "unknown model" in answer.error_message


def test_with_triton_grpc_error_an_error_ends_the_stream(served: Any) -> None:
    client = tritonclient.grpc.InferenceServerClient(served.address)
    stream = Stream(client, headers={"triton_grpc_error": "true"})
    stream.send("nope", "a")
    error = stream.next()
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    client.stop_stream()
    client.close()


def test_a_restricted_stream_ends_at_once(serve: Any, sources: Any) -> None:
    """The client may then start another one, as Triton's tests do."""
    with serve(sources[:1], restricted_api="inference:infer-key=secret") as one:
        stream = Stream(one.client, headers={"test": "1"})
        assert "This protocol is restricted" in stream.next().message()
        with pytest.raises(InferenceServerException, match="no longer in valid state"):
            stream.send("simple", "a")
        one.client.stop_stream()
        stream = Stream(one.client, headers={"infer-key": "secret"})
        stream.send("simple", "a", request_id="1")
        assert "input" in stream.next().message()
        one.client.stop_stream()


async def test_the_asyncio_client(served: Any) -> None:
    client: Any = tritonclient.grpc.aio.InferenceServerClient(served.address)

    async def requests() -> Any:
        for number in range(3):
            array = np.full((1, 2), number, np.float32)
            tensor = InferInput("INPUT0", [1, 2], "FP32")
            tensor.set_data_from_numpy(array)
            yield {"model_name": "identity_FP32", "inputs": [tensor], "request_id": str(number)}

    seen = {}
    async for result, error in client.stream_infer(requests()):
        assert error is None and is_final(result)
        seen[result.get_response().id] = result.as_numpy("OUTPUT0").tolist()
    assert seen == {str(number): [[number, number]] for number in range(3)}
    await client.close()


def test_the_example_streams_text(serve: Any) -> None:
    """docs/how-to/generate.md has this client."""
    with serve(EXAMPLES / "generate" / "generate.toml") as served:
        stream = Stream(served.client)
        prompt = InferInput("text_input", [1], "BYTES")
        prompt.set_data_from_numpy(np.array([b"A pipeline"], object))
        stream.send("generate", prompt, enable_empty_final_response=True)
        parts = []
        while not is_final(answer := stream.next()):
            parts += answer.as_numpy("text_output").tolist()
        served.client.stop_stream()
    assert len(parts) == 200 and all(len(part) == 1 for part in parts)
