"""Answers of both servers, read into named outputs, whatever way they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation

from ..http.compression import window_of
from ..http.inputs.datatypes import DATATYPES, Array, Datatype
from ..http.json_text import JsonLimits, parse_json
from ..v2.tensors import from_bytes, from_json

_LIMITS = JsonLimits(100, 1 << 26)
"""An answer's JSON is bounded by what is held of it."""


class Output(NamedTuple):
    """A tensor of an answer. `values` has its shape; BYTES are an array of `bytes`."""

    datatype: str
    shape: tuple[int, ...]
    values: Array


Outputs = dict[str, Output]


class Answer(NamedTuple):
    """An answer: its outputs, in several `parts` if it is a stream.

    `status` is HTTP's or gRPC's, as text. `error` says why it has no outputs; None if it has.
    """

    status: str
    parts: list[Outputs]
    error: str | None = None


_SAYING = (b"content-encoding", b"inference-header-content-length")
"""The headers that say what a body is."""


class RawAnswer(NamedTuple):
    """An answer over HTTP, as it came. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def is_same(self, other: RawAnswer) -> bool:
        """Return whether both are read in the same way."""
        return (
            self.body == other.body
            and self.status == other.status
            and not any(self.headers.get(name) != other.headers.get(name) for name in _SAYING)
        )

    @property
    def window(self) -> int:
        """zlib's `wbits` for the body, 0 if it is not compressed. Raises KeyError."""
        return window_of(self.headers.get(b"content-encoding"))


def read_infer(raw: RawAnswer, memory: Reservation | None = None) -> Answer:
    """Read the answer to an infer request, which is not compressed.

    `memory` is grown by what its JSON takes. Raises `InvalidRequest`, and `MemoryFull`.
    """
    if raw.status != 200:
        return failure(raw)
    body = memoryview(raw.body)
    length = raw.headers.get(b"inference-header-content-length")
    size = len(body) if length is None else int(length)
    document = _object(bytes(body[:size]), memory)
    outputs: Outputs = {}
    position = size
    for output in document.get("outputs", ()):
        name, shape = output["name"], output["shape"]
        datatype = _datatype(output["datatype"])
        length = output.get("parameters", {}).get("binary_data_size")
        if "data" in output:
            values = from_json(output["data"], datatype, shape, name)
        elif length is not None:
            view = body[position : position + length]
            values = from_bytes(view, datatype, shape, name, "")
            position += length
        else:  # in shared memory
            continue
        outputs[name] = Output(datatype.name, tuple(shape), values)
    return Answer("200", [outputs])


def read_generate(raw: RawAnswer, memory: Reservation | None = None) -> Answer:
    """Read the answer to a generate request: an object, or a stream of them as events."""
    if raw.status != 200:
        return failure(raw)
    if not raw.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        return Answer("200", [_generated(_object(raw.body, memory))])
    parts = [_object(event, memory) for event in _events(raw.body)]
    errors = [part["error"] for part in parts if set(part) == {"error"}]
    if errors:
        return Answer("200", [], str(errors[0]))
    return Answer("200", [_generated(part) for part in parts])


def failure(raw: RawAnswer) -> Answer:
    """Read an answer that is an error."""
    try:
        text = str(_object(raw.body)["error"])
    except (InvalidRequest, KeyError):
        text = raw.body[:200].decode("utf-8", "replace")
    return Answer(str(raw.status), [], text)


def _object(text: bytes, memory: Reservation | None = None) -> dict[str, Any]:
    document = parse_json(text, _LIMITS, memory)
    if not isinstance(document, dict):
        raise InvalidRequest("an answer is not a JSON object")
    return document


def _events(body: bytes) -> Iterator[bytes]:
    for line in body.splitlines():
        if line.startswith(b"data:") and line != b"data: [DONE]":
            yield line[5:]


def _generated(document: dict[str, Any]) -> Outputs:
    """Return the outputs of an object, which says neither datatypes nor shapes of one element."""
    outputs: Outputs = {}
    for name, value in document.items():
        if name in ("id", "model_name", "model_version"):
            continue
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, (int, float)) for one in values):
            outputs[name] = Output("FP64", (len(values),), np.array(values, np.float64))
        else:
            array = np.empty(len(values), np.object_)
            array[:] = [
                one.encode() if isinstance(one, str) else repr(one).encode() for one in values
            ]
            outputs[name] = Output("BYTES", array.shape, array)
    return outputs


def _datatype(name: str) -> Datatype:
    datatype = DATATYPES.get(name)
    if datatype is None:
        raise InvalidRequest(f"an answer has the unknown datatype {name!r}")
    return datatype


def read_message(response: Any) -> Outputs:
    """Read the outputs of a ModelInferResponse. Raises `InvalidRequest`."""
    outputs: Outputs = {}
    contents = iter(response.raw_output_contents)
    for tensor in response.outputs:
        if "shared_memory_region" in tensor.parameters:
            continue
        datatype, shape = _datatype(tensor.datatype), tuple(tensor.shape)
        raw = next(contents, None)
        if raw is not None:
            values = from_bytes(memoryview(raw), datatype, shape, tensor.name, "")
        else:
            values = _typed(tensor, datatype).reshape(shape)
        outputs[tensor.name] = Output(datatype.name, shape, values)
    return outputs


def _typed(tensor: Any, datatype: Datatype) -> Array:
    fields = tensor.contents.ListFields()
    values = list(fields[0][1]) if fields else []
    array = np.empty(len(values), np.object_ if not datatype.size else datatype.dtype)
    array[:] = values
    return array
