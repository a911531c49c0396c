"""Shapes, batch sizes, and the order of inputs and outputs: what all engines share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..base import Context
from ..errors import ConfigError, DeviceError, InvalidInput, Problem
from ..item import Item

UNBOUNDED_WARM_UP_BATCH = 8
"""The largest batch to warm up for, if neither the model nor the node has an upper bound."""

AnyPort = TypeVar("AnyPort")
Size = TypeVar("Size")


def shape_key(item: Item) -> Hashable:
    """Return the key that all items of one run share.

    It has each input's dtype and its shape after the batch dimension, None for inputs without a
    shape (texts) and those that are left out.
    """
    data = item.get("data")
    if isinstance(data, list | tuple):
        return tuple([_inner_shape_and_dtype(array) for array in data])
    if isinstance(data, dict):
        return tuple([(name, _inner_shape_and_dtype(array)) for name, array in data.items()])
    return _inner_shape_and_dtype(data)


def _inner_shape_and_dtype(array: Any) -> Hashable:
    return (tuple(array.shape[1:]), array.dtype) if hasattr(array, "shape") else None


def shape_text(shape: Sequence[int | None]) -> str:
    """Write a shape as messages show it: `Nx3x224x224`. N stands for None, which is any size."""
    return "x".join("N" if size is None else str(size) for size in shape) or "()"


def refuse_without_elements(
    engine: str,
    shapes: Iterable[Sequence[int]],
    items: Iterable[Item],
    error: Exception,
    *,
    alone: bool,
) -> None:
    """Fail `items` softly after a run that raised `error` on inputs of these shapes, if one of the
    inputs has no elements. Many models can't compute with such an input, and no other item is to
    blame.

    Raises InvalidInput for an item that is `alone` in its batch, and `error` where all inputs have
    elements.
    """
    empty = next((shape for shape in shapes if 0 in shape), None)
    if empty is None or isinstance(error, (DeviceError, MemoryError)):
        raise error
    refusal = InvalidInput(
        f"{engine}: the model can't compute with an input of shape {shape_text(empty)}, which has "
        f"no elements: {type(error).__name__}"
    )
    if alone:
        raise refusal from error
    for item in items:
        item["error"] = refusal


def wrong_rows(label: str, item: Item, shape: Sequence[int], axis: int) -> InvalidInput:
    """Make the error for an input whose rows are not those that the item counts as.

    Without `request_size` the item counts as one row: its node could not tell which axis is the
    batch, or the array has no rows.
    """
    where = f", axis {axis}" if axis else ""
    rows = shape[axis] if len(shape) > axis else 0
    if "request_size" in item or rows < 1:
        return InvalidInput(
            f"{label}: expected {item.get('request_size', 1)} (the item's request_size) as batch "
            f"dimension{where}, found shape {shape_text(shape)}"
        )
    return InvalidInput(
        f"{label}: expected 1 row as batch dimension{where}, found shape {shape_text(shape)}: the "
        f"node's backend does not say which axis of data is the batch. For {rows} rows in one "
        f"item, set request_size = {rows} in the item"
    )


def batch_first(shape: Sequence[Size], axis: int) -> tuple[Size, ...]:
    """Return a shape with its batch axis moved to the front."""
    return (*shape[axis : axis + 1], *shape[:axis], *shape[axis + 1 :])


def with_batch(rows: Size, inner: Sequence[Size], axis: int) -> tuple[Size, ...]:
    """Return the whole shape of a tensor whose shape without the batch axis is `inner`."""
    return (*inner[:axis], rows, *inner[axis:])


def check_batch_axes(given: Mapping[str, int], ranks: Mapping[str, int], node: str) -> None:
    """Check the key `batch_axis` against a model, whose tensors have these numbers of axes.

    Raises ConfigError.
    """
    for name, axis in given.items():
        if name not in ranks:
            message = (
                f"names {name!r}, and the model has no such input or output: expected one of "
                f"{', '.join(ranks)}"
            )
        elif axis >= ranks[name]:
            message = (
                f"gives axis {axis} for {name}, which has {ranks[name]} axes: expected a number "
                "below that"
            )
        else:
            continue
        raise ConfigError([Problem(message, node=node, key="batch_axis")])


def shapes_of_last_profile(text: str | None) -> list[tuple[int, ...]]:
    """Parse `max` into one shape for each input, those of its last profile.

    A bare batch size is a shape of one number.
    """
    if text is None:
        return []
    return [
        tuple(int(size) for size in shape.split("x")) for shape in text.split(";")[-1].split(",")
    ]


def parse_order(text: str | None) -> list[int] | None:
    """Parse `"1,0"` into [1, 0]. Return None for text that does not hold each index once."""
    order = [int(index) if index.strip().isdecimal() else -1 for index in (text or "").split(",")]
    return order if sorted(order) == list(range(len(order))) else None


def reorder(
    ports: Sequence[AnyPort], order: str | None, key: str, context: Context
) -> tuple[AnyPort, ...]:
    """Return a model's inputs or outputs in the order that a file asks for.

    `"1,0"` puts the second first. `key` is the file's key, for the ConfigError of an order that
    does not fit.
    """
    if not order:
        return tuple(ports)
    indices = parse_order(order)
    if indices is None or len(indices) != len(ports):
        message = f"{order!r} must hold each of 0 to {len(ports) - 1} once, as in '1,0'"
        raise ConfigError([Problem(message, node=context.node, key=key)])
    return tuple(ports[index] for index in indices)
