"""The baseline in process: a batching queue with nothing that can be left out."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

Batch = list[tuple[Any, "asyncio.Future[Any]"]]


class PlainLoop:
    """A deque, a future per item, one thread, and one wake-up of the loop per batch.

    It knows no deadlines, failures, bounds or order.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.loop = asyncio.get_running_loop()
        self.queue: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self.inbox: SimpleQueue[Batch | None] = SimpleQueue()
        self.busy = self.due = False
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            self.loop.call_soon_threadsafe(self.done, batch, [item for item, _ in batch])

    def submit(self, item: Any) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        self.queue.append((item, future))
        if not self.busy and not self.due:
            self.due = True
            self.loop.call_soon(self.start)
        return future

    def start(self) -> None:
        self.due = False
        if self.queue and not self.busy:
            self.busy = True
            self.inbox.put(
                [self.queue.popleft() for _ in range(min(len(self.queue), self.max_batch))]
            )

    def done(self, batch: Batch, results: list[Any]) -> None:
        self.busy = False
        self.start()
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
