"""Nodes that wait for other nodes, on the loop and without an executor: what Jump, MapReduce (fan_out.py) and Python logic (logic.py)
have in common.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable

from penstock.backends.errors import BackendError, DeadlineExceeded, NotReady

from ..config.definition import NodeConfig
from ..node.queue import NEVER, Batch, Entry, Outcome
from ..node.statistics import NodeStatistics
from ..runs.inside import Inside

MAX_DEPTH = 64
"""How deep nodes may enter graphs from within graphs (jumps can't run in a ring; Python logic that calls itself can)."""


MAX_RETURNS = 4_000
"""How often a request may enter composites that it is inside of already: a ring that also branches grows faster than it gets deep."""


class CompositeNode:
    """Who waits here, and until when. `waiting`: what stops the work on an entry's behalf."""

    def __init__(
        self, config: NodeConfig, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.config = config
        self.name = config.name
        self.statistics = NodeStatistics()
        self.waiting: dict[Entry, tuple[Batch, Callable[[], object]]] = {}
        self._loop = loop
        self._clock = clock
        self._context = contextvars.Context()  # empty: nothing here inherits a request's variables
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self.waiting)} waiting>"

    async def start(self) -> None:
        """Load what is needed."""

    async def close(self, timeout: float) -> None:
        """Stop what works here; `timeout` seconds are for it to end. Nothing waits any more (`abandon`)."""
        if self._timer is not None:
            self._timer.cancel()

    def abandon(self, reason: str) -> None:
        """Fail everything that waits here with `NotReady`."""
        for entry in list(self.waiting):
            self.discard(entry)
            entry.fail(NotReady(reason))

    def enqueue(self, entry: Entry, now: float) -> None:
        entry.enqueued = now
        batch = Batch(self.name, self, [entry], entry.size, now)
        inside = Inside.of(entry)
        if self in inside.composites:
            inside.returns[0] += 1
        if inside.depth >= MAX_DEPTH or inside.returns[0] > MAX_RETURNS:
            found = (
                f"{MAX_DEPTH} deep"
                if inside.depth >= MAX_DEPTH
                else f"more than {MAX_RETURNS:,} times within one request"
            )
            reason = f"node {self.name!r}: graphs enter one another {found}; does some Python logic call itself?"
            self.end_soon(entry, batch, BackendError(reason))
            return
        self.begin(entry, batch, inside.deeper(self))
        if entry.deadline < self._timer_at:
            self._set_timer(entry.deadline, now)

    def begin(self, entry: Entry, batch: Batch, inside: Inside) -> None:
        """Start the work on `batch.outcomes[0]`, the node's own copy of the item; it ends in `end`, later. `inside`: of runs it starts."""
        raise NotImplementedError

    def end_soon(self, entry: Entry, batch: Batch, outcome: Outcome) -> None:
        """There is nothing to wait for; but whoever queued the entry is told later."""
        self.waiting[entry] = batch, lambda: None
        self._loop.call_soon(self.end, entry, outcome, context=self._context)

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """The work on an entry has ended: hand it on. Nothing happens where nobody waits for it any more."""
        batch = self._settle(entry)
        if batch is not None:
            entry.finish(outcome, batch, batch.ended)

    def _settle(self, entry: Entry) -> Batch | None:
        """Count an entry whose work has ended, and take it from those that wait."""
        found = self.waiting.pop(entry, None)
        if found is None:
            return None
        batch = found[0]
        batch.ended = self._clock()
        self.statistics.observe_batch(batch)
        batch.entries.clear()
        batch.outcomes.clear()
        return batch

    def discard(self, entry: Entry) -> None:
        """The caller left: stop the work on its behalf."""
        found = self.waiting.pop(entry, None)
        if found is not None:
            self.statistics.outcomes["cancelled"] += 1
            found[1]()

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = max(0, math.ceil((at - now) * 1000) / 1000)
        self._timer = self._loop.call_later(delay, self._expire, context=self._context)

    def _expire(self) -> None:
        """Rule 5: who waits is answered at the deadline, whatever the parts do."""
        self._timer = None
        self._timer_at = NEVER
        now = self._clock()
        for entry in [entry for entry in self.waiting if entry.deadline <= now]:
            found = self.waiting.pop(entry, None)
            if found is not None:  # else: another one's end has ended it
                found[1]()
                self.statistics.outcomes["expired"] += 1
                entry.fail(
                    DeadlineExceeded(
                        f"node {self.name!r}: the deadline passed while it waited for other nodes"
                    )
                )
        earliest = min((entry.deadline for entry in self.waiting), default=NEVER)
        if earliest < NEVER:
            self._set_timer(earliest, now)
