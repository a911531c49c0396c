"""A request whose graph has a node that yields: each value goes through what follows, one after another, and is one answer.

The next value is asked for when its reader wants one: that is the back-pressure. A reader that leaves ends the node's iteration.
"""

from __future__ import annotations

import asyncio

from penstock.backends.errors import InvalidInput
from penstock.backends.item import Item

from ..node.queue import Batch
from .admission import Admission
from .graph_run import GraphRun, Visit
from .plan import EntryPoint, PlanNode
from .run import PARTS
from .trace import Trace


class StreamRun(GraphRun):
    """A `GraphRun` with a node that yields. `future` ends with the stream; its item has all parts, where nobody reads them one by one."""

    __slots__ = ("_before", "_loop", "_part", "_parts", "_reader", "_reads", "_ready", "_source")

    def __init__(  # noqa: PLR0917
        self,
        item: Item,
        future: asyncio.Future[Item],
        deadline: float,
        priority: int | None,
        size: int,
        admission: Admission | None,
        entry_point: EntryPoint,
        trace: Trace | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(item, future, deadline, priority, size, admission, entry_point, trace)
        assert entry_point.stream is not None
        self._loop = loop
        self._source: PlanNode = entry_point.stream
        self._before: tuple[dict[PlanNode, int], int] | None = (
            None  # `waiting` and `leaves` as the first part found them
        )
        self._part: asyncio.Future[Item] | None = (
            None  # the part that is on its way through what follows
        )
        self._parts: list[Item] = []  # all so far; where somebody reads, those not read yet
        self._reads = False
        self._reader: asyncio.Future[None] | None = None  # waits for a part
        self._ready: asyncio.Future[None] | None = None  # the node, which waits for the reader

    # the node's side

    async def pass_on(self, item: Item, now: float) -> None:
        """A value has been yielded. Returns when its part is through and, where somebody reads, when the next one is wanted."""
        if self.future.done():  # the node has swallowed its cancellation
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

    def end_stream(self, visit: Visit, batch: Batch, error: InvalidInput | None) -> None:
        """The node has yielded all that it has; `error`: or can't read its item any further."""
        self.visits.pop(visit, None)
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
        """What `advance` comes to: the end of a part, or, where the node is not reached at all, the answer: it is the only part then."""
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
        """Break: what the part has left in parallel branches is not the next one's."""
        for visit in list(self.visits):
            if visit.plan_node is not self._source:
                del self.visits[visit]
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
        """From here on the parts are taken one by one, by `next_part`."""
        self._reads = True
        self.future.add_done_callback(self._future_done)

    def _future_done(self, future: asyncio.Future[Item]) -> None:
        if not future.cancelled():
            future.exception()  # a reader that has left need not hear of it
        self._wake(self._reader)

    async def next_part(self) -> Item | None:
        """The next part's final dict; None at the end. Raises what failed, `InvalidInput` too."""
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
