"""One request's way through a linear pipeline, from node to node."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from penstock.backends.errors import DeadlineExceeded, InvalidInput
from penstock.backends.item import Item

from .admission import Admission
from .node import Node
from .queue import Batch, Entry, Outcome


class Stage(NamedTuple):
    """One item at one node: seconds in the queue, seconds of its batch's run, rows of that batch."""

    node: str
    queue: float
    run: float
    batch_size: int


class Run(Entry):
    """One request in a linear pipeline: the entry of whichever node it is at. Await `future` for the final item.

    Whoever awaits it must call `leave` if that wait does not end with an answer: it drops a request whose caller is gone.
    """

    __slots__ = ("admission", "batch", "data", "node", "stages")

    def __init__(  # noqa: PLR0917
        self, item: Item, future: asyncio.Future[Item], deadline: float, priority: int | None, size: int, admission: Admission, node: Node
    ) -> None:
        # Entry's fields are set here, not by a call: this is the hot path.
        self.item = item
        self.future = future
        self.deadline = deadline
        self.wanted = priority
        self.priority = 0
        self.size = size
        self.request_id = ""
        self.data = item["data"]
        self.node = node
        self.admission: Admission | None = admission  # None: the request has ended
        self.batch: Batch | None = None  # the last one it ran in
        self.stages: list[tuple[Batch, float]] | None = None  # the ones before, and when it was queued for each

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        future = self.future
        node = self.node
        self.batch = batch
        if future.done():  # the caller left while the item ran
            node.statistics.count("cancelled")
        elif now > self.deadline:
            node.statistics.count("expired")
            future.set_exception(DeadlineExceeded(f"node {node.name!r}: the answer came after the deadline"))
        elif type(outcome) is dict:
            if "error" in outcome:
                node.statistics.count("soft")
                outcome.pop("result", None)
                if not isinstance(outcome["error"], InvalidInput):
                    outcome["error"] = InvalidInput(str(outcome["error"]))
            elif node.next is not None and "result" in outcome:
                # filter `swap`: the result is the next node's data. An item without a result has its answer (Break).
                outcome["data"] = outcome.pop("result")
                self.stages = [*(self.stages or ()), (batch, self.enqueued)]
                self.item = outcome
                self.node = node.next
                node.next.enqueue(self, now)
                return
            outcome["data"] = self.data  # the caller's own
            future.set_result(outcome)
        elif outcome is None:  # its deadline came before its turn to run alone
            node.statistics.count("expired")
            future.set_exception(DeadlineExceeded(f"node {node.name!r}: the deadline passed after the batch had failed"))
        else:
            assert isinstance(outcome, BaseException)
            node.statistics.count("failed")
            future.set_exception(outcome)
        admission = self.admission
        if admission is not None:
            self.admission = None
            admission.inside -= 1
            admission.rows -= self.size
            if admission.draining is not None:
                admission.settle()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
        self.leave()

    def timings(self) -> list[Stage]:
        """What happened at each node the item has passed, in order."""
        stages = self.stages or []
        if self.batch is not None:
            stages = [*stages, (self.batch, self.enqueued)]
        return [Stage(batch.node, batch.started - queued, batch.ended - batch.started, batch.size) for batch, queued in stages]

    def leave(self) -> None:
        """The request is over, or its caller has gone: stop counting it, and drop it from where it queues. Idempotent."""
        admission = self.admission
        if admission is not None:
            self.admission = None
            self.node.discard(self)
            self.future.cancel()
            admission.inside -= 1
            admission.rows -= self.size
            admission.settle()
