"""Filters: functions that decide what happens to an item before its node runs.

Each takes the item's own dict and returns a `Status`. Names come from, in this order: Penstock,
`register_filter`, installed packages (entry point group `penstock.filters`). The effect of a status
is in `pipelines/runs/graph_run.py`, and in `operators/compose.py` inside a Sequential.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache
from importlib.metadata import EntryPoint
from inspect import iscoroutinefunction
from typing import TypeAlias, TypeVar, overload

from ..errors import BackendError, ConfigError, Problem
from ..item import Item
from ..suggestions import did_you_mean
from ..text import repr_of
from .expression import NAME
from .plugins import installed_plugins, loaded

FILTER_ENTRY_POINTS = "penstock.filters"


class Status(Enum):
    """The answer of a filter.

    torchpipe's spellings (`Status.Run`; in files `run`, `serial_skip` …) mean the same.
    """

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
"""A filter may change its dict, which belongs to the node. Its exceptions fail the request."""


def swap(item: Item) -> Status:
    """Make the result `data`, or Break without one. The default after one node, without `map`."""
    if "result" not in item:
        return Status.BREAK
    item["data"] = item.pop("result")
    return Status.RUN


def run(item: Item) -> Status:
    """Keep `data` and erase the result or error of an earlier node. The default with `map`."""
    item.pop("result", None)
    item.pop("error", None)
    return Status.RUN


def run_without_result(item: Item) -> Status:
    """Run if there is no result yet, else Skip. `or`: a fallback."""
    if "result" in item:
        return Status.SKIP
    item.pop("error", None)
    return Status.RUN


def from_item(item: Item) -> Status:
    """Read the status from the item's key `filter`, which the request sets. `filter`, `if`."""
    value = item.get("filter")
    status: Status | None = None
    if isinstance(value, Status):
        status = value
    elif isinstance(value, str):
        status = _STATUSES.get(value)
    if status is None:
        problem = "is missing" if value is None else f"is {repr_of(value)}"
        raise BackendError(
            f"the filter reads the item's key 'filter', which {problem}: expected one of "
            f"{', '.join(status.value for status in Status)}"
        )
    return run(item) if status is Status.RUN else status


def result_to_other(item: Item) -> Status:
    """Do as `swap`, and keep the result as `other` too. `result2other`, from torchpipe's files."""
    if "result" in item:
        item["other"] = item["result"]
    return swap(item)


def _always(status: Status) -> Filter:
    def always(item: Item) -> Status:
        return status

    return always


_STATUSES: dict[str, Status] = {status.value: status for status in Status} | {
    "Continue": Status.RUN,
    "continue": Status.RUN,
    "run": Status.RUN,
    "skip": Status.SKIP,
    "serial_skip": Status.SERIAL_SKIP,
    "serialskip": Status.SERIAL_SKIP,
    "subgraph_skip": Status.SUBGRAPH_SKIP,
    "subgraphskip": Status.SUBGRAPH_SKIP,
    "break": Status.BREAK,
    "error": Status.ERROR,
}

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
    """Register a function from an item's dict to a `Status` as a filter. Works as a decorator, too.

    Registering the same name again replaces the filter for pipelines loaded from then on. Raises
    ValueError for the name of a built-in and for an invalid name. Raises TypeError for an object
    that can't be called, and for an async function: a filter runs between two nodes and must not
    wait.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name for a filter: expected letters, digits, _ . or -, "
            "starting with a letter"
        )
    if name in BUILTIN:
        raise ValueError(
            f"{name} is one of Penstock's own filters: register yours under another name"
        )
    if function is None:
        return lambda decorated: register_filter(name, decorated)
    _registered[name] = _checked(name, function)
    return function


def is_builtin(name: str) -> bool:
    """Return whether the filter is one of Penstock's own."""
    return name in BUILTIN


def find_filter(name: str) -> Filter:
    """Return the filter of that name.

    Raises ConfigError, with the nearest known name or all names, if there is no such filter.
    """
    function = BUILTIN.get(name) or _registered.get(name)
    if function is not None:
        return function
    installed = installed_plugins(FILTER_ENTRY_POINTS)
    if name in installed:
        return _from_entry_point(installed[name])
    known = {*BUILTIN, *_registered, *installed}
    hint = did_you_mean(name, known) or f": expected one of {', '.join(sorted(known))}"
    raise ConfigError([Problem(f"there is no filter {name!r}{hint}", key="filter")])


def filter_registered_here(name: str) -> bool:
    """Return whether the name was registered in this process, so that no other process knows it."""
    return name in _registered


def _checked(name: str, function: UserFilter) -> UserFilter:
    if not callable(function) or iscoroutinefunction(function) or isinstance(function, type):
        raise TypeError(
            f"filter {name!r}: expected a plain function from an item to a Status, found "
            f"{function!r}"
        )
    return function


@cache
def _from_entry_point(plugin: EntryPoint) -> Filter:
    function: Filter = loaded(
        plugin, "filter", lambda found: _checked(plugin.name, found), key="filter"
    )
    return function
