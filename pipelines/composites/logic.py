"""Python logic: a node that is a user's `async def forward(item, call)`, run as a task on the loop.

It holds no executor, so it may wait for other nodes. `await call("node", item)` queues an item
there like a request, with the deadline and the priority of the item that the logic works on. The
call ends when that item ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, overload

from penstock.backends.base import Context
from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
    Overloaded,
    PenstockError,
    QueueFull,
)
from penstock.backends.expressions.composite import Logic
from penstock.backends.item import Item
from penstock.backends.process.failure import readable
from penstock.backends.sequences.sequence import Sequence as SequenceOfItems
from penstock.backends.sequences.sequence import StepMessage
from penstock.backends.sequences.stateful import SequenceStates
from penstock.backends.text import message_of

from ..config.definition import NodeConfig, PipelineConfig
from ..node.queue import Batch, Entry, Outcome
from ..runs.graph_run import NodeVisit
from ..runs.inside import Inside
from ..runs.run import PARTS, Submission
from ..runs.stream import StreamRun
from ..sequences.step import Step, steps_of
from ..sequences.tracked import StepTicket, TrackedSequence
from .composite import CompositeNode

logger = logging.getLogger("penstock.node")

PASSED_ON = (BackendError, DeadlineExceeded, NotReady, Overloaded, QueueFull)
"""Failures of a call that are the item's failures too. Other exceptions are mistakes of the logic
itself, such as a call of a node that does not exist."""

LEAST_CLOSE_SECONDS = 1.0
"""The seconds that a logic's own `close` gets even if the pipeline may not wait any more."""


class CallFuture(asyncio.Future[Item]):
    """The future of a run that Python logic called."""

    inside: Inside


class CalledPipeline(Protocol):
    """The part of a pipeline that a `NodeCaller` needs."""

    config: PipelineConfig
    takes_sequences: bool

    @property
    def priority_levels(self) -> int:
        """The priority levels of requests that name no node; 0: it has none."""
        ...

    @property
    def streams(self) -> bool:
        """True if its answers come in parts."""
        ...

    def call(
        self,
        name: str,
        item: Any,
        future: CallFuture,
        entry: Entry,
        *,
        timeout: float | None,
        priority: int | None,
        sequence: Step | None,
    ) -> Submission:
        """Start a run on behalf of `entry`.

        Raises what the call of a pipeline raises at once, and `NotFound`.
        """
        ...

    def other(self, name: str, version: str = "") -> CalledPipeline:
        """Return another pipeline of the repository. Raises `NotFound`, `NotReady`."""
        ...

    def call_other(
        self,
        called: Any,
        item: Item,
        future: CallFuture,
        entry: Entry,
        *,
        priority: int | None,
        sequence: Step | None,
    ) -> Submission:
        """Start a request of another pipeline on behalf of `entry`.

        Raises what the call of a pipeline raises at once.
        """
        ...


class NodeCaller:
    """Calls other nodes and pipelines on behalf of one item.

    ```python
    async def forward(item, call):
        boxes = await call("detect", {"data": item["data"]})
        words = await asyncio.gather(*[call("read", {"data": crop}) for crop in boxes["result"]])
        return [word["result"] for word in words]
    ```
    """

    __slots__ = (
        "_calls",
        "_ended",
        "_entry",
        "_inside",
        "_loop",
        "_note",
        "_pipeline",
        "_submissions",
    )

    def __init__(
        self,
        pipeline: CalledPipeline,
        entry: Entry,
        inside: Inside,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[int, Submission], None] | None = None,
    ) -> None:
        """`note`: called with the number of each call that ends, from 0 on, and its run."""
        self._inside = inside
        self._note = note
        self._calls = 0
        self._ended = False
        self._submissions: dict[Submission, int] = {}  # those that have not ended; which call
        self._pipeline = pipeline
        self._entry = entry
        self._loop = loop

    @property
    def request_id(self) -> str:
        """The id of the request, which logs and answers have; "" for a request from Python."""
        return self._entry.request_id

    @property
    def priority(self) -> int | None:
        """The priority of the request, 1 is the highest; None if it names none."""
        return self._entry.wanted

    @property
    def traceparent(self) -> str:
        """The header of this name for what the logic calls itself; "" if the request is in no
        trace. Calls of nodes and pipelines pass it on.
        """
        context = self._entry.context
        return "" if context is None else context.traceparent

    @property
    def tracestate(self) -> str:
        """The header that goes with `traceparent`, "" for none."""
        context = self._entry.context
        return "" if context is None else context.tracestate

    @property
    def deadline(self) -> float:
        """The deadline of the request, in seconds of `time.monotonic()`."""
        return self._entry.deadline

    @overload
    async def __call__(
        self,
        name: str,
        item: Mapping[str, Any],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Item: ...
    @overload
    async def __call__(
        self,
        name: str,
        item: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> list[Item]: ...
    async def __call__(
        self,
        name: str,
        item: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Item | list[Item]:
        """Run an item, or a list of items as one call, through a graph. Return new dicts.

        `name`: a node of this pipeline (the item enters there, so its filter and `map` don't
        apply), another pipeline, or a node of another one (`pipeline/node`). A graph that streams
        returns the list of its parts. `timeout`: seconds, at most until the deadline of the
        request. `priority`: 1 is the highest; that of the request if it is not given. `sequence`,
        `sequence_start`, `sequence_end`: as in the call of a `Pipeline`, for another pipeline. A
        node of this one takes part in the sequence of the request.

        Raises what `await pipeline(item)` raises: `InvalidInput` for a soft failure (in a list it
        stays with its item, as `error`), `NotFound`, `MissingData`, `DeadlineExceeded`,
        `BackendError`.
        """
        if type(item) is not dict and isinstance(item, (list, tuple)):
            steps = steps_of(len(item), sequence, sequence_start, sequence_end)
            return await self._call_many(name, item, timeout, priority, steps)
        (step,) = steps_of(1, sequence, sequence_start, sequence_end)
        submission = self._start(name, item, timeout, priority, step)
        try:
            answer = await submission.future
        finally:
            self.end(submission)
        if "error" in answer:
            raise answer["error"]
        parts: list[Item] | None = answer.get(PARTS)
        return answer if parts is None else parts

    async def _call_many(
        self,
        name: str,
        items: Sequence[Mapping[str, Any]],
        timeout: float | None,
        priority: int | None,
        steps: Sequence[Step | None],
    ) -> list[Item]:
        submissions: list[Submission] = []
        try:
            for item, step in zip(items, steps, strict=True):
                # Not a comprehension: if one is refused, those before it are left.
                submissions.append(self._start(name, item, timeout, priority, step))
            answers: list[Item] = await asyncio.gather(
                *[submission.future for submission in submissions]
            )
            return [answer.get(PARTS, answer) for answer in answers]
        finally:
            for submission in submissions:
                self.end(submission)

    @property
    def unended(self) -> list[Submission]:
        """The calls that have not ended."""
        return [*self._submissions]

    def drop(self) -> None:
        """End the calls that the logic did not wait for, and refuse new ones: it has ended."""
        self._ended = True
        for submission in list(self._submissions):
            self.end(submission)

    def end(self, submission: Submission) -> None:
        """End a call that was started, whether its answer has come or not."""
        number = self._submissions.pop(submission, None)
        future = submission.future
        if not future.done() or future.cancelled():
            future.cancel()
            submission.drop()
        else:
            future.exception()  # retrieved: one of several calls may have failed before
        submission.leave()
        if self._note is not None and number is not None:
            self._note(number, submission)

    def _start(
        self,
        name: str,
        item: Any,
        timeout: float | None,
        priority: int | None,
        step: Step | None,
    ) -> Submission:
        if self._ended:
            raise RuntimeError(
                f"the request has ended: its `call` can't be used any more (call({name!r}, ...))"
            )
        submission = self._pipeline.call(
            name,
            item,
            self._future(),
            self._entry,
            timeout=timeout,
            priority=priority,
            sequence=step,
        )
        return self._started(submission)

    def start_other(
        self, called: CalledPipeline, item: Item, priority: int | None, step: Step | None
    ) -> Submission:
        """Start a request of another pipeline. `end` has to be called for it.

        Raises what the call of a pipeline raises at once.
        """
        submission = self._pipeline.call_other(
            called, item, self._future(), self._entry, priority=priority, sequence=step
        )
        return self._started(submission)

    def _future(self) -> CallFuture:
        future = CallFuture(loop=self._loop)
        future.inside = self._inside
        return future

    def _started(self, submission: Submission) -> Submission:
        self._submissions[submission] = self._calls
        self._calls += 1
        return submission


class LogicNode(CompositeNode):
    """Runs the logic in one task for each item.

    If the logic is a generator, each value that it yields goes by itself through what follows.
    """

    def __init__(
        self,
        config: NodeConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        pipeline: CalledPipeline,
        context: Context,
    ) -> None:
        super().__init__(config, loop, clock)
        self._pipeline = pipeline
        self._backend_context = context
        self.takes_stream = False
        """True: the `data` of a request is a stream. A whole value becomes one of one chunk."""
        self._logic: Logic
        self._states = SequenceStates(context) if config.sequence is not None else None
        # The loop keeps no reference to its tasks. Tasks that were cancelled may still clean up.
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: dict[Entry, NodeCaller] = {}

    async def start(self) -> None:
        spec = self.config.instance_groups[0].spec
        # In a thread, because it may load a model.
        logic, error = await self._in_thread(spec.create, self._backend_context)
        if error is not None:
            failure = BackendError(
                f"node {self.name!r}: {type(error).__name__}: {message_of(error)}"
            )
            raise failure from error
        assert isinstance(logic, Logic)
        self._logic = logic

    async def close(self, timeout: float) -> None:
        await super().close(timeout)
        running = self._tasks - {asyncio.current_task()}
        if running:
            _, running = await asyncio.wait(running, timeout=timeout)
        for task in running:
            logger.warning(
                "node %s: its logic did not end within %g s after it was cancelled, and is left "
                "running: %r",
                self.name,
                timeout,
                task,
                extra=self._log_fields(),
            )
        if self._states is not None:
            self._states.close()
        await self._close_logic(timeout)

    async def _close_logic(self, timeout: float) -> None:
        logic: Logic | None = self.__dict__.pop("_logic", None)
        if logic is not None:
            await self._closed(self._in_thread(logic.close), timeout)

    async def _closed(
        self, closing: Awaitable[tuple[Any, BaseException | None]], timeout: float
    ) -> None:
        """Wait for a logic's `close`, and log its failure."""
        try:
            async with asyncio.timeout(max(timeout, LEAST_CLOSE_SECONDS)):
                _, error = await closing
        except TimeoutError:
            logger.warning(
                "node %s: close did not end within %g s and is left running",
                self.name,
                timeout,
                extra=self._log_fields(),
            )
        else:
            if error is not None:
                logger.error(
                    "node %s: close failed", self.name, exc_info=error, extra=self._log_fields()
                )

    def _log_fields(self) -> dict[str, str]:
        return {"pipeline": self._backend_context.pipeline, "node": self.name}

    async def _in_thread(
        self, function: Callable[..., Any], *args: Any
    ) -> tuple[Any, BaseException | None]:
        """Run a function in a daemon thread of its own. Return its result and what it raised.

        Returned and not raised, because a `CancelledError` of the function cancels nothing here.

        The thread has ended on return, unless this was cancelled. A function that never ends keeps
        no process alive; the threads of an executor are joined at exit.
        """
        result: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()

        def report(value: Any, error: BaseException | None) -> None:
            if not result.done():
                result.set_result((value, error))

        def run() -> None:
            value, error = None, None
            try:
                value = function(*args)
            except BaseException as raised:  # handed to the waiter
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(report, value, error)

        name = f"{self._backend_context.pipeline}/{self.name}"
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        try:
            return await result
        finally:
            if not result.cancelled():
                thread.join()  # it has reported, so it ends at once

    places = id_dtype = None

    def end_sequence(self, sequence: TrackedSequence, reason: str) -> None:
        """Forget a sequence that has ended. Its `on_end` is called in the next iteration."""
        del sequence.hosts[self]
        assert self._states is not None
        self._loop.call_soon(
            self._states.end, sequence.serial, reason, context=self._context.copy()
        )

    def _begin_step(self, entry: Entry, item: Item) -> SequenceOfItems | None:
        """Put the sequence of an item into it. None if the node keeps no state."""
        if self._states is None:
            return None
        ticket = entry.ticket
        assert isinstance(ticket, StepTicket)
        tracked = ticket.sequence
        tracked.hosts[self] = None
        step = StepMessage(tracked.serial, tracked.id, ticket.step.end, True, None)
        item["sequence"] = sequence = self._states.begin(step)
        return sequence

    def begin(self, entry: Entry, batch: Batch, inside: Inside) -> None:
        if self.takes_stream and isinstance(batch.outcomes[0]["data"], (bytes, str)):
            batch.outcomes[0]["data"] = _one_chunk(batch.outcomes[0]["data"])
        note = partial(self.note_part, batch, inside) if self.notes else None
        call = NodeCaller(self._pipeline, entry, inside, self._loop, note)
        coroutine = (
            self._yield_all(entry, batch.outcomes[0], call)
            if self._logic.streams
            else self._run(entry, batch.outcomes[0], call)
        )
        name = f"{self._backend_context.pipeline}/{self.name}"
        task = self._loop.create_task(coroutine, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=self._context)
        self.waiting[entry] = batch, task.cancel
        self._callers[entry] = call
        task.add_done_callback(lambda _: self._callers.pop(entry, None), context=self._context)

    def calls_for(self, entry: Entry) -> list[Submission]:
        """Return the calls that the logic has made for an entry and that have not ended."""
        caller = self._callers.get(entry)
        return [] if caller is None else caller.unended

    async def _run(self, entry: Entry, item: Item, call: NodeCaller) -> None:
        sequence = self._begin_step(entry, item)
        state = None if sequence is None else sequence.state
        try:
            running: Awaitable[Any] = self._logic.run(item, call)
            result = await running
        except BaseException as error:
            if sequence is not None:
                sequence.state = state
            if (outcome := self._failure(entry, error)) is None:
                raise
            self.end(entry, outcome)
            return
        finally:
            call.drop()
        if result is not None:
            item["result"] = result
        if sequence is not None:
            del item["sequence"]
            if "error" in item:
                sequence.state = state
            else:
                sequence.start = False
        self.end(entry, item)

    async def _yield_all(self, entry: Entry, item: Item, call: NodeCaller) -> None:
        assert isinstance(entry, NodeVisit)
        run = entry.run
        assert isinstance(run, StreamRun)
        sequence = self._begin_step(entry, item)
        state = None if sequence is None else sequence.state
        values = self.values_of(item, call, self.waiting[entry][0])
        try:
            try:
                async for value in values:
                    part = {**item, "result": value}
                    if sequence is not None:
                        del part["sequence"]
                    await run.pass_on(part, self._clock())
            finally:
                await values.aclose()
                call.drop()
        except BaseException as error:
            if sequence is not None:
                sequence.state = state
            if (outcome := self._failure(entry, error)) is None:
                raise
            if not isinstance(outcome, dict):
                self.end(entry, outcome)
                return
            unreadable = outcome["error"]
        else:
            unreadable = None
            if sequence is not None:
                sequence.start = False
        batch = self._settle(entry)
        if batch is not None:
            run.end_stream(entry, batch, unreadable)

    def values_of(self, item: Item, call: NodeCaller, batch: Batch) -> AsyncGenerator[Any]:
        """Return what the logic yields for an item, which is that of `batch`."""
        values: AsyncGenerator[Any] = self._logic.run(item, call)
        return values

    def _failure(self, entry: Entry, error: BaseException) -> Outcome:
        """Return the outcome of an item whose logic raised an exception.

        Returns None if it is not a failure and goes on: the item was dropped, or the program ends.
        Raised here, it would hold this frame, which holds it: a cycle around the whole request.
        """
        error = readable(error)
        # A TaskGroup wraps a single exception too.
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = readable(error.exceptions[0])
        if isinstance(error, InvalidInput):
            return {**entry.item, "error": error}
        if isinstance(error, PASSED_ON):
            return error
        if isinstance(error, asyncio.CancelledError):
            if entry not in self.waiting:
                return None
        elif isinstance(error, KeyboardInterrupt):
            self.discard(entry)
            entry.fail(NotReady(f"node {self.name!r}: the program was interrupted"))
            return None
        fields = {"request_id": entry.request_id, **self._log_fields()}
        logger.error("node %s failed", self.name, exc_info=error, extra=fields)
        kind = (
            "its logic"
            if isinstance(error, PenstockError)
            else f"backend {self.config.instance_groups[0].spec.name}"
        )
        failure = BackendError(
            f"node {self.name!r}: {kind} raised {type(error).__name__}: {message_of(error)}"
        )
        failure.__cause__ = error
        failure.logged = True
        return failure


async def _one_chunk(value: bytes | str) -> AsyncIterator[bytes | str]:
    if value:
        yield value
