"""Families of Prometheus metrics of several processes, added up.

Between processes a family is plain data, which `marshal` can write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

Samples = list[tuple[str, dict[str, str], float]]
"""The name, labels and value of each."""

Family = tuple[str, str, str, Samples]
"""Its name, documentation, type and samples."""

GROWING = ("counter", "histogram", "summary", "unknown")
"""The types whose values only grow. Triton's counters have the type unknown (app/v2/models/)."""

PROCESS_PREFIX = "process_"
"""Metrics whose names begin so are of one process, and are never added up."""


def packed(families: Iterable[Metric]) -> list[Family]:
    """Return collected metrics as plain data."""
    return [
        (
            family.name,
            family.documentation,
            family.type,
            [(sample.name, dict(sample.labels), float(sample.value)) for sample in family.samples],
        )
        for family in families
    ]


def of_process(families: Iterable[Family], process: str) -> list[Family]:
    """Label the families that are of one process with its name."""
    return [
        (
            name,
            text,
            kind,
            [(sample, {**labels, "process": process}, value) for sample, labels, value in samples]
            if name.startswith(PROCESS_PREFIX)
            else samples,
        )
        for name, text, kind, samples in families
    ]


def growing(families: Iterable[Family]) -> list[Family]:
    """Return the families whose values stay true when their process is gone."""
    return [family for family in families if family[2] in GROWING]


class Sum:
    """Families by name. Samples of the same name and labels are added up.

    The order is that in which they come, so the samples of one histogram stay together.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}  # documentation and type
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(self, families: Iterable[Family]) -> None:
        for name, text, kind, samples in families:
            self._kinds.setdefault(name, (text, kind))
            values = self._values.setdefault(name, {})
            for sample, labels, value in samples:
                key = sample, tuple(sorted(labels.items()))
                values[key] = values.get(key, 0.0) + value

    def families(self) -> list[Family]:
        """Return the sums as plain data."""
        return [
            (
                name,
                *self._kinds[name],
                [(sample, dict(labels), value) for (sample, labels), value in values.items()],
            )
            for name, values in self._values.items()
        ]

    def metrics(self) -> Iterator[Metric]:
        """Return the sums as they are written for Prometheus."""
        for name, text, kind, samples in self.families():
            family = Metric(name, text, kind)
            for sample, labels, value in samples:
                family.add_sample(sample, labels, value)
            yield family
