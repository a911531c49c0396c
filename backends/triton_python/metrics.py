"""`MetricFamily` and `Metric`: a model's own metrics, which the server shows among its own."""

from __future__ import annotations

import weakref
from enum import IntEnum
from typing import Any, ClassVar

from ..model_metrics import Kind, Labels
from .error import TritonModelException
from .running import current
from .strings import as_text


class MetricKind(IntEnum):
    """The kinds of `MetricFamily`."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


_KINDS: dict[MetricKind, Kind] = {
    MetricKind.COUNTER: "counter",
    MetricKind.GAUGE: "gauge",
    MetricKind.HISTOGRAM: "histogram",
}


class MetricFamily:
    """The metrics of one name, which differ in their labels."""

    COUNTER: ClassVar[MetricKind] = MetricKind.COUNTER
    GAUGE: ClassVar[MetricKind] = MetricKind.GAUGE
    HISTOGRAM: ClassVar[MetricKind] = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        """Raises TritonModelException if there is one of that name and another kind."""
        name = as_text(name, "MetricFamily: name")
        description = as_text(description, "MetricFamily: description")
        model = current()
        if model is None:
            raise TritonModelException("MetricFamily: called outside of a model")
        self.instance = model.metrics
        self.name = name
        self.kind = MetricKind(kind)
        try:
            owner = self.instance.owner()
            self.instance.apply("declare", owner, name, _KINDS[self.kind], description)
        except ValueError as error:
            raise TritonModelException(f"Error when creating MetricFamily: {error}") from error

    def Metric(  # noqa: N802  Triton's name
        self, labels: dict[str, str] | None = None, buckets: list[float] | None = None
    ) -> Metric:
        """Create the metric with these labels. `buckets`: the upper bounds of a histogram's."""
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if buckets is not None and self.kind is not MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        if buckets is None and self.kind is MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        return Metric(self, labels or {}, buckets or [])


class Metric:
    """One metric. It is shown until nothing of the model refers to it any more."""

    def __init__(self, family: MetricFamily, labels: dict[str, str], buckets: list[float]) -> None:
        self._family = family
        self._labels: Labels = tuple(sorted((str(key), str(each)) for key, each in labels.items()))
        try:
            bounds = tuple(float(bound) for bound in buckets)
            owner = family.instance.owner()
            family.instance.apply("add", owner, family.name, self._labels, bounds)
        except ValueError as error:
            raise TritonModelException(f"Error when creating Metric: {error}") from error
        weakref.finalize(self, family.instance.lose, (family.name, self._labels, owner))

    def increment(self, value: float) -> None:
        """Add to a counter or a gauge."""
        self._do("increment", "increment metric value", value)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._do("set", "set metric value", value)

    def observe(self, value: float) -> None:
        """Add an observation to a histogram."""
        self._do("observe", "observe metric value", value)

    def value(self) -> float:
        """Return the value of a counter or a gauge."""
        return float(self._do("value", "get metric value") or 0.0)

    def _do(self, operation: str, what: str, *arguments: Any) -> float | None:
        try:
            return self._family.instance.apply(
                operation, self._family.name, self._labels, *map(float, arguments)
            )
        except ValueError as error:
            raise TritonModelException(f"Failed to {what}: {error}") from error
