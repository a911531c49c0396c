"""The places of sequences at a node: each live sequence is bound to one instance."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from penstock.backends.sequences.sequence import EndedSequences

from ..sequences.tracked import TrackedSequence
from .executor import Executor
from .queue import BatchStart, Bucket, Entry
from .scheduler import Scheduler, Startable


class Place:
    """One instance, and the sequences that are bound to it.

    `executor`: None while the instance is being replaced. `slots`: with strategy "direct", the rows
    of its batch that no sequence has, as a heap; None: sequences take any row.
    """

    __slots__ = ("ended", "executor", "sequences", "slots")

    def __init__(self) -> None:
        self.executor: Executor | None = None
        self.sequences: dict[TrackedSequence, Binding] = {}
        self.slots: list[int] | None = None
        self.ended: list[tuple[int, str]] = []  # what the executor is not told yet

    def __repr__(self) -> str:
        return f"<Place of {self.executor}: {len(self.sequences)} sequences>"

    def set_slots(self, rows: int) -> None:
        """Give each sequence a row of its own. Those that are here keep theirs."""
        taken = {binding.slot for binding in self.sequences.values()}
        self.slots = [slot for slot in range(rows) if slot not in taken]
        heapify(self.slots)

    def tell(self) -> None:
        """Tell the executor which sequences have ended, all at once: each message wakes it."""
        if self.ended:
            if self.executor is not None:
                self.executor.end_sequences(EndedSequences(tuple(self.ended)))
            self.ended.clear()

    @property
    def full(self) -> bool:
        return self.slots is not None and not self.slots

    def bind(self, sequence: TrackedSequence) -> Binding:
        slot = heappop(self.slots) if self.slots is not None else None
        binding = self.sequences[sequence] = Binding(self, slot)
        return binding

    def release(self, sequence: TrackedSequence) -> None:
        binding = self.sequences.pop(sequence)
        if self.slots is not None and binding.slot is not None:
            heappush(self.slots, binding.slot)


class Binding:
    """Binds a sequence to a place.

    `slot`: its row of the batch, or None. `entry`: the one that is at the node, if any. `first`: no
    step has succeeded at the node.
    """

    __slots__ = ("entry", "first", "place", "slot")

    def __init__(self, place: Place, slot: int | None) -> None:
        self.place = place
        self.slot = slot
        self.entry: Entry | None = None
        self.first = True


class PlaceScheduler(Scheduler):
    """A scheduler that starts the entries of a sequence on its own instance only.

    Each place has buckets of its own, so that what one instance takes keeps nothing from another.
    """

    __slots__ = ("before_start", "place_of")

    # Both are set by its node.
    place_of: Callable[[Entry], Place]
    before_start: Callable[[Startable], None]

    def enqueue(self, entry: Entry, key: Hashable, now: float) -> None:
        super().enqueue(entry, (self.place_of(entry), key), now)

    def _executor_for(
        self, bucket: Bucket, head: Entry, now: float, idle: Sequence[Startable] | None = None
    ) -> Startable | None:
        key: Any = bucket.key
        executor: Executor | None = key[0].executor
        if executor is None or executor not in self.idle or not executor.ready:
            return None
        if (
            executor.device_group.busy
            and bucket.size < executor.max
            and now < bucket.oldest + self.batching_timeout
        ):
            return None
        return executor

    def _start(
        self,
        executor: Startable,
        entries: list[Entry],
        size: int,
        now: float,
        start: BatchStart | None = None,
    ) -> None:
        # First what has ended: a sequence of this batch may have its slot.
        self.before_start(executor)
        super()._start(executor, entries, size, now, start)
