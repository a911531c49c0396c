"""A node whose batches run on the event loop (`executor = "loop"`), for work of microseconds.

A batch that goes to a thread and back costs about 90 µs, most of it to wake an idle processor.
Everything else is as in `node.py`: the same queue, rules, deadlines and failures.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from ..config.definition import NodeConfig, PipelineConfig
from ..overload.door import Pressure
from .executor import Executor
from .loop_executor import LoopExecutor
from .node import Node
from .queue import Batch

logger = logging.getLogger("penstock.node")

HELD_SECONDS = 0.005
"""A batch that runs longer on the loop is logged: nothing else runs there meanwhile."""

HELDS_TO_MOVE = 3
"""A node that a measurement put on the loop moves to a thread after so many batches in a row that
took longer than `HELD_SECONDS`. One alone may be the machine's fault.
"""

HELD_LOG_SECONDS = 10.0
"""At most one such line of a node in this time. Clients may cause every batch."""

LONGEST_TURN_SECONDS = 0.001
"""The nodes of a chain run in one go, but after this time the rest wait for the next iteration.

An item that passes a `loop` ten thousand times would hold the event loop otherwise.
"""


class LoopTurn:
    """The nodes of a pipeline that run on the loop and have something to decide.

    They run in one callback at the beginning of the loop's next iteration. So items that arrive
    together share a batch, and what one node delivers to the next one runs at once. A node runs one
    batch in a turn. If more queue there, the loop does its other work first, such as waking the
    callers of that batch. Running all at once cost a fifth more for each of 512 callers, because
    nothing that they touch stays in the processor's cache.

    `loading` lets one of them load at a time, so that other work comes between two loads.
    """

    __slots__ = ("_clock", "_context", "_due", "_later", "_loop", "_planned", "loading")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._context = contextvars.Context()  # empty: no batch inherits a request's variables
        self._due: deque[LoopNode] = deque()
        self._later: list[LoopNode] = []  # those that are due in the next turn
        self._planned = False
        self.loading = asyncio.Lock()

    def add(self, node: LoopNode) -> None:
        """Let the node decide in the turn that runs now, or in the next one."""
        self._due.append(node)
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._run, context=self._context)

    def add_later(self, node: LoopNode) -> None:
        """Let a node that runs now decide again in the next turn."""
        self._later.append(node)

    def _run(self) -> None:
        due = self._due
        ends = self._clock() + LONGEST_TURN_SECONDS
        try:
            while due:
                due.popleft().take_turn()
                if due and self._clock() >= ends:
                    break
        finally:
            due.extend(self._later)
            self._later.clear()
            self._planned = bool(due)
            if due:
                self._loop.call_soon(self._run, context=self._context)


class Due:
    """Whether a node waits for its turn. It stands in for the future of `Node._change`."""

    __slots__ = ("_due", "_node", "_turn")

    def __init__(self, node: LoopNode, turn: LoopTurn) -> None:
        self._node = node
        self._turn = turn
        self._due = False

    def done(self) -> bool:
        return self._due

    def set_result(self, result: None) -> None:
        self._due = True
        self._turn.add(self._node)

    def clear(self) -> None:
        self._due = False

    def again(self) -> None:
        """Ask for a decision in the next turn, unless there is one before."""
        if not self._due:
            self._due = True
            self._turn.add_later(self._node)


class LoopNode(Node):
    """A node with one instance, which runs on the event loop.

    If a measurement put it there (`executor = "auto"`), and its batches take long nevertheless, it
    moves to a thread for good.
    """

    executor_class: type[Executor] = LoopExecutor

    def __init__(
        self,
        config: NodeConfig,
        pipeline: PipelineConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        on_batch: Callable[[float], None],
        *,
        pressure: Pressure,
        turn: LoopTurn,
    ) -> None:
        super().__init__(config, pipeline, loop, clock, on_batch, pressure=pressure)
        self._turn = turn
        self._change = self._due = Due(self, turn)
        self._held = 0  # batches that held the loop since the last line about it
        self._held_in_a_row = 0
        self._next_held_line = float("-inf")

    async def start(self) -> None:
        async with self._turn.loading:
            await super().start()

    def _begin(self) -> None:
        """Do nothing: the turn calls `take_turn`, and no coroutine waits."""

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None:
        if not isinstance(executor, LoopExecutor):
            self._leave_loop()
        super().executor_loaded(executor, low, high, device)
        if isinstance(executor, LoopExecutor) and executor.load_seconds > HELD_SECONDS:
            logger.warning(
                "node %s: its load held the event loop for %.1f ms, and nothing else ran "
                'meanwhile: what takes long to load belongs on a thread (executor = "thread")',
                self.name,
                executor.load_seconds * 1000,
                extra=self._log_extra,
            )

    def take_turn(self) -> None:
        """Decide, and run the batch that the decision starts."""
        self._due.clear()
        self._decide(self._clock())
        for executor in self.scheduler.running:  # one at most
            if isinstance(executor, LoopExecutor) and (batch := executor.run()) is not None:
                self.executor_finished(executor, batch)
            break  # `running` has changed

    def executor_finished(self, executor: Executor, batch: Batch) -> None:
        """Free the executor and deliver the results. What queues meanwhile has the next turn."""
        if not isinstance(executor, LoopExecutor):
            super().executor_finished(executor, batch)
            return
        now = batch.ended
        self.scheduler.release(executor)
        executor.failures = 0
        self.statistics.observe_batch(batch)
        if now - batch.started > HELD_SECONDS:
            self._log_held(batch, now)
            self._held_in_a_row += 1
            if self._held_in_a_row == HELDS_TO_MOVE and self.config.executor == "auto":
                self.config = replace(self.config, executor="thread")
                self.executor_class = Executor
                self._launch(0, 0)
        else:
            self._held_in_a_row = 0
        self._on_batch(now)
        self._deliver(batch, now)
        if self.scheduler.buckets:
            self._due.again()

    def _leave_loop(self) -> None:
        """Let a thread go on, which has just loaded the backend."""
        for executor in self.executors:
            if isinstance(executor, LoopExecutor):
                self.scheduler.remove(executor)
                executor.stop()
                self._missing += 1  # the thread is counted in its place
                super()._begin()
                logger.info(
                    "node %s: runs on a thread now, because its batches took more than %g ms on "
                    "the event loop",
                    self.name,
                    HELD_SECONDS * 1000,
                    extra=self._log_extra,
                )

    def _log_held(self, batch: Batch, now: float) -> None:
        self._held += 1
        if now < self._next_held_line:
            return
        others, self._held = self._held - 1, 0
        self._next_held_line = now + HELD_LOG_SECONDS
        more = f" ({others} more did since the last such line)" if others else ""
        items = len(batch.entries)
        logger.warning(
            "node %s: a batch of %d %s held the event loop for %.1f ms%s, and nothing else ran "
            'meanwhile: work of more than %g ms belongs on a thread (executor = "thread")',
            self.name,
            items,
            "item" if items == 1 else "items",
            (now - batch.started) * 1000,
            more,
            HELD_SECONDS * 1000,
            extra=self._log_extra,
        )
