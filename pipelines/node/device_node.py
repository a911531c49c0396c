"""A node whose instances are on several devices: it goes on while one of them works.

A device that fails is taken out: its instances get no batch, and the batch that failed with it runs
again on another device. Nodes on one device know nothing of this.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any
from weakref import WeakSet

from penstock.backends.errors import BackendError, DeviceError
from penstock.backends.text import message_of

from .executor import Executor
from .node import LONGEST_RESTART_DELAY_SECONDS, Node
from .placement import Placement
from .queue import Batch, Entry, log_failure
from .scheduler import Scheduler
from .unequal import DeviceScheduler

logger = logging.getLogger("penstock.node")

FIRST_PAUSE_SECONDS = 1.0
"""The pause before an instance is tried again on a failed device. It doubles with each failure."""

OF_THE_INPUT = "device-side assert"
"""An error with this text is of a kernel that checked its input: it would fail on any device."""


class DeviceNode(Node):
    """A node with several devices. `placement` says which instance is where.

    `moved` counts the items that ran again on another device.
    """

    scheduler_class: type[Scheduler] = DeviceScheduler

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.placement = Placement(self.config)
        self.moved = 0
        self._lost: set[tuple[int, int]] = set()  # instances that could not load, at the start
        self._ran_again: WeakSet[Entry] = WeakSet()
        assert isinstance(self.scheduler, DeviceScheduler)
        self._speeds = self.scheduler.speeds

    @property
    def not_ready(self) -> str:
        reason = super().not_ready
        if reason and self._up and not self.closed and any(self.devices_in_use.values()):
            return ""
        return reason

    @property
    def devices_in_use(self) -> dict[str, bool]:
        """The devices, each with True if it has instances and all of them serve."""
        working = Counter(executor.placed for executor in self._executors if self._works(executor))
        return {
            device: 0 < self.placement.count(device) <= working[device]
            for device in self.placement.devices
        }

    def _works(self, executor: Executor) -> bool:
        batch = self.scheduler.running.get(executor)
        return executor.loaded and executor.ready and not (batch is not None and batch.stuck)

    @property
    def _serves(self) -> bool:
        return any(
            not executor.out and not (batch is not None and batch.stuck)
            for executor, batch in (
                *((executor, None) for executor in self.scheduler.idle),
                *self.scheduler.running.items(),
            )
            if isinstance(executor, Executor)
        )

    def _device_for(self, instance_group: int, instance: int) -> str | None:
        return self.placement.place((instance_group, instance))

    # what executors report

    def executor_finished(self, executor: Executor, batch: Batch) -> None:
        if not self.closed and not batch.hung:
            self._speeds.observe(executor.device, batch.size, batch.started, batch.ended)
        super().executor_finished(executor, batch)

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None:
        super().executor_loaded(executor, low, high, device)
        if self.closed:
            return
        instance = self._executors[executor]
        if executor.placed in self.placement.failed:
            logger.warning(
                "node %s: %s works again: %s has loaded there",
                self.name,
                executor.placed,
                executor.name,
                extra=self._log_extra,
            )
        self.placement.loaded(instance)
        self._lost.discard(instance)
        for other in self._executors:
            if other.placed == executor.placed:
                other.out = False
        self._settle_start()

    def executor_died(self, executor: Executor, error: BaseException) -> None:
        """Take the device out if it failed, or had no memory for the instance, and go on."""
        if self.closed or not isinstance(error, DeviceError | MemoryError):
            super().executor_died(executor, error)
            return
        instance, was_loaded = self._executors[executor], executor.loaded
        if was_loaded:
            executor.loaded = False  # else it would count twice until its thread has ended
            self._missing += 1
        moves = self.placement.fail(instance, message_of(error))
        elsewhere = moves or any(
            self._works(other) for other in self._executors if other.placed != executor.placed
        )
        if elsewhere and isinstance(error, DeviceError):
            for other in self._executors:
                other.out |= other.placed == executor.placed
        batch = self.scheduler.remove(executor)
        again = [] if batch is None or not elsewhere else self._take_again(batch, error)
        self._log_lost(executor, error, again, batch, moves=moves)
        if not self._up:
            if not moves:
                self._lost.add(instance)
            self._settle_start(error)
            if self._loading.done() and not self._up:
                return
        else:
            self.statistics.restarts += 1
            self._restart_failed |= not moves and not was_loaded
        failures = 0 if moves else executor.failures + 1
        pause = 0.0 if moves else self._pause_after(failures)
        self._loop.call_later(pause, self._launch, *instance, failures, context=self._context)
        now = self._clock()
        for entry in again:
            self.scheduler.put_back(entry, now)
        self._judge()
        self._changed()
        if batch is None:
            return
        if batch.entries:
            self._end_batch(batch, executor, error)
        else:
            batch.forget()

    def _pause_after(self, failures: int) -> float:
        return min(
            LONGEST_RESTART_DELAY_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10)
        )

    def _settle_start(self, error: BaseException | None = None) -> None:
        """End `start` once each instance has loaded, or can't on its device while others could.

        `error`: that of the last one which could not.
        """
        if self._up or self._missing > len(self._lost):
            return
        if any(executor.loaded for executor in self._executors):
            self._up = True
            if not self._loading.done():
                self._loading.set_result(None)
        elif error is not None and not self._loading.done():
            failure = BackendError(self._why_not_loaded(error))
            failure.__cause__ = error
            self._loading.set_exception(failure)

    def _take_again(self, batch: Batch, error: BaseException) -> list[Entry]:
        """Take those entries out of a batch that are to run on another device.

        Each item runs again once at most: one that fails on two devices is likely to be the cause,
        and would take out one device after the other.
        """
        if not self.retry or OF_THE_INPUT in message_of(error):
            return []
        again: list[Entry] = []
        kept: list[tuple[Entry, Any]] = []
        for entry, outcome in zip(batch.entries, batch.outcomes, strict=True):
            lost = isinstance(outcome, DeviceError) or not batch.begun
            if lost and entry not in self._ran_again and not entry.future.done():
                again.append(entry)
            else:
                kept.append((entry, outcome))
        self._ran_again.update(again)
        self.moved += len(again)
        batch.entries = [entry for entry, _ in kept]
        batch.outcomes = [outcome for _, outcome in kept]
        return again

    def _log_lost(
        self,
        executor: Executor,
        error: BaseException,
        again: list[Entry],
        batch: Batch | None,
        *,
        moves: bool,
    ) -> None:
        """Log what is lost and what follows; for each request that fails by it, a line."""
        if moves:
            then = "another device takes its place"
        else:
            then = f"it is tried again in {self._pause_after(executor.failures + 1):g} s"
        if again:
            then += f"; items that run again on another device: {len(again)}"
        log_failure(
            logger,
            [] if batch is None else batch.entries,
            "node %s: %s is lost on %s: %s; %s",
            self.name,
            executor.name,
            executor.placed,
            (message_of(error).splitlines() or [type(error).__name__])[0],
            then,
            fields=self._log_extra,
            error=error if executor.failures == 0 else None,
        )
