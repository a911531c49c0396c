"""One request on its way through a chain of nodes. `graph_run.py` is for all other graphs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from penstock.backends.errors import DeadlineExceeded, InvalidInput, forget_frames
from penstock.backends.item import Item
from penstock.backends.process.failure import readable
from penstock.backends.text import message_of

from ..node.outflow import SMALL_BYTES, bytes_of
from ..node.queue import Batch, Bucket, Entry, Outcome, Visit
from ..node.statistics import kind_of_failure
from ..overload.ticket import Ticket
from .admission import Admission
from .plan import PlanNode
from .trace import Trace

PARTS = "_parts"
"""A key of the final item of a stream that was not read part by part.

Its value is the list of the parts' final dicts.
"""


class Stage(NamedTuple):
    """One item at one node: its seconds in the queue, and the seconds and rows of its batch."""

    node: str
    queue: float
    run: float
    batch_size: int


new_visit: Callable[[tuple[str, float, Batch | None]], Visit] = partial(tuple.__new__, Visit)
"""Makes a visit. The constructor of a named tuple is Python, and costs twice as much."""


class FutureLike(Protocol):
    """The part of an `asyncio.Future` that a run uses. Once it is done, the run starts nothing."""

    def done(self) -> bool: ...
    def set_result(self, item: Item, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
    def cancel(self) -> object: ...


def as_future(future: FutureLike) -> asyncio.Future[Item]:
    """Pass an object to a run as its future. Nothing may await it."""
    return cast("asyncio.Future[Item]", future)


def goes_on(future: object, failure: str) -> bool:
    """Return whether a run whose caller leaves goes on: equal requests wait for it (`cache/`)."""
    leader_leaves: Callable[[str], bool] | None = getattr(future, "leader_leaves", None)
    return leader_leaves is not None and leader_leaves(failure)


class _Ended:
    """A future that is done and takes nothing."""

    def done(self) -> bool:
        return True

    def set_result(self, item: Item, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
    def cancel(self) -> bool:
        return False


ENDED = as_future(_Ended())
"""The future of a run that was its own future and has ended: so it refers to itself no more."""


class Submission(Protocol):
    """A request in a pipeline, as its caller holds it.

    Await `future` for the final item; a soft failure is in its `error`. Call `leave` if that wait
    ends without an answer.
    """

    future: asyncio.Future[Item]
    request_id: str

    @property
    def rows(self) -> int:
        """The rows that admission and the statistics count."""
        ...

    def visits(self) -> list[Visit]:
        """Return where the item has been: the nodes that it has passed, in order, and those where
        it queued or ran when the request ended. A batch that runs on has no end yet.
        """
        ...

    def timings(self) -> list[Stage]:
        """Return what happened at each node that the item has passed, in order."""
        ...

    def spent(self) -> tuple[float, float]:
        """Return how many seconds the request has queued and run, until its last run ended.

        Time in which one part of the request runs and another one queues counts as run.
        """
        ...

    def leave(self, failure: str = "cancelled") -> None:
        """End a request whose caller left: stop counting it, and drop it from its queues.

        Idempotent. Does nothing if the request has ended. `failure`: what it counts as, one of
        `RequestStatistics.failures`.
        """

    def drop(self) -> None:
        """Drop it from its queues. For a part of another request, which ends it."""


class Run(Entry):
    """One request, or one part of a request. A `Submission`.

    In a chain it is the entry at each node in turn. In any other graph it only states what is
    asked, and a `GraphRun` is made from it.
    """

    __slots__ = ("admission", "asked", "batch", "data", "plan_node", "rows", "stages", "trace")

    def __init__(
        self,
        item: Item,
        future: asyncio.Future[Item],
        deadline: float,
        priority: int | None = None,
        size: int = 1,
    ) -> None:
        super().__init__(item, future, deadline, priority, size)
        self.data = item["data"]
        self.plan_node: PlanNode  # where it is; set when it enters a chain
        # None: the request has ended, or it is part of another request.
        self.admission: Admission | None = None
        self.asked = size  # what it comes to a node with; `size` may differ at each node
        self.rows = size  # as admission counts them
        self.trace: Trace | None = None
        self.batch: Batch | None = None  # the last one that it ran in
        # The batches before, and when it was queued for each.
        self.stages: list[tuple[Batch, float]] | None = None

    def wait_for_turn(self, root: PlanNode, now: float) -> None:
        """Wait in front of a chain until `enter_graph`: it is a step of a sequence."""
        self.plan_node = root
        self.enqueued = now
        self.bucket = Bucket(None, root.config.priority_levels or 1)  # it may leave until then

    def enter_graph(self, now: float) -> None:
        """Enter the chain."""
        self.plan_node.node.enqueue(self, now)

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        future = self.future
        plan_node = self.plan_node
        self.batch = batch
        soft = False
        if type(outcome) is dict and "error" in outcome:
            soft = True
            as_soft_failure(outcome)
        failure = ""
        if self.charge is not None:
            self.release()
        if future.done():  # the caller left while the item ran
            failure = "cancelled"
        elif now > self.deadline:
            failure = "expired"
            future.set_exception(
                DeadlineExceeded(f"node {plan_node.name!r}: the answer came after the deadline")
            )
        elif type(outcome) is dict:
            if soft:
                failure = "soft"
            elif plan_node.follows is not None and "result" in outcome:
                # Filter `swap`: the result is the next node's data. An item without a result is
                # an answer (Break).
                outcome["data"] = outcome.pop("result")
                self.stages = [*(self.stages or ()), (batch, self.enqueued)]
                self.item = outcome
                self.size = self.asked
                self.priority = 0  # the next node need not have the levels of this one
                outflow = plan_node.outflow
                # `charge_to` without a call for small items: this is the hot path.
                if outflow is not None and (size := bytes_of(outcome)) >= SMALL_BYTES:
                    self.charge_to(outflow, size)
                self.plan_node = plan_node = plan_node.follows
                plan_node.node.enqueue(self, now)
                return
            outcome["data"] = self.data  # the caller's own
            future.set_result(outcome)
        elif outcome is None:  # its deadline came before its turn to run alone
            failure = "expired"
            future.set_exception(
                DeadlineExceeded(
                    f"node {plan_node.name!r}: the deadline passed after the batch had failed"
                )
            )
        else:
            assert isinstance(outcome, BaseException)
            failure = "failed"
            future.set_exception(outcome)
        if failure:
            plan_node.node.statistics.count(failure)
        admission = self.admission
        if admission is not None:
            self.admission = None
            requests = admission.requests
            rows = self.rows
            if failure:
                requests.fail(failure, self.came)
            else:
                requests.succeeded += 1
                requests.rows += rows
                enqueued = self.enqueued
                requests.queued += batch.started - enqueued
                if self.stages is not None:
                    requests.queued += _sums(self.stages)[0]
                    enqueued = self.stages[0][1]
                requests.seconds += now - enqueued
            door = admission.door
            door.requests -= 1
            door.rows -= rows
            if self.ticket is not None:
                self.ticket.leave(failure, now)
            elif (client := self.client) is not None:  # as `Door.forget`, without a call
                clients = door.clients
                if left := clients[client] - rows:
                    clients[client] = left
                else:
                    del clients[client]
                door.named -= rows
            if admission.draining is not None:
                admission.settle()

    def request_ticket(self) -> Ticket | None:
        if self.ticket is None and self.admission is not None:
            self.ticket = self.admission.ticket_of(self.rows, self.wanted, self.client, self.came)
        return self.ticket

    def fail(self, error: BaseException) -> None:
        self.release()
        try:
            if not self.future.done():
                self.future.set_exception(error)
        finally:  # whatever the caller's future raises, the request has ended
            self.leave(kind_of_failure(error))

    def visits(self) -> list[Visit]:
        passed = self.stages or []
        visits = [new_visit((batch.node, enqueued, batch)) for batch, enqueued in passed]
        # Each node that it has passed on the way is in `stages`. If its last batch is there too, it
        # has not passed the node where it is.
        batch = self.batch
        if batch is None or (passed and passed[-1][0] is batch):
            batch = self.plan_node.node.batch_of(self)
        node = self.plan_node.name if batch is None else batch.node
        visits.append(new_visit((node, self.enqueued, batch)))
        return visits

    def timings(self) -> list[Stage]:
        return timings_of(self.visits())

    def spent(self) -> tuple[float, float]:
        queued = computed = 0.0
        for _, wait, run, _ in self.timings():
            queued += wait
            computed += run
        return queued, computed

    @property
    def came(self) -> float:
        """The time at which the request was queued for the first time."""
        return self.enqueued if self.stages is None else self.stages[0][1]

    def leave(self, failure: str = "cancelled") -> None:
        admission = self.admission
        if admission is not None and not goes_on(self.future, failure):
            self.admission = None
            self.drop()
            self.future.cancel()
            admission.end(self.rows, self.came, failure, self.ticket, self.client)

    def drop(self) -> None:
        self.release()
        self.plan_node.node.discard(self)


class EmptyRun(Run):
    """A run that is made without its fields. `Pipeline.submit_nowait` sets them."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        __init__ = object.__init__


def timings_of(visits: Iterable[Visit]) -> list[Stage]:
    """Return the stages of the visits that have ended."""
    return [
        Stage(node, batch.started - enqueued, batch.ended - batch.started, batch.size)
        for node, enqueued, batch in visits
        if batch is not None
    ]


def _sums(stages: Iterable[tuple[Batch, float]]) -> tuple[float, float]:
    """Add up the seconds in queues and in batches."""
    queued = computed = 0.0
    for batch, enqueued in stages:
        queued += batch.started - enqueued
        computed += batch.ended - batch.started
    return queued, computed


def as_soft_failure(item: Item) -> None:
    """Turn an item with an `error` into a soft failure: no `result`, and an `InvalidInput` that
    holds no frames. One of them may hold the item.
    """
    item.pop("result", None)
    error = item["error"]
    if issubclass(type(error), InvalidInput):
        error = item["error"] = readable(error)
        forget_frames(error)
    else:
        item["error"] = InvalidInput(message_of(error))
