"""Find in the other requests who was in the batches of one, and what went before it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import inf
from typing import NamedTuple, TypeAlias

from penstock.pipelines.node.queue import Batch

from .record import ItemVisit, Record

NodeKey: TypeAlias = tuple[str, str | None]
"""A node with its executors: what their names begin with, and its pipeline's version."""


class Before(NamedTuple):
    """What a node started while an item queued there: how many rows; when an instance was free for
    the first of them; and when rule 9 held the node. Times are seconds.
    """

    rows: int
    free: float
    held: list[tuple[float, float]]


class Surroundings:
    """What ran in the same batches as the records `wanted`, and at the same nodes.

    `records` are all that are remembered. What it reads does not change any more, so it may be used
    on a helper thread.
    """

    def __init__(self, records: Iterable[Record], wanted: Iterable[Record]) -> None:
        self._mates: dict[int, dict[str, None]] = {}  # by the batch's id; a dict keeps an order
        self._started: dict[NodeKey, list[Batch]] = {}  # batches of a node, in their order
        for record in wanted:
            for visit in record.walk():
                if (batch := visit.batch) is not None:
                    self._mates.setdefault(id(batch), {})
                self._started.setdefault(_node_of(visit, record), [])
        seen: set[int] = set()
        for record in records:
            for visit in record.walk():
                if (batch := visit.batch) is None:
                    continue
                if (ids := self._mates.get(id(batch))) is not None:
                    ids[record.id] = None
                if batch.start is not None and id(batch) not in seen:
                    seen.add(id(batch))
                    if (batches := self._started.get(_node_of(visit, record))) is not None:
                        batches.append(batch)
        for batches in self._started.values():
            batches.sort(key=_taken)

    def mates(self, record: Record, batch: Batch) -> list[str]:
        """Return the ids of the other requests in a batch."""
        return [name for name in self._mates.get(id(batch), ()) if name != record.id]

    def before(self, record: Record, visit: ItemVisit) -> Before | None:
        """Return what went before a visit while it queued; None if nothing did, as far as is known.

        For a visit without a batch: what was started until the request ended.
        """
        batches = self._started.get(_node_of(visit, record), [])
        last = len(batches)
        taken = 0  # by the node, before the visit's own batch
        if visit.batch is not None and visit.batch.start is not None:
            last = bisect_left(batches, visit.batch.start.taken, key=_taken)
            taken = visit.batch.start.taken - visit.batch.size
        first: Batch | None = None
        free = inf
        held: list[tuple[float, float]] = []
        for batch in reversed(batches[:last]):
            assert batch.start is not None
            if batch.start.decided < visit.enqueued:
                break
            if batch.start.decided <= record.ended:
                taken = taken or batch.start.taken
                first, free = batch, min(free, batch.start.freed)
                if batch.start.held is not None:
                    held.append(batch.start.held)
        if first is None:
            return None
        rows = taken - (_taken(first) - first.size)
        return Before(rows, free, held) if rows > 0 else None

    def meanwhile(self, record: Record, visit: ItemVisit) -> list[tuple[float, float]]:
        """Return when batches of others ran at a node while a visit queued there, as far as is
        known: begins and ends, seconds.
        """
        spans = [
            (max(batch.started, visit.enqueued), min(_end_of(batch), record.ended))
            for batch in self._started.get(_node_of(visit, record), [])
        ]
        return [(start, end) for start, end in spans if end > start]


def _node_of(visit: ItemVisit, record: Record) -> NodeKey:
    """Return the node whose executors run a visit: nodes may share those of another one."""
    batch = visit.batch
    if batch is not None and batch.start is not None:
        return batch.start.executor.rpartition("#")[0], record.version
    return f"{record.pipeline}/{visit.node}", record.version


def _end_of(batch: Batch) -> float:
    """Return when a batch ended. One that still runs has no end yet."""
    return batch.ended if batch.executor is None else inf


def _taken(batch: Batch) -> int:
    return 0 if batch.start is None else batch.start.taken
