"""The answer to an infer request: JSON, tensors as bytes after it or in shared memory."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import orjson

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import np

from ...http.inputs.datatypes import DATATYPES, Array, Datatype
from ...http.inputs.declared import ANY_SIZE, Tensor
from ...http.render import PIECE_BYTES, json_pieces
from ..call import JSON_HEADER
from ..encoding import as_rows, as_tensor, to_bytes, to_flat_json, written_bytes
from ..models.model import Model
from ..shared_memory import Slice
from ..tensors import COPY_OFF_LOOP_BYTES
from .classification import classified_bytes, classify
from .request import InferRequest
from .wanted import Wanted

_BINARY_HEADER = (b"content-type", b"application/octet-stream")

KEPT_HEADS_PER_MODEL = 64
"""The most answers of which a model keeps the JSON. When there are more, all are forgotten."""

KEPT_HEAD_BYTES = 2048
"""The longest JSON of an answer that is kept."""

SMALL_ELEMENTS = 256
SMALL_ANSWER_BYTES = 1 << 12
"""An output of so few elements as JSON, and so many bytes of outputs, are not counted in
`max_memory`: they are sent at once.
"""

Headers = list[tuple[bytes, bytes]]

CONVERT_OFF_LOOP_ELEMENTS = 1 << 16
"""Converting this many elements takes milliseconds; more are converted on a helper thread."""

Chosen = list[tuple[Tensor, Any, Wanted]]
"""Outputs, their values, and how the request wants them."""


@dataclass(slots=True)
class Written:
    """The body of an answer: its JSON, and after it the bytes of tensors, `size` bytes in all.

    `blobs` are contiguous buffers; they are the memory of the outputs where that is possible.
    """

    text: bytes
    blobs: Sequence[Any]
    size: int

    def headers(self) -> Headers:
        """Return the headers that say what the body is, without its length."""
        if not self.blobs:
            return [JSON_HEADER]
        return [_BINARY_HEADER, (b"inference-header-content-length", b"%d" % len(self.text))]

    def lines(self) -> bytes:
        """Write `headers` and the length as HTTP/1.1 does."""
        if not self.blobs:
            return b"content-type: application/json\r\ncontent-length: %d\r\n" % self.size
        return (
            b"content-type: application/octet-stream\r\n"
            b"inference-header-content-length: %d\r\ncontent-length: %d\r\n"
        ) % (len(self.text), self.size)

    def joined(self) -> bytes:
        return b"".join((self.text, *self.blobs)) if self.blobs else self.text


def takes_long(chosen: Chosen) -> bool:
    """Return whether writing these outputs on the event loop would delay other requests notably.

    Conversions do if they are many. Plain copies do only if very much goes to shared memory: to
    join a large body on a helper thread delays the others more than to join it on the loop
    (measured with 64 MiB).
    """
    elements = copied = 0
    for tensor, value, wanted in chosen:
        if (
            (datatype := tensor.datatype) is not None
            and datatype.in_place
            and wanted.binary
            and not wanted.classes
        ):
            continue
        if wanted.region:
            copied += getattr(value, "nbytes", 0)
        if wanted.classes or not (wanted.binary or wanted.region) or not _is_copied(tensor, value):
            shape = getattr(value, "shape", None)
            elements += (
                prod(shape) if shape is not None else len(value) if isinstance(value, Sized) else 1
            )
    return elements > CONVERT_OFF_LOOP_ELEMENTS or copied > COPY_OFF_LOOP_BYTES


def _is_copied(tensor: Tensor, value: Any) -> bool:
    """Return whether the value's bytes are written as they are, without a conversion."""
    if tensor.datatype is not None:
        return tensor.datatype.in_place
    return getattr(getattr(value, "dtype", None), "kind", None) in {"i", "u", "f"}


def write(request: InferRequest, model: Model, chosen: Chosen) -> Written:
    """Return the body of the answer, and write to shared memory. Raises what `encode` raises."""
    outputs, contents = encode(request, model, chosen)
    texts: list[bytes | None] = []
    blobs: list[Any] = []
    size = 0
    for content, (_, _, wanted) in zip(contents, chosen, strict=True):
        as_text = not wanted.binary and wanted.lease is None
        texts.append(content if as_text else None)
        if not as_text and (length := _length(content)):
            blobs.append(content)
            size += length
    head = _head(request, model, outputs, texts)
    return Written(head, blobs, len(head) + size)


def encode(
    request: InferRequest, model: Model, chosen: Chosen
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Describe each output as the protocol's JSON does, and encode what it holds.

    The second list has, for each output, its bytes as a contiguous buffer, its JSON if it is not
    wanted as bytes, or b"" once it has been written to shared memory. Raises `InvalidRequest` for
    an output that can't be written as the request asks, and `BackendError` for a value that is not
    a tensor of the declared datatype.
    """
    outputs: list[dict[str, Any]] = []
    contents: list[Any] = []
    for tensor, value, wanted in chosen:
        datatype, array = tensor_of(tensor, value, request.rows, model)
        if wanted.classes:
            batched = model.max_batch_size > 0
            request.reserve(classified_bytes(array, wanted.classes, batched=batched), "classes")
            datatype, array = classify(datatype, array, wanted.classes, tensor, batched=batched)
        request.reserve(
            written_bytes(datatype, array, binary=wanted.binary or wanted.lease is not None),
            "an answer",
        )
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": datatype.name,
            "shape": array.shape,
        }
        content: Any = b""
        if wanted.lease is not None:
            output["parameters"] = {
                "binary_data_size": 0,  # clients in C++ refuse parameters without it
                "shared_memory_region": wanted.region,
                "shared_memory_byte_size": _write_to(
                    wanted.lease, to_bytes(datatype, array), wanted.name
                ),
                "shared_memory_offset": wanted.offset,
            }
        elif wanted.binary:
            content = to_bytes(datatype, array)
            output["parameters"] = {"binary_data_size": _length(content)}
        else:
            content = to_flat_json(datatype, array, tensor.name, request.memory)
        outputs.append(output)
        contents.append(content)
    return outputs, contents


def tensor_of(tensor: Tensor, value: Any, rows: int, model: Model) -> tuple[Datatype, Array]:
    """Make a tensor of an output of a request with so many rows. Raises `BackendError`."""
    if _is_rows(tensor, value, rows, model):
        return DATATYPES["BYTES"], as_rows(value)
    if tensor.kind == "list" and isinstance(value, (list, tuple)):
        return _of_list(tensor, value)
    return as_tensor(value, _expected(tensor, value, model), tensor.name)


def _expected(tensor: Tensor, value: Any, model: Model) -> Datatype | None:
    """Return the datatype that an output must have; None: its own.

    Triton sends what a Python model returns, whatever its configuration says.
    """
    declared = tensor.datatype
    if model.pipeline.config.model_config is None or type(value) is not np.ndarray:
        return declared
    is_bf16 = declared is not None and declared.name == "BF16" and value.dtype == np.float32
    return declared if is_bf16 else None


def _length(content: Any) -> int:
    """Return the bytes of what `to_bytes` made."""
    length: int = len(content) if isinstance(content, bytes) else content.nbytes
    return length


def write_arrays(request: InferRequest, model: Model, chosen: Chosen) -> Written | None:
    """Write outputs that are arrays of the declared datatypes, and small if they become JSON.

    That never takes long. The JSON around them is kept for their shapes. Returns None if there is
    another one among them, or if the answer has an id or parameters: `write` then writes them.
    """
    if request.id or request.response_parameters:
        return None
    size = 0
    key: list[Any] = []
    texts: list[bytes] = []
    blobs: list[Any] = []
    for tensor, value, wanted in chosen:
        datatype = declared_as(tensor, value, wanted)
        if datatype is None:
            return None
        binary = wanted.binary
        if binary:
            size += value.nbytes
            blobs.append(value)
        elif value.size <= SMALL_ELEMENTS:
            texts.append(to_flat_json(datatype, value, tensor.name, request.memory))
        else:
            return None
        key += (tensor.name, value.shape, binary)
    if size > SMALL_ANSWER_BYTES:
        request.reserve(2 * size, "an answer")
    pieces = model.heads.get(known := tuple(key))
    if pieces is None:
        pieces = _pieces_around(model, chosen)
        if len(model.heads) >= KEPT_HEADS_PER_MODEL:
            model.heads.clear()
        if sum(map(len, pieces)) <= KEPT_HEAD_BYTES:
            model.heads[known] = pieces
    text = pieces[0]
    if texts:
        text += b"".join([piece for pair in zip(texts, pieces[1:], strict=True) for piece in pair])
    return Written(text, blobs, len(text) + size)


def declared_as(tensor: Tensor, value: Any, wanted: Wanted) -> Datatype | None:
    """Return the datatype of a value that is an array as it was declared, not empty, and wanted as
    it is: its memory is what the protocol sends. None for any other.
    """
    datatype = tensor.datatype
    if (
        type(value) is not np.ndarray
        or datatype is None
        or not datatype.in_place
        or wanted.classes
        or wanted.lease is not None
        or value.dtype != datatype.dtype
        or not value.shape
        or not value.size
        or not value.flags.c_contiguous
    ):
        return None
    return datatype


def _pieces_around(model: Model, chosen: Chosen) -> tuple[bytes, ...]:
    """Write the JSON of an answer with these arrays, cut where the data of those in JSON go."""
    pieces = []
    piece = orjson.dumps({"model_name": model.name, "model_version": model.version})[:-1]
    piece += b',"outputs":['
    for index, (tensor, value, wanted) in enumerate(chosen):
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype.name if tensor.datatype is not None else "",
            "shape": value.shape,
        }
        if wanted.binary:
            output["parameters"] = {"binary_data_size": value.nbytes}
        piece += (b"," if index else b"") + orjson.dumps(output)[:-1]
        if not wanted.binary:
            pieces.append(piece + b',"data":')
            piece = b""
        piece += b"}"
    return (*pieces, piece + b"]}")


def _head(
    request: InferRequest,
    model: Model,
    outputs: list[dict[str, Any]],
    texts: list[bytes | None],
) -> bytes:
    """Write the JSON of the answer. `texts` are the data of the outputs as JSON."""
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.response_parameters:
        document["parameters"] = request.response_parameters
    identity = request.id
    if len(identity or "") + sum([len(text) for text in texts if text]) <= PIECE_BYTES:
        for output, text in zip(outputs, texts, strict=True):
            if text is not None:
                output["data"] = orjson.Fragment(text)
        document["outputs"] = outputs
        if identity:
            document["id"] = identity
        return orjson.dumps(document)
    # Joined here: orjson would take several times the memory.
    pieces = [orjson.dumps(document)[:-1], b',"outputs":[']
    for index, (output, text) in enumerate(zip(outputs, texts, strict=True)):
        pieces += (b"," if index else b"", orjson.dumps(output)[:-1])
        pieces += (b"}",) if text is None else (b',"data":', text, b"}")
    pieces.append(b"]")
    if identity:
        pieces += (b',"id":', *json_pieces(identity))
    return b"".join([*pieces, b"}"])


def _of_list(tensor: Tensor, values: Sequence[Any]) -> tuple[Datatype, Array]:
    """Make a tensor of a list: an element for each item, or its JSON text (`kind = "list"`)."""
    datatype = tensor.datatype
    assert datatype is not None and tensor.shape is not None
    if not datatype.size:
        return datatype, as_rows(values if tensor.shape == ANY_SIZE else [list(values)])
    if not values:
        return datatype, np.empty(0, datatype.dtype)
    return as_tensor(values, datatype, tensor.name)


def _is_rows(tensor: Tensor, value: Any, rows: int, model: Model) -> bool:
    """Return whether the output is a list with a value for each row, such as the maps of a ZipMap.

    It has a batch dimension then, as every tensor of the model does.
    """
    return (
        isinstance(value, (list, tuple))
        and tensor.datatype is DATATYPES["BYTES"]
        and tensor.kind == "tensor"
        and (model.max_batch_size > 0 or bool(model.batch_axes))
        and len(value) == rows
    )


@lru_cache(1024)
def _plain(name: str, binary: bool) -> Wanted:
    """Return an output that the request does not mention."""
    return Wanted(name, binary)


def choose(request: InferRequest, model: Model, item: Item) -> Chosen:
    """Choose the outputs to write: those of the item that the request asks for, in its order."""
    if request.outputs is None:
        binary = request.binary
        return [
            (tensor, value, _plain(tensor.name, binary)) for tensor, value in model.values_of(item)
        ]
    found = model.values_of(item)
    chosen = [
        (tensor, value, wanted)
        for (tensor, value), wanted in zip(found, request.outputs, strict=False)
        if tensor.name == wanted.name
    ]
    if len(chosen) == len(found) == len(request.outputs):  # all, in the model's order
        return chosen
    values = {tensor.name: (tensor, value) for tensor, value in found}
    return [(*values[wanted.name], wanted) for wanted in request.outputs if wanted.name in values]


def _write_to(lease: Slice, blob: Any, name: str) -> int:
    """Write the bytes of output `name` to shared memory, and return how many they are."""
    content = memoryview(blob if isinstance(blob, bytes) else blob.reshape(-1).view(np.uint8))
    if len(content) > lease.size:
        raise InvalidRequest(
            f"shared memory size specified with the request for output '{name}' ({lease.size} "
            f"bytes) should be at least {len(content)} bytes to hold the results"
        )
    lease.write(content)
    return len(content)
