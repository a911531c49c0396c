"""The answer to an infer request as a ModelInferResponse.

Its tensors are raw contents. They are appended to the rest of the message here: protobuf would copy
them once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..v2.infer.request import InferRequest
from ..v2.infer.response import (
    KEPT_HEAD_BYTES,
    KEPT_HEADS_PER_MODEL,
    SMALL_ANSWER_BYTES,
    Chosen,
    declared_as,
    encode,
)
from ..v2.models.model import Model
from .messages import messages
from .wire import varint

Parameter = bool | int | float | str

_PARAMETER_FIELDS = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}

_ID_TAG = b"\x1a"  # field 3, bytes
_RAW_OUTPUT_CONTENTS_TAG = b"\x32"  # field 6, bytes


def write_message(
    request: InferRequest, model: Model, chosen: Chosen, **parameters: Parameter
) -> bytes:
    """Return the serialised ModelInferResponse. Raises what `encode` raises."""
    pieces = None
    if request.response_parameters:
        parameters |= request.response_parameters
    else:
        pieces = _known(request, model, chosen, parameters)
    if pieces is not None:
        head, *tags = pieces
        blobs: Sequence[Any] = [value for _, value, _ in chosen]
    else:
        outputs, blobs = encode(request, model, chosen)
        head = _head(model, outputs, parameters)
        tags = [_tag(blob) for blob in blobs]
    parts: list[Any] = [head]
    if request.id:
        identity = request.id.encode()
        parts += (_ID_TAG, varint(len(identity)), identity)
    for tag, blob in zip(tags, blobs, strict=True):
        parts += (tag, blob)
    return b"".join(parts)


def _known(
    request: InferRequest, model: Model, chosen: Chosen, parameters: dict[str, Parameter]
) -> tuple[bytes, ...] | None:
    """Return what comes before the id, and before each tensor, of outputs that are as declared.

    It is kept for their shapes, as `write_arrays` keeps the JSON. None if there is another output.
    """
    size = 0
    key: list[Any] = ["grpc", *parameters.items()]
    for tensor, value, wanted in chosen:
        if declared_as(tensor, value, wanted) is None:
            return None
        size += value.nbytes
        key += (tensor.name, value.shape)
    pieces = model.heads.get(known := tuple(key))
    if pieces is not None:
        if size > SMALL_ANSWER_BYTES:
            request.reserve(2 * size, "an answer")
    else:
        outputs, blobs = encode(request, model, chosen)
        pieces = (_head(model, outputs, parameters), *map(_tag, blobs))
        if sum(map(len, pieces)) <= KEPT_HEAD_BYTES:
            if len(model.heads) >= KEPT_HEADS_PER_MODEL:
                model.heads.clear()
            model.heads[known] = pieces
    return pieces


def _tag(blob: Any) -> bytes:
    """Return what a tensor's bytes begin with in the message."""
    size = len(blob) if isinstance(blob, bytes) else blob.nbytes
    return _RAW_OUTPUT_CONTENTS_TAG + varint(size)


def _head(model: Model, outputs: list[dict[str, Any]], parameters: dict[str, Parameter]) -> bytes:
    message = messages.ModelInferResponse(model_name=model.name, model_version=model.version)
    for key, value in parameters.items():
        setattr(message.parameters[key], _PARAMETER_FIELDS[type(value)], value)
    for output in outputs:
        tensor = message.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        region = output["parameters"]
        if "shared_memory_region" in region:
            tensor.parameters["shared_memory_region"].string_param = region["shared_memory_region"]
            for name in ("shared_memory_byte_size", "shared_memory_offset"):
                tensor.parameters[name].int64_param = region[name]
    text: bytes = message.SerializeToString()
    return text
