"""A ModelInferRequest as the document that `app/v2/infer/request.py` reads.

All tensors become bytes behind the document, as an infer request over HTTP has them: raw contents
as they came, typed contents converted. So every rule about inputs, shapes, parameters and shared
memory is in one place for both transports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np

from ..http.inputs.datatypes import CONVERTED_AT_ONCE_ELEMENTS, DATATYPES, Datatype
from ..v2.call import UNCOUNTED_COPY_BYTES
from ..v2.infer.request import MAX_PARAMETERS, InferRequest
from .http2.call import ALIGNMENT
from .messages import messages
from .wire import CutMessage

CONTENTS_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents for a datatype; FP16 and BF16 have none."""

IGNORED_PARAMETER = "binary_data_output"
IGNORED_OUTPUT_PARAMETER = "binary_data"
"""They ask for bytes instead of JSON; by gRPC all outputs are bytes."""

BYTES_PARAMETER = "binary_data_size"
"""How many of the bytes behind the document are an input's. KServe's client sends it by gRPC, too,
where the contents have their own length.
"""

READ_FACTOR = 16
"""A parsed message takes at most about so many times the bytes of its text: the shortest element of
`bytes_contents` has 2 bytes there, and 16 when it is parsed; a parameter more.
"""

MAX_DIMENSIONS = 64
"""Those of NumPy's arrays."""


def read_message(
    request: InferRequest, cut: CutMessage, model: str
) -> tuple[dict[str, Any], list[Any]]:
    """Return the document of a message, and the bytes of its inputs in the document's order. Its id
    is that of the cut message.

    Raises `InvalidRequest`, and `MemoryFull`.
    """
    if len(cut.text) > UNCOUNTED_COPY_BYTES:
        request.reserve(READ_FACTOR * len(cut.text), "a parsed message")
    try:
        message = messages.ModelInferRequest.FromString(cut.text)
    except DecodeError:
        raise InvalidRequest(
            "the request is not a ModelInferRequest: its protobuf is malformed"
        ) from None
    blobs: list[Any] = []
    raw = iter(cut.contents)
    inputs = [
        _input(tensor, raw.__next__, bool(cut.contents), blobs, model) for tensor in message.inputs
    ]
    if (count := len(cut.contents)) and next(raw, None) is not None:
        raise InvalidRequest(
            f"expected {len(blobs)} raw_input_contents for model '{model}', one for each input "
            f"that is not in shared memory, got {count}"
        )
    document: dict[str, Any] = {
        "parameters": _without(IGNORED_PARAMETER, message.parameters),
        "inputs": inputs,
    }
    if message.outputs:
        document["outputs"] = [
            {
                "name": output.name,
                "parameters": _without(IGNORED_OUTPUT_PARAMETER, output.parameters),
            }
            for output in message.outputs
        ]
    return document, blobs


def _without(name: str, parameters: Any) -> dict[str, Any]:
    values = parameters_of(parameters)
    values.pop(name, None)
    return values


def parameters_of(parameters: Any) -> dict[str, Any]:
    """Return a map of parameters as a dict.

    Raises `InvalidRequest` if there are too many, and for one without a value.
    """
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest(
            f"the request has {len(parameters)} parameters, at most {MAX_PARAMETERS} are accepted"
        )
    return {key: _value(key, parameter) for key, parameter in parameters.items()}


def _value(key: str, parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequest(f"parameter '{key}' has no value: set one of its fields")
    return getattr(parameter, kind)


def _input(
    tensor: Any, take: Callable[[], memoryview], is_raw: bool, blobs: list[Any], model: str
) -> dict[str, Any]:
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"the shape of input '{tensor.name}' has {len(tensor.shape)} dimensions, at most "
            f"{MAX_DIMENSIONS} are possible"
        )
    parameters = _without(BYTES_PARAMETER, tensor.parameters)
    document = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": parameters,
    }
    has_contents = tensor.HasField("contents")
    if "shared_memory_region" in parameters:
        if has_contents:
            raise InvalidRequest(
                "unexpected 'content' provided when using shared memory for input tensor "
                f"'{tensor.name}' for model '{model}'"
            )
        return document
    if has_contents and is_raw:
        raise InvalidRequest(
            f"contents field must not be specified when using raw_input_contents for "
            f"'{tensor.name}' for model '{model}'"
        )
    if is_raw:
        try:
            blob: Any = take()
        except StopIteration:
            raise InvalidRequest(
                f"unable to find data for input tensor '{tensor.name}' for model '{model}' in "
                "request."
            ) from None
    else:
        blob = _typed(tensor)
    blobs.append(blob)
    parameters[BYTES_PARAMETER] = len(blob)
    return document


def _typed(tensor: Any) -> bytearray | memoryview:
    """Return the typed contents of a tensor as the bytes of its datatype."""
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:  # the datatype's own check says what is expected
        return bytearray()
    field = CONTENTS_FIELDS.get(datatype.name)
    if field is None:
        raise InvalidRequest(
            f"receiving {datatype.name} data in 'contents' is not supported. Please use "
            f"raw_input_contents for input '{tensor.name}'"
        )
    others = [one.name for one, _ in tensor.contents.ListFields() if one.name != field]
    if others:
        raise InvalidRequest(
            f"unexpected explicit tensor data for input tensor '{tensor.name}' of datatype "
            f"{datatype.name}: expected it in '{field}', got '{others[0]}'"
        )
    values = getattr(tensor.contents, field)
    if not datatype.size:
        return _with_lengths(values)
    return _converted(values, datatype, tensor.name)


def _with_lengths(values: Iterable[bytes]) -> bytearray:
    """Join the elements of a BYTES tensor. Not from a list of its pieces: an element may be empty,
    and a list entry takes many times its 2 bytes in the message.
    """
    content = bytearray()
    for value in values:
        content += len(value).to_bytes(4, "little")
        content += value
    return content


def _converted(values: Sequence[Any], datatype: Datatype, name: str) -> memoryview:
    """Convert numbers piece by piece: as Python's objects they take ten times the memory."""
    count, step = len(values), CONVERTED_AT_ONCE_ELEMENTS
    array = np.empty(count, datatype.dtype)
    for start in range(0, count, step):
        piece = values[start : start + step]
        if datatype.size < 4 and datatype.kind in "iu":  # protobuf's own integers have 32 bits
            low, high = min(piece), max(piece)
            if low < datatype.low or high > datatype.high:
                raise InvalidRequest(
                    f"input '{name}' has datatype {datatype.name}, and its contents hold "
                    f"{low if low < datatype.low else high}"
                )
        array[start : start + step] = np.array(piece, datatype.dtype)
    content: memoryview = array.view(np.uint8).data
    return content


def joined(request: InferRequest, blobs: Sequence[Any]) -> memoryview:
    """Return tensors in memory that may be written to and is aligned for every datatype.

    A single large tensor mostly lies so in its message (`http2/call.py`) and stays there. Others
    are copied.
    """
    size = sum(map(len, blobs))
    if size <= UNCOUNTED_COPY_BYTES:
        return memoryview(bytearray().join(blobs))
    request.reserve(size, "tensors")
    if len(blobs) == 1 and _may_stay(blobs[0]):
        stays: memoryview = blobs[0]
        return stays
    content: memoryview = np.empty(size, np.uint8).data
    position = 0
    for blob in blobs:
        content[position : position + len(blob)] = blob
        position += len(blob)
    return content


def _may_stay(blob: Any) -> bool:
    if not isinstance(blob, memoryview) or blob.readonly:
        return False
    return bool(np.frombuffer(blob, np.uint8).ctypes.data % ALIGNMENT == 0)
