"""A node at work: its scheduler's coroutine, its queue and its executors. All of it runs on the event loop, without a lock.

The coroutine waits until something changes (an arrival, a departure, a timer, an executor's report), then decides once
for all that changed in this iteration of the loop: the eight images of one request make one batch.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from penstock.backends.base import Signature
from penstock.backends.errors import BackendError, DeadlineExceeded, NotReady
from penstock.backends.expressions.spec import Spec

from ..config.definition import NodeConfig, PipelineConfig
from .executor import Executor
from .inflow import Inflow
from .placement import context_of
from .queue import NEVER, Batch, Entry
from .scheduler import Group, Scheduler
from .statistics import NodeStatistics

if TYPE_CHECKING:
    from penstock.backends.process.proxy import ProcessBackend

logger = logging.getLogger("penstock.node")

SHORT = 0.001
"""Seconds. A batch that ran for less is followed by a decision at the end of the loop's iteration, not at once. The executor
could not start earlier: it needs the GIL, which the loop keeps until then. Woken at once it would only go for it again and
again, five times a batch (a fifth of a small request's time, docs/explanation/performance.md). Behind a longer batch the executor is
what must not wait."""

LONGEST_RESTART_DELAY = 30.0  # seconds
DELAY_AFTER_FAILED_DECISION = 1.0  # seconds
KILL_TIMEOUT = 5.0  # seconds


class Node:
    """Queue, scheduler and executors of one node. `on_batch` is called after every batch, before its results are delivered."""

    def __init__(
        self,
        config: NodeConfig,
        pipeline: PipelineConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.name = config.name
        self.inflow = Inflow()
        self.parts_per_item = 1.0  # the parts of a request that come here, on average (inflow.py)
        self.signature: Signature | None = (
            None  # what its engine takes and gives, once it is loaded, if that knows it
        )
        self.retry = config.retry
        self.retry_suspended = False
        self.statistics = NodeStatistics()
        self.scheduler = Scheduler(
            config.name,
            batching_timeout=config.batching_timeout / 1000,
            priority_levels=config.priority_levels,
            stuck_after=config.stuck_after,
            on_expired=self._expired,
            on_stuck=self._stuck,
        )
        self.closed = False
        self._pipeline = pipeline
        self._place = {"pipeline": pipeline.name, "node": config.name}  # for the log
        self._loop = loop
        self._clock = clock
        self._on_batch = on_batch
        self._context = (
            contextvars.Context()
        )  # empty: neither timers nor decisions inherit a request's variables
        self._change = asyncio.Event()  # since the last decision; `_schedule` waits for it
        self._scheduling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._executors: dict[
            Executor, tuple[int, int]
        ] = {}  # every thread that has not stopped: its group and its instance
        self._missing = sum(
            group.instances for group in config.groups
        )  # executors that are not ready
        self._up = False  # all executors have been ready once
        self._loading: asyncio.Future[None] = loop.create_future()
        self._stopped: asyncio.Future[None] | None = None
        self.devices: dict[
            str, Group
        ] = {}  # accelerators that its executors took; empty: all run on the CPU
        self._watchers: list[Callable[[Batch], None]] = []
        self._shape_key = config.groups[0].spec.shape_key
        self._levels = config.priority_levels

    def __repr__(self) -> str:
        scheduler = self.scheduler
        return f"<Node {self.name}: {len(scheduler.running)} active, {len(scheduler.idle)} idle, {scheduler.queued} queued>"

    # life

    async def start(self) -> None:
        """Launch the executors and wait until all are loaded and warm. Raises `BackendError` for the first that can't be."""
        if not self.closed:
            self._scheduling = self._loop.create_task(
                self._schedule(),
                name=f"{self._pipeline.name}/{self.name} scheduler",
                context=self._context,
            )
            for group, config in enumerate(self.config.groups):
                for instance in range(config.instances):
                    self._launch(group, instance)
        await self._loading

    @property
    def not_ready(self) -> str:
        """Why; empty if it is."""
        missing = self._missing + sum(
            executor.loaded and not executor.ready for executor in self._executors
        )
        if missing:
            executors = sum(group.instances for group in self.config.groups)
            loading = next((text for executor in self._executors if (text := executor.loading)), "")
            return (
                loading or f"node {self.name!r}: {missing} of {executors} executors are not running"
            )
        stuck = [batch for batch in self.scheduler.running.values() if batch.stuck]
        if stuck:
            return (
                f"node {self.name!r}: a forward has run for more than {self.config.stuck_after:g} s"
            )
        return ""

    @property
    def executors(self) -> list[Executor]:
        """Those whose threads have not stopped."""
        return list(self._executors)

    @property
    def seconds_per_item(self) -> float:
        """How long the node takes per row of a request, with all its executors at work; 0 before the first batch."""
        executors = len(self.scheduler.idle) + len(self.scheduler.running)
        return self.statistics.seconds_per_item * self.parts_per_item / max(1, executors)

    def ahead_of(self, priority: int | None) -> int:
        """Rows that will run here before a request of this priority that arrives now."""
        running = sum(batch.size for batch in self.scheduler.running.values())
        if not self._levels:
            return running + self.scheduler.queued
        level = min(priority or self.config.default_priority, self._levels) - 1
        return running + sum(entry.size for entry in self.scheduler if entry.priority <= level)

    def watch_starts(self, watcher: Callable[[Batch], None]) -> None:
        """Have every batch told to `watcher` as it starts; it may queue more at once."""
        self._watchers.append(watcher)
        self.scheduler.on_start = self._started

    def _started(self, batch: Batch) -> None:
        for watcher in self._watchers:
            watcher(batch)

    def refuse_queued(self, reason: str) -> None:
        """Fail everything that queues here with `NotReady`; running batches go on."""
        for entry in self.scheduler.drain():
            entry.fail(NotReady(reason))

    def abandon(self, reason: str) -> None:
        """Fail everything that queues or runs here with `NotReady`. Results of running batches are ignored."""
        self.refuse_queued(reason)
        for batch in list(self.scheduler.running.values()):
            for entry in batch.entries:
                entry.fail(NotReady(reason))

    async def close(self, timeout: float) -> None:
        """Stop the threads; those that don't end within `timeout` seconds are reported and left behind. May be called again."""
        reason = f"pipeline {self._pipeline.name!r} is closed"
        if not self.closed:
            self.closed = True
            self.abandon(reason)
        if self._timer is not None:
            self._timer.cancel()
        if not self._loading.done():
            self._loading.set_exception(NotReady(reason))
            self._loading.exception()  # nobody need be waiting for it
        self._change.set()
        if self._scheduling is not None and not self._scheduling.done():
            await asyncio.wait([self._scheduling])
        if not self._executors:
            return
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            for executor in self._executors:
                executor.stop()
        await asyncio.wait([self._stopped], timeout=timeout)
        killed = [executor.kill() for executor in self._executors]
        if any(killed):
            await asyncio.wait([self._stopped], timeout=KILL_TIMEOUT)
        for executor in self._executors:
            logger.warning(
                "%s did not stop within %g s and is left behind; it is at\n%s",
                executor.name,
                timeout,
                executor.stack(),
                extra=self._place,
            )
        self._executors.clear()

    # arrivals and departures

    def enqueue(self, entry: Entry, now: float) -> None:
        """Queue the entry; a decision follows at the end of this iteration of the loop, if it could change anything.

        While no executor is idle it could not (the next report decides), but for a deadline before the timer's next ring: an iteration of
        the loop less for each batch.
        """
        levels = self._levels
        if levels:
            entry.priority = min(entry.wanted or self.config.default_priority, levels) - 1
        key: Hashable = None
        if self._shape_key is not None:
            try:
                key = self._shape_key(entry.item)
                hash(key)
            except Exception:
                key = (
                    object()
                )  # not what the backend expects: it runs alone, and the backend says what is wrong
        scheduler = self.scheduler
        scheduler.enqueue(entry, key, now)
        if scheduler.idle or entry.deadline < self._timer_at:
            self._change.set()
        if self.closed:  # nothing decides any more
            reason = f"node {self.name!r} is closed"
            self._loop.call_soon(self.refuse_queued, reason, context=self._context)

    def discard(self, entry: Entry) -> None:
        """The caller left: drop the entry if it still queues here."""
        if self.scheduler.discard(entry):
            self.statistics.outcomes["cancelled"] += 1
            self._change.set()  # what stood after it may fit where it did not

    # the decision

    async def _schedule(self) -> None:
        """Wait until something changes, then decide once for all of it."""
        try:
            while not self.closed:
                await self._change.wait()
                self._change.clear()  # before the decision: it may bring about changes itself
                self._decide(self._clock())
        finally:
            if not self.closed:  # cancelled, as asyncio.run cancels every task when it ends
                self.closed = True
                self.abandon(f"node {self.name!r}: its scheduler was cancelled")

    def _decide(self, now: float) -> None:
        if self.closed:
            return
        try:
            wake = self.scheduler.decide(now)
        except Exception:  # all that queues would wait for ever if nothing decided again
            logger.exception("node %s: the decision failed", self.name, extra=self._place)
            wake = now + DELAY_AFTER_FAILED_DECISION
        # A timer that fires too early costs one decision; moving it at every batch would cost more.
        if wake < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = wake
            # up to the next full millisecond: uvloop cuts the rest off, and an early timer would decide nothing and come again
            delay = math.ceil((wake - now) * 1000) / 1000
            self._timer = self._loop.call_later(delay, self._timer_fired, context=self._context)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        self._change.set()

    def _expired(self, entry: Entry) -> None:
        self.statistics.outcomes["expired"] += 1
        entry.fail(
            DeadlineExceeded(
                f"node {self.name!r}: the deadline passed while the request was queued"
            )
        )

    def _stuck(self, batch: Batch) -> None:
        executor: Executor = batch.executor
        logger.error(
            "node %s: %s has run one batch for more than %g s; the node is not ready until it ends. It is at\n%s",
            self.name, executor.name, self.config.stuck_after, executor.stack(),
            extra={"request_id": ", ".join(entry.request_id for entry in batch.entries if entry.request_id), **self._place},
        )  # fmt: skip
        # The thread can't be interrupted, and may never come back. Its callers are not kept waiting for that.
        for entry in batch.entries:
            entry.fail(
                DeadlineExceeded(
                    f"node {self.name!r}: the batch ran longer than {self.config.stuck_after:g} s (stuck_after)"
                )
            )

    # what executors report

    def executor_finished(self, executor: Executor, batch: Batch) -> None:
        """Rule 7: free the executor, decide again, only then deliver; behind a short batch the decision ends this iteration of the loop."""
        if self.closed:
            return
        now = self._clock()
        scheduler = self.scheduler
        scheduler.release(executor)
        executor.failures = 0
        short = batch.ended - batch.started < SHORT
        if not short:
            self._decide(now)
        statistics = self.statistics
        statistics.observe_batch(batch)
        self._on_batch()
        for entry, outcome in zip(batch.entries, batch.outcomes, strict=True):
            entry.finish(outcome, batch, now)
        if short and scheduler.buckets:
            self._change.set()
        # Entries refer to their batch, for its times. Without the way back there is no cycle, and images don't wait for the collector.
        batch.entries.clear()
        batch.outcomes.clear()

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None:
        if self.closed:
            return
        if device:  # executors of one device are one group: a second batch there only starts full, or late (rule 2)
            executor.group = self.devices.setdefault(device, executor.group)
        group = self.config.groups[self._executors[executor][0]]
        executor.min = max(low, group.min or 1)
        executor.max = group.bound(high)
        executor.loaded = True
        self.signature = executor.signature
        self._missing -= 1
        self.scheduler.add(executor)
        if not self._missing and not self._up:
            self._up = True
            if not self._loading.done():  # else: nobody waits any more, and close is under way
                self._loading.set_result(None)
        self._change.set()

    def executor_died(self, executor: Executor, error: BaseException) -> None:
        """The thread is gone: fail what it ran, and start another one in its place."""
        if self.closed:
            return
        if not self._up:  # it never came up: the pipeline does not start
            if not self._loading.done():
                failure = BackendError(f"node {self.name!r}: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._loading.set_exception(failure)
            return
        logger.error(
            "node %s: %s died and is restarted",
            self.name,
            executor.name,
            exc_info=error,
            extra=self._place,
        )
        if executor.loaded:
            self._missing += 1
        batch = self.scheduler.remove(executor)
        group, instance = self._executors[executor]
        failures = executor.failures
        delay = min(LONGEST_RESTART_DELAY, 0.1 * 2 ** min(failures, 10)) if failures else 0.0
        self.statistics.restarts += 1
        self._loop.call_later(
            delay, self._launch, group, instance, failures + 1, context=self._context
        )
        self._change.set()
        if batch is not None:
            batch.ended = now = self._clock()
            self.statistics.observe_batch(batch)
            for entry, outcome in zip(batch.entries, batch.outcomes, strict=True):
                if outcome is None and now < entry.deadline:
                    outcome = BackendError(
                        f"node {self.name!r}: {executor.name} died of {type(error).__name__}: {error}"
                    )
                    outcome.__cause__ = error
                entry.finish(outcome, batch, now)
            batch.entries.clear()
            batch.outcomes.clear()

    def executor_restarted(self, executor: Executor) -> None:
        self.statistics.restarts += 1

    def executor_stopped(self, executor: Executor) -> None:
        self._executors.pop(executor, None)
        executor.join(1.0)
        if self._stopped is not None and not self._executors and not self._stopped.done():
            self._stopped.set_result(None)

    def _launch(self, group: int, instance: int, failures: int = 0) -> None:
        if self.closed:
            return
        context = context_of(self.config, self._pipeline, group, instance)
        name = f"{self._pipeline.name}/{self.name}#{context.instance}"
        spec: Spec | ProcessBackend = self.config.groups[group].spec
        if self.config.executor == "process":
            from penstock.backends.process import proxy as process  # it imports numpy

            spec = process.ProcessBackend(self.config.groups[group].spec)
        executor = Executor(name, spec, context, Group(name), self, self._loop, self._clock)
        executor.failures = failures
        self._executors[executor] = group, instance
        executor.launch()
