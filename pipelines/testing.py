"""Tools for tests of pipelines and backends: a clock that the test moves, a gate, a fake executor.

Nothing here waits for time to pass, except for the bound after which a hung test fails.
"""

from __future__ import annotations

import asyncio
import threading

from .node.queue import Batch, Entry
from .node.scheduler import DeviceGroup, Scheduler

__all__ = ["Batch", "Clock", "DeviceGroup", "Entry", "FakeExecutor", "Gate", "Scheduler"]

BOUND_SECONDS = 20.0
"""The seconds that a gate waits before it fails the test: a hung test must end with an error."""


class Clock:
    """A clock that stands still until the test moves it. Pass it to `Pipeline(config, clock=...)`.

    `now` is in seconds. Deadlines and durations follow this clock; timers of the event loop do not,
    so a decision that depends on the new time takes place at the next arrival or report.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Move the clock forward by `seconds`."""
        self.now += seconds


class Gate:
    """A gate that holds a backend's thread until the test opens it. It is closed at first.

    A backend calls `wait`; the test calls `wait_entered`, looks at what it came for, and `open`s.
    """

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """True while threads pass."""
        return self._open.is_set()

    def wait(self) -> None:
        """Announce this thread at the gate and return once it is open.

        Raises `TimeoutError` after `BOUND_SECONDS`.
        """
        self._entered.release()
        if not self._open.wait(BOUND_SECONDS):
            raise TimeoutError(f"the gate stayed closed for {BOUND_SECONDS:g} s")

    def open(self) -> None:
        """Let every thread pass, those that wait and those to come."""
        self._open.set()

    def close(self) -> None:
        """Hold the threads that come from now on."""
        self._open.clear()

    def reset(self) -> None:
        """Close the gate and forget the arrivals: for a gate that several tests share."""
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)

    def wait_entered(self) -> None:
        """Block until one more thread has come to the gate. Raises `TimeoutError`.

        Each arrival is reported once. In asyncio code use `entered`.
        """
        if not self._entered.acquire(timeout=BOUND_SECONDS):
            raise TimeoutError(f"no thread came to the gate within {BOUND_SECONDS:g} s")

    async def entered(self) -> None:
        """Wait until one more thread has come to the gate. Raises `TimeoutError`."""
        await asyncio.to_thread(self.wait_entered)


class FakeExecutor:
    """An executor that runs nothing and keeps its batches: for tests of `Scheduler` alone.

    `max` is the most rows of a batch. With `ready = False` it gets none, as while its child process
    is being replaced. The executors of one device share a `device_group`; without
    one the executor has a device to itself.
    """

    def __init__(self, max: int = 1, device_group: DeviceGroup | None = None) -> None:  # noqa: A002  the scheduler's word
        self.name = "fake"
        self.device = ""
        self.max = max
        self.freed = 0.0
        self.last: Batch | None = None
        self.ready = True
        self.device_group = DeviceGroup("fake") if device_group is None else device_group
        self.batches: list[Batch] = []

    def __repr__(self) -> str:
        return f"<FakeExecutor {self.device_group.name}: {len(self.batches)} batches>"

    def start(self, batch: Batch) -> None:
        """Keep the batch. The test ends it with `scheduler.release(executor)`."""
        self.batches.append(batch)
