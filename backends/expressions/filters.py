"""Filters: what happens to an item in front of a node. Each is a function from the item's own dict to a `Status`.

Names come from, in this order: Penstock, `register_filter`, installed packages (entry point group `penstock.filters`). What the
statuses do is the business of `pipelines/runs/graph_run.py`, and of `compose.py` inside a Sequential.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import iscoroutinefunction
from typing import TypeAlias, TypeVar, overload

from ..errors import BackendError, ConfigError, Problem
from ..item import Item
from ..suggestions import did_you_mean
from .expression import NAME

GROUP = "penstock.filters"


class Status(Enum):
    """What a filter says. torchpipe's spellings (`Status.Run`, and in files `run`, `serial_skip` …) mean the same."""

    RUN = "Run"
    SKIP = "Skip"
    SERIAL_SKIP = "SerialSkip"
    SUBGRAPH_SKIP = "SubGraphSkip"
    BREAK = "Break"
    ERROR = "Error"
    Run = Continue = RUN
    Skip = SKIP
    SerialSkip = SERIAL_SKIP
    SubGraphSkip = SUBGRAPH_SKIP
    Break = BREAK
    Error = ERROR


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
    status = (
        said if isinstance(said, Status) else _STATUSES.get(said) if isinstance(said, str) else None
    )
    if status is None:
        found = "is not there" if said is None else f"is {said!r}"
        raise BackendError(
            f"the filter reads the item's key 'filter', which {found}; expected one of {', '.join(s.value for s in Status)}"
        )
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
    "Continue": Status.RUN, "continue": Status.RUN, "run": Status.RUN, "skip": Status.SKIP, "break": Status.BREAK, "error": Status.ERROR,
    "serial_skip": Status.SERIAL_SKIP, "serialskip": Status.SERIAL_SKIP, "subgraph_skip": Status.SUBGRAPH_SKIP,
    "subgraphskip": Status.SUBGRAPH_SKIP,
}  # fmt: skip

BUILTIN: dict[str, Filter] = {
    "swap": swap,
    "or": run_without_result,
    "else": run_without_result,
    "filter": from_item,
    "if": from_item,
    "result2other": result_to_other,
    **{
        name: run if status is Status.RUN else _always(status) for name, status in _STATUSES.items()
    },
}

_registered: dict[str, Filter] = {}
UserFilter = TypeVar("UserFilter", bound=Filter)


@overload
def register_filter(name: str, function: UserFilter) -> UserFilter: ...
@overload
def register_filter(name: str) -> Callable[[UserFilter], UserFilter]: ...
def register_filter(
    name: str, function: UserFilter | None = None
) -> UserFilter | Callable[[UserFilter], UserFilter]:
    """Make a function from an item's dict to a `Status` known as a filter; also as a decorator.

    Registering one's own name again replaces it for pipelines loaded from then on. Raises ValueError for a built-in's name and for
    what is no name, TypeError for what can't be called, or only awaited: a filter runs between two nodes and may not wait.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a filter: expected letters, digits, _ . or -, with a letter first"
        )
    if name in BUILTIN:
        raise ValueError(f"{name} is a filter of Penstock's own: register yours by another name")
    if function is None:
        return lambda found: register_filter(name, found)
    _registered[name] = _checked(name, function)
    return function


def find_filter(name: str) -> Filter:
    """The filter of a name. Raises ConfigError where there is none, with the nearest name that there is."""
    found = BUILTIN.get(name) or _registered.get(name)
    if found is not None:
        return found
    installed = _installed()
    if name in installed:
        return _from_entry_point(installed[name])
    hint = did_you_mean(name, {*BUILTIN, *_registered, *installed})
    raise ConfigError([Problem(f"there is no filter {name!r}{hint}", key="filter")])


def registered_here(name: str) -> bool:
    """Whether a name is known by `register_filter` alone, which no other process has called."""
    return name in _registered


def _checked(name: str, function: UserFilter) -> UserFilter:
    if not callable(function) or iscoroutinefunction(function) or isinstance(function, type):
        raise TypeError(
            f"filter {name!r}: expected a plain function from an item to a Status, found {function!r}"
        )
    return function


@cache
def _installed() -> dict[str, EntryPoint]:
    """Entry points of installed packages; a name of Penstock's own can't be taken."""
    return {found.name: found for found in entry_points(group=GROUP)}


@cache
def _from_entry_point(entry: EntryPoint) -> Filter:
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        found: Filter = _checked(entry.name, entry.load())
    except Exception as error:
        reason = (
            f"the filter {entry.name} of {package} can't be loaded: {type(error).__name__}: {error}"
        )
        raise ConfigError([Problem(reason, key="filter")]) from error
    return found
