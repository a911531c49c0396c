"""The metrics that a TorchServe handler writes: lines of the log, as TorchServe's own are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from typing import Any

logger = logging.getLogger("penstock.torchserve")

UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
}
"""TorchServe's abbreviations of units."""


class MetricTypes(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Dimension:
    """A label of a metric."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"


class Metric:
    """A metric by its name, which a handler updates."""

    def __init__(
        self,
        metric_name: str,
        unit: str = "",
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = UNITS.get(unit, unit)
        self.dimension_names = list(dimension_names)
        self.metric_type = metric_type

    def add_or_update(
        self, value: float, dimension_values: Sequence[Any] = (), request_id: str = ""
    ) -> None:
        """Log the value: `NAME.UNIT:VALUE|#DIMENSION:VALUE,…|#type:TYPE`."""
        dimensions = ",".join(
            f"{name}:{value}"
            for name, value in zip(self.dimension_names, dimension_values, strict=False)
        )
        logger.debug(
            "%s.%s:%s|#%s|#type:%s",
            *(self.metric_name, self.unit, value, dimensions, self.metric_type.name),
            extra={"request_id": request_id} if request_id else None,
        )


class Metrics:
    """`context.metrics`."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: dict[int, str] | None = None
        self._metrics: dict[tuple[str, MetricTypes], Metric] = {}

    def get_metric(
        self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER
    ) -> Metric:
        """Return a metric that was added. Raises KeyError."""
        return self._metrics[metric_name, metric_type]

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> Metric:
        metric = Metric(metric_name, unit, dimension_names, metric_type)
        self._metrics[metric_name, metric_type] = metric
        return metric

    def add_metric(  # noqa: PLR0917  TorchServe's own signature
        self,
        name: str,
        value: float,
        unit: str = "",
        idx: Any = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        labels = [*dimensions, Dimension("ModelName", self.model_name)]
        metric = self._metrics.get((name, metric_type)) or self.add_metric_to_cache(
            name, unit, [label.name for label in labels], metric_type
        )
        request_id = (self.request_ids or {}).get(idx, "")
        metric.add_or_update(value, [label.value for label in labels], request_id)

    def add_counter(
        self, name: str, value: float, idx: Any = None, dimensions: Sequence[Dimension] = ()
    ) -> None:
        self.add_metric(name, value, "count", idx, dimensions)

    def add_time(  # noqa: PLR0917  TorchServe's own signature
        self,
        name: str,
        value: float,
        idx: Any = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(  # noqa: PLR0917  TorchServe's own signature
        self,
        name: str,
        value: float,
        idx: Any = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: Any = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Dimension] = ()) -> None:
        self.add_metric(name, value, "", None, dimensions)
