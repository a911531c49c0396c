"""Metrics that models of users keep: counters, gauges and histograms, by name and labels.

All models of a process share them, as Triton's do: two that create the same metric count together.
A metric is there as long as an instance of a model holds it.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]

OWN_PREFIXES = ("penstock_", "process_", "nv_inference_", "nv_cache_")
"""The prefixes of the server's own metrics. Models can't use them."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(slots=True)
class Series:
    """One metric. `value` is the sum of what a histogram has observed.

    `bounds` and `counts` are those of a histogram; the last count is that of values above all
    bounds.
    """

    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Family:
    """The metrics of one name."""

    kind: Kind
    description: str
    series: dict[Labels, Series] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)


class Shown(NamedTuple):
    """A family as it is now: copies, which nothing changes."""

    name: str
    kind: Kind
    description: str
    series: list[tuple[Labels, Series]]


class ModelMetrics:
    """The metrics of all models of this process. Its methods may be called on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, Family] = {}

    def declare(self, owner: str, name: str, kind: Kind, description: str) -> None:
        """Create a family, or join the one of that name.

        Raises ValueError if its name is none that Prometheus takes, or it is of another kind.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"found the metric name {name!r}: expected letters, digits, _ and :")
        if name.startswith(OWN_PREFIXES):
            raise ValueError(f"{name!r} is a name of the server's own metrics: choose another one")
        with self._lock:
            family = self._families.setdefault(name, Family(kind, description))
            if family.kind != kind:
                raise ValueError(f"the metric family {name!r} is a {family.kind} already")
            family.owners.add(owner)

    def add(self, owner: str, name: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        """Create a metric of a family, or join the one with these labels.

        Raises ValueError for labels or bounds that Prometheus does not take.
        """
        for label, _ in labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"found the label name {label!r}: expected letters, digits and _")
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"buckets {list(bounds)} must increase")
        with self._lock:
            series = self._families[name].series.setdefault(
                labels, Series(bounds=bounds, counts=[0] * (len(bounds) + 1))
            )
            series.owners.add(owner)

    def increment(self, name: str, labels: Labels, value: float) -> None:
        """Add to a counter or a gauge. Raises ValueError if a counter would go down."""
        with self._lock:
            family = self._families[name]
            if family.kind == "histogram":
                raise ValueError("a histogram has no value to increment: use observe")
            if family.kind == "counter" and value < 0:
                raise ValueError("a counter can only be incremented by values >= 0")
            family.series[labels].value += value

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Set a gauge. Raises ValueError for another kind."""
        with self._lock:
            family = self._families[name]
            if family.kind != "gauge":
                raise ValueError(f"a {family.kind} can't be set")
            family.series[labels].value = value

    def observe(self, name: str, labels: Labels, value: float) -> None:
        """Add an observation to a histogram. Raises ValueError for another kind."""
        with self._lock:
            family = self._families[name]
            if family.kind != "histogram":
                raise ValueError(f"a {family.kind} takes no observations")
            series = family.series[labels]
            series.value += value
            series.counts[bisect_left(series.bounds, value)] += 1

    def value(self, name: str, labels: Labels) -> float:
        """Return the value of a counter or a gauge. Raises ValueError for a histogram."""
        with self._lock:
            family = self._families[name]
            if family.kind == "histogram":
                raise ValueError("a histogram has no single value")
            return family.series[labels].value

    def drop(self, name: str, labels: Labels, owner: str) -> None:
        """Let go of a metric. It is there no more when its last owner has let go."""
        with self._lock:
            family = self._families.get(name)
            if family is not None and (series := family.series.get(labels)) is not None:
                series.owners.discard(owner)
                if not series.owners:
                    del family.series[labels]

    def release(self, instance: str) -> None:
        """Let go of all that an instance of a model holds: its owners begin with its name."""
        with self._lock:
            for name, family in list(self._families.items()):
                for labels, series in list(family.series.items()):
                    series.owners = _others(series.owners, instance)
                    if not series.owners:
                        del family.series[labels]
                family.owners = _others(family.owners, instance)
                if not family.owners and not family.series:
                    del self._families[name]

    def shown(self) -> list[Shown]:
        """Return all families as they are now."""
        with self._lock:
            return [
                Shown(
                    name,
                    family.kind,
                    family.description,
                    [
                        (labels, Series(one.value, one.bounds, list(one.counts)))
                        for labels, one in family.series.items()
                    ],
                )
                for name, family in self._families.items()
            ]


def _others(owners: set[str], instance: str) -> set[str]:
    return {owner for owner in owners if not owner.startswith(instance)}


model_metrics = ModelMetrics()
"""The metrics of the models of this process. A child's are kept in its server's process."""


def owner_of_process(pid: int) -> str:
    """Return what the owners of all metrics of a child process begin with."""
    return f"process {pid}/"


def apply(operation: str, *arguments: object) -> float | None:
    """Run a method of `model_metrics`. A child asks its server to call this."""
    result: float | None = getattr(model_metrics, operation)(*arguments)
    return result
