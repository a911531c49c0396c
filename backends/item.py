"""The item: one request's dict at one node, and the names in it that mean something to Penstock."""

from __future__ import annotations

from typing import Any, TypeAlias

Item: TypeAlias = dict[str, Any]
"""`data` is what a backend reads, `result` what it answers, `error` an `InvalidInput` that says why it could not."""

CONTROL_KEYS = frozenset({"filter", "node_name", "restart", "request_size", "event"})
"""Keys that steer Penstock. They never come from the network."""

RESERVED_KEYS = CONTROL_KEYS | {"data", "result", "error", "context", "global", "default", "pipeline"}
"""Names that neither a node nor a parameter of a node may have."""


def may_come_from_network(key: str) -> bool:
    """Whether a client may set this key of an item (it must be declared besides)."""
    return key not in CONTROL_KEYS and not key.startswith("_")
