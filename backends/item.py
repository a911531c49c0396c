"""The item: one request's dict at one node, and the names in it that mean something to Penstock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Item: TypeAlias = dict[str, Any]
"""`data` is what a backend reads, `result` what it answers, `error` an `InvalidInput` that says why it could not."""

CONTROL_KEYS = frozenset({"filter", "node_name", "restart", "request_size", "event"})
"""Keys that steer Penstock. They never come from the network."""

RESERVED_KEYS = CONTROL_KEYS | {
    "data",
    "result",
    "error",
    "context",
    "global",
    "default",
    "pipeline",
}
"""Names that neither a node nor a parameter of a node may have."""


def may_come_from_network(key: str) -> bool:
    """Whether a client may set this key of an item (it must be declared besides)."""
    return key not in CONTROL_KEYS and not key.startswith("_")


def as_item(item: Any) -> Item:
    """The caller's item, without what an earlier call may have left in it. Raises `TypeError`.

    It is copied only where that is needed: each node works on a copy anyway, made when its batch starts.
    """
    if type(item) is not dict:
        if not isinstance(item, Mapping):
            raise TypeError(
                f"an item is a dict with 'data', or a list of such; got {type(item).__name__}"
            )
        item = dict(item)
    if "result" in item or "error" in item:
        return {key: value for key, value in item.items() if key not in ("result", "error")}
    return item  # type: ignore[no-any-return]
