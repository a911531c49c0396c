"""One model as `penstock shadow` sees it: what was compared, and who answers its requests."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

from penstock.pipelines.pipeline import Pipeline

from .compare import Comparison, Distance

KEPT_EXAMPLES = 5
KEPT_DURATIONS = 4096
"""Percentiles are those of the last so many compared requests."""

Reason = Literal[
    "shared_memory",
    "too_large",
    "no_room",
    "client_left",
    "failed_at_triton",
    "busy_here",
    "not_ready_here",
    "not_served_here",
    "sequence_cut",
    "unmatched",
    "unreadable",
    "stopped",
]
"""The reasons for which requests are not compared; docs/how-to/shadow.md explains each."""


class ShadowedModel:
    """A model's counts, and its state.

    `streak`: how many compared requests in a row have agreed. `is_here`: requests are answered
    here, not by Triton. `at_triton`: requests that Triton works on, and the most that it ever did.
    `running`: requests that run here to be compared. `sequences`: the sequences that live at
    Triton, and when each had its last step, on the monotonic clock.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.compared = 0
        self.agreed = 0
        self.streak = 0
        self.not_compared: Counter[Reason] = Counter()
        self.distances: dict[str, Distance] = {}
        self.examples: deque[dict[str, Any]] = deque(maxlen=KEPT_EXAMPLES)
        self.is_here = False
        self.at_triton = 0
        self.most_at_triton = 0
        self.running = 0
        self.pipeline: Callable[[], Pipeline | None] = lambda: None
        """Returns the pipeline that the last request was compared with."""
        self.sequences: dict[int | str, float] = {}
        self._theirs: deque[float] = deque(maxlen=KEPT_DURATIONS)
        self._ours: deque[float] = deque(maxlen=KEPT_DURATIONS)

    def __repr__(self) -> str:
        where = "here" if self.is_here else "at Triton"
        return f"<ShadowedModel {self.name} {where}: {self.agreed} of {self.compared} agreed>"

    def skip(self, reason: Reason) -> None:
        """Count a request that is not compared.

        One that this server was too busy for, or did not have the model for, ends the streak: the
        switch must not come while requests would fail.
        """
        self.not_compared[reason] += 1
        if reason in ("busy_here", "not_ready_here", "not_served_here", "unreadable"):
            self.streak = 0

    def note(self, comparison: Comparison, theirs: float, ours: float, request_id: str) -> None:
        """Count a compared request. `theirs` and `ours`: the seconds that each server took."""
        self.compared += 1
        self._theirs.append(theirs)
        self._ours.append(ours)
        for name, distance in comparison.distances.items():
            before = self.distances.get(name, Distance())
            self.distances[name] = Distance(*map(max, distance, before))
        if not comparison.differences:
            self.agreed += 1
            self.streak += 1
            return
        self.streak = 0
        self.examples.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": request_id,
                "differences": comparison.differences[:KEPT_EXAMPLES],
            }
        )

    def forget_idle_sequences(self, since: float) -> bool:
        """Forget the sequences whose last step came before `since`: they have ended at Triton.

        Returns whether there were any.
        """
        before = len(self.sequences)
        for identity, last in list(self.sequences.items()):
            if last >= since:  # they are in the order of their last steps
                break
            del self.sequences[identity]
        return len(self.sequences) < before

    def describe(self) -> dict[str, Any]:
        """Return what `GET /shadow` says of the model."""
        return {
            "answered_by": "penstock" if self.is_here else "triton",
            "requests": self.requests,
            "compared": self.compared,
            "agreed": self.agreed,
            "disagreed": self.compared - self.agreed,
            "agreed_in_a_row": self.streak,
            "not_compared": dict(self.not_compared),
            "largest_differences": {
                name: {"absolute": _number(one.absolute), "relative": _number(one.relative)}
                for name, one in sorted(self.distances.items())
            },
            "latency_ms": {
                "triton": _percentiles(self._theirs),
                "penstock": _percentiles(self._ours),
            },
            "examples": list(self.examples),
            "in_flight_at_triton": self.at_triton,
            "sequences_at_triton": len(self.sequences),
        }


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return value if value < float("inf") else "infinite"


def _percentiles(seconds: Iterable[float]) -> dict[str, float | None]:
    known = sorted(seconds)
    if not known:
        return {"p50": None, "p99": None}
    last = len(known) - 1
    return {
        name: round(known[round(last * part)] * 1000, 3)
        for name, part in (("p50", 0.5), ("p99", 0.99))
    }
