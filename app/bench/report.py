"""The report on a load: rates, percentiles and outcomes, as a dict for JSON and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .load import NO_ANSWER, Record
from .usage import Usage

OK = 200
MAX_SHOWN_SIZES = 5
"""So many sizes of batches are listed for a node."""
NOTABLE_LATENESS_MS = 20
"""Lateness of the generator above which a report warns."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value such that `share` percent of the values are at most this.

    This is the nearest rank, so always one of the values; 0 if there are none.
    """
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles and mean of latencies, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        ordered = sorted(value * 1000 for value in seconds)
        mean = sum(ordered) / len(ordered) if ordered else 0.0
        return cls(len(ordered), mean, *(percentile(ordered, share) for share in (50, 90, 99, 100)))


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a load."""

    requests: int
    seconds: float
    qps: float
    """Answers with status 200 per second."""
    latency: Latency
    """Latency of the answers with status 200."""
    outcomes: dict[str, int]
    """Status -> number of requests. `none`: no answer."""
    latency_by_status: dict[str, Latency]
    offered: float | None = None
    """Arrivals per second, of an open loop."""
    deadline_ms: float | None = None
    in_time: int | None = None
    """Answers with status 200 within the deadline, counted from when they were due."""
    goodput: float | None = None
    """Answers in time, per second."""
    generator_late_ms: float = 0.0
    batch_sizes: dict[str, dict[int, int]] = field(default_factory=dict)
    """Node -> size of a batch -> number of requests that ran in such batches."""
    retry_after_pauses: int = 0
    """How often a client waited as an answer's Retry-After told it to."""
    retry_after_seconds: float = 0.0
    """The seconds of these waits, of all clients together."""
    interrupted: bool = False
    """The load was ended early: all figures are of the answers until then."""
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(
        cls,
        record: Record,
        *,
        seconds: float | None = None,
        open_loop: bool = False,
        deadline: float | None = None,
        usage: Usage | None = None,
        interrupted: bool = False,
    ) -> Report:
        """Compute the report on a record.

        Rates are taken over `seconds`: how long an open loop sent. Otherwise they are taken until
        the last answer. `deadline` is in seconds.
        """
        seconds = seconds or record.seconds or 1e-9
        by_status: dict[int, list[float]] = {}
        for sample in record.samples:
            by_status.setdefault(sample.status, []).append(sample.latency)
        good = by_status.get(OK, [])
        names = {
            status: "none" if status == NO_ANSWER else str(status) for status in sorted(by_status)
        }
        in_time = None if deadline is None else sum(latency <= deadline for latency in good)
        return cls(
            requests=len(record.samples),
            seconds=seconds,
            qps=len(good) / seconds,
            latency=Latency.of(good),
            outcomes={name: len(by_status[status]) for status, name in names.items()},
            latency_by_status={
                name: Latency.of(by_status[status]) for status, name in names.items()
            },
            offered=len(record.samples) / seconds if open_loop else None,
            deadline_ms=None if deadline is None else deadline * 1000,
            in_time=in_time,
            goodput=None if in_time is None else in_time / seconds,
            generator_late_ms=record.late * 1000,
            batch_sizes=_by_node(record.batches),
            retry_after_pauses=record.pauses,
            retry_after_seconds=record.paused,
            interrupted=interrupted,
            usage=usage or Usage(),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        latency, usage = self.latency, self.usage
        lines = [
            (
                "requests",
                f"{self.requests} in {self.seconds:.2f} s"
                + (", interrupted" if self.interrupted else ""),
            ),
            ("outcomes", ", ".join(f"{name}: {count}" for name, count in self.outcomes.items())),
            ("QPS", f"{self.qps:.1f}"),
            ("TP50", f"{latency.p50:.2f} ms"),
            ("TP90", f"{latency.p90:.2f} ms"),
            ("TP99", f"{latency.p99:.2f} ms"),
            ("mean", f"{latency.mean:.2f} ms"),
            ("max", f"{latency.max:.2f} ms"),
        ]
        if self.offered is not None:
            lines.append(("offered", f"{self.offered:.1f}/s"))
        if self.in_time is not None:
            goodput = f"goodput {self.goodput:.1f}/s"
            lines.append(("in time", f"{self.in_time} within {self.deadline_ms:g} ms, {goodput}"))
        for name, other in self.latency_by_status.items():
            if name != str(OK):
                lines.append(
                    (f"status {name}", f"TP50 {other.p50:.2f} ms, TP99 {other.p99:.2f} ms")
                )
        for node, sizes in self.batch_sizes.items():
            lines.append(("batches", f"{node}: {_sizes(sizes)}"))
        if self.retry_after_pauses:
            waits = f"{self.retry_after_pauses} waits, {self.retry_after_seconds:.1f} s in all"
            lines.append(("Retry-After", waits))
        if self.generator_late_ms > NOTABLE_LATENESS_MS:
            lines.append(
                (
                    "warning",
                    f"the generator was up to {self.generator_late_ms:.0f} ms late",
                )
            )
        lines.append(("CPU", _known(usage.cpu_percent, "{:.0f} % of one processor")))
        lines.append(
            (
                "memory",
                _known(usage.rss_mb, "{:.0f} MB RSS")
                + _known(usage.rss_max_mb, ", at most {:.0f} MB", ""),
            )
        )
        if usage.gpu_percent is not None:
            lines.append(
                (
                    "GPU",
                    f"{usage.gpu_percent:.0f} %" + _known(usage.gpu_memory_mb, ", {:.0f} MB", ""),
                )
            )
        return "\n".join(f"{name:<11} {value}" for name, value in lines)


def _by_node(batches: Counter[tuple[str, int]]) -> dict[str, dict[int, int]]:
    by_node: dict[str, dict[int, int]] = {}
    for (node, size), requests in sorted(batches.items()):
        by_node.setdefault(node, {})[size] = requests
    return by_node


def _sizes(sizes: dict[int, int]) -> str:
    """Say in how large batches the requests of a node ran, the most frequent sizes first."""
    requests = sum(sizes.values())
    number = sum(count / size for size, count in sizes.items())
    common = sorted(sizes, key=lambda size: -sizes[size])[:MAX_SHOWN_SIZES]
    shares = ", ".join(f"{100 * sizes[size] / requests:.0f} % in {size}" for size in common)
    return f"mean {requests / number:.1f}, largest {max(sizes)} ({shares})"


def _known(value: float | None, text: str, otherwise: str = "unknown (give --pid)") -> str:
    return otherwise if value is None else text.format(value)
