"""Nodes that wait for other nodes, on the loop and without an executor.

Here is what Jump, MapReduce and CopySplit (fan_out.py) share with Python logic (logic.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable

from penstock.backends.base import Signature
from penstock.backends.errors import BackendError, DeadlineExceeded, NotReady
from penstock.backends.loaded_files import LoadedFiles

from ..config.definition import NodeConfig
from ..node.queue import NEVER, Batch, Entry, Outcome, Parts, fail_all, fail_undelivered
from ..node.statistics import NodeStatistics
from ..runs.inside import Inside
from ..runs.run import Submission

MAX_NESTED_GRAPHS = 64
"""The depth to which graphs may enter one another.

Jumps can't form a ring, but Python logic may call itself.
"""

MAX_RETURNS = 4_000
"""How often the runs of a request may enter a composite that they are inside already.

A ring that also branches grows faster than it gets deep, so `MAX_NESTED_GRAPHS` alone would stop it
too late.
"""


MAX_NOTED_VISITS = 64
"""So many visits of the parts of a request are noted (`Pipeline.note_batches`)."""


class CompositeNode:
    """A node whose items wait for runs that it starts.

    `waiting` has, for each entry that waits here, its batch and a function that stops the work for
    it.
    """

    counted: Signature | None = None
    """It counts no rows: that is for the nodes with engines."""

    def __init__(
        self, config: NodeConfig, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.config = config
        self.name = config.name
        self.notes = False  # True: its batches have the visits of their parts
        self.statistics = NodeStatistics()
        self.files = LoadedFiles()  # those that it was made of
        self.waiting: dict[Entry, tuple[Batch, Callable[[], object]]] = {}
        self._loop = loop
        self._clock = clock
        # Empty: nothing here inherits the variables of a request.
        self._context = contextvars.Context()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self.waiting)} waiting>"

    async def start(self) -> None:
        """Load what the node needs."""

    async def close(self, timeout: float) -> None:
        """Stop the work here; it has `timeout` seconds to end.

        `abandon` was called before, so no entry waits any more.
        """
        if self._timer is not None:
            self._timer.cancel()

    def abandon(self, reason: str) -> None:
        """Fail all waiting entries with `NotReady`."""
        for entry in list(self.waiting):
            self.discard(entry)
            fail_all([entry], lambda: NotReady(reason))

    def enqueue(self, entry: Entry, now: float) -> None:
        """Start the work on behalf of an entry. The entry ends later, never before this returns."""
        entry.enqueued = now
        batch = Batch(self.name, self, [entry], entry.size, now)
        if self.notes:
            entry.around = batch
        inside = Inside.of(entry)
        if self in inside.composites:
            inside.returns[0] += 1
        if inside.depth >= MAX_NESTED_GRAPHS or inside.returns[0] > MAX_RETURNS:
            extent = (
                f"{MAX_NESTED_GRAPHS} deep"
                if inside.depth >= MAX_NESTED_GRAPHS
                else f"more than {MAX_RETURNS:,} times within one request"
            )
            reason = f"graphs enter one another {extent}; does some Python logic call itself?"
            self.end_soon(entry, batch, BackendError(f"node {self.name!r}: {reason}"))
            return
        self.begin(entry, batch, inside.deeper(self))
        if entry.deadline < self._timer_at:
            self._set_timer(entry.deadline, now)

    def note_part(self, batch: Batch, inside: Inside, index: int, part: Submission | None) -> None:
        """Note where a part was that ends now, sent for the item of `batch`.

        Of all parts of a request together, `MAX_NOTED_VISITS` visits are noted. The rest of the
        parts is counted.
        """
        if batch.parts is None:
            batch.parts = Parts()
        noted = inside.noted
        if part is None or noted[0] >= MAX_NOTED_VISITS:
            batch.parts.more += 1
            return
        visits = part.visits()[: MAX_NOTED_VISITS - noted[0]]
        noted[0] += len(visits)
        batch.parts.append((index, visits))

    def begin(self, entry: Entry, batch: Batch, inside: Inside) -> None:
        """Start the work on `batch.outcomes[0]`, the node's own copy of the item.

        It ends later, with a call of `end`. `inside`: the `Inside` of the runs it starts.
        """
        raise NotImplementedError

    def end_soon(self, entry: Entry, batch: Batch, outcome: Outcome) -> None:
        """End an entry that has nothing to wait for.

        That is done in the next iteration, because `enqueue` must not end an entry.
        """
        self.waiting[entry] = batch, lambda: None
        self._loop.call_soon(self.end, entry, outcome, context=self._context)

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """End an entry whose work has ended. Does nothing if the entry does not wait any more."""
        batch = self._settle(entry)
        if batch is not None:
            try:
                entry.finish(outcome, batch, batch.ended)
            except Exception as error:  # the caller has other entries to end
                fail_undelivered(entry, error, {"node": self.name})

    def batch_of(self, entry: Entry) -> Batch | None:
        """Return the batch of an entry that waits here, or did when it ended, if that is noted."""
        batch = entry.around
        return batch if batch is not None and batch.node == self.name else None

    def _settle(self, entry: Entry) -> Batch | None:
        """Count an entry whose work has ended, and remove it from those that wait.

        Returns its batch, None if the entry did not wait any more.
        """
        waiting = self.waiting.pop(entry, None)
        if waiting is None:
            return None
        batch, _ = waiting
        batch.ended = self._clock()
        self.statistics.observe_batch(batch)
        batch.forget()
        return batch

    def discard(self, entry: Entry) -> None:
        """Stop the work on behalf of an entry whose caller left."""
        waiting = self.waiting.pop(entry, None)
        if waiting is not None:
            batch, stop = waiting
            self.statistics.outcomes["cancelled"] += 1
            stop()
            self._end_batch(batch)

    def _end_batch(self, batch: Batch) -> None:
        batch.ended = self._clock()
        batch.forget()

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = max(0, math.ceil((at - now) * 1000) / 1000)
        self._timer = self._loop.call_later(delay, self._expire, context=self._context)

    def _expire(self) -> None:
        """Fail the entries whose deadline has come, regardless of their parts.

        Rule 5 of docs/explanation/scheduling.md.
        """
        self._timer = None
        self._timer_at = NEVER
        now = self._clock()
        for entry in [entry for entry in self.waiting if entry.deadline <= now]:
            waiting = self.waiting.pop(entry, None)
            if waiting is not None:  # None: the end of another entry has ended it
                batch, stop = waiting
                stop()
                self._end_batch(batch)
                self.statistics.outcomes["expired"] += 1
                fail_all([entry], self._too_late)
        earliest = min((entry.deadline for entry in self.waiting), default=NEVER)
        if earliest < NEVER:
            self._set_timer(earliest, now)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"node {self.name!r}: the deadline passed while it waited for other nodes"
        )
