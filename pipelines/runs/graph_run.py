"""One request's way through a graph: filters, joins, several successors. All of it on the loop; chains use `Run`.

A request is at several nodes at once; each of these is a `Visit`, the entry at that node. All share the request's future: once it
is done (an answer, a failure, Break, a caller that left), what still queues is dropped, and what runs ends unheard.
"""

from __future__ import annotations

import asyncio
from collections import deque

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput, PenstockError
from penstock.backends.expressions.filters import Status
from penstock.backends.item import Item

from ..node.queue import Batch, Entry, Outcome
from ..node.statistics import covered, kind_of_failure
from .admission import Admission
from .plan import EntryPoint, PlanNode
from .run import Stage, as_soft_failure
from .trace import Trace


class Visit(Entry):
    """A request at one node of the plan."""

    __slots__ = ("plan_node", "run")

    def __init__(self, run: GraphRun, plan_node: PlanNode, item: Item) -> None:
        super().__init__(item, run.future, run.deadline, run.priority, run.size)
        self.request_id = run.request_id
        self.run = run
        self.plan_node = plan_node

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        run, plan_node = self.run, self.plan_node
        count = plan_node.node.statistics.count
        if self not in run.visits:  # it was dropped while it ran
            count("cancelled")
            return
        del run.visits[self]
        run.stages.append((plan_node.name, self.enqueued, batch))
        if run.trace is not None:
            run.trace.ran(plan_node.name, self.enqueued, batch, outcome)
        if run.future.done():
            count("cancelled")
        elif now > self.deadline:
            count("expired")
            run.fail(
                DeadlineExceeded(f"node {plan_node.name!r}: the answer came after the deadline")
            )
        elif type(outcome) is dict:
            if "error" in outcome:
                count("soft")
                as_soft_failure(outcome)
            run.advance(plan_node, outcome, now)
        elif outcome is None:
            count("expired")
            run.fail(
                DeadlineExceeded(
                    f"node {plan_node.name!r}: the deadline passed after the batch had failed"
                )
            )
        else:
            assert isinstance(outcome, BaseException)
            count("failed")
            run.fail(outcome)

    def fail(self, error: BaseException) -> None:
        if self in self.run.visits:
            del self.run.visits[self]
            self.run.fail(error)


class GraphRun:
    """A request in a graph. A `Work` (run.py)."""

    __slots__ = (
        "admission", "came", "data", "deadline", "entry_point", "future", "item", "leaves", "outputs", "priority", "request_id", "size",
        "stages", "trace", "visits", "waiting",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        item: Item,
        future: asyncio.Future[Item],
        deadline: float,
        priority: int | None,
        size: int,
        admission: Admission | None,
        entry_point: EntryPoint,
        trace: Trace | None = None,
    ) -> None:
        self.item = item
        self.data = item["data"]
        self.future = future
        self.deadline = deadline
        self.priority = priority
        self.size = size
        self.request_id = ""
        self.admission = admission  # None: the request has ended, or is part of another one
        self.entry_point = entry_point
        self.trace = trace
        self.waiting = (
            entry_point.waiting.copy()
        )  # how many of its predecessors have not passed it anything yet
        self.leaves = entry_point.leaves  # that have not been passed yet
        self.outputs: dict[PlanNode, Item] = {}  # what left the nodes that some `map` reads
        self.visits: dict[Visit, None] = {}
        self.stages: list[tuple[str, float, Batch]] = []
        self.came = 0.0

    @property
    def ended(self) -> bool:
        """What follows need not run."""
        return self.future.done()

    def start(self, now: float) -> None:
        self.came = now
        if self.trace is not None:
            self.trace.came(self.entry_point.root.name, self.item)
        self._run(self.entry_point.root, self.item, now)

    def _run(self, plan_node: PlanNode, item: Item, now: float) -> None:
        visit = Visit(self, plan_node, item)
        self.visits[visit] = None
        plan_node.node.enqueue(visit, now)

    def advance(self, plan_node: PlanNode, item: Item, now: float) -> None:
        """`item` has left `plan_node`: give it to what follows, through filters and skips, until all of it queues, waits or has ended."""
        edges: deque[tuple[PlanNode, Item]] = deque()  # not recursion: a chain of skips may be long
        self._leave((plan_node,), item, edges)
        waiting = self.waiting
        while edges and not self.ended:
            plan_node, item = edges.popleft()
            waiting[plan_node] -= 1
            if not waiting[plan_node]:
                try:
                    self._arrive(plan_node, item, edges, now)
                except InvalidInput as error:  # a soft failure, wherever it is found
                    self.succeed({**self.item, "error": error})
                except PenstockError as error:
                    self.fail(error)
                except BaseException as error:  # a filter's; also CancelledError: it is no cancellation of this callback
                    failure = BackendError(
                        f"node {plan_node.name!r}: its filter {plan_node.filter_name} raised {type(error).__name__}: {error}"
                    )
                    failure.__cause__ = error
                    self.fail(failure)

    def _leave(
        self, plan_nodes: tuple[PlanNode, ...], item: Item, edges: deque[tuple[PlanNode, Item]]
    ) -> None:
        """The item has left these nodes together. What leads from one of them to another carries nothing."""
        for plan_node in plan_nodes:
            if self.trace is not None and plan_node is not plan_nodes[0]:
                self.trace.skipped(plan_node.name, plan_nodes[0].name)
            if plan_node.kept:
                self.outputs[plan_node] = item
            if not plan_node.next:
                self._pass_leaf(item)
            for following in plan_node.next:
                if following not in plan_nodes:
                    edges.append((following, item))

    def _arrive(
        self, plan_node: PlanNode, item: Item, edges: deque[tuple[PlanNode, Item]], now: float
    ) -> None:
        """All that comes before has passed its item: ask the filter."""
        # A copy each: successors must not see each other's changes, and `map` none at all.
        item = item.copy() if plan_node.sources is None else self._mapped(plan_node)
        try:
            status = plan_node.filter(item)
        except BackendError as error:
            raise BackendError(f"node {plan_node.name!r}: {error}") from error
        if self.trace is not None:
            self.trace.came(
                plan_node.name,
                item,
                plan_node.filter_name,
                status.value if isinstance(status, Status) else repr(status),
            )
        if status is Status.RUN:
            item.pop(
                "result", None
            )  # what an earlier node has answered, or failed with, is not this one's answer
            item.pop("error", None)
            self._run(plan_node, item, now)
        elif status is Status.SKIP:
            self._leave((plan_node,), item, edges)
        elif status is Status.SERIAL_SKIP:
            self._leave(plan_node.serial, item, edges)
        elif status is Status.SUBGRAPH_SKIP:
            self._leave(plan_node.owned, item, edges)
        elif status is Status.BREAK:
            self.succeed(item)
        elif status is Status.ERROR:
            raise BackendError(
                f"node {plan_node.name!r}: its filter {plan_node.filter_name} says Error"
            )
        else:
            raise BackendError(
                f"node {plan_node.name!r}: its filter {plan_node.filter_name} answered {status!r}, expected a penstock.Status"
            )

    def _mapped(self, plan_node: PlanNode) -> Item:
        """The dict that `map` makes: what it names, and `context`."""
        item: Item = {}
        for source, pairs in plan_node.sources or ():
            output = self.outputs[source]
            if "context" in output:
                item["context"] = output["context"]
            for key, name in pairs:
                if key not in output:
                    if isinstance(output.get("error"), InvalidInput):
                        raise output["error"]  # why there is none
                    found = ", ".join(sorted(map(str, output)))
                    raise BackendError(
                        f"node {plan_node.name!r}: its map takes {key!r} of node {source.name!r}, which left only {found}"
                    )
                item[name] = output[key]
        return item

    def _pass_leaf(self, item: Item) -> None:
        self.leaves -= 1
        if self.leaves == 0:
            if self.entry_point.leaves > 1:  # no leaf's result is more the answer than another's
                item = {
                    key: value for key, value in self.item.items() if key not in ("result", "error")
                }
            self.succeed(item)

    def succeed(self, item: Item) -> None:
        """The answer is there, by the last leaf or by Break."""
        if self.future.done():
            return
        if "error" in item:  # a filter may have set it
            as_soft_failure(item)
        item["data"] = self.data  # the caller's own
        self._end("soft" if "error" in item else "")
        self.future.set_result(item)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self._end(kind_of_failure(error))
            self.future.set_exception(error)

    def leave(self) -> None:
        if self.admission is not None:
            self._end("cancelled")
            self.future.cancel()

    def drop(self) -> None:
        """Drop what still queues."""
        for visit in list(self.visits):
            visit.plan_node.node.discard(visit)
        self.visits.clear()
        self.outputs.clear()

    def _end(self, failure: str) -> None:
        """`failure`: as `RequestStatistics` calls it; "" for a good end."""
        self.drop()
        admission = self.admission
        if admission is not None:
            self.admission = None
            if not failure:
                admission.requests.spend(*self.spent())
            admission.end(self.size, self.came, failure)

    def spent(self) -> tuple[float, float]:
        """Count the time in which several nodes are at work once."""
        ran = covered((batch.started, batch.ended) for _, _, batch in self.stages)
        return covered((queued, batch.ended) for _, queued, batch in self.stages) - ran, ran

    def timings(self) -> list[Stage]:
        return [
            Stage(name, batch.started - queued, batch.ended - batch.started, batch.size)
            for name, queued, batch in self.stages
        ]
