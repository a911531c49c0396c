"""ModelInfer: tensors of every kind, errors, deadlines, cancellation."""

from __future__ import annotations

import threading
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from penstock.app.grpc.messages import messages
from penstock.app.grpc.request import CONTENTS_FIELDS

DTYPES = {name: triton_to_np_dtype(name) for name in [*CONTENTS_FIELDS, "FP16"]}


def one_input(array: Any, datatype: str, name: str = "INPUT0") -> InferInput:
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def values(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([[b"", b"\xff\x00", "é".encode()]], object)
    return np.array([[0, 1, 1]], DTYPES[datatype])


@pytest.fixture(scope="module")
def stub(served: Any) -> Any:
    """Calls ModelInfer with any message."""
    with grpc.insecure_channel(served.address) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelInferResponse.FromString,
        )


def message(model: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    request = messages.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
    for name, given in contents.items():
        getattr(tensor.contents, name).extend(given)
    return request


@pytest.mark.parametrize("datatype", DTYPES)
def test_raw_contents(served: Any, datatype: str) -> None:
    array = values(datatype)
    for _ in range(2):  # the second time its layout is known
        tensor = one_input(array, datatype)
        answer = served.client.infer(f"identity_{datatype}", [tensor], request_id="a")
        assert answer.as_numpy("OUTPUT0").tolist() == array.tolist()
        response = answer.get_response()
        assert (response.model_version, response.id) == ("1", "a")
        assert response.outputs[0].datatype == datatype
        plain = served.client.infer(f"identity_{datatype}", [tensor])
        assert plain.as_numpy("OUTPUT0").tolist() == array.tolist()
        assert not plain.get_response().id


def test_encoded_images(served: Any) -> None:
    image = cv2.imencode(".png", np.full((8, 12, 3), 7, np.uint8))[1].tobytes()
    tensor = one_input(np.array([[image], [image]], object), "BYTES", "data")
    pixels = served.client.infer("decoding", [tensor]).as_numpy("result")
    assert pixels.shape == (2, 3, 4, 6) and (pixels == 7).all()


@pytest.mark.parametrize("datatype", CONTENTS_FIELDS)
def test_typed_contents(stub: Any, datatype: str) -> None:
    array = values(datatype)
    contents = {CONTENTS_FIELDS[datatype]: array.reshape(-1).tolist()}
    response = stub(message(f"identity_{datatype}", datatype, [1, 3], **contents))
    raw = response.raw_output_contents[0]
    expected = messages.InferTensorContents()
    if datatype == "BYTES":
        assert raw == b"".join(len(text).to_bytes(4, "little") + text for text in array[0])
    else:
        assert raw == array.tobytes()
    assert response.outputs[0].contents == expected  # raw contents only


def test_bf16(served: Any) -> None:
    request = messages.ModelInferRequest(
        model_name="identity_BF16", raw_input_contents=[b"\x80\x3f\x00\xc0"]
    )
    request.inputs.add(name="INPUT0", datatype="BF16", shape=[1, 2])
    response = served.client._client_stub.ModelInfer(request)
    assert response.raw_output_contents == [b"\x80\x3f\x00\xc0"]


def test_tensors_are_aligned_and_may_be_written_to(served: Any) -> None:
    for count in (3, 5000):
        inputs = [
            one_input(np.zeros(count, np.uint8), "UINT8", "A"),
            one_input(np.zeros(count), "FP64", "B"),
        ]
        assert served.client.infer("where", inputs).as_numpy("C").tolist() == [1, 1]


def test_classification(served: Any) -> None:
    scores = np.array([[0.5, 0.25, 2.0], [1.0, 3.0, 0.0]], np.float32)
    wanted = InferRequestedOutput("Y", class_count=2)
    answer = served.client.infer("scores", [one_input(scores, "FP32", "X")], outputs=[wanted])
    assert answer.as_numpy("Y").tolist() == [
        [b"2.000000:2:two", b"0.500000:0:zero"],
        [b"3.000000:1:one", b"1.000000:0:zero"],
    ]


def test_outputs_come_in_the_order_of_the_request(served: Any) -> None:
    ones = np.ones((1, 16), np.int32)
    inputs = [one_input(ones, "INT32", name) for name in ("INPUT0", "INPUT1")]
    outputs = [InferRequestedOutput("OUTPUT1"), InferRequestedOutput("OUTPUT0")]
    answer = served.client.infer("simple", inputs, outputs=outputs)
    assert [one.name for one in answer.get_response().outputs] == ["OUTPUT1", "OUTPUT0"]
    assert (answer.as_numpy("OUTPUT0") == 2).all() and (answer.as_numpy("OUTPUT1") == 0).all()


def test_lengths_belong_to_a_layout(stub: Any) -> None:
    """Two tensors of one length are not those of others with the same total."""
    request = messages.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
    request.raw_input_contents.extend([bytes(64), bytes(64)])
    stub(request)
    request.raw_input_contents[:] = [bytes(60), bytes(68)]
    with pytest.raises(grpc.RpcError, match="Expected 64, got 60"):
        stub(request)


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (message("nope", "INT8", [1, 1], int_contents=[1]), "Request for unknown model: 'nope'"),
        (message("identity_INT8", "INT8", [1, 1], int_contents=[128]), "its contents hold 128"),
        (message("identity_UINT8", "UINT8", [1, 1], uint_contents=[256]), "its contents hold 256"),
        (message("identity_INT8", "INT8", [1, 2], int_contents=[1]), "Expected 2, got 1"),
        (message("identity_INT8", "INT8", [1, -1], int_contents=[1]), "non-unsigned-integer"),
        (message("identity_INT8", "INT8", [1, 1], fp32_contents=[1]), "in 'int_contents'"),
        (message("identity_FP16", "FP16", [1, 1], fp32_contents=[1]), "raw_input_contents"),
        (message("identity_INT8", "FP32", [1, 1], fp32_contents=[1]), "expects 'INT8'"),
        (message("identity_INT8", "INT7", [1, 1], int_contents=[1]), "invalid datatype"),
        (messages.ModelInferRequest(model_name="identity_INT8"), "missing required input"),
    ],
)
def test_requests_that_are_refused(stub: Any, request_: Any, detail: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert detail in str(caught.value.details())


def raw(**changes: Any) -> Any:
    """Return a good request for `identity_FP32`, and what `changes` sets or adds."""
    request = messages.ModelInferRequest(model_name="identity_FP32", raw_input_contents=[bytes(4)])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
    request.MergeFrom(messages.ModelInferRequest(**changes))
    return request


def parameter(name: str, **value: Any) -> dict[str, Any]:
    return {name: messages.InferParameter(**value)}


def output(name: str, **parameters: Any) -> Any:
    return messages.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


INPUT = messages.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="FP32", shape=[1, 1])
OTHER = messages.ModelInferRequest.InferInputTensor(name="OTHER", datatype="FP32", shape=[1, 1])


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (raw(model_version="9"), "version 9 is not found"),
        (raw(inputs=[INPUT], raw_input_contents=[bytes(4)]), "input 'INPUT0' already exists"),
        (
            raw(inputs=[OTHER], raw_input_contents=[bytes(4)]),
            "expected 1 inputs but got 2 inputs for model 'identity_FP32'. Got input(s) ['INPUT0',"
            "'OTHER']",
        ),
        (raw(inputs=[OTHER]), "unable to find data for input tensor 'OTHER' for model"),
        (raw(outputs=[output("NO")]), "unexpected inference output 'NO' for model 'identity_FP32'"),
        (
            raw(outputs=[output("OUTPUT0"), output("OUTPUT0")]),
            "output 'OUTPUT0' already exists in request",
        ),
        (
            raw(outputs=[output("OUTPUT0", **parameter("classification", string_param="1"))]),
            "'classification' of output 'OUTPUT0' must be an unsigned 64-bit integer",
        ),
        (raw(parameters=parameter("priority", string_param="1")), "'priority' must be an unsigned"),
        (raw(parameters=parameter("timeout", int64_param=-1)), "'timeout' must be an unsigned"),
        (raw(parameters=parameter("triton_any", bool_param=True)), "'triton_any' is reserved"),
        (raw(parameters=parameter("empty")), "parameter 'empty' has no value"),
    ],
)
def test_requests_that_tritons_tests_refuse(stub: Any, request_: Any, detail: str) -> None:
    for _ in range(2):  # nothing of them is kept
        with pytest.raises(grpc.RpcError) as caught:
            stub(request_)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert detail in str(caught.value.details())


def test_parameters_of_every_type(stub: Any) -> None:
    given = {
        **parameter("flag", bool_param=True),
        **parameter("number", int64_param=-3),
        **parameter("large", uint64_param=2**64 - 1),
        **parameter("share", double_param=0.5),
        **parameter("text", string_param="a"),
        **parameter("priority", uint64_param=1),
        **parameter("timeout", int64_param=60_000_000),
    }
    wanted = [output("OUTPUT0", **parameter("classification", uint64_param=1))]
    answer = stub(raw(parameters=given, outputs=wanted))
    assert answer.raw_output_contents == [b"\x0a\0\0\x000.000000:0"]


@pytest.mark.parametrize("contents", [{}, {"raw_input_contents": [b""]}])
def test_empty_tensors(stub: Any, contents: Any) -> None:
    for datatype in ("FP32", "BYTES"):
        request = messages.ModelInferRequest(model_name=f"identity_{datatype}", **contents)
        request.inputs.add(name="INPUT0", datatype=datatype, shape=[1, 0])
        response = stub(request)
        assert response.raw_output_contents == [b""] and response.outputs[0].shape == [1, 0]


def test_parameters_about_bytes_are_ignored(stub: Any) -> None:
    """KServe's client sends them."""
    request = message("identity_INT8", "INT8", [1, 1])
    request.raw_input_contents.append(b"\1")
    request.inputs[0].parameters["binary_data_size"].int64_param = 7
    request.parameters["binary_data_output"].bool_param = False
    request.outputs.add(name="OUTPUT0").parameters["binary_data"].bool_param = False
    assert stub(request).raw_output_contents == [b"\1"]


def test_many_elements_of_every_size(stub: Any) -> None:
    """More than are converted at once, with a wrong one at the end."""
    count = (1 << 16) + 1
    numbers = message("identity_INT16", "INT16", [1, count], int_contents=range(-5, 5))
    numbers.inputs[0].contents.int_contents.extend([7] * (count - 10))
    raw = stub(numbers).raw_output_contents[0]
    assert np.frombuffer(raw, np.int16)[[0, 9, -1]].tolist() == [-5, 4, 7]
    numbers.inputs[0].contents.int_contents[-1] = 1 << 15
    with pytest.raises(grpc.RpcError, match="its contents hold 32768"):
        stub(numbers)
    texts = message("identity_BYTES", "BYTES", [1, count], bytes_contents=[b""] * count)
    assert stub(texts).raw_output_contents[0] == bytes(4 * count)


def test_a_refusal_for_load_says_when_to_come_again(serve: Any, gate: Any) -> None:
    tensor = {"kind": "tensor", "dtype": "FP32", "shape": [-1, -1]}
    pipeline = {
        "pipeline": {
            "name": "gated",
            "inputs": {"X": tensor},
            "outputs": {"Y": tensor},
            "max_requests": 1,
        },
        "node": {"backend": "GrpcGate"},
    }
    with serve(pipeline) as one, grpc.insecure_channel(one.address) as channel:
        given = one_input(np.zeros((1, 1), np.float32), "FP32", "X")
        one.client.async_infer("gated", [given], lambda result, error: None)
        try:
            gate.wait_entered()
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            request = messages.ModelInferRequest(model_name="gated", raw_input_contents=[bytes(4)])
            request.inputs.add(name="X", datatype="FP32", shape=[1, 1])
            with pytest.raises(grpc.RpcError, match="Exceeds maximum queue size") as caught:
                call(request.SerializeToString())
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            metadata: Any = caught.value.trailing_metadata()  # typed as if it had no pairs
            trailing = dict(metadata)
            assert int(trailing["grpc-retry-pushback-ms"]) >= 1000 and trailing["x-request-id"]
        finally:
            gate.open()


def test_raw_and_typed_contents_exclude_each_other(stub: Any) -> None:
    request = message("identity_INT8", "INT8", [1, 1], int_contents=[1])
    request.raw_input_contents.append(b"\1")
    with pytest.raises(grpc.RpcError, match="contents field must not be specified"):
        stub(request)


def test_raw_contents_are_as_many_as_inputs(stub: Any) -> None:
    request = message("identity_INT8", "INT8", [1, 1])
    request.raw_input_contents.extend([b"\1", b"\1"])
    with pytest.raises(grpc.RpcError, match="expected 1 raw_input_contents"):
        stub(request)


def test_bytes_that_are_no_message(served: Any) -> None:
    with grpc.insecure_channel(served.address) as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for content in (b"\xff", b"\x0a\x05ab", b"\x0b", b"\x0a\x01\xff", b"\x2a\x02\xff\xff"):
            with pytest.raises(grpc.RpcError) as caught:
                send(content)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_too_large_is_refused_by_an_error_that_names_the_setting(
    served: Any,
) -> None:
    array = np.zeros((1, 9 << 20), np.uint8)
    with pytest.raises(InferenceServerException, match="max_body") as caught:
        served.client.infer("identity_UINT8", [one_input(array, "UINT8")])
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_failing_backend_says_nothing_of_its_exceptions_text(served: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        served.client.infer("failing", [one_input(np.zeros((1, 1), np.float32), "FP32", "X")])
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "ValueError" in caught.value.message() and "secret" not in caught.value.message()


def test_models_that_answer_in_parts_need_a_stream(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    text = one_input(np.array([b"ab"], object), "BYTES", "data")
    with pytest.raises(InferenceServerException, match="ModelInfer RPC doesn't support") as caught:
        served.client.infer("letters", [text])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert not caplog.records


def test_a_cancelled_call_leaves_its_queue(served: Any, gate: Any) -> None:
    tensor = one_input(np.zeros((1, 1), np.float32), "FP32", "X")
    pipeline = served.repository.pipelines["gated"]
    served.client.async_infer("gated", [tensor], lambda result, error: None)
    gate.wait_entered()
    queued = served.client.async_infer("gated", [tensor], lambda result, error: None)
    wait_until(lambda: pipeline.in_flight == 2)
    queued.cancel()
    wait_until(lambda: pipeline.in_flight == 1)
    gate.open()
    wait_until(lambda: pipeline.in_flight == 0)


def test_the_callers_deadline_is_the_requests(
    served: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = one_input(np.zeros((1, 1), np.float32), "FP32", "X")
    pipeline = served.repository.pipelines["gated"]
    submit = pipeline.submit_nowait
    timeouts: list[Any] = []

    def note(item: Any, timeout: float | None, *more: Any) -> Any:
        timeouts.append(timeout)
        return submit(item, timeout, *more)

    monkeypatch.setattr(pipeline, "submit_nowait", note)
    with pytest.raises(InferenceServerException) as caught:
        served.client.infer("gated", [tensor], client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    gate.open()
    served.client.infer("gated", [tensor], client_timeout=90)
    served.client.infer("gated", [tensor], client_timeout=90, timeout=60_000_000)
    served.client.infer("gated", [tensor], client_timeout=60, timeout=90_000_000)
    long, own, short = timeouts[-3:]  # the first client may have left before it was submitted
    assert 61 < long < 91  # a client rounds its deadline up
    assert 0 < own <= 60
    assert 0 < short < 61
    wait_until(lambda: pipeline.in_flight == 0)


def wait_until(condition: Any) -> None:
    """Wait for what another thread does; 30 s at most."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError


def test_ids_do_not_belong_to_a_layout(served: Any) -> None:
    """A client that numbers its requests has one layout, and each answer has its own id."""
    model = served.app.state.protocol.infer.rules.models.get("identity_UINT32", "")
    tensor = one_input(np.zeros((1, 3), np.uint32), "UINT32")
    model.layouts.clear()
    for identity in ("a", "bc", ""):
        answer = served.client.infer("identity_UINT32", [tensor], request_id=identity)
        assert answer.get_response().id == identity
        assert len(model.layouts) == 1
