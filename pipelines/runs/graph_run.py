"""One request's way through a graph: filters, joins, several successors. All of it on the loop; chains use `Run`.

A request is at several places at once; each is a `Visit`, the entry of that place's node. All share the request's future: once it
is done (an answer, a failure, Break, a caller that left), what still queues is dropped, and what runs ends unheard.
"""

from __future__ import annotations

import asyncio
from collections import deque

from penstock.backends.errors import BackendError, DeadlineExceeded, InvalidInput, PenstockError
from penstock.backends.expressions.filters import Status
from penstock.backends.item import Item

from ..config.plan import Entrance, Place
from ..node.queue import Batch, Entry, Outcome
from ..node.statistics import covered, kind_of_failure
from .admission import Admission
from .run import Stage, as_soft_failure
from .trace import Trace


class Visit(Entry):
    """A request at one place."""

    __slots__ = ("place", "run")

    def __init__(self, run: GraphRun, place: Place, item: Item) -> None:
        super().__init__(item, run.future, run.deadline, run.priority, run.size)
        self.request_id = run.request_id
        self.run = run
        self.place = place

    def finish(self, outcome: Outcome, batch: Batch, now: float) -> None:
        run, place = self.run, self.place
        count = place.node.statistics.count
        if self not in run.visits:  # it was dropped while it ran
            count("cancelled")
            return
        del run.visits[self]
        run.stages.append((place.name, self.enqueued, batch))
        if run.trace is not None:
            run.trace.ran(place.name, self.enqueued, batch, outcome)
        if run.future.done():
            count("cancelled")
        elif now > self.deadline:
            count("expired")
            run.fail(DeadlineExceeded(f"node {place.name!r}: the answer came after the deadline"))
        elif type(outcome) is dict:
            if "error" in outcome:
                count("soft")
                as_soft_failure(outcome)
            run.advance(place, outcome, now)
        elif outcome is None:
            count("expired")
            run.fail(
                DeadlineExceeded(
                    f"node {place.name!r}: the deadline passed after the batch had failed"
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
        "admission", "came", "data", "deadline", "entrance", "future", "item", "leaves", "outputs", "priority", "request_id", "size",
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
        entrance: Entrance,
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
        self.entrance = entrance
        self.trace = trace
        self.waiting = (
            entrance.waiting.copy()
        )  # how many of its predecessors have not passed it anything yet
        self.leaves = entrance.leaves  # that have not been passed yet
        self.outputs: dict[Place, Item] = {}  # what left the places that some `map` reads
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
            self.trace.came(self.entrance.root.name, self.item)
        self._run(self.entrance.root, self.item, now)

    def _run(self, place: Place, item: Item, now: float) -> None:
        visit = Visit(self, place, item)
        self.visits[visit] = None
        place.node.enqueue(visit, now)

    def advance(self, place: Place, item: Item, now: float) -> None:
        """`item` has left `place`: give it to what follows, through filters and skips, until all of it queues, waits or has ended."""
        edges: deque[tuple[Place, Item]] = deque()  # not recursion: a chain of skips may be long
        self._leave((place,), item, edges)
        waiting = self.waiting
        while edges and not self.ended:
            place, item = edges.popleft()
            waiting[place] -= 1
            if not waiting[place]:
                try:
                    self._arrive(place, item, edges, now)
                except InvalidInput as error:  # a soft failure, wherever it is found
                    self.succeed({**self.item, "error": error})
                except PenstockError as error:
                    self.fail(error)
                except BaseException as error:  # a filter's; also CancelledError: it is no cancellation of this callback
                    failure = BackendError(
                        f"node {place.name!r}: its filter {place.filter_name} raised {type(error).__name__}: {error}"
                    )
                    failure.__cause__ = error
                    self.fail(failure)

    def _leave(
        self, places: tuple[Place, ...], item: Item, edges: deque[tuple[Place, Item]]
    ) -> None:
        """The item has left these places together. What leads from one of them to another carries nothing."""
        for place in places:
            if self.trace is not None and place is not places[0]:
                self.trace.skipped(place.name, places[0].name)
            if place.kept:
                self.outputs[place] = item
            if not place.next:
                self._pass_leaf(item)
            for following in place.next:
                if following not in places:
                    edges.append((following, item))

    def _arrive(
        self, place: Place, item: Item, edges: deque[tuple[Place, Item]], now: float
    ) -> None:
        """All that comes before has passed its item: ask the filter."""
        # A copy each: successors must not see each other's changes, and `map` none at all.
        item = item.copy() if place.sources is None else self._mapped(place)
        try:
            status = place.filter(item)
        except BackendError as error:
            raise BackendError(f"node {place.name!r}: {error}") from error
        if self.trace is not None:
            self.trace.came(
                place.name,
                item,
                place.filter_name,
                status.value if isinstance(status, Status) else repr(status),
            )
        if status is Status.RUN:
            item.pop(
                "result", None
            )  # what an earlier node has answered, or failed with, is not this one's answer
            item.pop("error", None)
            self._run(place, item, now)
        elif status is Status.SKIP:
            self._leave((place,), item, edges)
        elif status is Status.SERIAL_SKIP:
            self._leave(place.serial, item, edges)
        elif status is Status.SUBGRAPH_SKIP:
            self._leave(place.owned, item, edges)
        elif status is Status.BREAK:
            self.succeed(item)
        elif status is Status.ERROR:
            raise BackendError(f"node {place.name!r}: its filter {place.filter_name} says Error")
        else:
            raise BackendError(
                f"node {place.name!r}: its filter {place.filter_name} answered {status!r}, expected a penstock.Status"
            )

    def _mapped(self, place: Place) -> Item:
        """The dict that `map` makes: what it names, and `context`."""
        item: Item = {}
        for source, pairs in place.sources or ():
            output = self.outputs[source]
            if "context" in output:
                item["context"] = output["context"]
            for key, name in pairs:
                if key not in output:
                    if isinstance(output.get("error"), InvalidInput):
                        raise output["error"]  # why there is none
                    found = ", ".join(sorted(map(str, output)))
                    raise BackendError(
                        f"node {place.name!r}: its map takes {key!r} of node {source.name!r}, which left only {found}"
                    )
                item[name] = output[key]
        return item

    def _pass_leaf(self, item: Item) -> None:
        self.leaves -= 1
        if self.leaves == 0:
            if self.entrance.leaves > 1:  # no leaf's result is more the answer than another's
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
            visit.place.node.discard(visit)
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
        """Where several places are at work at the same time, it counts once."""
        ran = covered((batch.started, batch.ended) for _, _, batch in self.stages)
        return covered((queued, batch.ended) for _, queued, batch in self.stages) - ran, ran

    def timings(self) -> list[Stage]:
        return [
            Stage(name, batch.started - queued, batch.ended - batch.started, batch.size)
            for name, queued, batch in self.stages
        ]
