"""Nodes that send an item, or the parts of it, through another graph: Jump, MapReduce, CopySplit.

Each part is a run of its own through the graph that starts at `jump`. Of one node's parts at most 2 x `max` queue there at a time,
and the items whose parts they are take turns: a small item waits for no large one. A batch that starts there makes room for the next
parts at once, so that executors never wait for them. (Python logic among the parts may send more items here, and wait for them: those
have room of their own.)
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

from ..config.definition import DEFAULT_MAX, NodeConfig
from ..node.node import Node
from ..node.queue import Batch, Entry, Outcome
from ..runs.inside import Inside
from ..runs.plan import EntryPoint
from ..runs.run import PARTS, Run, Submission, as_future
from .composite import CompositeNode

logger = logging.getLogger("penstock.node")

Start = Callable[[EntryPoint, Run, Entry, float], Submission]
"""Start a run on behalf of an entry that waits for it, at a time in seconds."""


class FanOutPart:
    """One part of an item, and the future that its run knows: what it is told goes to the parent without a turn of the loop."""

    __slots__ = ("ended", "index", "inside", "parent", "queued", "run")

    def __init__(self, parent: Parent, index: int) -> None:
        self.parent = parent
        self.index = index
        self.inside = parent.inside
        self.ended = False
        self.queued = True  # at the node that it enters
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
    """An item that has become parts. `pieces`: what each part has in place of the item's own."""

    __slots__ = (
        "answers",
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
        inside: Inside,
        lane: Lane,
    ) -> None:
        self.node = node
        self.lane = lane
        self.entry = entry
        self.inside = inside  # of the parts
        self.item = item
        self.key = key
        self.pieces = pieces
        self.sent = 0
        self.left = len(pieces)
        self.answers: list[Item | None] = [None] * len(pieces)
        self.running: dict[FanOutPart, None] = {}


class Lane:
    """The items of one depth that have parts left to send, and how many of their parts queue.

    One for each depth: were there only one, parts that wait for parts of their own at the same node could take all the room.
    """

    __slots__ = ("queued", "turns")

    def __init__(self) -> None:
        self.turns: deque[Parent] = deque()
        self.queued = 0


class FanOut(CompositeNode):
    """A composite that sends parts through the graph at `entry_point`; what the subclasses say is how to split and how to merge."""

    def __init__(
        self,
        config: NodeConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        root: str,
        entry_point: EntryPoint,
        start: Start,
    ) -> None:
        """`root` names the root of the graph that the composite itself is in."""
        super().__init__(config, loop, clock)
        self.params: Any = config.groups[0].spec.params
        self._root = root
        self._entry_point = entry_point
        self._start = start
        self._lanes: defaultdict[int, Lane] = defaultdict(Lane)

    @property
    def queued(self) -> int:
        """Parts that queue at the entry point."""
        return sum(lane.queued for lane in self._lanes.values())

    async def start(self) -> None:
        target = self._entry_point.root.node
        if isinstance(target, Node):
            target.watch_starts(self._batch_started)

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        """The key that is taken apart, and its pieces."""
        raise NotImplementedError

    def largest(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> int:
        """The rows of the largest part."""
        return entry.size

    def set_size(self, item: Item, entry: Entry, piece: Any) -> int:
        """The rows of a part; its `request_size` says the same."""
        return entry.size

    def merge(self, item: Item, answers: list[Item]) -> Item:
        """The outcome, of the node's copy of the item and the parts' final items."""
        raise NotImplementedError

    def begin(self, entry: Entry, batch: Batch, inside: Inside) -> None:
        item = batch.outcomes[0]
        try:
            key, pieces = self.split(item)
            self._check(item, entry, pieces)
        except Exception as error:
            self.end_soon(entry, batch, self._failure(item, error))
            return
        if not len(pieces):
            self.end_soon(entry, batch, self._merged(item, []))
            return
        for node in self._entry_point.nodes:  # admission counts what a request will cost there
            node.parts_per_item = node.inflow.observe(self, self._root, len(pieces))
        lane = self._lanes[inside.depth]
        parent = Parent(self, entry, item, key=key, pieces=pieces, inside=inside, lane=lane)
        self.waiting[entry] = batch, lambda: self._stop(parent)
        parent.lane.turns.append(parent)
        self._feed(entry.enqueued)

    def _check(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> None:
        """Raises where the graph at the entry point could not take the parts."""
        if "data" not in item:
            raise BackendError(
                f"node {self.name!r}: the item has no 'data'; its keys are {', '.join(sorted(map(str, item)))}"
            )
        if len(pieces):
            rows = self.largest(item, entry, pieces)
            for node in self._entry_point.nodes:
                if rows > node.scheduler.max:
                    reason = f"a part has {rows} rows (request_size), and node {node.name!r} takes at most {node.scheduler.max}"
                    raise InvalidRequest(f"node {self.name!r}: {reason}")

    def _feed(self, now: float) -> None:
        """Send parts while there is room, of each parent one in turn."""
        target = self._entry_point.root.node
        room = 2 * (target.scheduler.max if isinstance(target, Node) else DEFAULT_MAX)
        for lane in self._lanes.values():
            while lane.turns and lane.queued < room:
                self._send(lane.turns.popleft(), now)

    def _send(self, parent: Parent, now: float) -> None:
        index = parent.sent
        parent.sent += 1
        if parent.sent < len(parent.pieces):
            parent.lane.turns.append(parent)
        part = FanOutPart(parent, index)
        parent.running[part] = None
        parent.lane.queued += 1
        piece = parent.pieces[index]
        item = parent.item.copy()
        item[parent.key] = piece
        entry = parent.entry
        size = self.set_size(item, entry, piece)
        request = Run(item, as_future(part), entry.deadline, entry.wanted, size)
        part.run = self._start(self._entry_point, request, entry, now)

    def _batch_started(self, batch: Batch) -> None:
        for entry in batch.entries:
            part: object = entry.future
            if type(part) is FanOutPart and part.queued:
                part.queued = False
                part.parent.lane.queued -= 1
        self._feed(batch.started)

    def part_ended(self, part: FanOutPart, outcome: Item | BaseException) -> None:
        """By an answer, a failure, or its deadline."""
        if part.done():
            return
        parent = part.parent
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
                self.end(parent.entry, self._merged(parent.item, parent.answers))
        self._feed(self._clock())

    def _merged(self, item: Item, answers: Any) -> Outcome:
        try:
            return self.merge(item, answers)
        except Exception as error:
            return self._failure(item, error)

    def _failure(self, item: Item, error: Exception) -> Outcome:
        if isinstance(error, InvalidInput):
            return {**item, "error": error}
        if isinstance(error, PenstockError):
            return error
        logger.error("node %s failed", self.name, exc_info=error)
        failure = BackendError(f"node {self.name!r}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    def _fail(self, parent: Parent, error: BaseException) -> None:
        """A part failed, and with it the item; its other parts are dropped. An input that can't be read is the item's soft failure."""
        self._stop(parent)
        self.end(
            parent.entry,
            {**parent.item, "error": error} if isinstance(error, InvalidInput) else error,
        )

    def _stop(self, parent: Parent) -> None:
        if parent.sent < len(parent.pieces):
            parent.lane.turns.remove(parent)
        for part in list(parent.running):
            run = part.run
            self._forget(part)
            if run is not None:
                run.drop()
        if any(
            lane.turns for lane in self._lanes.values()
        ):  # at the loop's next turn: this may be inside a walk through what would be fed
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
    """One part: the item itself."""

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        return "data", (item["data"],)

    def merge(self, item: Item, answers: list[Item]) -> Item:
        return answers[0]


class MapReduceNode(FanOut):
    params: MapReduceParams

    def split(self, item: Item) -> tuple[str, Sequence[Any]]:
        key = self.params.split
        return key, list(
            self.elements(item, key)
        )  # now, so that what fails here is this item's failure

    def largest(self, item: Item, entry: Entry, pieces: Sequence[Any]) -> int:
        return 1

    def set_size(self, item: Item, entry: Entry, piece: Any) -> int:
        item.pop("request_size", None)  # an element has lost the first axis
        return 1

    def elements(self, item: Item, key: str) -> Sequence[Any]:
        if key not in item:
            raise BackendError(
                f"node {self.name!r}: it splits {key!r}, which the item has not; its keys are {', '.join(sorted(map(str, item)))}"
            )
        value = item[key]
        if not isinstance(value, (list, tuple)) and not getattr(value, "shape", ()):
            kind = type(value).__name__
            raise BackendError(
                f"node {self.name!r}: it splits {key!r}, which is {kind}; expected a list, a tuple or an array"
            )
        return value  # type: ignore[no-any-return]

    def merge(self, item: Item, answers: list[Item]) -> Item:
        for key in self.params.merge:
            for index, answer in enumerate(answers):
                if key not in answer:
                    raise BackendError(
                        f"node {self.name!r}: part {index} of {len(answers)} has no {key!r} to merge"
                    )
            item[key] = [answer[key] for answer in answers]
        return item


class CopySplitNode(MapReduceNode):
    params: CopySplitParams  # type: ignore[assignment]

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


def concatenated(results: list[Any]) -> Any:
    """Lists and tuples one after another, arrays and tensors along their first axis; anything else as a list."""
    if not results or not all(
        isinstance(result, (list, tuple)) or getattr(result, "shape", ()) for result in results
    ):
        return results
    if all(isinstance(result, (list, tuple)) for result in results):
        return [each for result in results for each in result]
    if type(results[0]).__module__ == "torch":
        import torch

        return torch.cat(results)
    import numpy as np

    return np.concatenate(results)
