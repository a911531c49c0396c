"""Nodes that send an item, or the parts of it, through another graph: Jump, MapReduce, CopySplit.

Each part is a run of its own through the graph that starts at `jump`. At most 2 x `max` parts of
one node queue there at a time, and the items that they belong to take turns, so a small item does
not wait for a large one. If more wait than can be answered in time, the oldest item sends all of
its parts first: some items are ready in time then, instead of none.

A batch that starts there makes room for the next parts at once, so that executors never wait for
them. Python logic among the parts may send more items here and wait for them: those have room of
their own (`Lane`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from penstock.backends.errors import BackendError, InvalidInput, InvalidRequest, PenstockError
from penstock.backends.expressions.composite import CopySplitParams, MapReduceParams
from penstock.backends.item import Item
from penstock.backends.process.failure import readable
from penstock.backends.text import message_of

from ..config.definition import DEFAULT_MAX, NodeConfig
from ..node.node import Node
from ..node.queue import Batch, Entry, Outcome
from ..node.turns import SETTLE_DIVISOR
from ..overload.door import Pressure
from ..runs.inside import Inside
from ..runs.plan import EntryPoint
from ..runs.run import PARTS, Run, Submission, as_future
from .composite import CompositeNode

logger = logging.getLogger("penstock.node")

Start = Callable[[EntryPoint, Run, Entry, float], Submission]
"""Start a run on behalf of an entry that waits for it, at a time in seconds."""


class FanOutPart:
    """One part of an item. Its run uses it as the future of the request.

    It reports to the parent at once; a future of asyncio would take an iteration of the loop.
    """

    __slots__ = ("ended", "index", "inside", "parent", "queued", "run")

    def __init__(self, parent: Parent, index: int) -> None:
        self.parent = parent
        self.index = index
        self.inside = parent.inside
        self.ended = False
        self.queued = True  # at the node where it enters
        self.run: Submission | None = None

    def done(self) -> bool:
        return self.ended or self.parent.entry.future.done()

    def set_result(self, item: Item) -> None:
        self.parent.node.part_ended(self, item)

    def set_exception(self, error: BaseException) -> None:
        self.parent.node.part_ended(self, error)

    def cancel(self) -> None:
        self.ended = True


class Parent:
    """An item that was split into parts. Each part has one of `pieces` under `key`.

    `sent` counts the parts that were started, `left` those that have not ended.
    """

    __slots__ = (
        "answers",
        "batch",
        "entry",
        "inside",
        "item",
        "key",
        "lane",
        "left",
        "node",
        "pieces",
        "running",
        "sent",
    )

    def __init__(
        self,
        node: FanOut,
        entry: Entry,
        item: Item,
        *,
        key: str,
        pieces: Sequence[Any],
        batch: Batch,
        inside: Inside,
        lane: Lane,
    ) -> None:
        self.node = node
        self.batch = batch
        self.lane = lane
        self.entry = entry
        self.inside = inside  # the composites around the parts
        self.item = item
        self.key = key
        self.pieces = pieces
        self.sent = 0
        self.left = len(pieces)
        self.answers: list[Item | None] = [None] * len(pieces)
        self.running: dict[FanOutPart, None] = {}

    def order(self) -> tuple[bool, float]:
        """Sort those first that have begun, then the oldest."""
        return not self.sent, self.entry.enqueued


class Lane:
    """The items of one depth with parts left to send, and the number of their queued parts.

    Each depth has a lane. With one lane for all, parts that wait for parts of their own at the same
    node could take all the room.

    `oldest_first`: `turns` is in the order of arrival. `late`, under pressure: items that have been
    inside for longer than the target and have sent no part yet.
    """

    __slots__ = ("_settle_at", "late", "oldest_first", "queued", "turns")

    def __init__(self) -> None:
        self.turns: deque[Parent] = deque()
        self.late: deque[Parent] = deque()
        self.queued = 0
        self.oldest_first = False
        self._settle_at = 0.0

    def settle(self, pressure: Pressure, now: float) -> None:
        """Bring the items into the order of the present pressure."""
        oldest_first = pressure.on or pressure.deep
        if oldest_first is not self.oldest_first or (self.late and not pressure.on):
            self.oldest_first = oldest_first
            self.turns = deque(sorted([*self.turns, *self.late], key=Parent.order))
            self.late.clear()
            self._settle_at = now
        if pressure.on and now >= self._settle_at:
            self._settle_at = now + pressure.target / SETTLE_DIVISOR
            for parent in list(self.turns):
                ticket = parent.entry.request_ticket()
                if parent.sent or ticket is None:
                    continue
                if not ticket.started and now - ticket.came > pressure.target:
                    ticket.become_late()
                if ticket.late:
                    self.turns.remove(parent)
                    self.late.append(parent)

    def remove(self, parent: Parent) -> None:
        (self.turns if parent in self.turns else self.late).remove(parent)


class FanOut(CompositeNode):
    """A composite that sends parts through the graph at `entry_point`.

    Subclasses define how an item is split and how the answers are merged.
    """

    def __init__(
        self,
        config: NodeConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        root: str,
        entry_point: EntryPoint,
        start: Start,
        pressure: Pressure,
    ) -> None:
        """`root` names the root of the graph that the composite itself is in."""
        super().__init__(config, loop, clock)
        self.params: Any = config.instance_groups[0].spec.params
        self._root = root
        self.entry_point = entry_point
        self._start = start
        self._pressure = pressure
        self._lanes: defaultdict[int, Lane] = defaultdict(Lane)

    @property
    def queued(self) -> int:
        """The number of parts that are queued at the entry point."""
        return sum(lane.queued for lane in self._lanes.values())

    async def start(self) -> None:
        target = self.entry_point.root.node
        if isinstance(target, Node):
            target.watch_starts(self._batch_started)

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        """Return the key that is split, and its pieces."""
        raise NotImplementedError

    def elements(self, item: Item, key: str) -> Sequence[Any]:
        """Return what is split: a list, a tuple, or an array by its first axis."""
        if key not in item:
            raise BackendError(
                f"node {self.name!r}: it splits {key!r}, but the item has no such key; "
                f"{_keys_of(item)}"
            )
        value: Any = item[key]
        if not isinstance(value, (list, tuple)) and not getattr(value, "shape", ()):
            kind = type(value).__name__
            raise BackendError(
                f"node {self.name!r}: it splits {key!r}, which is {kind}: expected a list, a "
                "tuple or an array"
            )
        elements: Sequence[Any] = value
        return elements

    def largest(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> int:
        """Return the rows of the largest part."""
        return entry.size

    def set_size(self, item: Item, entry: Entry, piece: Any) -> int:
        """Set the `request_size` of a part, and return its rows."""
        return entry.size

    def merge(self, item: Item, answers: list[Item]) -> Item:
        """Return the node's copy of the item, with the final items of the parts merged in."""
        raise NotImplementedError

    def begin(self, entry: Entry, batch: Batch, inside: Inside) -> None:
        item = batch.outcomes[0]
        try:
            key, pieces = self.split(item)
            self._check(item, entry, pieces)
        except BaseException as error:
            self.end_soon(entry, batch, self._failure(entry, item, error))
            return
        if not len(pieces):
            self.end_soon(entry, batch, self._merged(entry, item, []))
            return
        for node in self.entry_point.nodes:  # admission estimates the cost of a request by this
            node.parts_per_item = node.inflow.observe(self, self._root, len(pieces))
        lane = self._lanes[inside.depth]
        parent = Parent(
            self, entry, item, key=key, pieces=pieces, batch=batch, inside=inside, lane=lane
        )
        self.waiting[entry] = batch, lambda: self._stop(parent)
        parent.lane.turns.append(parent)
        self._feed(entry.enqueued)

    def _check(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> None:
        """Raise if the graph at the entry point can't take the parts."""
        if "data" not in item:
            raise BackendError(f"node {self.name!r}: the item has no 'data'; {_keys_of(item)}")
        if len(pieces):
            rows = self.largest(item, entry, pieces)
            for node in self.entry_point.nodes:
                if rows > node.scheduler.max:
                    raise InvalidRequest(
                        f"node {self.name!r}: a part has {rows} rows (request_size), but node "
                        f"{node.name!r} takes at most {node.scheduler.max}"
                    )

    def _feed(self, now: float) -> None:
        """Send parts while there is room."""
        target = self.entry_point.root.node
        most = target.scheduler.max if isinstance(target, Node) else DEFAULT_MAX
        pressure = self._pressure
        for lane in self._lanes.values():
            lane.settle(pressure, now)
            while lane.turns and lane.queued < 2 * most:
                self._send(_next_of(lane.turns, stay=lane.oldest_first), now)
            while lane.late and not lane.turns and lane.queued < most:  # they only fill a batch
                self._send(_next_of(lane.late, stay=True), now)

    def _send(self, parent: Parent, now: float) -> None:
        index = parent.sent
        parent.sent += 1
        if not index and (ticket := parent.entry.request_ticket()) is not None:
            ticket.started = True
        part = FanOutPart(parent, index)
        parent.running[part] = None
        parent.lane.queued += 1
        piece = parent.pieces[index]
        item = parent.item.copy()
        item[parent.key] = piece
        entry = parent.entry
        size = self.set_size(item, entry, piece)
        run = Run(item, as_future(part), entry.deadline, entry.wanted, size)
        part.run = self._start(self.entry_point, run, entry, now)

    def _batch_started(self, batch: Batch) -> None:
        for entry in batch.entries:
            part: object = entry.future
            if type(part) is FanOutPart and part.queued:
                part.queued = False
                part.parent.lane.queued -= 1
        self._feed(batch.started)

    def part_ended(self, part: FanOutPart, outcome: Item | BaseException) -> None:
        """Take the answer or the failure of a part."""
        if part.done():
            return
        parent = part.parent
        if self.notes:
            self.note_part(parent.batch, parent.inside, part.index, part.run)
        self._forget(part)
        if isinstance(outcome, BaseException):
            self._fail(parent, outcome)
        elif "error" in outcome:
            self._fail(parent, outcome["error"])
        else:
            outcome.pop(PARTS, None)
            parent.answers[part.index] = outcome
            parent.left -= 1
            if not parent.left:
                self.end(parent.entry, self._merged(parent.entry, parent.item, parent.answers))
        self._feed(self._clock())

    def _merged(self, entry: Entry, item: Item, answers: Any) -> Outcome:
        try:
            return self.merge(item, answers)
        except BaseException as error:
            return self._failure(entry, item, error)

    def _failure(self, entry: Entry, item: Item, error: BaseException) -> Outcome:
        error = readable(error)
        if isinstance(error, InvalidInput):
            return {**item, "error": error}
        if isinstance(error, PenstockError):
            return error
        fields = {"request_id": entry.request_id, "node": self.name}
        logger.error("node %s failed", self.name, exc_info=error, extra=fields)
        failure = BackendError(f"node {self.name!r}: {type(error).__name__}: {message_of(error)}")
        failure.__cause__ = error
        failure.logged = True
        return failure

    def _fail(self, parent: Parent, error: BaseException) -> None:
        """Fail an item of which a part failed, and drop its other parts.

        The soft failure of a part is the item's soft failure.
        """
        self._stop(parent)
        self.end(
            parent.entry,
            {**parent.item, "error": error} if isinstance(error, InvalidInput) else error,
        )

    def _stop(self, parent: Parent) -> None:
        if parent.sent < len(parent.pieces):
            parent.lane.remove(parent)
        for part in list(parent.running):
            run = part.run
            self._forget(part)
            if run is not None:
                run.drop()
                if self.notes:
                    self.note_part(parent.batch, parent.inside, part.index, run)
        if any(lane.turns or lane.late for lane in self._lanes.values()):
            # In the loop's next iteration: the caller may walk over the queue that this feeds.
            self._loop.call_soon(self._feed_later, context=self._context)

    def _feed_later(self) -> None:
        self._feed(self._clock())

    def _forget(self, part: FanOutPart) -> None:
        part.ended = True
        part.run = None
        part.parent.running.pop(part, None)
        if part.queued:
            part.queued = False
            part.parent.lane.queued -= 1


class JumpNode(FanOut):
    """Sends the item itself, as its only part."""

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        return "data", (item["data"],)

    def merge(self, item: Item, answers: list[Item]) -> Item:
        return answers[0]


class MapReduceNode(FanOut):
    """Sends each element of one key, and collects keys of the answers into lists."""

    params: MapReduceParams

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        key = self.params.split
        # The elements are read now, so that an exception fails this item only.
        return key, list(self.elements(item, key))

    def largest(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> int:
        return 1

    def set_size(self, item: Item, entry: Entry, piece: Any) -> int:
        item.pop("request_size", None)  # an element has lost the first axis
        return 1

    def merge(self, item: Item, answers: list[Item]) -> Item:
        for key in self.params.merge:
            for index, answer in enumerate(answers):
                if key not in answer:
                    missing = f"part {index} of {len(answers)} has no {key!r} to merge"
                    raise BackendError(f"node {self.name!r}: {missing}")
            item[key] = [answer[key] for answer in answers]
        return item


class CopySplitNode(FanOut):
    """Sends pieces of `data`, and joins the results."""

    params: CopySplitParams

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        data = self.elements(item, "data")
        size = self.params.split_size
        return "data", [data[start : start + size] for start in range(0, len(data), size)]

    def largest(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> int:
        return len(pieces[0]) if "request_size" in item else 1

    def set_size(self, item: Item, entry: Entry, piece: Any) -> int:
        if "request_size" not in item:
            return 1
        item["request_size"] = len(piece)
        return len(piece)

    def merge(self, item: Item, answers: list[Item]) -> Item:
        for index, answer in enumerate(answers):
            if "result" not in answer:
                raise BackendError(
                    f"node {self.name!r}: piece {index} of {len(answers)} has no 'result'"
                )
        results = [answer["result"] for answer in answers]
        item["result"] = concatenated(results)
        return item


def _next_of(turns: deque[Parent], *, stay: bool) -> Parent:
    """Return the first parent. If it has more than one part left, it stays first, or goes last."""
    parent = turns[0]
    if not stay or parent.sent + 1 == len(parent.pieces):
        turns.popleft()
        if parent.sent + 1 < len(parent.pieces):
            turns.append(parent)
    return parent


def _keys_of(item: Item) -> str:
    return f"its keys are {', '.join(sorted(map(str, item)))}"


def concatenated(results: list[Any]) -> Any:
    """Join lists and tuples to a list, arrays and tensors along their first axis.

    Other results are returned as they are, in a list.
    """
    if not results or not all(
        isinstance(result, (list, tuple)) or getattr(result, "shape", ()) for result in results
    ):
        return results
    if all(isinstance(result, (list, tuple)) for result in results):
        return [element for result in results for element in result]
    if type(results[0]).__module__ == "torch":
        import torch

        return torch.cat(results)
    import numpy as np

    return np.concatenate(results)
