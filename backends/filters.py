"""Filters: what happens to an item in front of a node. Each is a function from the item's own dict to a `Status`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from importlib.metadata import entry_points
from typing import TypeAlias, overload

from .errors import BackendError, ConfigError, Problem
from .item import Item
from .suggestions import did_you_mean


class Status(Enum):
    """What a filter says. torchpipe's names for them are accepted wherever one is written."""

    RUN = "Run"
    SKIP = "Skip"
    SERIAL_SKIP = "SerialSkip"
    SUBGRAPH_SKIP = "SubGraphSkip"
    BREAK = "Break"
    ERROR = "Error"


Filter: TypeAlias = Callable[[Item], Status]
"""May change its dict; it is the node's own. What it raises fails the request."""


def swap(item: Item) -> Status:
    """The default behind one node, without `map`: its result is the data here; without one there is nothing more to do."""
    if "result" not in item:
        return Status.BREAK
    item["data"] = item.pop("result")
    return Status.RUN


def run(item: Item) -> Status:
    """The default with `map`: `data` stays; what an earlier node answered, or failed with, is erased."""
    item.pop("result", None)
    item.pop("error", None)
    return Status.RUN


def run_without_result(item: Item) -> Status:
    """`or`: a fallback, for what has no result yet."""
    if "result" in item:
        return Status.SKIP
    item.pop("error", None)
    return Status.RUN


def from_item(item: Item) -> Status:
    """`filter`, `if`: the request says it, in its key `filter`."""
    said = item.get("filter")
    status = said if isinstance(said, Status) else _STATUSES.get(said) if isinstance(said, str) else None
    if status is None:
        found = "is not there" if said is None else f"is {said!r}"
        raise BackendError(f"the filter reads the item's key 'filter', which {found}; expected one of {', '.join(s.value for s in Status)}")
    return run(item) if status is Status.RUN else status


def result_to_other(item: Item) -> Status:
    """`result2other`, of torchpipe's files: `swap` that keeps the result as `other` too."""
    if "result" in item:
        item["other"] = item["result"]
    return swap(item)


def _always(status: Status) -> Filter:
    def always(item: Item) -> Status:
        return status

    return always


_STATUSES: dict[str, Status] = {status.value: status for status in Status} | {
    "Continue": Status.RUN, "continue": Status.RUN, "run": Status.RUN, "skip": Status.SKIP, "serial_skip": Status.SERIAL_SKIP,
    "subgraph_skip": Status.SUBGRAPH_SKIP, "break": Status.BREAK, "error": Status.ERROR,
}  # fmt: skip

BUILTIN: dict[str, Filter] = {"swap": swap, "or": run_without_result, "else": run_without_result, "filter": from_item, "if": from_item, "result2other": result_to_other} | {
    name: run if status is Status.RUN else _always(status) for name, status in _STATUSES.items()
}

_registered: dict[str, Filter] = {}


@overload
def register_filter(name: str, function: Filter) -> Filter: ...
@overload
def register_filter(name: str) -> Callable[[Filter], Filter]: ...
def register_filter(name: str, function: Filter | None = None) -> Filter | Callable[[Filter], Filter]:
    """Make a function from an item's dict to a `Status` known as a filter; also as a decorator. A built-in's name is a ValueError."""
    if function is None:
        return lambda given: register_filter(name, given)
    if name in BUILTIN:
        raise ValueError(f"{name!r} is a built-in filter")
    _registered[name] = function
    return function


def find_filter(name: str) -> Filter:
    """The filter of this name: built in, registered, or of the entry point group `penstock.filters`. Raises ConfigError."""
    found = BUILTIN.get(name) or _registered.get(name)
    if found is None:
        for point in entry_points(group="penstock.filters", name=name):
            return _registered.setdefault(name, point.load())
        known = [*BUILTIN, *_registered]
        raise ConfigError([Problem(f"there is no filter {name!r}{did_you_mean(name, known)}", key="filter")])
    return found
