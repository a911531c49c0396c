"""A node at work: its queue, its executors, and the coroutine that schedules them.

The coroutine waits until something changes (an arrival, a departure, a timer, an executor's
report), then decides once for all that changed in this iteration of the event loop: the eight
images of one request make one batch. All of this runs on the loop, so there is no lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from penstock.backends.base import Backend, Context, Signature
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
)
from penstock.backends.expressions.spec import Spec
from penstock.backends.loaded_files import LoadedFiles
from penstock.backends.process.failure import RestartError
from penstock.backends.server import Server
from penstock.backends.shared_files import SharedFiles
from penstock.backends.text import message_of

from ..config.definition import NodeConfig, PipelineConfig, QueuePolicy
from ..overload.door import Pressure
from .executor import Executor, Link
from .inflow import Inflow
from .outflow import Outflow
from .placement import context_of
from .queue import (
    NEVER,
    NO_ENTRIES,
    NO_OUTCOMES,
    Batch,
    Bucket,
    Entry,
    fail_all,
    fail_undelivered,
    log_failure,
)
from .rows import count_rows, forget_counts
from .scheduler import DeviceGroup, Scheduler
from .statistics import NodeStatistics

if TYPE_CHECKING:
    from penstock.backends.process.proxy import ProcessBackend

logger = logging.getLogger("penstock.node")

SHORT_BATCH_SECONDS = 0.001
"""After a batch that ran for less, the node decides at the end of the loop's iteration.

After a longer batch it decides at once, because the executor must not wait. The executor of a short
batch could not start earlier anyhow: it needs the GIL, which the loop holds until its iteration
ends. An executor that is woken at once tries to take the GIL about five times per batch, which cost
a fifth of a small request's time (docs/explanation/performance.md).
"""

FAILED_DECISION_DELAY_SECONDS = 1.0
"""The seconds from a decision that raised to the next one, if nothing changes before."""

LONGEST_RESTART_DELAY_SECONDS = 30.0
"""The delay before an executor is restarted doubles with each death in a row, up to this."""

KILL_TIMEOUT_SECONDS = 5.0
"""The seconds that `close` waits for child processes, and again for their threads after it killed
them.
"""


class Change(Protocol):
    """The part of a future by which changes ask for a decision."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Node:
    """The queue, the scheduler and the executors of one node.

    `on_batch` is called after every batch with the time, before its results are delivered.
    `pressure`: that of its pipeline.
    """

    executor_class: type[Executor] = Executor
    scheduler_class: type[Scheduler] = Scheduler

    def __init__(
        self,
        config: NodeConfig,
        pipeline: PipelineConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[float], None] = lambda now: None,
        *,
        pressure: Pressure | None = None,
    ) -> None:
        self.config = config
        self.name = config.name
        self.inflow = Inflow()
        self.parts_per_item = 1.0  # how many parts of a request come here, on average (inflow.py)
        self.signature: Signature | None = None  # of its engine, once that is loaded
        self.counted: Signature | None = None  # the same, if rows are counted from the arrays
        self.retry = config.retry
        self.retry_suspended = False
        self.statistics = NodeStatistics()
        self.scheduler = self.scheduler_class(
            config.name,
            batching_timeout=config.batching_timeout / 1000,
            priority_levels=config.priority_levels,
            stuck_after=config.stuck_after,
            queue_timeout=pipeline.queue_timeout or NEVER,
            queue_policies=config.queue_policies,
            combine=config.combine,
            on_expired=self._expired,
            on_stuck=self._stuck,
        )
        self.estimate = self.scheduler.estimate = self.statistics.estimate
        if pressure is not None:
            self.scheduler.pressure = pressure
        self.outflow = self.scheduler.outflow = Outflow(self._changed)
        self.closed = False
        self._pipeline = pipeline
        self._log_extra = {"pipeline": pipeline.name, "node": config.name}
        self._loop = loop
        self._clock = clock
        self._on_batch = on_batch
        # Empty, so that neither timers nor decisions inherit a request's variables.
        self._context = contextvars.Context()
        # Done when something has changed since the last decision.
        self._change: Change = loop.create_future()
        self._scheduling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        # Every thread that has not stopped: its instance group and its instance.
        self._executors: dict[Executor, tuple[int, int]] = {}
        # How many executors are not loaded.
        self._missing = sum(group.instances for group in config.instance_groups)
        self._up = False  # all executors have been loaded once
        self._loading: asyncio.Future[None] = loop.create_future()
        self._stopped: asyncio.Future[None] | None = None
        self.files = LoadedFiles()
        instances = sum(group.instances for group in config.instance_groups)
        self._shared_files = (
            SharedFiles() if config.executor == "process" and instances > 1 else None
        )
        self._hung: set[object] = set()  # the executors that `close` does not wait for
        # The accelerators that its executors took; empty if all run on the CPU.
        self.devices: dict[str, DeviceGroup] = {}
        self._watchers: list[Callable[[Batch], None]] = []
        self._shape_key = config.instance_groups[0].spec.shape_key
        delays = any(policy.delays for policy in config.queue_policies)
        self._levels = config.priority_levels or int(delays)
        self._level_step = 2 if delays else 1  # late entries have levels of their own
        self._default_priority = max(config.default_priority, 1)
        self._restart_failed = False  # a replacement of an executor could not load
        self._refuses = False
        specs = [group.spec for group in config.instance_groups]
        self._takes_request_id = any(spec.takes_request_id for spec in specs)
        self._takes_traceparent = any(spec.takes_traceparent for spec in specs)
        # Connects an instance whose backend `takes_server`. None: nothing serves it.
        self.make_link: Callable[[], Link] | None = None
        self._takes_more = self._takes_request_id or self._takes_traceparent

    def __repr__(self) -> str:
        active, idle = len(self.scheduler.running), len(self.scheduler.idle)
        queued = self.scheduler.queued
        return f"<Node {self.name}: {active} active, {idle} idle, {queued} queued>"

    # life

    async def start(self) -> None:
        """Launch the executors, and wait until all of them are loaded and warm.

        Raises `BackendError` for the first one that fails to load.
        """
        if not self.closed:
            self._begin()
            for instance_group, config in enumerate(self.config.instance_groups):
                for instance in range(config.instances):
                    self._launch(instance_group, instance)
        await self._loading

    @property
    def not_ready(self) -> str:
        """The reason why the node is not ready; empty if it is ready."""
        if self.closed:
            return f"node {self.name!r} is closed"
        missing = self._missing + sum(
            executor.loaded and not executor.ready for executor in self._executors
        )
        if missing:
            executors = sum(group.instances for group in self.config.instance_groups)
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

    def _judge(self) -> None:
        """Find out whether items that come have to be refused, because nothing will serve them.

        They wait for executors that are being replaced, unless a replacement could not load.
        """
        replacing = self._missing and not self._restart_failed
        self._refuses = self._up and not self._serves and not replacing

    @property
    def _serves(self) -> bool:
        """True if an executor is idle, or runs a batch that will end."""
        scheduler = self.scheduler
        return bool(scheduler.idle) or any(not batch.stuck for batch in scheduler.running.values())

    @property
    def executors(self) -> list[Executor]:
        """The executors whose threads have not stopped."""
        return list(self._executors)

    @property
    def executor_count(self) -> int:
        """The number of executors that run or wait for a batch, and are not being replaced."""
        scheduler = self.scheduler
        return sum(executor.ready for executor in (*scheduler.idle, *scheduler.running))

    @property
    def max_rows(self) -> int:
        """The rows of the largest batch."""
        return self.scheduler.max

    def level_of(self, priority: int | None) -> int:
        """Return the index of the level of requests with this priority; 0 is the most urgent."""
        if not self._levels:
            return 0
        level = min(priority or self._default_priority, self._levels) - 1
        return level * self._level_step

    def is_of_level(self, entry: Entry, level: int) -> bool:
        """Return whether a queued entry is of a level, late or not. `level`: as `level_of` says."""
        return entry.priority - entry.priority % self._level_step == level

    def policy_of(self, priority: int | None) -> QueuePolicy | None:
        """Return the policy for requests of this priority; None if there is none."""
        policies = self.config.queue_policies
        return policies[self.level_of(priority) // self._level_step] if policies else None

    def ahead_of(self, priority: int | None) -> int:
        """Count the rows that would run before a request of this priority that arrives now.

        What stands behind it by the order of `Turns` counts too.
        """
        running = sum(batch.size for batch in self.scheduler.running.values())
        if not self._levels:
            return running + self.scheduler.queued
        level = self.level_of(priority)
        return running + sum(entry.size for entry in self.scheduler if entry.priority <= level)

    def watch_starts(self, watcher: Callable[[Batch], None]) -> None:
        """Call `watcher` with every batch as it starts. It may queue more entries at once."""
        self._watchers.append(watcher)
        self.scheduler.on_start = self._started

    def _started(self, batch: Batch) -> None:
        for watcher in self._watchers:
            watcher(batch)

    def refuse_queued(self, reason: str) -> None:
        """Fail all queued entries with `NotReady`; running batches go on."""
        fail_all(self.scheduler.drain(), lambda: NotReady(reason))

    def abandon(self, reason: str) -> None:
        """Fail all queued and running entries with `NotReady`.

        Running batches go on; their results are ignored.
        """
        self.refuse_queued(reason)
        for batch in list(self.scheduler.running.values()):
            fail_all(batch.entries, lambda: NotReady(reason))

    async def close(self, timeout: float) -> None:
        """End the scheduler and the threads. May be called again.

        A child process that does not end within `KILL_TIMEOUT_SECONDS` is killed. A thread that
        does not end within `timeout` seconds is logged and left running. One whose batch is stuck
        is not waited for: its callers have their answers, and it can't be killed.
        """
        reason = f"pipeline {self._pipeline.name!r} is closed"
        if not self.closed:
            self.closed = True
            self.abandon(reason)
        if self._timer is not None:
            self._timer.cancel()
        self._fail_start(reason)
        self._changed()
        if self._scheduling is not None and not self._scheduling.done():
            await asyncio.wait([self._scheduling])
        if not self._executors:
            return
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            for executor in self._executors:
                executor.stop()
            self._hung = {
                executor for executor, batch in self.scheduler.running.items() if batch.stuck
            }
        if self._hung.issuperset(self._executors):
            timeout = 0.0
        # No caller waits any more, so a child that still works is killed soon.
        patience = min(timeout, KILL_TIMEOUT_SECONDS)
        await asyncio.wait([self._stopped], timeout=patience)
        killed = [executor.kill() for executor in self._executors]
        left = KILL_TIMEOUT_SECONDS if any(killed) else timeout - patience  # all are of one kind
        await asyncio.wait([self._stopped], timeout=left)
        for executor in self._executors:
            logger.warning(
                "%s did not stop within %g s and is left running; its stack:\n%s",
                executor.name,
                timeout,
                _stack_of(executor),
                extra=self._log_extra,
            )
        self._executors.clear()
        if self._shared_files is not None:
            self._shared_files.close()

    # arrivals and departures

    def enqueue(self, entry: Entry, now: float) -> None:
        """Queue the entry, and wake the scheduler if a decision could change anything.

        If nothing will serve it, it fails with `NotReady` in the next iteration. While no executor
        is idle a decision could change nothing: the next report of an executor leads to one. This
        saves one iteration of the loop per batch. The exception is a deadline that comes before the
        timer rings.
        """
        scheduler = self.scheduler
        if self._refuses:
            self._fail_soon(entry, self._unserved, now)
            return
        levels = self._levels
        if levels:
            level = min(entry.wanted or self._default_priority, levels) - 1
            entry.priority = level * self._level_step
        item = entry.item
        if (
            self.counted is not None or (len(item) > 1 and "request_size" in item)
        ) and not self._count(entry, now):
            return
        if self._takes_more:
            self._add_keys(entry)
        key: Hashable = None
        if self._shape_key is not None:
            try:
                key = self._shape_key(entry.item)
                key in self.scheduler.buckets  # noqa: B015  a user's __hash__ or __eq__ may raise
            except BaseException:
                # Not an item that the backend expects. It runs alone, and the backend reports why.
                key = object()
        scheduler.enqueue(entry, key, now)
        change = self._change
        if not change.done() and (scheduler.idle or scheduler.earliest < self._timer_at):
            change.set_result(None)  # as `_changed`, but without a call: this is the hot path
        if self.closed:  # nothing decides any more
            reason = f"node {self.name!r} is closed"
            self._loop.call_soon(self.refuse_queued, reason, context=self._context)

    def _add_keys(self, entry: Entry) -> None:
        """Add the keys that the backend asks for, besides those of the item."""
        item = entry.item = entry.item.copy()  # the first node's item is the caller's own
        if self._takes_request_id and (entry.request_id or "request_id" not in item):
            item["request_id"] = entry.request_id
        if self._takes_traceparent:
            context = entry.context
            item["traceparent"] = "" if context is None else context.traceparent
            item["tracestate"] = "" if context is None else context.tracestate

    def _unserved(self) -> NotReady:
        return NotReady(self.not_ready or f"node {self.name!r}: no executor is running")

    def _count(self, entry: Entry, now: float) -> bool:
        """Set the rows of an entry. Return False if the node can't take them.

        The entry then fails softly in the next iteration, because `enqueue` must not end one.
        """
        item = entry.item
        try:
            rows = count_rows(item, self.counted, self.scheduler.max, self.name)
        except BaseException as error:
            failure = error
            if not issubclass(type(error), InvalidInput):  # an array's own code raised it
                failure = InvalidInput(
                    f"node {self.name!r}: the shape of data can't be read: {message_of(error)}"
                )
            self._fail_softly_soon(entry, failure, now)
            return False
        entry.size = rows
        if rows > 1 and "request_size" not in item:
            # Backends go by it. A copy, because the first node's item is the caller's own.
            entry.item = {**item, "request_size": rows}
            entry.counted = True
        return True

    def _fail_softly_soon(self, entry: Entry, error: BaseException, now: float) -> None:
        """Fail an entry softly in the next iteration, because `enqueue` must not end one."""
        entry.enqueued = now
        entry.bucket = Bucket(None, self.scheduler.levels)  # it may be discarded until then
        batch = Batch(self.name, None, [entry], 1, now)
        batch.outcomes[0]["error"] = error
        self.statistics.outcomes["ok"] += 1  # the delivery counts it as a soft failure instead
        self._loop.call_soon(self._deliver, batch, now, context=self._context)

    def _fail_soon(self, entry: Entry, error: Callable[[], BaseException], now: float) -> None:
        """Fail an entry in the next iteration, because `enqueue` must not end one."""
        entry.enqueued = now
        entry.bucket = Bucket(None, self.scheduler.levels)  # it may be discarded until then
        self._loop.call_soon(fail_all, [entry], error, context=self._context)

    def discard(self, entry: Entry) -> None:
        """Drop an entry whose caller left, if it is still queued here."""
        if self.scheduler.discard(entry):
            self.statistics.outcomes["cancelled"] += 1
            self._changed()  # an entry that queued after it may fit now

    def batch_of(self, entry: Entry) -> Batch | None:
        """Return the batch in which an entry runs, if batches are noted."""
        if self.scheduler.notes:
            for batch in self.scheduler.running.values():
                if entry in batch.entries:
                    return batch
        return None

    # the decision

    def _begin(self) -> None:
        """Begin to decide after every change."""
        self._change = change = self._loop.create_future()
        self._scheduling = self._loop.create_task(
            self._schedule(change),
            name=f"{self._pipeline.name}/{self.name} scheduler",
            context=self._context,
        )
        self._scheduling.add_done_callback(self._scheduling_ended, context=self._context)

    async def _schedule(self, change: asyncio.Future[None]) -> None:
        """Wait until something changes, then decide once for all of it."""
        while not self.closed:
            await change
            # Before the decision, which may lead to changes itself.
            self._change = change = self._loop.create_future()
            self._decide(self._clock())

    def _scheduling_ended(self, task: asyncio.Task[None]) -> None:
        """Close the node if its scheduler ended first: what queues here would wait for ever.

        `asyncio.run` cancels every task at its end, also one that has not begun.
        """
        error = None if task.cancelled() else task.exception()
        if self.closed:
            return
        if error is not None:
            logger.error(
                "node %s: the scheduler failed", self.name, exc_info=error, extra=self._log_extra
            )
        self.closed = True
        how = "was cancelled" if error is None else "failed"
        reason = f"node {self.name!r}: its scheduler {how}"
        self._fail_start(reason)
        self.abandon(reason)

    def _fail_start(self, reason: str) -> None:
        """End a `start` that still waits."""
        if not self._loading.done():
            self._loading.set_exception(NotReady(reason))
            self._loading.exception()  # retrieved: there may be no `start` that waits for it

    def _changed(self) -> None:
        """Wake the scheduler at the end of this iteration of the loop."""
        if not self._change.done():
            self._change.set_result(None)

    def _decide(self, now: float) -> None:
        """Start the batches that may start now, and set the timer for the next decision."""
        if self.closed:
            return
        try:
            wake = self.scheduler.decide(now)
        except Exception:  # without another decision, queued entries would wait for ever
            logger.exception("node %s: the decision failed", self.name, extra=self._log_extra)
            wake = now + FAILED_DECISION_DELAY_SECONDS
        # A timer that fires too early costs one decision. Moving it at every batch costs more.
        if wake < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = wake
            # Rounded up to a full millisecond: uvloop rounds down, and the decision of a timer that
            # fires too early would start nothing and set the timer again.
            delay = math.ceil((wake - now) * 1000) / 1000
            self._timer = self._loop.call_later(delay, self._timer_fired, context=self._context)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        self._changed()

    def _expired(self, entry: Entry) -> None:
        self.statistics.outcomes["expired"] += 1
        if entry.deadline <= self._clock():
            why = "the deadline passed while the request was queued"
        else:
            why = f"the request was queued for longer than {self._longest_wait(entry)}"
        fail_all([entry], lambda: DeadlineExceeded(f"node {self.name!r}: {why}"))

    def _longest_wait(self, entry: Entry) -> str:
        limit, key = self._pipeline.queue_timeout or NEVER, "queue_timeout"
        policy = self.policy_of(entry.wanted)
        own = NEVER if policy is None or policy.timeout is None else policy.timeout
        if policy is not None and not policy.delays and own < limit:
            limit, key = own, "timeout in queue_policies"
        return f"{limit:g} s ({key})"

    def _stuck(self, batch: Batch) -> None:
        """Answer the callers of a batch that hangs, and kill the child process that runs it.

        The innocent items of a batch that a child ran are not answered: they run again, one by one.
        """
        executor: Executor = batch.executor
        now = self._clock()
        if executor.killable and not executor.ready:  # a child that loads has no batch yet
            batch.stuck, batch.watched = False, now
            return
        batch.hung = True
        stuck_after = self.config.stuck_after
        entries = batch.entries
        if executor.killable and batch.alone is not None:
            failed = [entries[batch.alone]]
        elif executor.killable and len(entries) > 1 and self.retry and not self.retry_suspended:
            failed = [entry for entry in entries if entry.deadline <= now]
        else:
            failed = entries
        fail_all(
            failed,
            lambda: DeadlineExceeded(
                f"node {self.name!r}: the batch ran longer than {stuck_after:g} s (stuck_after)"
            ),
        )
        log_failure(
            logger,
            entries,
            "node %s: %s has run one batch for more than %g s. %s",
            self.name,
            executor.name,
            stuck_after,
            "Its child process is killed and replaced"
            if executor.killable
            else "A thread can't be killed: the node is not ready until that batch ends",
            fields=self._log_extra,
            detail=f". The thread's stack:\n{_stack_of(executor)}",
        )
        if executor.killable:
            batch.stuck, batch.watched = False, now
            executor.end_child()
        self._judge()

    # what executors report

    def executor_finished(self, executor: Executor, batch: Batch) -> None:
        """Free the executor, decide again, and only then deliver the results (rule 7).

        After a short batch the results come first, and the decision at the end of this iteration.
        """
        if self.closed:
            batch.forget()
            return
        now = self._clock()
        scheduler = self.scheduler
        scheduler.release(executor)
        executor.failures = 0
        self._refuses = False
        short = batch.ended - batch.started < SHORT_BATCH_SECONDS
        if not short:
            self._decide(now)
        self.statistics.observe_batch(batch)
        self._on_batch(now)
        self._deliver(batch, now)
        if short and scheduler.buckets:
            self._changed()

    def _deliver(self, batch: Batch, now: float) -> None:
        """Give each entry of a batch its outcome."""
        if batch.size != len(batch.entries):
            forget_counts(batch)
        # Of one length always. `strict` costs 1,600 instructions: this is the hot path.
        for entry, outcome in zip(batch.entries, batch.outcomes):  # noqa: B905
            try:
                entry.finish(outcome, batch, now)
            except Exception as error:  # one result's fault must not cost its neighbours theirs
                fail_undelivered(entry, error, self._log_extra)
        # As `forget`, without a call: this is the hot path.
        batch.entries.clear()
        batch.outcomes.clear()
        batch.entries, batch.outcomes, batch.executor = NO_ENTRIES, NO_OUTCOMES, None

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None:
        """Take a new executor into use.

        `low` and `high`: the smallest and largest batch of its backend, in rows. `device`: the
        accelerator that the backend took, or "".
        """
        if self.closed:
            return
        if device:
            # The executors of one device are one device group: while one of them runs, another
            # one starts only for a bucket that is full or overdue (rule 2).
            executor.device_group = self.devices.setdefault(device, executor.device_group)
        instance_group = self.config.instance_groups[self._executors[executor][0]]
        executor.min = max(low, instance_group.min or 1)
        executor.max = instance_group.bound(high)
        executor.device, executor.freed = device, self._clock()
        executor.loaded = True
        self.signature = signature = executor.signature
        self.counted = signature if signature is not None and signature.has_rows else None
        self._missing -= 1
        self._restart_failed = self._refuses = False
        self.scheduler.add(executor)
        if not self._missing and not self._up:
            self._up = True
            if not self._loading.done():
                self._loading.set_result(None)
        self._changed()

    def executor_died(self, executor: Executor, error: BaseException) -> None:
        """Fail what a dead thread ran, and start another one in its place."""
        if self.closed:
            if (left := self.scheduler.running.get(executor)) is not None:
                left.forget()
            return
        if not self._up:  # an executor that can't load fails the start
            if not self._loading.done():
                failure = BackendError(self._why_not_loaded(error))
                failure.__cause__ = error
                self._loading.set_exception(failure)
            return
        if not executor.loaded or isinstance(error, RestartError):
            self._restart_failed = True
        if executor.loaded:
            executor.loaded = False  # else it would count twice until its thread has ended
            self._missing += 1
        batch = self.scheduler.remove(executor)
        self._judge()
        entries = [] if batch is None else batch.entries
        log_failure(
            logger,
            entries,
            "node %s: %s died and is restarted",
            self.name,
            executor.name,
            fields=self._log_extra,
            error=error,
        )
        instance_group, instance = self._executors[executor]
        failures = executor.failures
        delay = 0.0
        if failures:
            delay = min(LONGEST_RESTART_DELAY_SECONDS, 0.1 * 2 ** min(failures, 10))
        self.statistics.restarts += 1
        self._loop.call_later(
            delay, self._launch, instance_group, instance, failures + 1, context=self._context
        )
        self._changed()
        if batch is not None:
            self._end_batch(batch, executor, error)

    def _end_batch(self, batch: Batch, executor: Executor, error: BaseException) -> None:
        """Give the entries of a batch their outcomes that a dead thread ran."""
        if not batch.begun:  # the thread died before: these copies are no answers
            batch.outcomes = [None] * len(batch.entries)
        batch.ended = now = self._clock()
        self.statistics.observe_batch(batch)
        died = (
            f"node {self.name!r}: {executor.name} died of {type(error).__name__}: "
            f"{message_of(error)}"
        )
        for position, entry in enumerate(batch.entries):
            if batch.outcomes[position] is None and now < entry.deadline:
                failure = BackendError(died)
                failure.__cause__ = error
                failure.logged = True
                batch.outcomes[position] = failure
        self._deliver(batch, now)

    def _why_not_loaded(self, error: BaseException) -> str:
        # A mistake in the file: named as `check` names one.
        if isinstance(error, ConfigError) and error.problems:
            source = self._pipeline.source
            return "\n".join(
                str(replace(problem, file=problem.file or source, node=problem.node or self.name))
                for problem in error.problems
            )
        return f"node {self.name!r}: {type(error).__name__}: {message_of(error)}"

    def prepared(self, backend: Backend, context: Context) -> Backend:
        """Return what an executor runs in place of a new backend. Called on the executor's thread.

        It is the backend itself, unless the node keeps states of sequences.
        """
        return backend

    def executor_restarted(self, executor: Executor) -> None:
        """Count the restart of an executor's child process, which begins."""
        self.statistics.restarts += 1

    def executor_revived(self, executor: Executor) -> None:
        """Use an executor again whose child process was replaced."""
        executor.freed = self._clock()
        self._changed()

    def executor_stopped(self, executor: Executor) -> None:
        """Forget an executor whose thread is about to end."""
        self._executors.pop(executor, None)
        executor.join(1.0)
        if (
            self._stopped is not None
            and self._hung.issuperset(self._executors)
            and not self._stopped.done()
        ):
            self._stopped.set_result(None)

    def _device_for(self, instance_group: int, instance: int) -> str | None:
        """Return the device on which an instance is to load. None: the one that is its in turn."""
        return None

    def _launch(self, instance_group: int, instance: int, failures: int = 0) -> None:
        if self.closed:
            return
        context = context_of(
            self.config,
            self._pipeline,
            instance_group,
            instance,
            self.files,
            device=self._device_for(instance_group, instance),
            shared_files=self._shared_files,
        )
        name = f"{self._pipeline.name}/{self.name}#{context.instance}"
        own = self.config.instance_groups[instance_group].spec
        spec: Spec | ProcessBackend = own
        link = self.make_link() if own.takes_server and self.make_link is not None else None
        if self.config.executor == "process":
            from penstock.backends.process.proxy import ProcessBackend  # imports numpy

            connect = None if link is None else link.connect
            spec = ProcessBackend(own, self.config.sequence, connect)
        elif link is not None:
            context = replace(context, server=Server(link.connect))
        executor = self.executor_class(
            name,
            spec,
            context,
            device_group=DeviceGroup(name),
            owner=self,
            loop=self._loop,
            clock=self._clock,
            link=link,
        )
        executor.failures = failures
        self._executors[executor] = instance_group, instance
        executor.launch()


def _stack_of(executor: Executor) -> str:
    try:
        return executor.stack()
    except Exception as error:  # reading frames of another thread may fail at any moment
        return f"(it can't be read: {message_of(error)})"
