"""One call of a `pipe`: the thread waits for it, and its answers go into the caller's dicts.

A call is made, waited for and merged on the caller's threads. In between it belongs to the loop of
the pipe, and only the loop ends it. The two sides share one lock for each call. It is taken when
the call is made and released when the call has ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, MutableMapping, Sequence
from typing import Any, Protocol

from penstock.backends.item import Item

from ..pipeline import Pipeline
from ..runs.run import PARTS, Submission, as_future
from ..sequences.step import Step

CALLERS_OWN = ("data", "event", "node_name", PARTS)
"""Keys that an answer never sets in the caller's dict. `result` has the parts of a stream already,
as a list."""


class Runner(Protocol):
    """The running pipeline of a `pipe`, as a call needs it. `LoopThread` is one."""

    pipeline: Pipeline
    loop: asyncio.AbstractEventLoop

    def check_may_wait(self) -> None: ...
    def log_soft_failure(self, error: Any) -> None: ...
    def wait_for(self, call: PipeCall) -> None: ...


class PipePart:
    """One item of a call. Its run uses it as the future of the request.

    A future of asyncio would call back one iteration of the loop later.
    """

    __slots__ = ("answer", "call", "caller_item", "ended", "item", "run")

    def __init__(self, call: PipeCall, caller_item: MutableMapping[str, Any]) -> None:
        self.caller_item = caller_item
        self.item: Item = dict(caller_item)  # the caller may change its own from here on
        self.item.pop("event", None)
        self.answer: Item | None = None
        self.ended = False
        # Both are reset when the part has ended. Otherwise they would be cycles, which keep images
        # until the garbage collector runs.
        self.call: PipeCall | None = call
        self.run: Submission | None = None

    def done(self) -> bool:
        return self.ended

    def set_result(self, answer: Item) -> None:
        call = self.call
        self.cancel()
        if call is not None:
            self.answer = answer
            call.missing -= 1
            if not call.missing:
                call.end(None)

    def set_exception(self, error: BaseException) -> None:
        call = self.call
        self.cancel()
        if call is not None:
            call.end(error)

    def cancel(self) -> None:
        self.ended = True
        self.call = self.run = None


class PipeCall:
    """A call with one item or several. Either all are answered, or the first failure ends it."""

    __slots__ = (
        "client",
        "ended",
        "error",
        "keeps",
        "lock",
        "missing",
        "parts",
        "priority",
        "runner",
        "steps",
        "timeout",
    )

    def __init__(
        self,
        runner: Runner,
        items: Sequence[MutableMapping[str, Any]],
        timeout: float | None,
        priority: int | None,
        *,
        client: Hashable = None,
        keeps: object = None,
        steps: Sequence[Step | None] | None = None,
    ) -> None:
        self.steps = steps  # one for each item
        self.runner = runner
        self.timeout = timeout
        self.priority = priority
        self.client = client
        self.keeps = keeps  # what must live as long as the call runs
        self.error: BaseException | None = None
        self.ended = False
        self.missing = len(items)
        self.parts = [PipePart(self, item) for item in items]
        self.lock = threading.Lock()
        self.lock.acquire()

    # on the loop

    def submit(self) -> None:
        """Queue the items. A refusal ends the call."""
        if self.ended:
            return
        submit_nowait = self.runner.pipeline.submit_nowait
        try:
            for position, part in enumerate(self.parts):
                part.run = submit_nowait(
                    part.item,
                    self.timeout,
                    self.priority,
                    as_future(part),
                    client=self.client,
                    sequence=None if self.steps is None else self.steps[position],
                )
        except Exception as error:
            self.end(error)
            return
        if not self.parts:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """End the call and wake the thread that waits for it. Only the first end counts."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        self.keeps = None
        if self.missing > 1:
            parts = self.parts  # the caller's thread takes them away as soon as it wakes
            for part in parts:
                part.ended = True  # from here on no batch takes it
            # Not at once: the scheduler may be iterating over the queue that the others leave.
            self.runner.loop.call_soon(leave, parts)
        self.lock.release()

    def abandon(self) -> None:
        """End the call: its thread stopped waiting (KeyboardInterrupt)."""
        leave(self.parts)
        self.end(None)

    # on the caller's threads, once the call has ended

    def merge(self) -> None:
        """Put the answers into the caller's dicts, once.

        Raises the failure, if there was one; then no dict changes.
        """
        parts, self.parts = self.parts, []
        if self.error is not None:
            try:
                raise self.error
            finally:
                # Otherwise the call holds the error, the error this frame, and the frame the call:
                # a cycle that keeps the image.
                del self, parts
        for part in parts:
            answer = part.answer
            if answer is not None:
                for key in CALLERS_OWN:
                    answer.pop(key, None)
                if "error" in answer:
                    self.runner.log_soft_failure(answer["error"])
                part.caller_item.update(answer)


def leave(parts: Sequence[PipePart]) -> None:
    """Drop the items that have not ended, on the loop: another one failed, or the caller left."""
    for part in parts:
        run = part.run
        part.cancel()
        if run is not None:
            run.leave()


class Event:
    """Makes a call return at once; `Wait` waits for its end. Each call needs an Event of its own.

    It goes into an item, under the key `event`:

    ```python
    item = {"data": jpeg, "event": penstock.Event()}
    p(item)
    item["event"].Wait()
    item["result"]
    ```
    """

    __slots__ = ("_call", "_claim")

    def __init__(self) -> None:
        self._claim = threading.Lock()
        self._call: PipeCall | None = None

    def __repr__(self) -> str:
        state = "unused" if self._call is None else "done" if self._call.ended else "waiting"
        return f"<Event: {state}>"

    def Wait(self) -> None:  # noqa: N802  torchpipe's name
        """Wait until the call has ended, then put the answer into the caller's dict.

        Raises the failure of the call, each time it is called. Until then the caller's dict has no
        `result`. Raises RuntimeError if no call was made with this Event, in the thread of a
        running event loop, and in a forked child.
        """
        call = self._call
        if call is None:
            raise RuntimeError(
                "no call was made with this Event: put it into an item as item['event'] and call "
                "the pipe first"
            )
        if not call.ended:
            call.runner.check_may_wait()
        call.runner.wait_for(call)
        try:
            call.merge()
        finally:
            call.lock.release()  # the next `Wait` takes it
            del call, self  # otherwise the error, which the call keeps, holds both by its traceback

    def claim(self) -> None:
        """Reserve it for one call. Raises ValueError if it had one before."""
        if not self._claim.acquire(blocking=False):
            raise ValueError("this Event was used before: each call needs one of its own")

    def attach(self, call: PipeCall) -> None:
        self._call = call


def items_of(given: Any) -> Sequence[MutableMapping[str, Any]]:
    """Return the items of a call. Raises TypeError and ValueError, and changes nothing."""
    if type(given) is dict or isinstance(given, MutableMapping):
        return (given,)
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"a call takes a dict with 'data', or a list of them; found {type(given).__name__}"
        )
    for item in given:
        if not isinstance(item, MutableMapping):
            raise TypeError(
                "a call takes a dict with 'data', or a list of them; the list holds a "
                f"{type(item).__name__}"
            )
    if len({id(item) for item in given}) != len(given):
        raise ValueError("the same dict is in the list twice: each answer needs a dict of its own")
    return given


def event_of(items: Sequence[MutableMapping[str, Any]]) -> Event | None:
    """Return the Event of a call, if it has one.

    Raises TypeError if `event` holds something else, ValueError for several Events.
    """
    claimed = None
    for item in items:
        if "event" in item:
            event = item["event"]
            if not isinstance(event, Event):
                raise TypeError(
                    f"'event' holds a {type(event).__name__}: expected a penstock.Event"
                )
            if claimed is not None:
                raise ValueError(
                    "a list is one call and takes one Event, in one of its items; found several"
                )
            claimed = event
    return claimed
