"""The results of a node that the nodes after it have not finished yet: back-pressure, in bytes.

Without it a fast node before a slow one would fill the memory: a decoder made 91 images of 30 MB
each before a model that had read three. Rule 9 of docs/explanation/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from penstock.backends.item import Item
from penstock.backends.memory import budget

DIVISOR = 8
"""The results of one node may hold this part of `max_memory`: an eighth."""

SMALL_BYTES = 4096
"""Smaller results are not counted. `max_requests` bounds them, and counting has a price."""


class Outflow:
    """Counts the bytes of one node's results until they leave the node after it.

    While the count is over the node's share of the memory budget, the node starts no batch. `wake`
    is called when it may start again.

    A count must never wait for the node itself. So a result is counted only while it queues, runs
    or waits at a node from which no way leads back (`RunningGraph`). Some node always runs then.
    """

    __slots__ = ("_holds", "_wake", "bytes")

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.bytes = 0
        self._wake = wake
        self._holds = False

    def __repr__(self) -> str:
        return f"<Outflow {self.bytes} of {self.limit} bytes>"

    @property
    def limit(self) -> int:
        """The share of the budget, in bytes. A server may change the budget."""
        return budget.limit // DIVISOR

    @property
    def full(self) -> bool:
        """True if the node may start no batch now. The node is woken when that ends."""
        self._holds = self.bytes > self.limit
        return self._holds

    def release(self, size: int) -> None:
        """Stop counting `size` bytes."""
        self.bytes -= size
        if self._holds and self.bytes <= self.limit:
            self._holds = False
            self._wake()


def bytes_of(item: Item) -> int:
    """Return about how many bytes of the CPU's memory the item holds.

    Counts text, bytes, NumPy arrays, torch tensors, and lists and tuples of these. An array that is
    a view counts as what it keeps alive.
    """
    size = 0
    for value in item.values():
        measure = _MEASURES.get(type(value), _measure_other)
        if measure is not None:
            size += measure(value)
    return size


def bytes_of_all(items: Iterable[Item]) -> int:
    """Return how many bytes the items hold together. What several of them share counts once."""
    return bytes_of({str(id(value)): value for item in items for value in item.values()})


def _measure_list(values: Sequence[Any]) -> int:
    # A list of numbers is long and small: its first element tells.
    if not values or _MEASURES.get(type(values[0]), _measure_other) in (None, _measure_list):
        return 0
    size = 0
    for value in values:
        measure = _MEASURES.get(type(value), _measure_other)
        if measure is not None and measure is not _measure_list:
            size += measure(value)
    return size


def _measure_array(array: Any) -> int:
    base = array.base
    size: int = (array if base is None or type(base) is not type(array) else base).nbytes
    return size


def _measure_tensor(tensor: Any) -> int:
    return int(tensor.nbytes) if tensor.is_cpu else 0


def _measure_other(value: Any) -> int:
    """Measure a value of a type that is new here: NumPy and torch may be imported later."""
    kind = type(value)
    measure = {"ndarray": _measure_array, "Tensor": _measure_tensor}.get(kind.__name__)
    if measure is None or kind.__module__ not in ("numpy", "torch"):
        return 0
    _MEASURES[kind] = measure
    return measure(value)


_MEASURES: dict[type, Callable[[Any], int] | None] = {
    **dict.fromkeys((bytes, bytearray, str), len),
    **dict.fromkeys((list, tuple), _measure_list),
    **dict.fromkeys((int, float, bool, complex, type(None))),
}
