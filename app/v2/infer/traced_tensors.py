"""The tensors of a request that is traced at the level TENSORS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from penstock.backends.errors import BackendError, MemoryFull
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import np

from ...http.inputs.declared import Tensor
from ...trace.tracing import MAX_TENSOR_BYTES, MAX_TENSOR_ELEMENTS, MAX_TENSORS, Traced
from ..encoding import as_tensor, text_bytes
from ..models.model import Model

QUEUE_INPUT = "TENSOR_QUEUE_INPUT"
BACKEND_OUTPUT = "TENSOR_BACKEND_OUTPUT"


def note_tensors(traced: Traced, activity: str, values: Iterable[tuple[Tensor, Any]]) -> None:
    """Add copies of small tensors to the trace.

    Larger ones are left out, and those that do not fit beside the traces that are not written yet.
    """
    for tensor, value in values:
        if len(traced.tensors) >= MAX_TENSORS:
            return
        size = getattr(value, "size", 0)
        if (value.numel() if callable(size) else size) > MAX_TENSOR_ELEMENTS:  # numel: torch's
            continue
        if isinstance(value, (list, tuple)) and len(value) > MAX_TENSOR_ELEMENTS:
            continue
        try:
            datatype, array = as_tensor(value, tensor.datatype, tensor.name)
        except BackendError:  # the answer will say so
            continue
        held = array.nbytes + (0 if datatype.size else text_bytes(array))
        if array.size > MAX_TENSOR_ELEMENTS or held > MAX_TENSOR_BYTES:
            continue
        try:
            traced.memory.resize(traced.memory.size + held, "tensors of traces")
        except MemoryFull:
            return
        # A copy: a view may be of shared memory, or keep a large body.
        traced.tensors.append((activity, tensor.name, datatype.name, np.array(array)))


def inputs_of(model: Model, item: Item) -> Iterator[tuple[Tensor, Any]]:
    """Yield the inputs that an item has, with their values."""
    listed = sum(tensor.position is not None for tensor in model.inputs) > 1
    for tensor in model.inputs:
        if tensor.position is None:
            value = item.get(tensor.name)
        else:
            value = item["data"][tensor.position] if listed else item["data"]
        if value is not None:
            yield tensor, value
