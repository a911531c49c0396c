"""From a final item to the answer of an infer request: JSON, the bytes of tensors behind it, and tensors in shared memory."""

from __future__ import annotations

from collections.abc import Sized
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import orjson

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import Item

from ..encoding import as_tensor, to_bytes, to_flat_json
from ..models.model import Model, Tensor
from ..shared_memory import Part
from ..tensors import HUGE
from .classification import classify
from .request import InferRequest
from .wanted import Wanted

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")

Headers = list[tuple[bytes, bytes]]

MANY = 1 << 16
"""Elements that are converted in a few milliseconds."""

Chosen = list[tuple[Tensor, Any, Wanted]]
"""Outputs, their values, and how they are to come."""


def takes_long(chosen: Chosen) -> bool:
    """Whether other requests would feel it if these were written on the event loop. Of what is only copied that is true for very much that
    goes to shared memory; of a body, joined on a helper thread, they would feel more (measured with 64 MiB).
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
    return elements > MANY or copied > HUGE


def _is_copied(tensor: Tensor, value: Any) -> bool:
    if tensor.datatype is not None:
        return tensor.datatype.in_place
    return getattr(getattr(value, "dtype", None), "kind", None) in {"i", "u", "f"}


def write(request: InferRequest, model: Model, chosen: Chosen) -> tuple[Headers, bytes]:
    """Headers and body. Raises `InvalidRequest` for what the client can't have as it asked, `BackendError` for no tensor at all."""
    outputs: list[dict[str, Any]] = []
    blobs: list[Any] = []
    for tensor, value, wanted in chosen:
        datatype, array = as_tensor(value, tensor.datatype, tensor.name)
        if wanted.classes:
            datatype, array = classify(
                datatype, array, wanted.classes, tensor, batched=model.max_batch_size > 0
            )
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": datatype.name,
            "shape": array.shape,
        }
        if wanted.lease is not None:
            size = _into_region(to_bytes(datatype, array), wanted, wanted.lease)
            entry["parameters"] = {
                "shared_memory_region": wanted.region, "shared_memory_byte_size": size, "shared_memory_offset": wanted.offset
            }  # fmt: skip
        elif wanted.binary:
            blob = to_bytes(datatype, array)
            size = len(blob) if type(blob) is bytes else blob.nbytes
            entry["parameters"] = {"binary_data_size": size}
            if size:
                blobs.append(blob)
        else:
            entry["data"] = to_flat_json(datatype, array, tensor.name)
        outputs.append(entry)
    document: dict[str, Any] = {
        "model_name": model.name,
        "model_version": model.version,
        "outputs": outputs,
    }
    if request.id:
        document["id"] = request.id
    text = orjson.dumps(document)
    if not blobs:
        return [_JSON], text
    return [_BINARY, (b"inference-header-content-length", b"%d" % len(text))], b"".join(
        (text, *blobs)
    )


@lru_cache(1024)
def _plain(name: str, binary: bool) -> Wanted:
    """An output of which the request says nothing."""
    return Wanted(name, binary)


def choose(request: InferRequest, model: Model, item: Item) -> Chosen:
    """The outputs that the item has, of those that the request asks for, in its order."""
    if request.outputs is None:
        binary = request.binary
        return [
            (tensor, value, _plain(tensor.name, binary)) for tensor, value in model.values_of(item)
        ]
    found = {tensor.name: (tensor, value) for tensor, value in model.values_of(item)}
    return [(*found[wanted.name], wanted) for wanted in request.outputs if wanted.name in found]


def _into_region(blob: Any, wanted: Wanted, lease: Part) -> int:
    """Write a tensor's bytes to where its request wants them; how many."""
    content = memoryview(blob if type(blob) is bytes else blob.reshape(-1).view(np.uint8))
    if len(content) > lease.size:
        raise InvalidRequest(
            f"shared memory size specified with the request for output '{wanted.name}' ({lease.size} bytes) should be at least "
            f"{len(content)} bytes to hold the results"
        )
    lease.write(content)
    return len(content)
