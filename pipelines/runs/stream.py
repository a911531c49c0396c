"""A request in a graph with a node that yields.

Each value goes through the nodes that follow, one after another, and becomes one part of the
answer. The next value is asked for when the reader wants it: that is the back-pressure. A reader
that leaves ends the iteration of the node.
"""

from __future__ import annotations

import asyncio

from penstock.backends.errors import InvalidInput
from penstock.backends.item import Item

from ..node.queue import Batch
from .graph_run import GraphRun, NodeVisit
from .plan import EntryPoint, PlanNode
from .run import PARTS, Run, Submission


class StreamRun(GraphRun):
    """A `GraphRun` with a node that yields.

    `future` ends with the stream. Its item has all parts, unless a reader takes them one by one.
    """

    __slots__ = (
        "_before",
        "_loop",
        "_part",
        "_parts",
        "_reader",
        "_reads",
        "_ready",
        "_source",
        "ended_empty",
    )

    def __init__(
        self,
        request: Run,
        entry_point: EntryPoint,
        source: PlanNode,
        loop: asyncio.AbstractEventLoop,
        came: float,
    ) -> None:
        super().__init__(request, entry_point, came)
        self._loop = loop
        self.ended_empty = False
        """True: a decoupled model has said after its last response that this was the last one."""
        self._source = source  # the node that yields
        # `waiting` and `leaves` as the first part met them.
        self._before: tuple[dict[PlanNode, int], int] | None = None
        # Done when the present part has passed the nodes that follow.
        self._part: asyncio.Future[Item] | None = None
        self._parts: list[Item] = []  # with a reader, only the parts that it has not read yet
        self._reads = False
        self._reader: asyncio.Future[None] | None = None  # the reader waits for a part
        self._ready: asyncio.Future[None] | None = None  # the node waits for the reader

    # the node's side

    async def pass_on(self, item: Item, now: float) -> None:
        """Pass a yielded value to the nodes that follow.

        Returns when its part has passed them and, with a reader, when the reader wants the next.
        """
        if self.future.done():  # the node was cancelled and has gone on
            raise asyncio.CancelledError
        if self._before is None:
            self._before = self.waiting.copy(), self.leaves
        self.waiting = self._before[0].copy()
        self.leaves = self._before[1]
        self._part = self._loop.create_future()
        if self.trace is not None:
            self.trace.yielded(self._source.name)
        self.advance(self._source, item, now)
        part = await self._part
        if "error" in part:
            raise part["error"]
        self._parts.append(part)
        if self._reads:
            self._wake(self._reader)
            self._ready = self._loop.create_future()
            await self._ready

    def end_stream(self, visit: NodeVisit, batch: Batch, error: InvalidInput | None) -> None:
        """End the stream: the node has yielded all values, or could not read on (`error`)."""
        self.entries.pop(visit, None)
        visit.release()
        self.stages.append((self._source.name, visit.enqueued, batch))
        if self.trace is not None:
            self.trace.ran(self._source.name, visit.enqueued, batch, error)
        if error is not None:
            super().succeed({**self.item, "error": error})
        else:
            self._end_well()

    @property
    def ended(self) -> bool:
        return self.future.done() or (self._part is not None and self._part.done())

    def succeed(self, item: Item) -> None:
        """End a part. If the node that yields was not reached, `item` is the only part."""
        if self._part is not None:
            if not self._part.done():
                self._drop_part()
                item["data"] = self.data
                self._part.set_result(item)
        elif "error" in item:
            super().succeed(item)
        else:
            item["data"] = self.data
            self._parts.append(item)
            self._end_well()

    def _drop_part(self) -> None:
        """Drop what a part has left in parallel branches when it ended by Break."""
        for visit in list(self.entries):
            if visit.plan_node is not self._source:
                del self.entries[visit]
                visit.release()
                visit.plan_node.node.discard(visit)

    def _end_well(self) -> None:
        if self._reads:
            super().succeed(dict(self.item))
        else:
            super().succeed(
                {
                    **self.item,
                    "result": [part.get("result") for part in self._parts],
                    PARTS: self._parts,
                }
            )

    # the reader's side

    def read(self) -> None:
        """Announce a reader, which takes the parts one by one with `next_part`."""
        self._reads = True
        self.future.add_done_callback(self._future_done)

    def _future_done(self, future: asyncio.Future[Item]) -> None:
        if not future.cancelled():
            future.exception()  # retrieved: a reader that has left does not look at it
        self._wake(self._reader)

    async def next_part(self) -> Item | None:
        """Return the final dict of the next part, or None at the end.

        Raises the error that ended the request; `InvalidInput` for a soft failure.
        """
        if not self._parts and not self.future.done():
            self._wake(self._ready)
            self._reader = self._loop.create_future()
            await self._reader
        if self._parts:
            return self._parts.pop(0)
        final = await self.future
        if "error" in final:
            raise final["error"]
        return None

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Parts:
    """The parts of a request's answer, one after another: each is a final dict.

    Iterate over it once. A run that does not stream has one part. Raises the error that ended the
    request; a soft failure too. The caller calls `run.leave` in the end.
    """

    __slots__ = ("_rest", "_run")

    def __init__(self, run: Submission) -> None:
        self._run = run
        self._rest: list[Item] | None = None  # of a run that was not read part by part
        if isinstance(run, StreamRun):
            run.read()

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Item:
        run = self._run
        if isinstance(run, StreamRun):
            part = await run.next_part()
            if part is None:
                raise StopAsyncIteration
            return part
        if self._rest is None:
            item = await run.future
            if "error" in item:
                raise item["error"]
            self._rest = list(item.get(PARTS, (item,)))  # loops may end with a stream
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop(0)
