"""Requests that repeat. A client that calls a model again and again sends the same JSON in front of other bytes, or with other bytes in
shared memory; what was found in it, and found right, is kept, and the next request's bytes are only cut into tensors. That spares a
small request a tenth of its time. Regions are looked up again: a name may stand for another one by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from penstock.backends.item import Item

from ..models.model import Model
from ..shared_memory import SharedMemory
from ..tensors import DATATYPES, HUGE, Array
from .fields import region_of
from .request import InferRequest
from .wanted import Wanted

LONGEST = 2048
"""Bytes of JSON that are kept."""

MOST = 64
"""Layouts that a model keeps; then it begins anew."""


class Slot(NamedTuple):
    """Where an input lies: from `start` in what follows the JSON, or, `size` bytes, in a region of shared memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    size: int
    region: str = ""


class Layout(NamedTuple):
    """What a JSON says, but for the bytes behind it. `item` has the request's parameters; `keys` are None where inputs make up `data`.
    `shared`: some tensor lies in shared memory.
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
    """Fill `request` as `parse` would, if this JSON is known; whether it is. Raises what `parse` does of shared memory."""
    layout: Layout | None = model.layouts.get(text) if len(text) <= LONGEST else None
    if layout is None or layout.size != len(blobs):
        return False
    if layout.shared:
        values = [_array(slot, blobs, regions) for slot in layout.slots]
    else:
        values = [
            np.ndarray(shape, dtype, blobs, start) for shape, dtype, start, *_ in layout.slots
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
            wanted if not wanted.region else wanted.borrowed(regions) for wanted in layout.outputs
        ]
        request.leases = [wanted.lease for wanted in request.outputs if wanted.lease is not None]
    return True


def _array(slot: Slot, blobs: memoryview, regions: SharedMemory) -> Array:
    if not slot.region:
        return np.ndarray(slot.shape, slot.dtype, blobs, slot.start)
    return np.ndarray(
        slot.shape, slot.dtype, regions.borrow(slot.region, slot.start, slot.size).read()
    )


def remember(
    request: InferRequest, document: dict[str, Any], text: bytes, blobs: memoryview, model: Model
) -> None:
    """Keep what `parse` has found to be right, where all of it is in the JSON: no id, and where the tensors may be read in place; not
    where very much would be copied out of shared memory, which is not for the event loop.
    """
    if len(text) > LONGEST or request.id is not None or not model.inputs:
        return
    found: dict[str, Slot] = {}
    start = 0
    for entry in document["inputs"]:
        datatype = DATATYPES[entry["datatype"]]
        expected = model.inputs_by_name[entry["name"]]
        parameters = entry.get("parameters") or {}
        shape = tuple(entry["shape"])
        if not datatype.in_place or expected.kind != "tensor":
            return
        if size := parameters.get("binary_data_size"):
            if start % datatype.size:
                return
            found[expected.name] = Slot(shape, datatype.dtype, start, size)
            start += size
        elif "shared_memory_region" in parameters:
            region, offset, size = region_of(parameters)
            found[expected.name] = Slot(shape, datatype.dtype, offset, size, region)
        else:
            return
    if len(model.layouts) >= MOST:
        model.layouts.clear()
    names = tuple(each.name for each in model.inputs)
    keyed = model.inputs[0].part is None
    item = {key: value for key, value in request.item.items() if key != "data" and key not in found}
    slots = tuple(found[name] for name in names)
    if sum(slot.size for slot in slots if slot.region) > HUGE:
        return
    outputs = (
        None
        if request.outputs is None
        else [wanted._replace(lease=None) for wanted in request.outputs]
    )
    shared = any(slot.region for slot in slots) or any(wanted.region for wanted in outputs or ())
    model.layouts[text] = Layout(
        len(blobs),
        slots,
        names if keyed else None,
        item,
        request.rows,
        request.timeout,
        request.priority,
        outputs,
        request.binary,
        shared,
    )
