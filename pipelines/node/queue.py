"""What waits at a node: entries, in buckets of one shape key, in the order (priority, arrival)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any, TypeAlias

from penstock.backends.item import Item

NEVER = float("inf")

Outcome: TypeAlias = Item | BaseException | None
"""What became of an item at a node: the new item, the exception that it fails with, or None: it was not run (expired, caller left)."""


class Entry:
    """One item on its way through one node. The same object serves a linear request at every node it passes.

    `enqueued` (seconds), `arrival` (a count) and `bucket` are the scheduler's, set whenever the entry is queued.
    """

    __slots__ = (
        "arrival",
        "bucket",
        "deadline",
        "enqueued",
        "future",
        "item",
        "priority",
        "request_id",
        "size",
        "wanted",
    )

    def __init__(
        self,
        item: Item,
        future: asyncio.Future[Any],
        deadline: float = NEVER,
        priority: int | None = None,
        size: int = 1,
    ) -> None:
        self.item = item
        self.future = future
        self.deadline = deadline  # seconds on the node's clock
        self.wanted = priority  # as the caller gave it: 1 is the highest; None: the node's default
        self.priority = 0  # index of its level at the node it is at; 0 is the most urgent
        self.size = size  # request_size: rows of a batch
        self.bucket: Bucket  # where it queued last
        self.enqueued: float
        self.arrival: int
        self.request_id = ""

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        """On the loop, once the batch has run: go on to the next node, or end the request. Never raises."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """On the loop: the item will not run (expired, node closed)."""
        raise NotImplementedError


class Batch:
    """The entries that run together on one executor, and when they did. Times are seconds on the node's clock.

    `outcomes`, one an entry: at first the shallow copies that the backend works on, made on the loop (the executor's thread then
    holds the GIL for 2 instead of 15 µs in a no-op batch of 32, measured); where the run fails, what the thread puts in their place.
    """

    __slots__ = ("ended", "entries", "executor", "node", "outcomes", "size", "started", "stuck")

    def __init__(
        self, node: str, executor: Any, entries: list[Entry], size: int, started: float
    ) -> None:
        self.node = node
        self.executor = executor
        self.entries = entries
        self.outcomes: list[Any] = [entry.item.copy() for entry in entries]
        self.size = size
        self.started = started
        self.ended = started
        self.stuck = False


class Bucket:
    """The queued entries of one shape key. `levels` is one deque a priority level (one in all without priorities)."""

    __slots__ = ("key", "levels", "size")

    def __init__(self, key: Hashable, levels: int = 1) -> None:
        self.key = key
        self.levels: tuple[deque[Entry], ...] = tuple(deque() for _ in range(levels))
        self.size = 0  # sum of the entries' sizes

    def __iter__(self) -> Iterator[Entry]:
        for level in self.levels:
            yield from level

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    @property
    def head(self) -> Entry:
        """The entry that goes next. The bucket must not be empty."""
        for level in self.levels:
            if level:
                return level[0]
        raise IndexError("an empty bucket has no head")

    @property
    def oldest(self) -> float:
        """When the entry that has waited longest came."""
        return min(level[0].enqueued for level in self.levels if level)

    def clear(self) -> None:
        for level in self.levels:
            level.clear()
        self.size = 0

    def remove(self, entry: Entry) -> bool:
        """Take out an entry whose caller left; False if it is not here (any more).

        O(queue), which `max_requests` bounds, and departures are rare: arrivals and batches pay nothing for them.
        """
        try:
            self.levels[entry.priority].remove(entry)
        except ValueError:
            return False
        self.size -= entry.size
        return True

    def take(self, limit: int) -> tuple[list[Entry], int]:
        """Remove the entries that fit into `limit`, in order, up to the first that does not. Returns them and their size.

        Entries whose future is done (the caller left in this very iteration of the loop) are dropped.
        """
        taken: list[Entry] = []
        room = limit
        dropped = 0
        for level in self.levels:
            while level:
                entry = level[0]
                size = entry.size
                if entry.future.done():
                    dropped += size
                elif size <= room:
                    room -= size
                    taken.append(entry)
                else:
                    self.size -= limit - room + dropped
                    return taken, limit - room
                level.popleft()
        self.size = 0
        return taken, limit - room

    def take_expired(self, now: float) -> list[Entry]:
        """Remove and return the entries whose deadline has come."""
        expired = [entry for entry in self if entry.deadline <= now]
        for entry in expired:
            self.remove(entry)
        return expired
