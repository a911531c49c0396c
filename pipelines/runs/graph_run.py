"""One request on its way through a graph with filters, joins or branches. Chains use `Run`.

A request may be at several nodes at once. A `NodeVisit` is its entry at one of them. All share the
request's future: once that is done (an answer, a failure, Break, a caller that left), what still
queues is dropped, and the results of what runs are ignored. All of this runs on the loop.
"""

from __future__ import annotations

from collections import deque

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput, PenstockError
from penstock.backends.expressions.filters import Status
from penstock.backends.item import Item
from penstock.backends.process.failure import readable
from penstock.backends.text import message_of, repr_of

from ..node.outflow import Outflow, bytes_of, bytes_of_all
from ..node.queue import Batch, Entry, Outcome, Visit
from ..node.statistics import covered, kind_of_failure
from ..overload.ticket import Ticket
from .plan import EntryPoint, PlanNode
from .run import Run, Stage, as_soft_failure, goes_on, new_visit, timings_of


class NodeVisit(Entry):
    """A request at one node of the plan."""

    __slots__ = ("outflow", "plan_node", "run")

    def __init__(
        self, run: GraphRun, plan_node: PlanNode, item: Item, outflow: Outflow | None
    ) -> None:
        super().__init__(item, run.future, run.deadline, run.priority, run.size)
        self.request_id = run.request_id
        self.context = run.context
        self.client = run.client
        self.ticket = run.ticket
        self.run = run
        self.plan_node = plan_node
        self.outflow = outflow  # of the node that it comes from

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        run, plan_node = self.run, self.plan_node
        count = plan_node.node.statistics.count
        self.release()
        soft = False
        if type(outcome) is dict and "error" in outcome:
            soft = True
            as_soft_failure(outcome)
        if self not in run.entries:  # dropped while it ran
            count("cancelled")
            return
        del run.entries[self]
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
            if soft:
                count("soft")
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

    def request_ticket(self) -> Ticket | None:
        self.ticket = ticket = self.run.request_ticket()
        return ticket

    def fail(self, error: BaseException) -> None:
        self.release()
        if self in self.run.entries:
            del self.run.entries[self]
            self.run.note_dropped(self)
            self.run.fail(error)


class GraphRun:
    """A request in a graph. A `Submission`."""

    __slots__ = (
        "__weakref__",
        "admission",
        "came",
        "client",
        "context",
        "data",
        "deadline",
        "dropped",
        "entries",
        "entry_point",
        "future",
        "item",
        "leaves",
        "outputs",
        "priority",
        "request_id",
        "rows",
        "size",
        "stages",
        "ticket",
        "trace",
        "waiting",
    )

    def __init__(self, run: Run, entry_point: EntryPoint, came: float) -> None:
        self.item = run.item
        self.data = run.data
        self.future = run.future
        self.deadline = run.deadline
        self.priority = run.wanted
        self.size = run.size
        self.rows = run.rows
        self.request_id = run.request_id
        self.context = run.context
        # None: the request has ended, or it is part of another request.
        self.admission = run.admission
        self.client = run.client
        self.ticket = run.ticket
        self.trace = run.trace
        self.entry_point = entry_point
        # For each node, how many of its predecessors have not passed it anything yet.
        self.waiting = entry_point.waiting.copy()
        self.leaves = entry_point.leaves  # how many have not been passed yet
        self.outputs: dict[PlanNode, Item] = {}  # what left the nodes that some `map` reads
        self.entries: dict[NodeVisit, None] = {}
        self.stages: list[tuple[str, float, Batch]] = []
        self.dropped: list[Visit] = []  # what had not ended when the request did
        self.came = came

    @property
    def ended(self) -> bool:
        """True if the nodes that follow need not run."""
        return self.future.done()

    def request_ticket(self) -> Ticket | None:
        """Return the ticket of the request, as `Entry.request_ticket` does."""
        if self.ticket is None and self.admission is not None:
            self.ticket = self.admission.ticket_of(self.rows, self.priority, self.client, self.came)
        return self.ticket

    def enter_graph(self, now: float) -> None:
        """Queue the request at its entry point."""
        self.came = now
        if self.trace is not None:
            self.trace.came(self.entry_point.root.name, self.item)
        self._run(self.entry_point.root, self.item, now, None)

    def _run(self, plan_node: PlanNode, item: Item, now: float, outflow: Outflow | None) -> None:
        visit = NodeVisit(self, plan_node, item, outflow)
        self.entries[visit] = None
        if outflow is not None:
            # What later nodes map is held meanwhile, whichever node the item queues at.
            outputs = self.outputs
            visit.charge_to(
                outflow, bytes_of_all((item, *outputs.values())) if outputs else bytes_of(item)
            )
        plan_node.node.enqueue(visit, now)

    def advance(self, plan_node: PlanNode, item: Item, now: float) -> None:
        """Pass an item that has left `plan_node` to the nodes that follow.

        Applies filters and skips, until all of the item queues, waits or has ended.
        """
        # A queue, not recursion: a chain of skips may be long.
        edges: deque[tuple[PlanNode, Item]] = deque()
        left, result, entries = plan_node, item, len(self.entries)
        self._leave((plan_node,), item, edges)
        waiting = self.waiting
        while edges and not self.ended:
            plan_node, item = edges.popleft()
            waiting[plan_node] -= 1
            if not waiting[plan_node]:
                try:
                    self._arrive(plan_node, item, edges, now, left.outflow)
                except InvalidInput as error:  # a soft failure of the whole request
                    self.succeed({**self.item, "error": error})
                except PenstockError as error:
                    self.fail(readable(error))
                except BaseException as error:
                    # A filter raised it. That includes CancelledError, which cancels nothing here:
                    # this is not a task.
                    self.fail(_filter_failure(plan_node, readable(error)))
        if left.kept and 0 < len(self.entries) == entries and left.outflow is not None:
            self._wait_at_join(result)

    def _wait_at_join(self, item: Item) -> None:
        """Count a result that waits for the request's other branches where one of them is."""
        size = bytes_of(item)
        for visit in self.entries:
            if visit.outflow is not None:
                if visit.charge is not None:
                    size += visit.charge[1]
                    visit.release()
                visit.charge_to(visit.outflow, size)
                return

    def _leave(
        self, plan_nodes: tuple[PlanNode, ...], item: Item, edges: deque[tuple[PlanNode, Item]]
    ) -> None:
        """Record that the item has left these nodes together, and collect the edges it takes.

        An edge from one of them to another carries nothing.
        """
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
        self,
        plan_node: PlanNode,
        item: Item,
        edges: deque[tuple[PlanNode, Item]],
        now: float,
        outflow: Outflow | None,
    ) -> None:
        """Ask the filter of a node whose predecessors have all passed their items."""
        # Each successor gets a copy, so that none sees the changes of another.
        item = item.copy() if plan_node.sources is None else self._mapped(plan_node)
        try:
            status = plan_node.filter(item)
        except BackendError as error:
            raise BackendError(f"node {plan_node.name!r}: {message_of(error)}") from error
        if self.trace is not None:
            self.trace.came(
                plan_node.name,
                item,
                plan_node.filter_name,
                status.value if isinstance(status, Status) else repr_of(status),
            )
        if status is Status.RUN:
            # The answer or error of an earlier node is not this one's.
            item.pop("result", None)
            item.pop("error", None)
            self._run(plan_node, item, now, outflow)
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
                f"node {plan_node.name!r}: its filter {plan_node.filter_name} returned Error"
            )
        else:
            raise BackendError(
                f"node {plan_node.name!r}: its filter {plan_node.filter_name} returned "
                f"{repr_of(status)}: expected a penstock.Status"
            )

    def _mapped(self, plan_node: PlanNode) -> Item:
        """Make the item that `map` describes: the keys that it names, and `context`."""
        item: Item = {}
        for source, pairs in plan_node.sources or ():
            output = self.outputs[source]
            if "context" in output:
                item["context"] = output["context"]
            for key, name in pairs:
                if key not in output:
                    if isinstance(output.get("error"), InvalidInput):
                        raise output["error"]  # the reason why the key is missing
                    keys = ", ".join(sorted(map(message_of, output)))
                    raise BackendError(
                        f"node {plan_node.name!r}: its map takes {key!r} from node "
                        f"{source.name!r}, which left only {keys}"
                    )
                item[name] = output[key]
        return item

    def _pass_leaf(self, item: Item) -> None:
        self.leaves -= 1
        if self.leaves == 0:
            if self.entry_point.leaves > 1:  # no leaf's result takes precedence over the others
                item = {
                    key: value for key, value in self.item.items() if key not in ("result", "error")
                }
            self.succeed(item)

    def succeed(self, item: Item) -> None:
        """End the request with an answer, from the last leaf or by Break."""
        if self.future.done():
            return
        if "error" in item:  # a filter may have set it
            as_soft_failure(item)
        item["data"] = self.data
        self._end("soft" if "error" in item else "")
        self.future.set_result(item)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self._end(kind_of_failure(error))
            self.future.set_exception(error)

    def leave(self, failure: str = "cancelled") -> None:
        if self.admission is not None and not goes_on(self.future, failure):
            self._end(failure)
            self.future.cancel()

    def drop(self) -> None:
        """Drop the request from all queues."""
        for visit in list(self.entries):
            self.note_dropped(visit)
            visit.release()
            visit.plan_node.node.discard(visit)
        self.entries.clear()
        self.outputs.clear()

    def note_dropped(self, visit: NodeVisit) -> None:
        """Note where the item was that is dropped, for `visits`."""
        self.dropped.append(_last_visit(visit))

    def _end(self, failure: str) -> None:
        """Count the end of the request. `failure`: a key of its statistics, or "" if good."""
        self.drop()
        admission = self.admission
        if admission is not None:
            self.admission = None
            if not failure:
                admission.requests.spend(*self.spent())
            admission.end(self.rows, self.came, failure, self.ticket, self.client)

    def spent(self) -> tuple[float, float]:
        # Time in which several nodes work on the request counts once.
        ran = covered((batch.started, batch.ended) for _, _, batch in self.stages)
        return covered((queued, batch.ended) for _, queued, batch in self.stages) - ran, ran

    def visits(self) -> list[Visit]:
        return [*map(new_visit, self.stages), *self.dropped, *map(_last_visit, self.entries)]

    def timings(self) -> list[Stage]:
        return timings_of(self.visits())


def _last_visit(visit: NodeVisit) -> Visit:
    """Return the visit of a node that has not ended."""
    plan_node = visit.plan_node
    return Visit(plan_node.name, visit.enqueued, plan_node.node.batch_of(visit))


def _filter_failure(plan_node: PlanNode, cause: BaseException) -> BackendError:
    failure = BackendError(
        f"node {plan_node.name!r}: its filter {plan_node.filter_name} raised "
        f"{type(cause).__name__}: {message_of(cause)}"
    )
    failure.__cause__ = cause
    return failure
