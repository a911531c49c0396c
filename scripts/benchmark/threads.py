"""`pipe`, called from 1, 8 and 32 threads, against the least that could be done: a queue, one thread, a lock a call. In alternation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

from figures import Figure, of_runs, say

import penstock

LARGEST = 32
PART = "threads"
Call = Callable[[dict[str, Any]], None]


class PlainThread:
    """Takes what is there, up to `LARGEST`, and answers it. It knows no deadline, failure, cancellation, bound or statistics."""

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
                while len(batch) < LARGEST and (more := self.inbox.get_nowait()) is not None:
                    batch.append(more)
            except Empty:
                pass
            for item, done in batch:
                item["result"] = item["data"]
                done.release()


def measure(quick: bool) -> list[Figure]:
    pairs, items = (5, 8_000) if quick else (11, 32_000)
    figures = []
    with penstock.pipe({"noop": {"backend": "Identity", "max": LARGEST}}) as pipe:
        plain = PlainThread()
        for threads in 1, 8, 32:
            rates: dict[Call, list[float]] = {plain: [], pipe: []}
            order: list[Call] = [plain, pipe]
            for pair in range(-1, pairs):  # the first is to warm up
                for call in order:
                    rate = drive(call, threads, items)
                    if pair >= 0:
                        rates[call].append(rate)
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
            of_runs(PART, f"pipe called from 1 with lists of {LARGEST}", lists, "items/s")
        )
    return figures


def drive(call: Call, threads: int, items: int) -> float:
    """Calls a second."""
    each = items // threads

    def work() -> None:
        for number in range(each):
            item = {"data": number}
            call(item)
            assert item["result"] == number

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return each * threads / (time.perf_counter() - started)


def drive_lists(call: Callable[[list[dict[str, Any]]], None], items: int) -> float:
    """Items a second."""
    started = time.perf_counter()
    for _ in range(items // LARGEST):
        batch = [{"data": number} for number in range(LARGEST)]
        call(batch)
        assert batch[-1]["result"] == LARGEST - 1
    return items // LARGEST * LARGEST / (time.perf_counter() - started)
