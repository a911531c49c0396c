"""Generators that block: a user's `def` with `yield`, which computes on a thread.

Each instance of the node is a thread with an object of its own. A thread runs one generator from
its first value to its last, and waits while its reader does: so an instance is taken until the
answer has been read. The items that wait for an instance wait in their tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from penstock.backends.errors import BackendError
from penstock.backends.expressions.composite import BlockingLogic
from penstock.backends.item import Item
from penstock.backends.text import message_of

from ..node.queue import Batch
from .logic import LogicNode

logger = logging.getLogger("penstock.node")

END = object()
"""Returned by `next` at the end of a generator."""

Outcome = tuple[Any, BaseException | None]


class Worker:
    """A thread that runs functions one after another, and the logic that was made there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.logic: BlockingLogic
        self._loop = loop
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Outcome]] | None] = (
            SimpleQueue()
        )
        # A daemon: a generator that never ends keeps no process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """Run a function after those before it. The future has its result and what it raised.

        What it raised is not the future's exception: a `CancelledError` cancels nothing here.
        """
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def stop(self) -> None:
        """End the thread after the functions that it has."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait for the thread to end, which has nothing to do any more."""
        self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            outcome: Outcome
            try:
                outcome = function(), None
            except BaseException as error:  # handed to the waiter
                outcome = None, error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_report, future, outcome)
            del call, function, future, outcome  # they may hold much, and `get` waits


def _report(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


class BlockingLogicNode(LogicNode):
    """Runs a generator on a thread for each item, as many at a time as the node has instances."""

    async def start(self) -> None:
        spec = self.config.instance_groups[0].spec
        name = f"{self._backend_context.pipeline}/{self.name}"
        count = sum(group.instances for group in self.config.instance_groups)
        self._workers: list[Worker] = []
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        for number in range(count):
            worker = Worker(self._loop, f"{name}#{number}")
            logic, error = await worker.run(lambda: spec.create(self._backend_context))
            if error is not None:
                worker.stop()
                worker.join()
                raise BackendError(
                    f"node {self.name!r}: {type(error).__name__}: {message_of(error)}"
                ) from error
            assert isinstance(logic, BlockingLogic)
            self._logic = worker.logic = logic
            self._workers.append(worker)
            self._free.put_nowait(worker)

    async def _close_logic(self, timeout: float) -> None:
        workers: list[Worker] = self.__dict__.pop("_workers", [])
        closing = [worker.run(worker.logic.close) for worker in workers]
        for worker in workers:
            worker.stop()
        await asyncio.gather(*[self._closed(closed, timeout) for closed in closing])
        for worker, closed in zip(workers, closing, strict=True):
            if not closed.cancelled():  # by the time-out
                worker.join()

    async def values_of(self, item: Item, call: Any, batch: Batch) -> AsyncGenerator[Any]:
        worker = await self._free.get()
        batch.started = self._clock()  # until now it queued
        values: Any = None  # the generator, once the thread has made it

        def advance() -> Any:
            nonlocal values
            if values is None:
                values = worker.logic.run(item)
            return next(values, END)

        def close() -> None:
            if values is not None:
                values.close()

        try:
            while True:
                value, error = await worker.run(advance)
                if error is not None:
                    raise error
                if value is END:
                    return
                yield value
        finally:
            error = None  # raised above, it holds this frame: they would be a cycle
            # If this was cancelled, the thread may still be at the next value.
            ended = worker.run(close)
            ended.add_done_callback(partial(self._release, worker))

    def _release(self, worker: Worker, ended: asyncio.Future[Outcome]) -> None:
        self._free.put_nowait(worker)
        if not ended.cancelled() and (error := ended.result()[1]) is not None:
            logger.error(
                "node %s: its generator failed while it was closed",
                self.name,
                exc_info=error,
                extra=self._log_fields(),
            )
