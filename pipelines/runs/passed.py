"""Requests whose first nodes have run in a front process: what crosses, and how they go on here.

A front process has a pipeline of the front nodes alone (`front_table.py`). What comes of a request
there crosses as a `Passed`. The `Entrance` of the whole pipeline admits it as if its front nodes
had run here, and lets it go on behind them, or ends it.
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from penstock.backends.errors import DeadlineExceeded, PenstockError
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import is_array, np
from penstock.backends.process.failure import Failure

from ..node.queue import NO_ENTRIES, NO_OUTCOMES, Batch, BatchStart, Bucket, Visit
from ..node.statistics import kind_of_failure
from ..trace_context import TraceContext
from .admission import Admission
from .graph_run import GraphRun
from .plan import EntryPoint, PlanNode
from .run import Run, Submission

KEPT_BATCHES = 64
"""The most batches of front processes that are kept, so that the requests of one share it."""

REFUSALS = frozenset({"queue_full", "overloaded"})
"""The codes of errors by which a front process refuses a request for load."""


PassedBatch: TypeAlias = tuple[
    float, float, int, int | None, bool, tuple[Any, ...] | None, tuple[tuple[str, float], ...]
]
"""A batch that ran in a front process: `started`, `ended`, `size`, `alone`, `hung`, `start` and
`pieces` of the `Batch`."""

PassedVisits: TypeAlias = tuple[tuple[float, PassedBatch | None], ...]
"""For each node: when a request was queued there, and its batch, if it has run."""


class Passed(NamedTuple):
    """A request that has passed front nodes, or ended there. Times are of `time.monotonic()`.

    `token`: of the loaded pipeline (`Pipeline.token`). `front`: the number of the front process.
    `deadline`: of the request; `timed`: its client has set it. `visits`: for each front node that
    it came to, when it was queued and its batch; no batch: it ended while it queued. `item`: as it
    left the last of them, without `data`; None if none came out. `failure`: why it failed, with the
    `retry_after` and `logged` of the error. With an item it is a soft failure, the item's `error`.
    `left`: its client has left.
    """

    token: str
    front: int
    request_id: str
    deadline: float
    timed: bool
    visits: PassedVisits
    failure: Failure | None = None
    retry_after: int | None = None
    logged: bool = False
    left: bool = False
    item: Item | None = None

    def with_error(self, error: BaseException) -> Passed:
        """Return the same for a request that fails with `error`."""
        retry_after, logged = None, False
        if isinstance(error, PenstockError):
            retry_after, logged = error.retry_after, error.logged
        return self._replace(failure=Failure.of(error), retry_after=retry_after, logged=logged)

    def error(self) -> BaseException | None:
        """Return the exception that the request failed with."""
        if self.failure is None:
            return None
        error = self.failure.rebuild(f"front process {self.front}")
        if isinstance(error, PenstockError):
            if self.retry_after is not None:
                error.retry_after = self.retry_after
            if self.logged:
                error.logged = True
        return error


def visits_to_pass(
    visits: Sequence[Visit], front: int
) -> tuple[tuple[float, PassedBatch | None], ...]:
    """Return the visits of a request in a front process as they cross."""
    return tuple([(enqueued, _passed_batch(batch, front)) for _, enqueued, batch in visits])


def _passed_batch(batch: Batch | None, front: int) -> PassedBatch | None:
    if batch is None:
        return None
    start: tuple[Any, ...] | None = batch.start
    if start is not None:  # as plain tuples: named ones take longer to pickle
        name, _, instance = start[0].rpartition("#")
        start = (f"{name} in front {front}#{instance}", *start[1:])
    ended = batch.ended
    if ended <= batch.started:  # it runs on: the client has left
        ended = monotonic()
    return batch.started, ended, batch.size, batch.alone, batch.hung, start, batch.pieces


def pack(passed: Passed) -> tuple[bytes, list[memoryview]]:
    """Pickle a request. Its large arrays stay outside, each a flat view of its bytes.

    Raises what pickling raises: an item may hold anything.
    """
    buffers: list[memoryview] = []

    def leave_out(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # not contiguous
            return True
        return False

    item = passed.item
    arrays: list[tuple[Any, str, tuple[int, ...]]] = []
    views: list[memoryview] = []
    if item is not None:
        # Pickle can do it too, but takes ten times as long, and most results are such arrays.
        for key, value in item.items():
            if is_array(value) and _is_plain(value):
                arrays.append((key, value.dtype.str, value.shape))
                views.append(value.data.cast("B"))
        if arrays:
            outside = {key for key, _, _ in arrays}
            item = {key: value for key, value in item.items() if key not in outside}
    # A plain tuple: a named one takes longer.
    fields = (*passed[:-1], item)
    return pickle.dumps((fields, arrays), 5, buffer_callback=leave_out), buffers + views


def _is_plain(array: np.ndarray[Any, Any]) -> bool:
    """Return whether an array is no more than numbers of one of C's types, one after the other."""
    dtype = array.dtype
    return (
        type(array) is np.ndarray
        and dtype.kind in "biuf"
        and dtype.itemsize <= 8
        and dtype.isnative
        and array.size > 0
        and array.flags.c_contiguous
    )


def unpack(payload: bytes, buffers: Sequence[bytes | bytearray | memoryview] = ()) -> Passed:
    """Make a request again. Its arrays are views of the buffers."""
    left = iter(buffers)
    fields, arrays = pickle.loads(payload, buffers=left)
    passed = Passed._make(fields)
    if passed.item is not None:
        for (key, dtype, shape), buffer in zip(arrays, left, strict=True):
            passed.item[key] = np.frombuffer(buffer, dtype).reshape(shape)
    return passed


class Entrance:
    """The way into a pipeline behind its front nodes, for requests that have passed these.

    `nodes` are the front nodes, a chain from the root of `entry_point`. All of this runs on the
    loop.
    """

    def __init__(
        self,
        nodes: tuple[PlanNode, ...],
        entry_point: EntryPoint,
        admission: Admission,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._nodes = nodes
        self._entry_point = entry_point
        self._admission = admission
        self._loop = loop
        self._clock = clock
        self._context = contextvars.Context()  # what runs later inherits nothing of a request
        self._batches: OrderedDict[tuple[object, ...], Batch] = OrderedDict()

    def submit(  # noqa: PLR0917  as `Pipeline.submit_passed`
        self,
        passed: Passed,
        priority: int | None,
        future: asyncio.Future[Item],
        request_id: str,
        run: Run,
        client: Hashable,
        context: TraceContext | None,
    ) -> Submission:
        """Admit a request and let it go on. Raises `QueueFull` and `Overloaded`."""
        admission, now = self._admission, self._clock()
        error = passed.error()
        if isinstance(error, PenstockError) and error.code in REFUSALS and not passed.visits:
            admission.count_refusal(error.code, priority, now)
            raise error
        batches = [
            (node, enqueued, batch and self._batch(node.name, batch, passed.front))
            for node, (enqueued, batch) in zip(self._nodes, passed.visits, strict=False)
        ]
        last, enqueued, batch = batches[-1]
        goes_on = (
            error is None
            and not passed.left
            and len(batches) == len(self._nodes)
            and bool(last.next)
            and now <= passed.deadline
        )
        came = batches[0][1]
        ticket = None
        if not passed.timed and admission.door.rows < admission.room:
            if client is not None:
                admission.door.count(client, 1)
        else:
            if goes_on:
                timeout = passed.deadline - now if passed.timed else None
                admission.check(1, timeout, priority, client, now)
            timeout = passed.deadline - came if passed.timed else None
            ticket = admission.ticket(1, timeout, priority, client, came)
        admission.door.requests += 1
        admission.door.rows += 1
        item: Item = {} if passed.item is None else passed.item
        Run.__init__(run, {**item, "data": b""}, future, passed.deadline, priority)
        run.request_id, run.context, run.client = request_id, context, client
        run.ticket, run.admission = ticket, admission
        done = [(each, at) for _, at, each in batches if each is not None]
        if goes_on and self._entry_point.linear:
            if "result" in item:
                run.stages, run.batch = done, done[-1][0]
                item["data"] = item.pop("result")
                run.item = item
                assert last.follows is not None
                run.plan_node = last.follows
                run.plan_node.node.enqueue(run, now)
                return run
            goes_on = False  # Break
        if goes_on:
            graph_run = GraphRun(run, self._entry_point, came)
            graph_run.item = {"data": b""}
            graph_run.stages = [(node.name, at, each) for node, at, each in batches if each]
            self._soon(self._advance, graph_run, last, item)
            return graph_run
        run.plan_node, run.enqueued = last, enqueued
        run.bucket = Bucket(None, last.config.priority_levels or 1)  # it may leave until it ends
        run.stages, run.batch = done[:-1] or None, done[-1][0] if done else None
        if batch is None:
            run.stages = done or None
        if passed.left:
            self._soon(run.leave)
        elif error is None:
            self._soon(_succeed, run, {**item, "data": run.data}, self._clock)
        elif passed.item is not None:
            self._soon(_succeed, run, {**item, "data": run.data, "error": error}, self._clock)
        else:
            self._soon(_fail, run, error, self._clock)
        return run

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function in the next iteration: nothing ends a request before it is submitted."""
        self._loop.call_soon(partial(function, *arguments), context=self._context)

    def _advance(self, run: GraphRun, last: PlanNode, item: Item) -> None:
        run.advance(last, item, self._clock())

    def _batch(self, node: str, passed: PassedBatch, front: int) -> Batch:
        """Return the batch that ran in a front process, the same for all requests of it."""
        started, ended, size, alone, hung, start, pieces = passed
        key = node, front, started, ended, size
        if size > 1 and (known := self._batches.get(key)) is not None:
            return known
        batch = Batch(node, None, [], size, started)
        batch.entries, batch.outcomes = NO_ENTRIES, NO_OUTCOMES
        batch.ended, batch.alone, batch.hung, batch.begun = ended, alone, hung, True
        if start is not None:
            batch.start = BatchStart._make(start)
        if pieces:
            batch.pieces = pieces
        if size > 1:
            self._batches[key] = batch
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        return batch


def _succeed(run: Run, item: Item, clock: Callable[[], float]) -> None:
    """End a request with an answer that the front nodes gave, or with a soft failure."""
    if clock() > run.deadline:
        _fail(
            run,
            DeadlineExceeded(f"node {run.plan_node.name!r}: the answer came after the deadline"),
            clock,
        )
        return
    admission = run.admission
    if admission is None or run.future.done():  # its caller has left
        run.leave()
        return
    run.admission = None
    failure = "soft" if "error" in item else ""
    try:
        run.future.set_result(item)
    finally:
        if not failure:
            admission.requests.spend(*run.spent())
        admission.end(run.rows, run.came, failure, run.ticket, run.client)


def _fail(run: Run, error: BaseException, clock: Callable[[], float]) -> None:
    """End a request that has failed at a front node."""
    admission = run.admission
    if admission is None or run.future.done():
        run.leave()
        return
    run.admission = None
    try:
        run.future.set_exception(error)
    finally:
        admission.end(run.rows, run.came, kind_of_failure(error), run.ticket, run.client)
