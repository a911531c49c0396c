"""The trace settings of Triton's trace extension: for all models, and for one.

A setting that a model does not specify is that of all models; one that is not specified there is
that of the server's start. `null` removes a specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from penstock.backends.errors import InvalidRequest

LEVELS = ("TIMESTAMPS", "TENSORS")

NEVER = 1 << 62
"""So many requests never come."""

UINT32_MAX = 2**32 - 1
INT32_MAX = 2**31 - 1

FIXED = ("trace_mode", "url", "resource", "trace_url", "trace_resource")
"""What only the start of the server sets, besides `trace_file`."""


class FixedSettingError(Exception):
    """Raised for a setting that can't be changed over the network."""


class Values(NamedTuple):
    """The settings by the protocol's names. `trace_level` is empty if tracing is off.

    One of `trace_rate` requests is traced. `trace_count`: how many more, -1 for any number.
    """

    trace_level: tuple[str, ...] = ()
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0


class Sampler:
    """Settings in force, and how far the requests are counted to which they apply.

    `left`: the request that comes so many requests from now is traced; `NEVER` for none.
    `begun`: how many traces have been begun. `replaced`: other settings are in force. `collected`
    and `buffered` are those of the trace file (triton_file.py), on its thread: how many of them
    have ended, and those that are not written.
    """

    __slots__ = ("begun", "buffered", "collected", "left", "replaced", "values")

    def __init__(self, values: Values) -> None:
        self.values = values
        self.left = self._first()
        self.begun = 0
        self.replaced = False
        self.collected = 0
        self.buffered: list[str] = []

    @property
    def level(self) -> tuple[str, ...]:
        return self.values.trace_level

    @property
    def exhausted(self) -> bool:
        """True if `trace_count` requests have been traced."""
        return self.values.trace_count == 0

    def take(self) -> bool:
        """Return whether to trace the request at which `left` arrived. Start the next count."""
        values = self.values
        if not values.trace_level or not values.trace_rate or not values.trace_count:
            self.left = NEVER
            return False
        if values.trace_count > 0:
            self.values = values._replace(trace_count=values.trace_count - 1)
        self.begun += 1
        self.left = self._first()
        return True

    def _first(self) -> int:
        level, rate, count, _ = self.values
        return rate if level and rate and count else NEVER


class TraceSettings:
    """All settings of a server. Use it on its event loop.

    `start`: those of its start. `mode` is "triton" or "opentelemetry". `file`: the name of the
    trace file, "" for none. `samplers` has those of the models with a setting of their own; `all`
    is that of the others. `shared` is `all` as long as no model has its own, else one whose `left`
    is 0. `on_replaced` gets each sampler that is no longer in force.
    """

    def __init__(self, start: Values, mode: str, file: str) -> None:
        self._start = start
        self.mode = mode
        self.file = file
        self.all = Sampler(start)
        self.shared = self.all
        self.samplers: dict[str, Sampler] = {}
        self.on_replaced: Callable[[Sampler], None] = lambda sampler: None
        self._specified: dict[str, set[str]] = {"": set()}  # by model, "" for all

    def sampler_of(self, model: str) -> Sampler:
        return self.samplers.get(model, self.all)

    def document(self, model: str = "") -> dict[str, Any]:
        """Return the settings of a model, or of all, as the protocol writes them."""
        values = self.sampler_of(model).values
        answer: dict[str, Any] = {
            "trace_level": list(values.trace_level) or ["OFF"],
            "trace_rate": str(values.trace_rate),
            "trace_count": str(values.trace_count),
        }
        if self.mode == "triton":
            answer |= {"log_frequency": str(values.log_frequency), "trace_file": self.file}
        return answer | {"trace_mode": self.mode}

    def update(self, model: str, document: Mapping[str, Any]) -> None:
        """Change what `document` names, for a model or ("") for all.

        Raises `FixedSettingError`, and `InvalidRequest` with Triton's messages; then nothing has
        changed.
        """
        changes = _read(document)
        if self.mode == "opentelemetry" and "TENSORS" in (changes.get("trace_level") or ()):
            raise InvalidRequest(
                "trace_level 'TENSORS' is not supported by trace_mode opentelemetry: expected OFF "
                "or TIMESTAMPS"
            )
        samplers = {model: self._changed(model, changes)}
        if not model:
            new = samplers[""][0]
            samplers |= {name: self._changed(name, {}, new) for name in self._specified if name}
        for name, (values, specified) in samplers.items():
            self._put(name, values, specified)

    def _changed(
        self, model: str, changes: Mapping[str, Any], of_all: Values | None = None
    ) -> tuple[Values, set[str]]:
        """Return the values of a model after a change, and which of them are its own."""
        fallback = self._start if not model else of_all or self.all.values
        own = self.samplers[model].values if model in self.samplers else self.all.values
        specified = set(self._specified.get(model, ()))
        kept = {name: getattr(own, name) for name in specified}
        for name, value in changes.items():
            kept.pop(name, None)
            if value is not None:
                kept[name] = value
        values = fallback._replace(**kept)
        if values.trace_level and (reason := self._invalid(values)):
            raise InvalidRequest(f"Attempting to set invalid trace setting :{reason}")
        return values, set(kept)

    def _invalid(self, values: Values) -> str:
        if self.mode != "triton":
            return ""
        if not values.trace_rate:
            return "sample rate must be non-zero"
        return "" if self.file else "trace file name is not given"

    def _put(self, model: str, values: Values, specified: set[str]) -> None:
        old = self.samplers.pop(model, None) if model else self.all
        if not model:
            self.all = Sampler(values)
            self._specified[""] = specified
        elif specified:
            self.samplers[model] = Sampler(values)
            self._specified[model] = specified
        else:
            self._specified.pop(model, None)
        self.shared = self.all
        if self.samplers:
            self.shared = Sampler(Values())
            self.shared.left = 0
        if old is not None:
            old.replaced = True
            self.on_replaced(old)


def _read(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings that a request names; None for one that it clears."""
    changes: dict[str, Any] = {}
    for name, value in document.items():
        if name == "trace_file":
            raise FixedSettingError(
                "trace file location can not be updated through network protocol"
            )
        if name in FIXED:
            raise FixedSettingError(
                f"{name} can not be updated through network protocol: set it when the server starts"
            )
        if name not in Values._fields:
            raise InvalidRequest(
                f"unknown trace setting '{name[:100]}': expected one of {', '.join(Values._fields)}"
            )
        if value is None:
            changes[name] = None
        elif name == "trace_level":
            changes[name] = _level(value)
        else:
            changes[name] = _number(name, value)
    return changes


def _level(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list) else None
    if not names or not all(name in (*LEVELS, "OFF") for name in names if isinstance(name, str)):
        raise InvalidRequest(
            f"Unable to parse 'trace_level', got: {_shown(value)}; expected a list with OFF, or "
            f"with {' or '.join(LEVELS)} or both"
        )
    if not all(isinstance(name, str) for name in names):
        raise InvalidRequest("Unable to parse 'trace_level': expected a list of strings")
    if "OFF" in names:
        if len(names) > 1:
            raise InvalidRequest("Expect only one trace level 'OFF' is specified")
        return ()
    return tuple(level for level in LEVELS if level in names)


def _number(name: str, value: Any) -> int:
    least, most = (-1, INT32_MAX) if name == "trace_count" else (0, UINT32_MAX)
    if not isinstance(value, str):
        raise InvalidRequest(
            f"Unable to parse '{name}', got: {_shown(value)}; expected a number in a string"
        )
    digits = value.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        raise InvalidRequest(f"Unable to parse '{name}', got: {_shown(value)}")
    number = int(value) if len(digits) < 20 else UINT32_MAX + 1
    if name == "trace_count" and number < least and number >= -INT32_MAX - 1:
        raise InvalidRequest(
            f"Unable to parse 'trace_count'. Expecting value >= {least}, got:{_shown(value)}"
        )
    if not least <= number <= most:
        raise InvalidRequest(
            f"Unable to parse '{name}', value is out of range [ {least}, {most} ], "
            f"got: {_shown(value)}"
        )
    return number


def _shown(value: Any) -> str:
    return (value if isinstance(value, str) else repr(value))[:100]
