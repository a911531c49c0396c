"""The answer to an infer request as a ModelInferResponse.

Its tensors are raw contents. They are appended to the rest of the message here: protobuf would copy
them once more.
"""

from __future__ import annotations

from typing import Any

from ..v2.infer.request import InferRequest
from ..v2.infer.response import KEPT_HEAD_BYTES, KEPT_HEADS_PER_MODEL, Chosen, encode
from ..v2.models.model import Model
from .messages import messages
from .wire import varint

_ID_TAG = b"\x1a"  # field 3, bytes
_RAW_OUTPUT_CONTENTS_TAG = b"\x32"  # field 6, bytes


def write_message(request: InferRequest, model: Model, chosen: Chosen, **parameters: bool) -> bytes:
    """Return the serialised ModelInferResponse. Raises what `encode` raises."""
    outputs, blobs = encode(request, model, chosen)
    described = [(output["name"], output["datatype"], output["shape"]) for output in outputs]
    key = ("grpc", *parameters.items(), *described)
    plain = not any(wanted.region for _, _, wanted in chosen)
    pieces = model.heads.get(key) if plain else None
    if pieces is None:
        pieces = (_head(model, outputs, parameters),)
        if plain and len(pieces[0]) <= KEPT_HEAD_BYTES:
            if len(model.heads) >= KEPT_HEADS_PER_MODEL:
                model.heads.clear()
            model.heads[key] = pieces
    parts: list[Any] = [*pieces]
    if request.id:
        identity = request.id.encode()
        parts += (_ID_TAG, varint(len(identity)), identity)
    for blob in blobs:
        size = len(blob) if isinstance(blob, bytes) else blob.nbytes
        parts += (_RAW_OUTPUT_CONTENTS_TAG, varint(size), blob if size else b"")
    return b"".join(parts)


def _head(model: Model, outputs: list[dict[str, Any]], parameters: dict[str, bool]) -> bytes:
    message = messages.ModelInferResponse(model_name=model.name, model_version=model.version)
    for key, value in parameters.items():
        message.parameters[key].bool_param = value
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
