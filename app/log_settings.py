"""Which levels this process logs, by the names and rules of Triton's log settings.

Logging belongs to the process, and so does `log_settings`, however many apps there are. A level may
be off while a lower one is on, which no logger's level can express: so the settings are a filter of
the handlers too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.suggestions import did_you_mean

from .http.json_text import kind_of

logger = logging.getLogger("penstock.log")

ROOT = "penstock"
ACCESS = "penstock.access"

INT32_MAX = 2**31 - 1
"""The highest verbose level, as in Triton."""

FORMATS = ("default", "ISO8601")

SWITCHES = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
"""The lowest level that each switch stands for; it reaches up to the next one's."""

NAMES = ("log_file", *SWITCHES, "log_verbose_level", "log_format")


async def _only_here() -> None:
    """Do nothing: this process serves alone."""


class LogSettings(logging.Filter):
    """The levels that are logged, of `penstock` and the loggers below it.

    The access log has a setting of its own, so none of this concerns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = (ROOT,)
        self.spread: Callable[[], Awaitable[None]] = _only_here
        """Puts them in force in the other processes of the server, too."""
        self._off: frozenset[str] = frozenset()
        self._verbose = 1
        self._format = FORMATS[0]

    def reset(self, names: Iterable[str] = (ROOT,)) -> None:
        """Begin anew, with what the level of the logger says.

        `names`: the loggers that these settings rule, each with those below it.
        """
        self._names = tuple(names)
        self.spread = _only_here
        self._off = frozenset()
        self._verbose = 1
        self._format = FORMATS[0]

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        return not self._off or not self._rules(record.name) or _switch(record) not in self._off

    def read(self) -> dict[str, Any]:
        """Return all settings in the protocol's form."""
        root = logging.getLogger(ROOT)
        return {
            "log_file": "",
            **{
                name: root.isEnabledFor(level) and name not in self._off
                for name, level in SWITCHES.items()
            },
            "log_verbose_level": self._verbose if root.isEnabledFor(logging.DEBUG) else 0,
            "log_format": self._format,
        }

    def update(self, values: Mapping[str, Any]) -> None:
        """Change the settings that are named and not None: all of them, or none.

        Raises `InvalidRequest` for an unknown name and a wrong value. `log_file` is not changed
        here.
        """
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            _check(name, value)
        if not given:
            return
        text = ", ".join(f"{name} = {value}" for name, value in sorted(given.items()))
        logger.info("a client changes the log settings: %s", text)
        wanted = {**self.read(), **given}
        self.take(wanted)

    def take(self, wanted: Mapping[str, Any]) -> None:
        """Put all settings in force, which `read` returned in this process or another one."""
        self._off = frozenset(name for name in SWITCHES if not wanted[name])
        self._verbose = wanted["log_verbose_level"]
        if not self._verbose:
            self._off |= {"log_verbose_level"}
        self._format = wanted["log_format"]
        self._apply()

    def _apply(self) -> None:
        """Let the handlers ask this filter, and let loggers make no record that it would drop."""
        root = logging.getLogger(ROOT)
        for handler in _handlers(root):
            handler.addFilter(self)  # it is there once, however often it is added
        on = [level for name, level in SWITCHES.items() if name not in self._off]
        root.setLevel(logging.DEBUG if self._verbose else min(on, default=logging.CRITICAL + 1))

    def _rules(self, name: str) -> bool:
        return name != ACCESS and any(
            name == ruled or name.startswith(f"{ruled}.") for ruled in self._names
        )


def _switch(record: logging.LogRecord) -> str:
    """Return the name of the setting that says whether records of this level are logged."""
    for name in ("log_error", "log_warning", "log_info"):
        if record.levelno >= SWITCHES[name]:
            return name
    return "log_verbose_level"


def _handlers(logger: logging.Logger | None) -> list[logging.Handler]:
    """Return the handlers that get the records of a logger."""
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return handlers


def _check(name: str, value: Any) -> None:
    """Raise `InvalidRequest` unless `name` is a setting that may have this value."""
    if name in SWITCHES:
        if type(value) is not bool:
            raise InvalidRequest(f"expect bool for '{name}', got a JSON {kind_of(value)}")
    elif name == "log_verbose_level":
        if type(value) is not int:
            raise InvalidRequest(f"expect int32 for '{name}', got a JSON {kind_of(value)}")
        if not 0 <= value <= INT32_MAX:
            raise InvalidRequest(
                f"expect int32 for '{name}', from 0 to {INT32_MAX}, got {str(value)[:40]}"
            )
    elif name == "log_format":
        if type(value) is not str:
            raise InvalidRequest(f"expect string for '{name}', got a JSON {kind_of(value)}")
        if value not in FORMATS:
            raise InvalidRequest(
                f"invalid argument for --log_format, got: {value[:40]} (expected one of "
                f"{', '.join(FORMATS)})"
            )
    else:
        raise InvalidRequest(
            f"unknown log setting '{name[:40]}'{did_you_mean(name[:40], NAMES)}: the settings are "
            f"{', '.join(NAMES)}"
        )


log_settings = LogSettings()
"""Those of this process."""
