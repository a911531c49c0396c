"""Calls of other models from a backend: from an executor's thread, or from a child process.

A backend asks its `Server` (backends/server.py), whose connection ends here. What is asked comes on
other threads and is done on the loop. A call is a request to another pipeline. It is made on behalf
of the requests that its backend works on: it has the last of their deadlines, and ends when all of
them have ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Protocol

from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    NotFound,
    NotReady,
    PenstockError,
)
from penstock.backends.item import Item
from penstock.backends.server import (
    HANDLE,
    Listener,
    ModelCall,
    ModelOrder,
    Response,
    ResponseError,
    code_of,
    failed,
)
from penstock.backends.text import message_of

from ..node.node import Node
from ..node.queue import NEVER, Entry, Outcome
from ..runs.graph_run import GraphRun
from ..runs.inside import Inside
from ..runs.plan import RunningNode
from ..runs.run import Run, Submission
from ..runs.stream import Parts, StreamRun
from .composite import MAX_NESTED_GRAPHS
from .logic import CallFuture, LogicNode

logger = logging.getLogger("penstock.node")

CHECK_SECONDS = 0.1
"""The seconds between two looks at what waits: for callers that have left, and for deadlocks."""

MICROSECONDS = 1_000_000

CANCELLED = ResponseError("CANCELLED", "the request was cancelled")


class Models(Protocol):
    """The pipeline of the backends that call, as their calls need it."""

    def call_model(
        self, call: ModelCall, future: CallFuture, parents: Sequence[Entry], deadline: float
    ) -> tuple[Submission, Callable[[Item], Response]]:
        """Start a request to another pipeline, or to this one, on behalf of `parents`.

        Returns with it what makes a response of an answer. Raises what `submit_nowait` raises.
        """
        ...

    def order_model(self, order: ModelOrder) -> Coroutine[Any, Any, Response]:
        """Carry out an order to the repository."""
        ...


class OpenCall:
    """A call that has not ended."""

    __slots__ = ("asked", "deadline", "parents", "submission", "task")

    def __init__(self, parents: Sequence[Entry], deadline: float) -> None:
        self.parents = parents
        self.deadline = deadline
        self.asked = asyncio.Event()
        self.submission: Submission | None = None
        self.task: asyncio.Task[Response]

    def fail(self, error: BaseException, kind: str) -> None:
        """End it with an error. `kind`: what the request to the other pipeline counts as."""
        submission = self.submission
        if submission is not None and not submission.future.done():
            submission.future.set_exception(error)
            submission.leave(kind)


class InstanceLink:
    """Connects one instance of a backend with the server.

    `calls` are the calls that it has made and that have not ended. `entries` are the requests that
    it works on, by handle. `listener` is its present life, None once that has gone.
    """

    def __init__(self, calls: ModelCalls, node: RunningNode) -> None:
        self.node = node
        self.calls: dict[tuple[Listener, int], OpenCall] = {}
        self.entries: dict[int, Entry] = {}
        self.streams: dict[int, ResponseStream] = {}
        self.listener: Listener | None = None
        self._all = calls
        self._handles = count(1)

    def __repr__(self) -> str:
        return f"<InstanceLink of {self.node.name}: {len(self.calls)} calls>"

    def connect(self, listener: Listener) -> InstanceConnection:
        self.listener = listener
        return InstanceConnection(self._all, self, listener)

    # on the executor's thread

    def begin(self, items: Sequence[Item], entries: Sequence[Entry]) -> None:
        """Give the items of entries that run now their handles."""
        for item, entry in zip(items, entries, strict=True):
            item[HANDLE] = self.add(entry)

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """Forget what runs, and take the handles from the items."""
        self.entries.clear()
        for outcome in outcomes:
            if type(outcome) is dict:
                outcome.pop(HANDLE, None)

    def add(self, entry: Entry) -> int:
        """Remember a request that the instance works on, and return its handle."""
        handle = next(self._handles)
        self.entries[handle] = entry
        return handle


class InstanceConnection:
    """The server, as one life of an instance knows it. A `Connection`: called on any thread."""

    def __init__(self, calls: ModelCalls, link: InstanceLink, listener: Listener) -> None:
        self._calls = calls
        self._link = link
        self._listener = listener

    def start(self, number: int, call: ModelCall | ModelOrder) -> None:
        if not self._on_loop(self._calls.start, self._link, self._listener, number, call):
            self._listener.answered(number, failed(NotReady("the server is closed")))

    def more(self, number: int) -> None:
        self._on_loop(self._more, number)

    def cancel(self, number: int) -> None:
        self._on_loop(self._cancel, number)

    def respond(self, handle: int, response: Response) -> None:
        if not self._on_loop(self._respond, handle, response):
            self._listener.ended(handle)

    def is_cancelled(self, handle: int) -> bool:
        entry = self._link.entries.get(handle)
        return entry is None or entry.future.done()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def close(self) -> None:
        self._on_loop(self._close)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Run a function on the loop. Return False if that is closed."""
        try:
            self._calls.loop.call_soon_threadsafe(function, *arguments, context=self._calls.context)
        except RuntimeError:
            return False
        return True

    # on the loop

    def _more(self, number: int) -> None:
        if (call := self._link.calls.get((self._listener, number))) is not None:
            call.asked.set()

    def _cancel(self, number: int) -> None:
        if (call := self._link.calls.get((self._listener, number))) is not None:
            call.task.cancel()

    def _respond(self, handle: int, response: Response) -> None:
        stream = self._link.streams.get(handle)
        if stream is None:
            self._listener.ended(handle)
        else:
            stream.add(response, self._listener)

    def _close(self) -> None:
        for (listener, _), call in list(self._link.calls.items()):
            if listener is self._listener:
                call.task.cancel()
        if self._link.listener is self._listener:
            self._link.listener = None
        for stream in list(self._link.streams.values()):
            stream.listener_gone(self._listener)


class ResponseStream:
    """The responses to one request of a decoupled model, on the loop: they wait for its client.

    `listener`: the life of the instance that works on it, once it has begun to respond or its
    `execute` has returned.
    """

    __slots__ = ("_closed", "_handle", "_link", "_responses", "_waiter", "listener")

    def __init__(self, link: InstanceLink, entry: Entry) -> None:
        self._link = link
        self._handle = link.add(entry)
        self._responses: deque[tuple[Response | BaseException, Listener | None]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.listener: Listener | None = None
        link.streams[self._handle] = self

    @property
    def handle(self) -> int:
        return self._handle

    def add(self, response: Response, listener: Listener) -> None:
        """Take a response that the instance has sent."""
        self.listener = listener
        self._put(response, listener)

    def _put(self, response: Response | BaseException, listener: Listener | None) -> None:
        self._responses.append((response, listener))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End the responses by a failure."""
        self._put(error, None)

    def executed(self) -> None:
        """Note that `execute` has returned: the rest is up to the instance that ran it."""
        if self.listener is None:
            self.listener = self._link.listener
            if self.listener is None:
                self.fail(gone())
        if self._closed and self.listener is not None:  # before the instance knew of the request
            self.listener.ended(self._handle)

    def listener_gone(self, listener: Listener) -> None:
        """Fail it if the instance that worked on it has gone."""
        if self.listener is listener:
            self.fail(gone())

    async def next(self) -> Response:
        """Wait for the next response. Raises the failure that ends them."""
        while not self._responses:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        response, listener = self._responses.popleft()
        if isinstance(response, BaseException):
            raise response
        if listener is not None:
            listener.taken(self._handle, response.size)
        return response

    def close(self) -> None:
        """Take no more responses: the request has ended."""
        self._closed = True
        self._link.streams.pop(self._handle, None)
        self._link.entries.pop(self._handle, None)
        listener = self.listener or self._link.listener
        if listener is not None:
            listener.ended(self._handle)


def gone() -> BackendError:
    return BackendError("the instance that answered ended before its last response")


class ModelCalls:
    """The calls that the backends of one pipeline make, on the loop."""

    def __init__(
        self, models: Models, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.loop = loop
        self._clock = clock
        self.context = contextvars.Context()  # empty: calls inherit no request's variables
        self._models = models
        self._open: list[OpenCall] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = ""

    def link(self, node: RunningNode) -> InstanceLink:
        """Return what connects a new instance of a node."""
        return InstanceLink(self, node)

    def close(self, reason: str) -> None:
        """End all calls, and refuse new ones."""
        self._closed = reason
        for call in list(self._open):
            call.task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def start(
        self, link: InstanceLink, listener: Listener, number: int, call: ModelCall | ModelOrder
    ) -> None:
        """Start a call. Its responses go to the listener."""
        if self._closed:
            listener.answered(number, failed(NotReady(self._closed)))
            return
        handles = call.parents if isinstance(call, ModelCall) else ()
        found = [link.entries.get(handle) for handle in handles]
        parents = [entry for entry in found if entry is not None and not entry.future.done()]
        if handles and not parents:
            listener.answered(number, Response(None, CANCELLED))
            return
        deadline = max((entry.deadline for entry in parents), default=NEVER)
        if isinstance(call, ModelCall) and call.timeout:
            deadline = min(deadline, self._clock() + call.timeout / MICROSECONDS)
        opened = OpenCall(parents, deadline)
        link.calls[listener, number] = opened
        self._open.append(opened)

        running: Coroutine[Any, Any, Response]
        if isinstance(call, ModelOrder):
            running = self._models.order_model(call)
        else:
            running = self._run(link, opened, call, listener, number)
        opened.task = self.loop.create_task(running, context=self.context.copy())

        def end(task: asyncio.Task[Response]) -> None:
            # Not in the task itself, which may be cancelled before it has begun.
            del link.calls[listener, number]
            self._open.remove(opened)
            if opened.submission is not None:
                opened.submission.leave()
            if task.cancelled():
                last = failed(NotReady(self._closed)) if self._closed else Response(None, CANCELLED)
            elif (error := task.exception()) is not None:
                last = failed(error)
            else:
                last = task.result()
            listener.answered(number, last)

        opened.task.add_done_callback(end, context=self.context.copy())
        if self._timer is None:
            self._set_timer()

    async def _run(
        self, link: InstanceLink, opened: OpenCall, call: ModelCall, listener: Listener, number: int
    ) -> Response:
        """Run a call and return its last response. Those before it go to the listener."""
        parents = opened.parents
        inside = Inside.of(parents[0]) if parents else Inside(frozenset(), 0, [0], [0])
        if inside.depth >= MAX_NESTED_GRAPHS:
            raise BackendError(
                f"models call one another {MAX_NESTED_GRAPHS} deep; does model {call.model!r} call "
                "itself?"
            )
        future = CallFuture(loop=self.loop)
        future.inside = inside.deeper(link.node)
        try:
            submission, respond = self._models.call_model(call, future, parents, opened.deadline)
        except PenstockError as error:
            return refused(call.model, error)
        opened.submission = submission
        if call.streams:
            async for part in Parts(submission):
                listener.answered(number, respond(part)._replace(final=False))
                await opened.asked.wait()
                opened.asked.clear()
            # As in Triton, the flag that no more follow is a response if it came by itself.
            empty = isinstance(submission, StreamRun) and submission.ended_empty
            return Response({} if empty else None)
        (answer,) = [part async for part in Parts(submission)]
        return respond(answer)

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check, context=self.context)

    def _check(self) -> None:
        """End the calls that no request needs any more, those that are late, and one of those that
        can never end.
        """
        self._timer = None
        now = self._clock()
        for call in list(self._open):
            if call.parents and all(entry.future.done() for entry in call.parents):
                call.task.cancel()
            elif call.deadline <= now:  # also while a batch runs: its caller waits in a thread
                call.fail(DeadlineExceeded("the deadline passed while the call ran"), "expired")
        for call in reversed(self._open):
            if self._never_ends(call):
                call.fail(deadlock(), "failed")
                break
        if self._open:
            self._set_timer()

    @staticmethod
    def _never_ends(call: OpenCall) -> bool:
        """Return whether a call waits for instances that all wait, by way of their calls, for one
        another.
        """
        calls, seen = [call], set[InstanceLink]()
        for waiting in calls:  # it grows
            links = instances_of(waiting.submission)
            if links is None:
                return False
            for link in links:
                if link in seen:
                    continue
                seen.add(link)
                if not link.calls:
                    return False
                calls += link.calls.values()
        return True


def refused(model: str, error: PenstockError) -> Response:
    """Return the response to a call that another pipeline does not take, in Triton's words."""
    words = message_of(error)
    if isinstance(error, NotFound):
        words = f"Request for unknown model: '{model}' is not found ({words})"
    elif isinstance(error, NotReady):
        words = f"Failed for execute the inference request. Model '{model}' is not ready. ({words})"
    message = f"Model {model} - Error when running inference: {words}"
    return Response(None, ResponseError(code_of(error), message))


def deadlock() -> BackendError:
    return BackendError(
        "deadlock: the call waits for an instance of a model, and all its instances wait for calls "
        "that can't end before it: give the model more instances (instance_group count), or don't "
        "let models call one another in a ring"
    )


def instances_of(submission: Submission | None) -> list[InstanceLink] | None:
    """Return the instances without which a request can't go on; None if it can, or if that is not
    known.
    """
    if submission is None or submission.future.done():
        return None
    places: list[tuple[Entry, RunningNode]]
    if isinstance(submission, GraphRun):
        places = [(visit, visit.plan_node.node) for visit in submission.entries]
    elif isinstance(submission, Run):
        places = [(submission, submission.plan_node.node)]
    else:
        return None
    return _all_of([_instances_for(node, entry) for entry, node in places])


def _instances_for(node: RunningNode, entry: Entry) -> list[InstanceLink] | None:
    """Return the instances that an entry waits for: the one that runs it, or all of its node; those
    of its parts, if it waits for some.
    """
    if isinstance(node, Node):
        running = node.scheduler.running
        executors: list[Any] = [one for one in running if entry in running[one].entries]
        if not executors:
            if node.scheduler.idle:
                return None
            executors += node.executors
        links = [executor.link for executor in executors]
        return [link for link in links if isinstance(link, InstanceLink)] if all(links) else None
    own: Callable[[Entry], list[InstanceLink] | None] = getattr(node, "instances_for", _unknown)
    if own is not _unknown:
        return own(entry)
    if isinstance(node, LogicNode):
        return _all_of([instances_of(part) for part in node.calls_for(entry)])
    return None


def _unknown(entry: Entry) -> None: ...


def _all_of(found: list[list[InstanceLink] | None]) -> list[InstanceLink] | None:
    """Join what several parts wait for; None if one of them can go on, or there is none."""
    if not found or None in found:
        return None
    return [link for links in found for link in links or ()]
