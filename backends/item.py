"""The item: the dict of one request at one node, and the keys that Penstock knows in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Item: TypeAlias = dict[str, Any]
"""A backend reads `data` and sets `result`, or sets `error` to an `InvalidInput`."""

CONTROL_KEYS = frozenset(
    {"filter", "node_name", "restart", "request_size", "event"}
    | {"request_facts", "response_parameters"}
)
"""Keys that steer Penstock. They never come from the network."""

NOT_PARAMETERS = CONTROL_KEYS | {"data", "result", "error"}
"""Keys of an item that are not parameters of its request."""

SEQUENCE_START, SEQUENCE_END = 1, 2
"""Triton's flags of a request that is the first or the last step of its sequence."""


class RequestFacts(NamedTuple):
    """The facts that a client of /v2 gives besides its inputs and parameters.

    An item has it in `request_facts` for backends with `takes_request_facts`. `correlation_id`: the
    id of its sequence, 0 for none. `flags`: SEQUENCE_START, SEQUENCE_END, both or 0.
    `timeout_us`: microseconds, 0 for none. `requested_outputs`: None for all. `request_id`: the id
    that the client gave the request, "" for none. No answer that is kept depends on it.
    """

    correlation_id: int | str = 0
    flags: int = 0
    timeout_us: int = 0
    requested_outputs: tuple[str, ...] | None = None
    request_id: str = ""


NO_FACTS = RequestFacts()
"""The facts of a request whose client gives none."""

RESERVED_KEYS = CONTROL_KEYS | {
    "data",
    "result",
    "error",
    "context",
    "global",
    "default",
    "pipeline",
}
"""Names that neither a node nor a parameter of a node can have."""


def may_come_from_network(key: str) -> bool:
    """Return whether a client may set this key of an item. It must be declared as well."""
    return key not in CONTROL_KEYS and not key.startswith("_")


def as_item(item: Any) -> Item:
    """Return the caller's item without the results of an earlier call.

    Raises TypeError if it isn't a mapping.

    It is copied only if needed: each node works on a copy anyway, made when its batch starts.
    """
    if type(item) is not dict:
        if not isinstance(item, Mapping):
            raise TypeError(
                f"an item is a dict with 'data', or a list of such; found {type(item).__name__}"
            )
        item = dict(item)
    if "result" in item or "error" in item:
        return {key: value for key, value in item.items() if key not in ("result", "error")}
    return item  # type: ignore[no-any-return]
