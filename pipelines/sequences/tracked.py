"""A sequence of a pipeline, and the ticket of each of its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

from ..overload.door import Door, Pressure
from ..overload.ticket import Ticket
from .step import Step


class StepRun(Protocol):
    """The run of a step, as the sequencer uses it."""

    def enter_graph(self, now: float) -> None:
        """Enter the graph."""
        ...

    def fail(self, error: BaseException) -> None: ...


class SequenceHost(Protocol):
    """A node that keeps the states of sequences."""

    name: str

    def end_sequence(self, sequence: TrackedSequence, reason: str) -> None:
        """Forget a sequence that has ended. No step of it is at the node."""
        ...


class Owner(Protocol):
    """The sequencer, as sequences and their tickets use it."""

    def depart(self, sequence: TrackedSequence) -> None: ...
    def step_left(self, ticket: StepTicket, how: str, now: float) -> None: ...


class TrackedSequence:
    """A sequence from its first step to its end. Another one may have the same id afterwards.

    `steps`: those that wait for their turn. `current`: the one in the graph. `closing`: why it
    ends when its steps have ended; "" if it goes on. `live`: it has a place. `ended`: it is over.
    `after`: the next one of the same id, which waits until this one has ended; `before`: the other
    way round. `hosts`: the nodes that keep something of it, and what.
    """

    __slots__ = (
        "__weakref__",
        "_owner",
        "after",
        "before",
        "closing",
        "current",
        "ended",
        "hosts",
        "id",
        "live",
        "serial",
        "steps",
    )

    def __init__(self, id: int | str, serial: int, owner: Owner) -> None:  # noqa: A002
        self.id = id
        self.serial = serial
        self.steps: deque[StepTicket] = deque()
        self.current: StepTicket | None = None
        self.closing = ""
        self.live = self.ended = False
        self.before: TrackedSequence | None = None
        self.after: TrackedSequence | None = None
        self.hosts: dict[SequenceHost, Any] = {}
        self._owner = owner

    def __repr__(self) -> str:
        state = "ended" if self.ended else "live" if self.live else "waiting"
        return f"<TrackedSequence {self.id!r}: {state}, {len(self.steps)} steps wait>"

    def depart(self) -> None:
        """End it with "departure": its client has left. Idempotent.

        Steps that wait for their turn fail. If a step is in the graph, the end comes after it.
        """
        self._owner.depart(self)


class StepTicket(Ticket):
    """The ticket of a request that is a step of a sequence.

    Every end of a request gives its ticket back, so that is where the next step gets its turn.
    """

    __slots__ = ("_owner", "deadline", "run", "sequence", "step")

    def __init__(
        self,
        doors: tuple[Door, ...],
        pressure: Pressure,
        rows: int,
        came: float,
        *,
        client: Hashable,
        patient: bool,
        step: Step,
        owner: Owner,
        deadline: float,
    ) -> None:
        super().__init__(doors, pressure, rows, came, client=client, patient=patient)
        self.step = step
        self.deadline = deadline
        self.sequence: TrackedSequence  # set by the sequencer
        self.run: StepRun | None = None  # reset when it has ended: it would be a cycle
        self._owner = owner

    def leave(self, how: str, now: float) -> None:
        super().leave(how, now)
        self._owner.step_left(self, how, now)
        self.run = None
