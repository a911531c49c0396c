"""The metrics that one instance of a model holds."""

from __future__ import annotations

import os
from collections import deque
from itertools import count
from typing import Any
from uuid import uuid4

from ..model_metrics import Labels, apply, owner_of_process
from ..server import Server


class InstanceMetrics:
    """The metrics that one instance of a model holds in its server's process.

    What the garbage collector finds is noted and let go of later: it may come while a message to
    the server is being written.
    """

    def __init__(self, server: Server | None) -> None:
        """`server`: None if the metrics of this process are meant."""
        self._server = server
        # A child's are let go of when it ends, however it ends (`process/proxy.py`).
        self._name = f"{uuid4()}/" if server is None else owner_of_process(os.getpid())
        self._numbers = count()
        self._lost: deque[tuple[str, Labels, str]] = deque()
        self.used = False

    def owner(self) -> str:
        """Return a new owner."""
        self.used = True
        return f"{self._name}{next(self._numbers)}"

    def apply(self, operation: str, *arguments: Any) -> float | None:
        """Run an operation of `ModelMetrics`, and return or raise what it does."""
        if self._server is None:
            return apply(operation, *arguments)
        result: float | None = self._server.run(apply, operation, *arguments)
        return result

    def lose(self, metric: tuple[str, Labels, str]) -> None:
        """Note that nothing refers to a metric any more."""
        self._lost.append(metric)

    def flush(self) -> None:
        """Let go of the metrics that nothing refers to."""
        while self._lost:
            self.apply("drop", *self._lost.popleft())

    def close(self) -> None:
        """Let go of all metrics of the instance."""
        if self.used and self._server is None:
            self.apply("release", self._name)
