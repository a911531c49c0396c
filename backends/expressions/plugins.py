"""Backends and filters of installed packages, which name them as entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import ConfigError, Problem
from ..text import message_of


@cache
def installed_plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name.

    They can't replace a name of Penstock's own.
    """
    return {plugin.name: plugin for plugin in entry_points(group=group)}


def loaded(plugin: EntryPoint, kind: str, check: Callable[[Any], Any], key: str = "") -> Any:
    """Import what an entry point names, and return what `check` makes of it.

    Raises ConfigError, which names the package and the `kind` of thing, whatever importing raises.
    """
    package = plugin.dist.name if plugin.dist is not None else plugin.value
    try:
        return check(plugin.load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {message_of(error)}"
        message = f"the {kind} {plugin.name} of {package} can't be loaded: {reason}"
        raise ConfigError([Problem(message, key=key)]) from error
