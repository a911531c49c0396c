"""How long the requests of a pipeline take, lately."""

from __future__ import annotations

import math

from ..node.statistics import RequestStatistics

SLOW_TIMES = 3.0
"""A request that took so many times the mean is slow, if that is `LEAST_SLOW_SECONDS` at least."""

LEAST_SLOW_SECONDS = 0.001

MEAN_SECONDS = 10.0
MEAN_REQUESTS = 100
"""The mean is that of about the last `MEAN_SECONDS`, and of `MEAN_REQUESTS` at least."""


class Pace:
    """The mean time of a pipeline's good requests, and from which time on one is slow. Seconds.

    `slow` is infinite until the first one has ended. `has_parts`: batches note the parts that their
    composites sent to other nodes. It holds nothing of the pipeline but its name and its version.
    """

    __slots__ = ("_at", "_requests", "_seconds", "has_parts", "mean", "name", "slow", "version")

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.mean = 0.0
        self.slow = math.inf
        self.has_parts = False
        self._requests = 0
        self._seconds = 0.0
        self._at = 0.0

    def observe(self, requests: RequestStatistics, now: float) -> None:
        """Take what has ended since the last call."""
        succeeded = requests.succeeded
        count = succeeded - self._requests
        if count <= 0:
            return
        mean = (requests.seconds - self._seconds) / count
        lately = min((now - self._at) / MEAN_SECONDS, count / MEAN_REQUESTS)
        self.mean += min(1.0, max(lately, count / succeeded)) * (mean - self.mean)
        self.slow = max(SLOW_TIMES * self.mean, LEAST_SLOW_SECONDS)
        self._requests, self._seconds, self._at = succeeded, requests.seconds, now
