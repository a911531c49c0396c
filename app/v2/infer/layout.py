"""Layouts of requests that repeat.

A client that calls a model again and again sends the same JSON before other bytes, or with other
bytes in shared memory. What `parse` found in that JSON is kept, and the next request's bytes are
only cut into tensors. On a small request that saves 6 µs, 10 to 15 % of the processor time
(docs/explanation/performance.md). Regions of shared memory are looked up again, since a name may
stand for another region by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from penstock.backends.item import NO_FACTS, Item
from penstock.backends.lazy_numpy import np

from ...http.inputs.datatypes import DATATYPES
from ...http.inputs.declared import Tensor
from ..cuda_memory import tensor_of
from ..models.model import Model
from ..shared_memory import SharedMemory, region_of
from ..tensors import COPY_OFF_LOOP_BYTES
from .request import InferRequest
from .wanted import Wanted

KEPT_JSON_BYTES = 2048
"""The longest JSON whose layout is kept."""

LAYOUTS_PER_MODEL = 64
"""The most layouts that a model keeps. When there are more, all are forgotten."""


class Slot(NamedTuple):
    """The place of an input: `size` bytes from `start` on, after the JSON or in a region."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    size: int
    region: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A request as its JSON describes it.

    `size` is the number of bytes after the JSON. `keys` are the item's keys for the slots; None if
    the inputs make up `data`. `item` holds the request's parameters. `shared` says that some tensor
    lies in shared memory. The other fields are those of `InferRequest`.
    """

    size: int
    slots: tuple[Slot, ...]
    keys: tuple[str, ...] | None
    item: Item
    rows: int
    timeout: float | None
    priority: int | None
    outputs: Sequence[Wanted] | None
    binary: bool
    shared: bool


def recall(
    request: InferRequest, text: bytes, blobs: memoryview, model: Model, regions: SharedMemory
) -> bool:
    """Fill `request` as `parse` would, if the layout of this JSON is kept; return whether it is.

    Raises what `parse` raises for shared memory.
    """
    layout: Layout | None = model.layouts.get(text) if len(text) <= KEPT_JSON_BYTES else None
    if layout is None or layout.size != len(blobs):
        return False
    if layout.shared:
        values = [
            _shared(slot, expected, model, regions, request)
            if slot.region
            else np.ndarray(slot.shape, slot.dtype, blobs, slot.start)
            for slot, expected in zip(layout.slots, model.inputs, strict=True)
        ]
    else:
        values = [
            np.ndarray(shape, dtype, blobs, start) for shape, dtype, start, _, _ in layout.slots
        ]
    item = layout.item.copy()
    if layout.keys is not None:
        item.update(zip(layout.keys, values, strict=True))
    else:
        item["data"] = values[0] if len(values) == 1 else values
    request.item = item
    request.rows = layout.rows
    request.timeout = layout.timeout
    request.priority = layout.priority
    request.outputs = layout.outputs
    request.binary = layout.binary
    if layout.shared and layout.outputs is not None:
        request.outputs = [
            wanted.borrowed(regions) if wanted.region else wanted for wanted in layout.outputs
        ]
        request.leases = [wanted.lease for wanted in request.outputs if wanted.lease is not None]
    return True


def _shared(
    slot: Slot, expected: Tensor, model: Model, regions: SharedMemory, request: InferRequest
) -> Any:
    borrowed = regions.borrow(slot.region, slot.start, slot.size)
    request.is_shared |= not borrowed.copied
    request.reserve(borrowed.copied, "tensors")
    tensor = tensor_of(borrowed, expected, model, slot.dtype, slot.shape)
    return np.ndarray(slot.shape, slot.dtype, borrowed.read()) if tensor is None else tensor


def remember(
    request: InferRequest, document: dict[str, Any], text: bytes, blobs: memoryview, model: Model
) -> None:
    """Keep the layout of a request that `parse` has accepted.

    Only if the JSON says all there is to know (it has no id and no tensor data), and if the tensors
    can be read in place. Not if very much would be copied out of shared memory: recalled requests
    are read on the event loop. Not if it is a step of a sequence: each sequence has another JSON.
    """
    if (
        len(text) > KEPT_JSON_BYTES
        or request.id is not None
        or request.step is not None
        or request.item.get("request_facts", NO_FACTS).correlation_id
        or not model.inputs
    ):
        return
    by_name: dict[str, Slot] = {}
    start = 0
    for tensor in document["inputs"]:
        datatype = DATATYPES[tensor["datatype"]]
        expected = model.inputs_by_name[tensor["name"]]
        parameters = tensor.get("parameters") or {}
        shape = tuple(tensor["shape"])
        declared = expected.datatype
        if not datatype.in_place or expected.kind != "tensor" or declared not in (None, datatype):
            return  # each request converts its own, such as pixels for floats
        if size := parameters.get("binary_data_size"):
            if start % datatype.size:
                return
            by_name[expected.name] = Slot(shape, datatype.dtype, start, size)
            start += size
        elif "shared_memory_region" in parameters:
            region, offset, size = region_of(parameters)
            by_name[expected.name] = Slot(shape, datatype.dtype, offset, size, region)
        else:
            return
    if len(by_name) != len(model.inputs):
        return  # an optional input is left out
    slots = tuple(by_name[tensor.name] for tensor in model.inputs)
    if sum(slot.size for slot in slots if slot.region) > COPY_OFF_LOOP_BYTES:
        return
    if len(model.layouts) >= LAYOUTS_PER_MODEL:
        model.layouts.clear()
    outputs = request.outputs
    if outputs is not None:
        outputs = [replace(wanted, lease=None) for wanted in outputs]
    model.layouts[text] = Layout(
        size=len(blobs),
        slots=slots,
        keys=tuple(tensor.name for tensor in model.inputs)
        if model.inputs[0].position is None
        else None,
        item={
            key: value
            for key, value in request.item.items()
            if key != "data" and key not in by_name
        },
        rows=request.rows,
        timeout=request.timeout,
        priority=request.priority,
        outputs=outputs,
        binary=request.binary,
        shared=any(slot.region for slot in slots) or any(wanted.region for wanted in outputs or ()),
    )
