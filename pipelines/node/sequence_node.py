"""A node that keeps states of sequences: `[NODE.sequence]`.

A sequence is bound to one instance from its first step here to its end, because what a backend
keeps of it is there. Nodes without sequences know nothing of this.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.base import Backend, Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.sequences.definition import SequenceConfig
from penstock.backends.sequences.sequence import StepMessage
from penstock.backends.sequences.stateful import with_sequences

from ..sequences.sequencer import Sequencer
from ..sequences.tracked import StepTicket, TrackedSequence
from .executor import Executor
from .loop_node import LoopNode
from .node import Node
from .places import Binding, Place, PlaceScheduler
from .queue import Batch, Entry
from .scheduler import Scheduler, Startable


class KeepsSequences(Node):
    """Adds to a node with executors all that `[NODE.sequence]` needs."""

    scheduler_class: type[Scheduler] = PlaceScheduler
    sequencer: Sequencer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self.config.sequence is not None
        self.sequence: SequenceConfig = self.config.sequence
        self._places = {
            (group, instance): Place()
            for group, config in enumerate(self.config.instance_groups)
            for instance in range(config.instances)
        }
        assert isinstance(self.scheduler, PlaceScheduler)
        self.scheduler.place_of = self._place_of_entry
        self.scheduler.before_start = self._before_start

    @property
    def places(self) -> int | None:
        """The most sequences that it can hold: each has a row of a batch ("direct"); else None."""
        if self.sequence.strategy != "direct":
            return None
        return sum(executor.max for executor in self.executors)

    @property
    def id_dtype(self) -> str | None:
        """The dtype in which its model takes ids; None: it takes none."""
        control, signature = self.sequence.control("id"), self.signature
        if control is None or signature is None:
            return None
        return next(port.dtype for port in signature.kept if port.name == control.input)

    # steps

    def enqueue(self, entry: Entry, now: float) -> None:
        """Queue the entry of a step at the place of its sequence."""
        ticket = entry.ticket
        assert isinstance(ticket, StepTicket)
        sequence = ticket.sequence
        binding: Binding | None = sequence.hosts.get(self)
        if binding is None:
            binding = sequence.hosts[self] = self._bind(sequence)
        held = binding.entry
        # An entry of an earlier step has ended, or runs before this one can.
        if held is not None and held.ticket is ticket and not held.future.done():
            text = (
                f"node {self.name!r}: another part of this step of sequence {sequence.id!r} is "
                "here already: a node that keeps state takes one at a time"
            )
            self._fail_soon(entry, lambda: BackendError(text), now)
            return
        executor = binding.place.executor
        if executor is not None and self._hangs(executor):
            self._fail_soon(entry, self._unserved, now)
            return
        binding.entry = entry
        step = StepMessage(
            sequence.serial, sequence.id, ticket.step.end, binding.first, binding.slot
        )
        entry.item = {**entry.item, "sequence": step}
        super().enqueue(entry, now)

    def _hangs(self, executor: Executor) -> bool:
        batch = self.scheduler.running.get(executor)
        return batch is not None and batch.stuck

    def _count(self, entry: Entry, now: float) -> bool:
        if not super()._count(entry, now):
            return False
        if entry.size != 1:
            text = (
                f"node {self.name!r}: a step of a sequence has 1 row, found {entry.size}: send the "
                "rows as steps"
            )
            self._fail_softly_soon(entry, InvalidInput(text), now)
            return False
        return True

    def discard(self, entry: Entry) -> None:
        self._forget(entry)
        super().discard(entry)

    def _deliver(self, batch: Batch, now: float) -> None:
        for entry, outcome in zip(batch.entries, batch.outcomes, strict=True):
            binding = self._forget(entry)
            if binding is not None and type(outcome) is dict and "error" not in outcome:
                binding.first = False
        super()._deliver(batch, now)

    def _forget(self, entry: Entry) -> Binding | None:
        """Note that an entry is not here any more. Return the binding of its sequence."""
        ticket = entry.ticket
        assert isinstance(ticket, StepTicket)
        binding: Binding | None = ticket.sequence.hosts.get(self)
        if binding is not None and binding.entry is entry:
            binding.entry = None
        return binding

    # places

    def _bind(self, sequence: TrackedSequence) -> Binding:
        """Bind a sequence to the instance with the fewest, of those that run.

        If none of them has room, it waits for one that is being replaced.
        """
        places = [place for place in self._places.values() if not place.full]
        place = min(places, key=self._load_of)
        return place.bind(sequence)

    def _load_of(self, place: Place) -> tuple[bool, int]:
        executor = place.executor
        return executor is None or self._hangs(executor), len(place.sequences)

    def end_sequence(self, sequence: TrackedSequence, reason: str) -> None:
        """Forget a sequence that has ended, and tell its instance."""
        binding: Binding = sequence.hosts.pop(self)
        place = binding.place
        place.release(sequence)
        if not place.ended:
            self._loop.call_soon(place.tell, context=self._context)
        place.ended.append((sequence.serial, reason))

    def _before_start(self, executor: Startable) -> None:
        assert isinstance(executor, Executor)
        self._place_of(executor).tell()

    async def close(self, timeout: float) -> None:
        for place in self._places.values():
            place.tell()
        await super().close(timeout)

    def _place_of_entry(self, entry: Entry) -> Place:
        assert isinstance(entry.ticket, StepTicket)
        binding: Binding = entry.ticket.sequence.hosts[self]
        return binding.place

    def _place_of(self, executor: Executor) -> Place:
        return self._places[self._executors[executor]]

    # what executors report

    def prepared(self, backend: Backend, context: Context) -> Backend:
        if self.config.executor != "process":  # a child wraps it there
            backend = with_sequences(backend, self.sequence, context)
        return backend

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None:
        super().executor_loaded(executor, low, high, device)
        if not self.closed:
            place = self._place_of(executor)
            place.executor = executor
            if self.sequence.strategy == "direct":
                place.set_slots(executor.max)

    def executor_died(self, executor: Executor, error: BaseException) -> None:
        place = self._place_of(executor)
        place.executor = None
        if self._up and not self.closed:
            self._lose(place, executor)
        super().executor_died(executor, error)

    def executor_restarted(self, executor: Executor) -> None:
        self._lose(self._place_of(executor), executor)
        super().executor_restarted(executor)

    def _lose(self, place: Place, executor: Executor) -> None:
        """End the sequences whose states were lost with an instance."""
        lost = [sequence for sequence, binding in place.sequences.items() if not binding.first]
        self.sequencer.lose(
            lost, f"node {self.name!r} has lost its state, because {executor.name} was restarted"
        )


class SequenceNode(KeepsSequences):
    """A node whose instances have threads."""


class SequenceLoopNode(KeepsSequences, LoopNode):
    """A node whose one instance runs on the event loop."""
