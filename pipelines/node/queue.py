"""The queue of a node: entries in buckets of one shape key, in the order (priority, arrival)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from penstock.backends.errors import BackendError
from penstock.backends.item import Item

from ..overload.door import Pressure
from ..overload.ticket import Ticket
from ..trace_context import TraceContext
from .outflow import SMALL_BYTES, Outflow
from .turns import Turns

logger = logging.getLogger("penstock.node")

NEVER = float("inf")

Outcome: TypeAlias = Item | BaseException | None
"""The way in which an item left a node: a new item, the exception that it fails with, or None.

None means that the item was not run, because its deadline came or its caller left.
"""


class Entry:
    """One item at one node. A request in a chain uses one entry for all of its nodes.

    The scheduler sets `enqueued` (seconds), `arrival` (a count) and `bucket` whenever it queues
    the entry.
    """

    __slots__ = (
        "__weakref__",
        "_around",
        "arrival",
        "bucket",
        "charge",
        "client",
        "context",
        "counted",
        "deadline",
        "enqueued",
        "future",
        "item",
        "priority",
        "request_id",
        "size",
        "ticket",
        "wanted",
    )

    def __init__(
        self,
        item: Item,
        future: asyncio.Future[Item],
        deadline: float = NEVER,
        priority: int | None = None,
        size: int = 1,
    ) -> None:
        self.item = item
        self.future = future
        self.deadline = deadline  # seconds on the node's clock
        self.wanted = priority  # as the caller gave it: 1 is the highest, None the node's default
        self.priority = 0  # index of its level at the node where it queues; 0 is the most urgent
        self.size = size  # its rows in a batch (rows.py)
        self.counted = False  # True: the node has set the item's `request_size`
        self.bucket: Bucket  # where it queued last
        self.enqueued: float
        self.arrival: int
        self.request_id = ""
        self.client: Hashable = None  # whose request it is, if that is known
        self.context: TraceContext | None = None  # of its request's span, if it is in a trace
        # Its request, if that is more to admission than its rows and its client.
        self.ticket: Ticket | None = None
        # The bytes that are counted as results of the node that it left (outflow.py).
        self.charge: tuple[Outflow, int] | None = None

    @property
    def around(self) -> Batch | None:
        """The batch of the composite that it came to last, if that notes it."""
        return getattr(self, "_around", None)

    @around.setter
    def around(self, batch: Batch) -> None:
        self._around = batch

    def request_ticket(self) -> Ticket | None:
        """Return the ticket of the request, made now if it came without one.

        None if no admission counts it.
        """
        return self.ticket

    def charge_to(self, outflow: Outflow, size: int) -> None:
        """Count `size` bytes of the item as a result that waits here, until `release`."""
        if size >= SMALL_BYTES:
            self.charge = outflow, size
            outflow.bytes += size

    def release(self) -> None:
        """Stop counting what the item holds. May be called again."""
        if (charge := self.charge) is not None:
            self.charge = None
            outflow, size = charge
            outflow.release(size)

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        """Go on to the next node, or end the request. Called on the loop after the batch has run.

        Never raises.
        """
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """End an entry that will not run: it expired, or the node was closed."""
        raise NotImplementedError


class BatchStart(NamedTuple):
    """How a batch came to start. Times are seconds of the node's clock.

    `executor`: its name. `device`: the accelerator that it took, or "". `decided`: the time of the
    decision. `freed`: when the executor became free: its last batch had ended, or it was loaded.
    `oldest`: when the entry was queued that goes first. `queued`: the rows that queued with its
    shape key, those of the batch among them. `left`: the rows that queued at the node afterwards.
    `limit`: the most rows that it could have had, `max` unless rule 6 or 10 bounds it.
    `running` and `idle`: how many other executors of the node ran and were idle. `shared`: one of
    them ran on its device. `turns`: clients took turns. `held`: from when until when rule 9 held
    the node since its last batch. `taken`: the rows of all batches that the node has started since
    it began to note them, with this one. `usual`: the seconds of a recent batch. The node's
    `batching_timeout` is in seconds.
    """

    executor: str
    device: str
    max: int
    decided: float
    freed: float
    oldest: float
    queued: int
    left: int
    limit: int
    running: int
    idle: int
    shared: bool
    turns: bool
    held: tuple[float, float] | None
    taken: int
    usual: float
    batching_timeout: float

    @property
    def rule(self) -> str:
        """The rule of docs/explanation/scheduling.md that started it.

        `full` or `late` (overdue after `batching_timeout`): a device was partly busy (rule 2).
        `downstream`: rule 9 no longer held the node. `freed`: an executor became free (rule 1).
        `idle`: one was idle when the entry came.
        """
        if self.shared:
            return "full" if self.queued >= self.max else "late"
        if self.held is not None and self.held[1] >= max(self.oldest, self.freed):
            return "downstream"
        return "freed" if self.freed > self.oldest else "idle"


class Batch:
    """The entries that run together on one executor. Times are seconds of the node's clock.

    `outcomes` has one element per entry: at first the shallow copy that the backend works on. If
    the run fails, the thread replaces them. The copies are made on the loop, so that the executor's
    thread holds the GIL for 2 instead of 15 µs in a no-op batch of 32 (measured).

    `begun`: the thread has taken the batch. `alone`: the position of the entry that runs alone
    after the batch failed, else None. `watched`: when what runs now began; `stuck_after` counts
    from there. `hung`: it was stuck once, so its seconds say nothing of other batches. `memo`: what
    the first who answers an item has made for all of them.

    Two are set only if the node notes them (`Pipeline.note_batches`), and are None otherwise.
    `start`: why it started. `parts`: of a composite's, the parts that it sent to other nodes.
    """

    __slots__ = (
        "_pieces",
        "alone",
        "begun",
        "ended",
        "entries",
        "executor",
        "hung",
        "memo",
        "node",
        "outcomes",
        "parts",
        "size",
        "start",
        "started",
        "stuck",
        "watched",
    )

    def __init__(
        self, node: str, executor: Any, entries: list[Entry], size: int, started: float
    ) -> None:
        self.node = node
        self.executor: Any = executor
        self.entries = entries
        self.outcomes: list[Any] = [entry.item.copy() for entry in entries]
        self.size = size
        self.started = started
        self.ended = started
        self.watched = started
        self.begun = False
        self.hung = False
        self.memo: Any = None
        self.alone: int | None = None
        self.stuck = False
        self.start: BatchStart | None = None
        self.parts: Parts | None = None
        self._pieces: tuple[tuple[str, float], ...]  # set only if there are some

    @property
    def pieces(self) -> tuple[tuple[str, float], ...]:
        """What an engine did in it, if that is noted: by name, with the seconds."""
        return getattr(self, "_pieces", ())

    @pieces.setter
    def pieces(self, pieces: tuple[tuple[str, float], ...]) -> None:
        self._pieces = pieces

    @property
    def more_parts(self) -> int:
        """The number of parts that are not in `parts`."""
        return 0 if self.parts is None else self.parts.more

    def forget(self) -> None:
        """Let go of its entries, items and executor. What refers to it from now on needs its times.

        Entries refer to their batch: if that kept them, there would be a cycle, and images would
        stay in memory until the garbage collector runs. The lists are emptied too, because an error
        that is among the outcomes has frames in its traceback that hold them.
        """
        self.entries.clear()
        self.outcomes.clear()
        self.entries = NO_ENTRIES
        self.outcomes = NO_OUTCOMES
        self.executor = None


NO_ENTRIES: list[Entry] = []
NO_OUTCOMES: list[Any] = []
"""What a batch has that has been delivered: nothing may be added."""


class Visit(NamedTuple):
    """One item at one node: when it was queued there, and its batch.

    No batch: the request ended before it had run there. Times are seconds of the node's clock.
    """

    node: str
    enqueued: float
    batch: Batch | None


class Parts(list[tuple[int, Sequence[Visit]]]):
    """The parts that a composite sent to other nodes for one item: the position of each, and where
    it was.

    `more` counts those that are not in the list.
    """

    more = 0


class Bucket:
    """The queued entries of one shape key.

    `levels` has one deque per priority level, or `Turns`; without priorities there is one level.
    """

    __slots__ = ("key", "levels", "size", "takes_turns")

    def __init__(self, key: Hashable, levels: int = 1) -> None:
        self.key = key
        self.levels: tuple[deque[Entry] | Turns[Entry], ...] = (deque(),)
        if levels > 1:  # one level is the hot path
            self.levels = tuple(deque() for _ in range(levels))
        self.takes_turns = False
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
    def rank(self) -> tuple[int, int, int]:
        """The order of the buckets: the level of the head, its lane and its arrival."""
        for level in self.levels:
            if level:
                lane = level.rank if isinstance(level, Turns) else 0
                return level[0].priority, lane, level[0].arrival
        raise IndexError("an empty bucket has no rank")

    def take_turns(self, pressure: Pressure) -> None:
        """Order each level by `Turns` from now on."""
        self.takes_turns = True
        self.levels = tuple(Turns(pressure, level) for level in self.levels)

    def end_turns(self) -> None:
        """Order each level by arrival again."""
        self.takes_turns = False
        self.levels = tuple(
            deque(sorted(level, key=lambda entry: entry.arrival)) for level in self.levels
        )

    def settle(self, now: float, run_time: float) -> None:
        """Find who is late or due. `run_time`: the seconds of a batch."""
        for level in self.levels:
            if isinstance(level, Turns) and level:
                level.settle(now, run_time)

    @property
    def oldest(self) -> float:
        """The time at which the entry that has waited longest was queued."""
        return min(level[0].enqueued for level in self.levels if level)

    def clear(self) -> None:
        for level in self.levels:
            level.clear()
        self.size = 0

    def remove(self, entry: Entry) -> bool:
        """Remove an entry whose caller left. Return False if it is not in this bucket.

        O(n) in the length of the queue, which `max_requests` bounds. Departures are rare, and this
        way arrivals and batches pay nothing for them.
        """
        try:
            self.levels[entry.priority].remove(entry)
        except ValueError:
            return False
        self.size -= entry.size
        return True

    def put_back(self, entry: Entry) -> None:
        """Queue an entry that was taken in vain, by its arrival: in front of those after it."""
        level = self.levels[entry.priority]
        self.size += entry.size
        if isinstance(level, Turns):
            level.appendleft(entry)
        else:
            before = sum(1 for other in level if other.arrival < entry.arrival)
            level.insert(before, entry)

    def take(self, limit: int, fill: int | None = None) -> tuple[list[Entry], int]:
        """Remove entries in order, up to the first that does not fit into `limit` rows.

        With `fill`, entries of the last two lanes (`Turns`) are only taken up to so many rows.

        Returns the entries and the sum of their sizes. Entries whose future is done are dropped:
        their callers left in this iteration of the loop.
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
                elif size <= room and (
                    fill is None or not taken or limit - room + size <= fill or _leads(level)
                ):
                    room -= size
                    taken.append(entry)
                else:
                    self.size -= limit - room + dropped
                    return taken, limit - room
                level.popleft()
        self.size = 0
        return taken, limit - room

    def take_expired(self, now: float, patience: Sequence[float]) -> list[Entry]:
        """Remove and return the entries whose deadline has come, or that queued too long.

        `patience`: for each level, the seconds that an entry may queue.
        """
        expired = [
            entry
            for entry in self
            if entry.deadline <= now or entry.enqueued + patience[entry.priority] <= now
        ]
        for entry in expired:
            self.remove(entry)
        return expired

    def delay(self, entry: Entry) -> None:
        """Put an entry that `take_expired` has removed behind the others of its level."""
        entry.priority += 1
        self.levels[entry.priority].append(entry)
        self.size += entry.size


class SingleBucket(Bucket):
    """A bucket whose entries never share a batch."""

    __slots__ = ()

    def take(self, limit: int, fill: int | None = None) -> tuple[list[Entry], int]:
        for level in self.levels:
            while level:
                entry = level.popleft()
                self.size -= entry.size
                if not entry.future.done():
                    return [entry], entry.size
        return [], 0


def _leads(level: deque[Entry] | Turns[Entry]) -> bool:
    """Return whether the next entry stands before the patient and the late ones."""
    return not isinstance(level, Turns) or level.rank < 1


def fail_all(entries: Iterable[Entry], error: Callable[[], BaseException]) -> None:
    """Fail each entry with an error of its own, even if the code behind another one raises."""
    for entry in entries:
        try:
            entry.fail(error())
        except Exception:
            logger.exception("node: a request could not be failed (request %s)", entry.request_id)


def fail_undelivered(entry: Entry, error: Exception, fields: Mapping[str, str]) -> None:
    """Fail an entry whose `finish` raised, so that it costs its neighbours nothing.

    `fields` are those of the log, the node's name among them.
    """
    node, kind = fields["node"], type(error).__name__
    logger.error(
        "node %s: a result could not be delivered (request %s)",
        node,
        entry.request_id,
        exc_info=error,
        extra={"request_id": entry.request_id, **fields},
    )

    def failure() -> BackendError:
        made = BackendError(f"node {node!r}: the result can't be delivered: {kind}")
        made.logged = True
        return made

    fail_all([entry], failure)


def log_failure(
    logger: logging.Logger,
    entries: Iterable[Entry],
    message: str,
    *args: object,
    fields: Mapping[str, str | None],
    error: BaseException | None = None,
    detail: str = "",
) -> None:
    """Log an error of a batch once for each of its requests, so that each is found by its id.

    The traceback of `error` and `detail` are on the first line alone.
    """
    for request_id in [entry.request_id for entry in entries if entry.request_id] or [""]:
        logger.error(
            f"{message}%s%s",
            *args,
            request_id and f" (request {request_id})",
            detail,
            exc_info=error,
            extra={"request_id": request_id, **fields},
        )
        error, detail = None, ""
