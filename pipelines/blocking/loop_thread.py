"""The thread of a `pipe`: an event loop that runs one pipeline and takes calls from other threads.

Each pipe has a loop and a daemon thread of its own. One thread for all pipes of a process would be
cheaper, but then the pipes would close, fork and die together, and a pipe that is called on the
loop of another one would wait for itself. An idle loop costs nothing.

The thread refers to the `LoopThread`, never to the `Pipe`: a pipe without references is collected
and ends its thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from penstock.backends.errors import NotReady
from penstock.backends.text import message_of

from ..node.executor import current
from ..node.node import Node
from ..pipeline import Pipeline
from .calls import PipeCall

logger = logging.getLogger("penstock.pipe")

EXIT_GRACE_SECONDS = 5.0
"""The seconds that running batches get to end when the interpreter exits."""

MAX_LOGGED_KINDS = 100
"""The most kinds of soft failures that a pipe logs.

Texts may quote the input, so that every failure looks new.
"""


class LoopThread:
    """A pipeline on an event loop in a thread of its own.

    Calls come in through `inbox`: one wake-up of the loop takes any number of them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.pid = os.getpid()
        self.loop = _new_loop()
        self.inbox: deque[PipeCall] = deque()
        self.stopping = False
        self.closed = False  # nothing reads the inbox any more
        self.exiting = False
        self._logged_kinds: set[tuple[type[Any], str]] = set()
        self._drain_due = False
        self._closing: asyncio.Future[float] = self.loop.create_future()
        self._started: Future[None] = Future()
        # Empty: nothing on the loop inherits the variables of a caller.
        self._context = contextvars.Context()
        self._thread = threading.Thread(
            target=self._main, name=f"penstock:{pipeline.name}", daemon=True
        )

    # from any thread

    def start(self) -> None:
        """Return once the pipeline is ready. Raises what kept it from starting."""
        try:
            self._thread.start()
            atexit.register(self._exit)
            self._started.result()
        except BaseException:
            self.stop(0)
            raise

    def post(self, call: PipeCall) -> None:
        """Hand a call to the loop. A closed pipe ends it with `NotReady`."""
        self.inbox.append(call)
        # The call is appended before the flag is read, and `_drain` clears the flag before it reads
        # the inbox. So a call that finds the flag set is taken by the drain that is due.
        if not self._drain_due:
            self._drain_due = True
            self._ask(self._drain)
        if self.closed:
            self._refuse_all()

    def wait_for(self, call: PipeCall) -> None:
        """Return once the call has ended, with the call's lock held."""
        executor = getattr(current, "executor", None)
        if executor is None:
            call.lock.acquire()
        else:
            executor.waits_for = self
            try:
                call.lock.acquire()
            finally:
                executor.waits_for = None
        if (
            self.exiting
            and call.error is not None
            and threading.current_thread() is not threading.main_thread()
        ):
            # This daemon thread ends with the process in a moment. Without the sleep it would print
            # a traceback first.
            time.sleep(EXIT_GRACE_SECONDS)

    def abandon(self, call: PipeCall) -> None:
        """End a call whose thread stopped waiting for it."""
        self._ask(call.abandon)

    def log_soft_failure(self, error: Any) -> None:
        """Log the soft failure of an item, once for each kind.

        A caller that reads only `result` would never learn that, say, all inputs have a wrong
        shape. Failures are of one kind if their texts differ only in numbers.
        """
        text = message_of(error)
        kind = type(error), re.sub(r"\d+", "0", text)
        if kind not in self._logged_kinds and len(self._logged_kinds) < MAX_LOGGED_KINDS:
            self._logged_kinds.add(kind)
            logger.warning(
                "pipe %s: an item has no result: %s (logged once for each kind of failure)",
                self.pipeline.name,
                text,
                extra={"pipeline": self.pipeline.name},
            )

    def check_process(self) -> None:
        """Raise RuntimeError in a fork of the process that made the pipe."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"pipe {self.pipeline.name!r} was made in process {self.pid}, and this one "
                f"({os.getpid()}) is a fork of it: threads don't survive a fork. Make the pipe in "
                "the child, or start processes by 'spawn'"
            )

    def check_may_wait(self) -> None:
        """Raise RuntimeError if waiting would stop an event loop or could never end."""
        self.check_process()
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"pipe {self.pipeline.name!r} was called in the thread of a running event loop, "
                "which would stand still meanwhile: use `await pipeline(item)` of "
                "penstock.Pipeline there, or `await asyncio.to_thread(pipe, item)`"
            )
        executor = getattr(current, "executor", None)
        if executor is not None and self._depends_on(executor.owner):
            raise RuntimeError(
                f"a backend of {executor.name} calls the pipe {self.pipeline.name!r}, which waits "
                "for that very backend: both could wait for ever. Call a pipeline that does not "
                "need this node"
            )

    def _depends_on(self, node: Node) -> bool:
        """Return whether `node` belongs to this pipeline, or to one that its backends wait for."""
        seen: list[LoopThread] = []
        waiting = [self]
        while waiting:
            runner = waiting.pop()
            seen.append(runner)
            if node in runner.pipeline.nodes:
                return True
            executors = [executor for own in runner.pipeline.nodes for executor in own.executors]
            waiting += [
                other
                for executor in executors
                if isinstance(other := executor.waits_for, LoopThread) and other not in seen
            ]
        return False

    def stop(self, timeout: float) -> None:
        """Ask the thread to end; returns at once. Finalizers call it too, on any thread."""
        self.stopping = True
        self._ask(self._stop, timeout)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def _ask(self, function: Callable[..., object], *args: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args, context=self._context)
        except RuntimeError:  # the loop is closed, and `_refuse_all` ends the calls
            logger.debug("pipe %s: the loop is closed", self.pipeline.name)

    def _exit(self) -> None:
        """End with the interpreter.

        All threads except daemons have ended already, so none of them loses an answer.
        """
        if os.getpid() == self.pid:
            self.exiting = True
            self.stop(EXIT_GRACE_SECONDS)
            self.join(2 * EXIT_GRACE_SECONDS + 1)

    def _refuse_all(self) -> None:
        while self.inbox:
            try:
                call = self.inbox.popleft()
            except IndexError:  # another thread was faster
                return
            call.end(NotReady(f"pipeline {self.pipeline.name!r} is closed"))

    # on the loop

    def _drain(self) -> None:
        self._drain_due = False
        inbox = self.inbox
        while inbox:
            inbox.popleft().submit()

    def _stop(self, timeout: float) -> None:
        if not self._closing.done():
            self._closing.set_result(timeout)

    def _main(self) -> None:
        pipeline = self.pipeline
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException:
            logger.exception("pipe %s: its loop died", pipeline.name)
        finally:
            self.closed = self.stopping = True
            pipeline.abandon(f"pipeline {pipeline.name!r} is closed")
            self._refuse_all()
            self.loop.close()
            if not self.exiting:
                atexit.unregister(self._exit)

    async def _serve(self) -> None:
        pipeline = self.pipeline
        starting = asyncio.ensure_future(pipeline.start())
        self._closing.add_done_callback(lambda closing: starting.cancel())
        try:
            await starting
        except asyncio.CancelledError:
            self._started.set_exception(
                NotReady(f"pipeline {pipeline.name!r} was closed while it loaded")
            )
            return
        except BaseException as error:  # raised by `start`, in the thread that makes the pipe
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        timeout = await self._closing
        pipeline.refuse_queued(
            f"pipeline {pipeline.name!r} was closed while the request was queued"
        )
        await pipeline.close(timeout)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
