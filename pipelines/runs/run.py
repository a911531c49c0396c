"""One request's way through a chain of nodes; `graph_run.py` has the way through any other graph."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from penstock.backends.errors import DeadlineExceeded, InvalidInput
from penstock.backends.item import Item

from ..node.queue import Batch, Entry, Outcome
from ..node.statistics import kind_of_failure
from .admission import Admission
from .plan import PlanNode

PARTS = "_parts"
"""Key of the final item of a stream that was not read part by part: the final dicts of all its parts."""


class Stage(NamedTuple):
    """One item at one node: seconds in the queue, seconds of its batch's run, rows of that batch."""

    node: str
    queue: float
    run: float
    batch_size: int


class Answered(Protocol):
    """What a run tells how it ended: all of an `asyncio.Future` that it uses.

    Once it is done, nothing of the run that still queues is started.
    """

    def done(self) -> bool: ...
    def set_result(self, item: Item, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
    def cancel(self) -> object: ...


class Work(Protocol):
    """A request inside a pipeline, as its caller holds it. Await `future` for the final item (a soft failure is in its `error`).

    Whoever awaits it must call `leave` if that wait does not end with an answer: it drops a request whose caller is gone.
    """

    future: asyncio.Future[Item]
    request_id: str

    def timings(self) -> list[Stage]:
        """What happened at each node the item has passed, in order."""
        ...

    def spent(self) -> tuple[float, float]:
        """Seconds in which nothing of the request ran, and in which something did, until the last run's end."""
        ...

    def leave(self) -> None:
        """The request is over, or its caller has gone: stop counting it, and drop it from where it queues. Idempotent."""

    def drop(self) -> None:
        """Drop it from where it queues; for what is part of another request, whose end ends it."""


class Run(Entry):
    """One request in a chain: the entry of whichever node it is at. A `Work`."""

    __slots__ = ("admission", "batch", "data", "plan_node", "stages")

    def __init__(  # noqa: PLR0917
        self,
        item: Item,
        future: asyncio.Future[Item],
        deadline: float,
        priority: int | None,
        size: int,
        admission: Admission | None,
        plan_node: PlanNode,
        request_id: str = "",
    ) -> None:
        # Entry's fields are set here, not by a call: this is the hot path.
        self.item = item
        self.future = future
        self.deadline = deadline
        self.wanted = priority
        self.priority = 0
        self.size = size
        self.request_id = request_id
        self.data = item["data"]
        self.plan_node = plan_node
        self.admission = admission  # None: the request has ended, or is part of another one
        self.batch: Batch | None = None  # the last one it ran in
        self.stages: list[tuple[Batch, float]] | None = (
            None  # the ones before, and when it was queued for each
        )

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        future = self.future
        plan_node = self.plan_node
        self.batch = batch
        failure = ""
        if future.done():  # the caller left while the item ran
            failure = "cancelled"
        elif now > self.deadline:
            failure = "expired"
            future.set_exception(
                DeadlineExceeded(f"node {plan_node.name!r}: the answer came after the deadline")
            )
        elif type(outcome) is dict:
            if "error" in outcome:
                failure = "soft"
                as_soft_failure(outcome)
            elif plan_node.follows is not None and "result" in outcome:
                # filter `swap`: the result is the next node's data. An item without a result has its answer (Break).
                outcome["data"] = outcome.pop("result")
                self.stages = [*(self.stages or ()), (batch, self.enqueued)]
                self.item = outcome
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
            if failure:
                requests.fail(failure, self.came)
            else:
                requests.succeeded += 1
                requests.rows += self.size
                enqueued = self.enqueued
                requests.queued += batch.started - enqueued
                if (stages := self.stages) is not None:
                    requests.queued += _sums(stages)[0]
                    enqueued = stages[0][1]
                requests.seconds += now - enqueued
            admission.inside -= 1
            admission.rows -= self.size
            if admission.draining is not None:
                admission.settle()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
        self._leave(kind_of_failure(error))

    def timings(self) -> list[Stage]:
        """What happened at each node the item has passed, in order."""
        stages = self.stages or []
        if self.batch is not None:
            stages = [*stages, (self.batch, self.enqueued)]
        return [
            Stage(batch.node, batch.started - queued, batch.ended - batch.started, batch.size)
            for batch, queued in stages
        ]

    def spent(self) -> tuple[float, float]:
        queued, computed = _sums(self.stages or ())
        if (batch := self.batch) is not None:
            queued += batch.started - self.enqueued
            computed += batch.ended - batch.started
        return queued, computed

    @property
    def came(self) -> float:
        """When it was queued for the first time."""
        return self.enqueued if self.stages is None else self.stages[0][1]

    def leave(self) -> None:
        self._leave("cancelled")

    def _leave(self, failure: str) -> None:
        admission = self.admission
        if admission is not None:
            self.admission = None
            admission.requests.fail(failure, self.came)
            self.drop()
            self.future.cancel()
            admission.leave(self.size)

    def drop(self) -> None:
        self.plan_node.node.discard(self)


def _sums(stages: Iterable[tuple[Batch, float]]) -> tuple[float, float]:
    """Seconds in queues and in batches, of nodes one after another."""
    queued = computed = 0.0
    for batch, enqueued in stages:
        queued += batch.started - enqueued
        computed += batch.ended - batch.started
    return queued, computed


def as_soft_failure(item: Item) -> None:
    """A backend has set `error`: no result, and an error of the kind that callers expect."""
    item.pop("result", None)
    if not isinstance(item["error"], InvalidInput):
        item["error"] = InvalidInput(str(item["error"]))
