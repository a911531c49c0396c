"""`triton_python_backend_utils`: what models import."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from penstock.backends.triton_python import utils as pb_utils

TritonModelException = pb_utils.TritonModelException
untyped: Any = pb_utils
"""The same module, for calls that are wrong on purpose."""
Tensor: Any = pb_utils.Tensor


def test_it_is_imported_by_tritons_name() -> None:
    pb_utils.install()
    found = importlib.import_module("triton_python_backend_utils")

    assert found is pb_utils


# tensors


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([True]), 1),
        (np.array([1], np.uint8), 2),
        (np.array([1], np.uint16), 3),
        (np.array([1], np.uint32), 4),
        (np.array([1], np.uint64), 5),
        (np.array([1], np.int8), 6),
        (np.array([1], np.int16), 7),
        (np.array([1], np.int32), 8),
        (np.array([1], np.int64), 9),
        (np.array([1], np.float16), 10),
        (np.array([1], np.float32), 11),
        (np.array([1], np.float64), 12),
        (np.array([b"a"], np.object_), 13),
        (np.array([b"a", b"bc"]), 13),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_datatypes(array: np.ndarray, datatype: int) -> None:
    tensor = Tensor("x", array)
    assert (tensor.name(), tensor.triton_dtype(), tensor.shape()) == (
        "x",
        datatype,
        list(array.shape),
    )
    assert tensor.is_cpu() and tensor.__dlpack_device__() == (1, 0)
    assert tensor.as_numpy().tolist() == array.tolist()
    assert pb_utils.numpy_to_triton_type(array.dtype if array.dtype.kind != "S" else np.bytes_) == (
        datatype
    )
    assert pb_utils.triton_to_numpy_type(datatype) in {array.dtype.type, np.object_}
    if array.dtype.kind in "OS":
        with pytest.raises(TritonModelException, match="string tensors"):
            tensor.to_dlpack()
    else:
        again = Tensor.from_dlpack("y", tensor.to_dlpack())
        assert (again.name(), again.triton_dtype()) == ("y", datatype)
        assert again.as_numpy().tolist() == array.tolist()


def test_names_of_datatypes() -> None:
    assert pb_utils.triton_string_to_numpy("TYPE_FP32") is np.float32
    assert pb_utils.triton_string_to_numpy("TYPE_BOOL") is bool
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy("TYPE_BF16")
    assert pb_utils.triton_to_numpy_type(14) is None
    assert pb_utils.numpy_to_triton_type(np.str_) is None


def test_a_tensor_is_contiguous_and_native() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    tensor = Tensor("x", array)
    assert tensor.as_numpy().flags.c_contiguous and tensor.as_numpy().dtype == np.float32
    assert tensor.as_numpy().tolist() == array.tolist()
    assert Tensor("x", np.float32(3)).shape() == []


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Tensor("", np.zeros(1)), TritonModelException, "cannot be an empty string"),
        (lambda: Tensor("x", np.array(["a"])), TritonModelException, "use dtype=object for texts"),
        (lambda: Tensor("x", np.array([1j])), TritonModelException, "dtype is not supported"),
        (lambda: Tensor("x", [1]), TypeError, "found list"),
        (lambda: Tensor.from_dlpack("x", 5), TritonModelException, "__dlpack__"),
        (
            lambda: Tensor.from_dlpack("x", np.zeros((2, 3)).T),
            TritonModelException,
            "not contiguous",
        ),
        (lambda: Tensor.from_dlpack("", np.zeros(1)), TritonModelException, "empty string"),
        (lambda: untyped.InferenceResponse(5), TypeError, "found int"),
        (lambda: untyped.InferenceResponse([5]), TypeError, "found a int"),
        (lambda: untyped.InferenceResponse([None]), TritonModelException, "not be empty"),
        (lambda: untyped.InferenceResponse(error="no"), TypeError, "found str"),
        (
            lambda: untyped.InferenceResponse(parameters={"a": [1]}),
            TritonModelException,
            "values to have type bool/int/str, found type <class 'list'>",
        ),
        (
            lambda: untyped.InferenceResponse(parameters={1: 1}),
            TritonModelException,
            "keys to have type str, found type <class 'int'>",
        ),
        (
            lambda: untyped.InferenceResponse(parameters={"a": 2**63}),
            TritonModelException,
            "64 bits",
        ),
        (
            lambda: untyped.InferenceResponse(parameters=[1]),
            TritonModelException,
            "Expect dict, got <class 'list'>",
        ),
        (lambda: untyped.TritonError("x", 5), TypeError, "found 5"),
        (lambda: untyped.TritonError(None), TypeError, "found NoneType"),
        (lambda: untyped.InferenceRequest("id"), TypeError, "needs inputs"),
        (lambda: asked(correlation_id=1.5), TritonModelException, "integer or string"),
        (lambda: asked(inputs=[None]), TritonModelException, "should not be empty"),
        (lambda: asked(inputs=[1]), TypeError, "found a int"),
        (lambda: asked(requested_output_names=[""]), TritonModelException, "should not be empty"),
        (lambda: asked(requested_output_names="OUT"), TypeError, "list of texts"),
        (lambda: untyped.MetricFamily("a", "b", 0), TritonModelException, "outside of a model"),
        (lambda: untyped.get_model_dir(), TritonModelException, "outside of a model"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def asked(**more: Any) -> Any:
    given = {"model_name": "m", "inputs": [], "requested_output_names": ["OUT"], **more}
    return pb_utils.InferenceRequest(**given)


def test_a_capsule_is_used_once() -> None:
    array = np.arange(3, dtype=np.int32)
    capsule = array.__dlpack__()
    tensor = Tensor.from_dlpack("x", capsule)
    assert np.shares_memory(tensor.as_numpy(), array)
    with pytest.raises(TritonModelException, match="used before"):
        Tensor.from_dlpack("x", capsule)
    array.flags.writeable = False
    assert np.from_dlpack(Tensor("x", array)).tolist() == [0, 1, 2]


def test_bfloat16_goes_by_dlpack() -> None:
    torch = pytest.importorskip("torch")
    given = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    tensor = Tensor.from_dlpack("x", given)
    assert (tensor.triton_dtype(), tensor.shape()) == (14, [1, 2])
    with pytest.raises(TritonModelException, match="BF16"):
        tensor.as_numpy()
    assert tensor.item_value().tolist() == [[1.5, -2.0]]
    again = torch.from_dlpack(Tensor.of_item("y", tensor.triton_dtype(), tensor.item_value()))
    assert again.dtype == torch.bfloat16 and again.tolist() == given.tolist()


def test_strings() -> None:
    array = np.array([["é", b"\0"], [5, ""]], np.object_)
    assert Tensor("x", array).item_value().tolist() == [["é".encode(), b"\0"], [b"5", b""]]
    encoded = pb_utils.serialize_byte_tensor(array)
    assert isinstance(encoded, bytes)
    assert encoded[:6] == b"\2\0\0\0" + "é".encode()
    assert pb_utils.deserialize_bytes_tensor(encoded).tolist() == ["é".encode(), b"\0", b"5", b""]
    assert pb_utils.serialize_byte_tensor(np.array([])) == ()
    assert pb_utils.serialize_byte_tensor(np.zeros(1)) is None


# requests, responses, errors


def test_a_request_has_what_its_maker_said() -> None:
    tensor = Tensor("x", np.zeros(1))
    request = asked(
        request_id="r",
        correlation_id=7,
        inputs=[tensor],
        flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
        timeout=5,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        parameters={"a": 1, "b": "x"},
    )
    assert request.inputs() == [tensor]
    assert pb_utils.get_input_tensor_by_name(request, "x") is tensor
    assert pb_utils.get_input_tensor_by_name(request, "y") is None
    assert (request.request_id(), request.correlation_id(), request.timeout()) == ("r", 7, 5)
    request.set_flags(request.flags() | pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    assert request.flags() == 3
    assert json.loads(request.parameters()) == {"a": 1, "b": "x"}
    assert request.requested_output_names() == {"OUT"}
    assert request.trace().get_context() is None


def test_bytes_are_texts() -> None:
    request = asked(request_id=b"r", model_name=np.array([b"m"])[0], requested_output_names=[b"O"])
    assert (request.request_id(), request.model_name) == ("r", "m")
    assert request.requested_output_names() == {"O"}
    assert Tensor(b"x", np.zeros(1)).name() == "x"
    assert untyped.TritonError(b"no").message() == "no"


def test_a_response_has_tensors_or_an_error() -> None:
    tensor = Tensor("x", np.zeros(1))
    response = pb_utils.InferenceResponse([tensor], parameters={"a": 1})
    assert not response.has_error() and response.error() is None
    assert json.loads(response.parameters()) == {"a": 1}
    assert pb_utils.get_output_tensor_by_name(response, "x") is tensor
    assert pb_utils.get_output_tensor_by_name(response, "y") is None
    error = pb_utils.TritonError("none", pb_utils.TritonError.NOT_FOUND)
    failed = pb_utils.InferenceResponse(error=error)
    assert failed.has_error() and failed.error() is error and failed.output_tensors() == []
    assert (error.message(), error.code()) == ("none", pb_utils.TritonError.NOT_FOUND)
    assert pb_utils.TritonError("x").code() == pb_utils.TritonError.INTERNAL


# configs


CONFIG = {
    "name": "m",
    "max_batch_size": 4,
    "input": [{"name": "IN", "data_type": "TYPE_INVALID", "dims": []}],
    "output": [],
}


def config(**more: Any) -> Any:
    return pb_utils.ModelConfig(json.dumps({**CONFIG, **more}))


def test_a_config_is_completed() -> None:
    completed = config()
    completed.set_max_batch_size(8)
    completed.set_dynamic_batching()
    completed.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [2], "optional": True})
    completed.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]})
    completed.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]})
    completed.set_model_transaction_policy({"decoupled": True})
    assert completed.as_dict() == {
        "name": "m",
        "max_batch_size": 8,
        "dynamic_batching": {},
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [2], "optional": True}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]}],
        "model_transaction_policy": {"decoupled": True},
    }
    assert pb_utils.using_decoupled_model_transaction_policy(completed.as_dict())
    assert not pb_utils.using_decoupled_model_transaction_policy({})
    assert pb_utils.get_input_config_by_name(completed.as_dict(), "IN")
    assert pb_utils.get_output_config_by_name(completed.as_dict(), "OUT")
    assert pb_utils.get_input_config_by_name({}, "IN") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it.set_max_batch_size(2), "max_batch_size 4.*specified max_batch_size 2"),
        (lambda it: it.add_input({"name": "X", "data_type": "TYPE_FP32"}), "missing 'dims'"),
        (lambda it: it.add_input({"data_type": "TYPE_FP32", "dims": [1]}), "missing 'name'"),
        (
            lambda it: it.add_input({"name": "X", "shape": [1]}),
            "other than 'name', 'data_type', 'dims' and 'optional'",
        ),
        (
            lambda it: it.add_output({"name": "OUT", "data_type": "TYPE_INT8", "dims": [1]}),
            "expects datatype TYPE_FP32 for output 'OUT', model provides TYPE_INT8",
        ),
        (
            lambda it: it.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]}),
            r"the model expects dims \[2\] but the model configuration specifies dims \[1\]",
        ),
        (lambda it: it.set_model_transaction_policy({"decoupled": True}), "already set to 'False'"),
        (lambda it: it.set_model_transaction_policy({"other": True}), "other than 'decoupled'"),
        (lambda it: it.set_dynamic_batching(), "'sequence_batching'"),
    ],
)
def test_what_contradicts_a_config(change: Callable[[Any], object], words: str) -> None:
    given = config(
        output=[{"name": "OUT", "data_type": "TYPE_FP32", "dims": [1]}],
        sequence_batching={},
        model_transaction_policy={"decoupled": False},
    )
    with pytest.raises(ValueError, match=words):
        change(given)


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "penstock.model")
    log = pb_utils.Logger
    log.log_info("one")
    log.log_warn("two")
    log.log_error("three")
    log.log_verbose("four %s")
    log.log("five")
    log.log("six", log.WARNING)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "one"),
        ("WARNING", "two"),
        ("ERROR", "three"),
        ("DEBUG", "four %s"),
        ("INFO", "five"),
        ("WARNING", "six"),
    ]
