"""The sequences of one pipeline: which are live, whose step may enter the graph, which ones end.

Steps of one sequence enter the graph one at a time: the next one enters when the one before has
ended, well, badly or by its caller's leave. So they are in order at every node and in every answer,
however many instances there are. All of this runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    PenstockError,
    QueueFull,
)
from penstock.backends.sequences.definition import (
    DEFAULT_MAX_SEQUENCES,
    SequenceConfig,
    why_no_id,
)

from .step import Step
from .tracked import SequenceHost, StepTicket, TrackedSequence

NEVER = float("inf")


class Host(SequenceHost, Protocol):
    """A node that keeps states, as the sequencer counts its places."""

    @property
    def places(self) -> int | None:
        """The most sequences that it can hold, once it is loaded; None: any number."""
        ...

    @property
    def id_dtype(self) -> str | None:
        """The dtype in which its model takes ids, once it is loaded; None: it takes none."""
        ...


class Sequencer:
    """Gives each step of a sequence its turn, and ends sequences.

    `live`: how many sequences have a place. `capacity`: how many may have one; `max_waiting`: how
    many more may wait for one. `idle_timeout`: seconds. `turns`: the steps that wait for theirs.
    """

    def __init__(
        self,
        pipeline: str,
        configs: Sequence[SequenceConfig],
        clock: Callable[[], float],
        on_waited: Callable[[float, str], None] = lambda seconds, how: None,
    ) -> None:
        """`on_waited`: called with the seconds that a step waited for its turn, and how it ended
        (`step_left`), after its end.
        """
        self._on_waited = on_waited
        self._pipeline = pipeline
        self._clock = clock
        self.capacity = min(config.max_sequences or DEFAULT_MAX_SEQUENCES for config in configs)
        waiting = [config.max_waiting for config in configs if config.max_waiting is not None]
        self._max_waiting = min(waiting) if waiting else None
        self.idle_timeout = min(config.idle_timeout for config in configs)
        self.live = 0
        self.ended: dict[str, int] = dict.fromkeys(("end", "idle", "departure", "unload"), 0)
        # By id, the newest sequence: the one that new steps belong to.
        self._newest: dict[int | str, TrackedSequence] = {}
        self._waiting: dict[TrackedSequence, None] = {}  # for a place, in order
        # Live ones without a step, and since when: the first has been idle for the longest time.
        self._idle: dict[TrackedSequence, float] = {}
        self.turns: dict[StepTicket, None] = {}
        self._earliest = NEVER  # none of them expires before; it may be too early
        self._serial = 0
        self._closed = False
        self._id_dtypes: set[str] = set()
        self._loop: asyncio.AbstractEventLoop
        self._context = contextvars.Context()  # empty: the timer inherits no request's variables
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def __repr__(self) -> str:
        return (
            f"<Sequencer {self._pipeline}: {self.live} live, {self.waiting} waiting, "
            f"{len(self.turns)} steps wait>"
        )

    @property
    def max_waiting(self) -> int:
        return self.capacity if self._max_waiting is None else self._max_waiting

    @property
    def waiting(self) -> int:
        """How many sequences wait for a place."""
        return len(self._waiting)

    @property
    def is_empty(self) -> bool:
        """True if nothing of any sequence is left."""
        return not (self.live or self._newest or self._waiting or self._idle or self.turns)

    def start(self, loop: asyncio.AbstractEventLoop, hosts: Sequence[Host]) -> None:
        """Begin to serve, with the places of the loaded nodes."""
        self._loop = loop
        places = [host.places for host in hosts if host.places is not None]
        self.capacity = min((self.capacity, *places))
        self._id_dtypes = {host.id_dtype for host in hosts if host.id_dtype is not None}

    # a step comes

    def check(self, step: Step | None, rows: int) -> Step:
        """Return the step of a request. Raises `InvalidRequest` and `QueueFull` if it can't be one.

        Nothing changes. `rows`: those of its item.
        """
        where = f"to model {self._pipeline!r}"
        if step is None:
            raise InvalidRequest(
                f"inference request {where} must specify a non-zero or non-empty correlation ID"
            )
        if rows != 1:
            raise InvalidRequest(
                f"inference request {where} must specify batch-size 1 due to requirements of "
                "sequence batcher"
            )
        for dtype in self._id_dtypes:
            if reason := why_no_id(dtype, step.id):
                raise InvalidRequest(f"inference request {where}: {reason}")
        self.look(self._clock())
        newest = self._newest.get(step.id)
        if not step.start and newest is not None and not newest.closing:
            return step
        if step.strict and not step.start:
            raise InvalidRequest(
                f"inference request for sequence {step.id} {where} must specify the START flag on "
                "the first request of the sequence"
            )
        if newest is None and self.live >= self.capacity and self.waiting >= self.max_waiting:
            raise QueueFull(
                f"too many sequences: {self.live} are live (max_sequences = {self.capacity}) and "
                f"{self.waiting} wait (max_waiting = {self.max_waiting})"
            )
        return step

    def add(self, ticket: StepTicket, now: float) -> None:
        """Take a step that was checked. It begins at once, or when it has its turn."""
        step = ticket.step
        newest = self._newest.get(step.id)
        if step.start or newest is None or newest.closing:
            self._serial += 1
            sequence = TrackedSequence(step.id, self._serial, self)
            self._newest[step.id] = sequence
        else:
            sequence, newest = newest, None
        step.sequence = ticket.sequence = sequence
        sequence.steps.append(ticket)
        self.turns[ticket] = None
        if step.end:
            sequence.closing = "end"
        if newest is not None:  # another one of this id: it ends first
            sequence.before, newest.after = newest, sequence
            newest.closing = newest.closing or "end"
            if newest.live and newest.current is None:
                self._end(newest, now)
        elif sequence.live:
            if sequence.current is None:
                self._next(sequence, now)
        elif sequence.before is None and sequence not in self._waiting:
            self._find_place(sequence, now)
        if ticket in self.turns and ticket.deadline < self._earliest:
            self._earliest = ticket.deadline
            self._set_timer(self._earliest, now)

    def _find_place(self, sequence: TrackedSequence, now: float) -> None:
        """Let a sequence begin that has none before it, or wait for a place."""
        if self.live < self.capacity and not self._waiting:
            self._begin(sequence, now)
        else:
            self._waiting[sequence] = None

    def _begin(self, sequence: TrackedSequence, now: float) -> None:
        sequence.live = True
        self.live += 1
        self._next(sequence, now)

    def _next(self, sequence: TrackedSequence, now: float) -> None:
        """Let the next step of a live sequence enter the graph. None may be in it."""
        if sequence.steps:
            ticket = sequence.current = sequence.steps.popleft()
            del self.turns[ticket]
            self._idle.pop(sequence, None)
            ticket.step.waited = now - ticket.came
            assert ticket.run is not None
            ticket.run.enter_graph(now)
        elif sequence.closing:
            self._end(sequence, now)
        else:
            self._idle[sequence] = now
            self._set_timer(now + self.idle_timeout, now)

    # a step has ended

    def step_left(self, ticket: StepTicket, how: str, now: float) -> None:
        """Give the next step its turn. `how`: a key of `RequestStatistics.failures`, or ""."""
        sequence = ticket.sequence
        if ticket is sequence.current:
            sequence.current = None
            if ticket.step.waited:
                self._on_waited(ticket.step.waited, how)
        elif ticket in self.turns:
            del self.turns[ticket]
            sequence.steps.remove(ticket)
        else:  # it was failed here
            return
        if how == "cancelled":
            self._break_off(sequence, "departure", _departed(sequence))
        self._go_on(sequence, now)

    def _go_on(self, sequence: TrackedSequence, now: float) -> None:
        """Decide what a sequence does of which a step has ended, or which was broken off."""
        if self._closed or sequence.ended or sequence.current is not None:
            return
        if sequence.live:
            if sequence not in self._idle or sequence.closing:
                self._next(sequence, now)
        elif not sequence.steps:
            if sequence.before is not None:
                self._unlink(sequence, sequence.before)
            elif sequence in self._waiting:
                self._end(sequence, now)

    def _unlink(self, sequence: TrackedSequence, before: TrackedSequence) -> None:
        """Forget a sequence that waits for the end of another one of its id.

        It has no steps any more. Kept until that end, such sequences would have no bound.
        """
        sequence.ended = True
        after = before.after = sequence.after
        if after is not None:
            after.before = before
        else:
            self._newest[sequence.id] = before
        sequence.before = sequence.after = None

    def depart(self, sequence: TrackedSequence) -> None:
        """End a sequence with "departure", after the step that is in the graph."""
        if not sequence.ended and not self._closed:
            self._break_off(sequence, "departure", _departed(sequence))
            self._go_on(sequence, self._clock())

    def depart_newest(self, identity: int | str) -> None:
        """End the sequence of this id that new steps would belong to, if there is one."""
        if (sequence := self._newest.get(identity)) is not None:
            self.depart(sequence)

    def lose(self, sequences: Iterable[TrackedSequence], why: str) -> None:
        """End sequences of which a node has lost the state."""
        for sequence in list(sequences):
            if not sequence.ended and not self._closed:
                text = f"sequence {sequence.id!r} has ended: {why}"
                self._break_off(sequence, "unload", partial(BackendError, text))
                self._go_on(sequence, self._clock())

    def _break_off(
        self, sequence: TrackedSequence, reason: str, error: Callable[[], PenstockError]
    ) -> None:
        """Fail the steps that wait for their turn. The sequence takes no more."""
        sequence.closing = reason
        while sequence.steps:
            ticket = sequence.steps.popleft()
            self.turns.pop(ticket, None)
            self._fail(ticket, error())

    @staticmethod
    def _fail(ticket: StepTicket, error: PenstockError) -> None:
        if ticket.run is not None:
            ticket.run.fail(error)

    def _end(self, sequence: TrackedSequence, now: float) -> None:
        """End a sequence that has no step, and let those begin that waited for that."""
        sequence.ended = True
        self._waiting.pop(sequence, None)
        self._idle.pop(sequence, None)
        if sequence.live:
            sequence.live = False
            self.live -= 1
            self.ended[sequence.closing] += 1
            for host in list(sequence.hosts):
                host.end_sequence(sequence, sequence.closing)
        after, sequence.after = sequence.after, None
        if after is None:
            del self._newest[sequence.id]
        else:
            after.before = None
            if self.live < self.capacity:  # a sequence that is started again keeps its place
                self._begin(after, now)
            else:
                self._waiting[after] = None
        while self._waiting and self.live < self.capacity:
            first = next(iter(self._waiting))
            del self._waiting[first]
            self._begin(first, now)

    # time, and the end of the pipeline

    def look(self, now: float) -> None:
        """End the sequences that have been idle for too long, and fail the steps that are late."""
        while self._idle:
            sequence, since = next(iter(self._idle.items()))
            if since + self.idle_timeout > now:
                break
            sequence.closing = "idle"
            self._end(sequence, now)
        if now >= self._earliest:
            late = [ticket for ticket in self.turns if ticket.deadline <= now]
            self._earliest = min(
                (ticket.deadline for ticket in self.turns if ticket.deadline > now), default=NEVER
            )
            for ticket in late:
                self._fail(
                    ticket,
                    DeadlineExceeded(
                        f"pipeline {self._pipeline!r}: the deadline passed while the step waited "
                        f"for its turn in sequence {ticket.sequence.id!r}"
                    ),
                )

    def _set_timer(self, at: float, now: float) -> None:
        if at >= self._timer_at or self._closed:
            return  # a timer that fires too early sets the next one
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        # Rounded up to a full millisecond, as uvloop rounds down.
        delay = max(0, math.ceil((at - now) * 1000) / 1000)
        self._timer = self._loop.call_later(delay, self._timer_fired, context=self._context)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        now = self._clock()
        self.look(now)
        since = next(iter(self._idle.values()), NEVER)
        wake = min(since + self.idle_timeout, self._earliest)
        if wake < NEVER:
            self._set_timer(wake, now)

    def refuse_waiting(self, reason: str) -> None:
        """Fail all steps that wait for their turn with `NotReady`."""
        for ticket in list(self.turns):
            if ticket in self.turns:
                self._fail(ticket, NotReady(reason))

    def close(self, reason: str) -> None:
        """Fail what waits, and forget all sequences: their nodes end them with "unload"."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.refuse_waiting(reason)
        self.ended["unload"] += self.live
        self.live = 0
        for kept in (self._newest, self._waiting, self._idle, self.turns):
            kept.clear()


def _departed(sequence: TrackedSequence) -> Callable[[], PenstockError]:
    return lambda: InvalidRequest(
        f"sequence {sequence.id!r} has ended: a client left before the answer to its step"
    )
