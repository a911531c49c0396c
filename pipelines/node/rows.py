"""The rows of an item: what it takes of a batch's `max`.

Where the node's backend says which axis of its arrays is the batch (`Signature.has_rows`), the rows
are counted from the arrays in `data`. At every other node they are the item's `request_size`, or 1.
docs/explanation/scheduling.md has the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.backends.base import Signature
from penstock.backends.errors import InvalidInput
from penstock.backends.item import Item
from penstock.backends.text import repr_of

from .queue import Batch


def count_rows(item: Item, signature: Signature | None, most: int, node: str) -> int:
    """Count the rows of an item that comes to a node.

    `signature`: that of the node's backend, if it says which axis is the batch.
    `most`: the most rows that the node takes at once. Raises InvalidInput for more, for a
    `request_size` that is no positive int, and for one that the arrays contradict.
    """
    counted = _rows_of(item.get("data"), signature) if signature is not None else None
    rows = item.get("request_size", counted or 1)
    if not isinstance(rows, int) or rows < 1:
        raise InvalidInput(
            f"node {node!r}: 'request_size' is the number of rows of the item: expected a positive "
            f"int, found {repr_of(rows)}"
        )
    if counted is not None and counted != rows and "request_size" in item:
        raise InvalidInput(
            f"node {node!r}: expected {rows} (the item's request_size) as batch dimension, found "
            f"{counted} rows"
        )
    if rows > most:
        raise InvalidInput(
            f"node {node!r}: the item has {rows} rows, and a batch of this node at most {most} "
            "(max): split the item, or raise max"
        )
    return rows


def rows_to_admit(item: Item, signature: Signature, most: int) -> int:
    """Return the rows that admission counts for an item without `request_size`, at most `most`.

    1 if the arrays are not what the signature says: the node then reports what is wrong.
    """
    try:
        counted = _rows_of(item["data"], signature)
    except BaseException:  # an array's own code raised it
        return 1
    return min(counted, most) if counted else 1


def forget_counts(batch: Batch) -> None:
    """Take the counted `request_size` back: it need not hold for what the backend made."""
    for entry, outcome in zip(batch.entries, batch.outcomes, strict=True):
        if entry.counted:
            entry.counted = False
            if isinstance(outcome, dict) and outcome.get("request_size") == entry.size:
                del outcome["request_size"]


def _rows_of(data: Any, signature: Signature) -> int | None:
    """Return the size of the batch axis of the arrays in `data`, the largest if they differ.

    None if the arrays are not what the signature says; the backend then reports what is wrong.
    """
    ports = signature.inputs
    if isinstance(data, dict):
        if ports is not None and data.keys() <= {port.name for port in ports}:
            data = [data.get(port.name) for port in ports]
        else:
            data = list(data.values())
    arrays: Sequence[Any] = data if isinstance(data, (list, tuple)) else [data]
    if ports is not None and len(ports) != len(arrays):
        left_out = ports[len(arrays) :]
        if not left_out or not all(port.optional for port in left_out):
            return None
    largest: int | None = None
    for index, array in enumerate(arrays):
        shape = getattr(array, "shape", None)
        axis = signature.batch_axis(index)
        if axis is None or not shape or len(shape) <= axis or not isinstance(shape[axis], int):
            continue
        if ports is not None and len(shape) != len(ports[index].shape):
            return None
        if largest is None or shape[axis] > largest:
            largest = shape[axis]
    return largest
