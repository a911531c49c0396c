"""`pipe` called from 1, 8 and 32 threads, compared with the least possible.

The least is a queue, one thread, and a lock per call. Both run in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

from figures import Figure, of_runs, say

import penstock

MAX_BATCH = 32
PART = "threads"
Submit = Callable[[dict[str, Any]], None]


class PlainThread:
    """A thread that takes up to `MAX_BATCH` waiting items and answers them.

    It knows no deadlines, failures, cancellation, bounds or statistics.
    """

    def __init__(self) -> None:
        self.inbox: SimpleQueue[tuple[dict[str, Any], threading.Lock] | None] = SimpleQueue()
        threading.Thread(target=self._main, daemon=True).start()

    def __call__(self, item: dict[str, Any]) -> None:
        done = threading.Lock()
        done.acquire()
        self.inbox.put((item, done))
        done.acquire()

    def _main(self) -> None:
        while (first := self.inbox.get()) is not None:
            batch = [first]
            try:
                while len(batch) < MAX_BATCH and (more := self.inbox.get_nowait()) is not None:
                    batch.append(more)
            except Empty:
                pass
            for item, done in batch:
                item["result"] = item["data"]
                done.release()


def measure(quick: bool) -> list[Figure]:
    pairs, items = (5, 8_000) if quick else (11, 32_000)
    figures = []
    with penstock.pipe(
        {"noop": {"backend": "Identity", "max": MAX_BATCH, "executor": "thread"}}
    ) as pipe:
        plain = PlainThread()
        for threads in 1, 8, 32:
            rates: dict[Submit, list[float]] = {plain: [], pipe: []}
            order: list[Submit] = [plain, pipe]
            for pair in range(-1, pairs):  # the first is to warm up
                for submit in order:
                    rate = drive(submit, threads, items)
                    if pair >= 0:
                        rates[submit].append(rate)
                order.reverse()  # so that a drift of the machine favours neither
            ratios = [ours / other for ours, other in zip(rates[pipe], rates[plain], strict=True)]
            say(f"{PART}, {threads}: {[round(ratio, 3) for ratio in ratios]}")
            note = f"{median(rates[pipe]):,.0f} to {median(rates[plain]):,.0f} calls/s"
            figures.append(
                of_runs(
                    PART, f"pipe called from {threads}: rate ÷ plain thread's", ratios, note=note
                )
            )
        plain.inbox.put(None)
        lists = [drive_lists(pipe, items) for _ in range(pairs)]
        figures.append(
            of_runs(PART, f"pipe called from 1 with lists of {MAX_BATCH}", lists, "items/s")
        )
    return figures


def drive(submit: Submit, threads: int, items: int) -> float:
    """Send `items`, spread over `threads`, and return the calls per second."""
    items_per_thread = items // threads

    def work() -> None:
        for number in range(items_per_thread):
            item = {"data": number}
            submit(item)
            assert item["result"] == number

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return items_per_thread * threads / (time.perf_counter() - started)


def drive_lists(submit: Callable[[list[dict[str, Any]]], None], items: int) -> float:
    """Send `items` in lists of `MAX_BATCH`, and return the items per second."""
    started = time.perf_counter()
    for _ in range(items // MAX_BATCH):
        batch = [{"data": number} for number in range(MAX_BATCH)]
        submit(batch)
        assert batch[-1]["result"] == MAX_BATCH - 1
    return items // MAX_BATCH * MAX_BATCH / (time.perf_counter() - started)
