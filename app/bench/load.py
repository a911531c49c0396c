"""Load for a server or a pipeline: a closed loop of clients that wait, or an open loop of arrivals.

Both send through any `Send` (`client.py` has the one for HTTP) and return a `Record`, from which
`report.py` computes rates and latencies. It grows while they send, for those who watch, and is
complete up to then if they are cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_BATCH_TIMING = re.compile(r'run\.([^;]*);dur=[^;]*;desc="batch (\d+)"')


class Answer(NamedTuple):
    """The answer to one request."""

    status: int
    """The HTTP status; `NO_ANSWER` if there was no answer."""
    body: bytes
    timing: str = ""
    """The header Server-Timing, if the sender was asked to read headers."""
    retry_after: float = 0.0
    """The header Retry-After in seconds, likewise."""


NO_ANSWER = 0


def no_answer_from(url: str) -> str:
    """Say that a server did not answer, and what to check."""
    return f"no answer from {url}: is the server running, and is this its URL?"


Send = Callable[[bytes], Awaitable[Answer]]
"""Send one body and wait for its answer. Never raises for what the other side does."""


class Sample(NamedTuple):
    """One request. Times are those of `time.perf_counter()`, in seconds."""

    started: float
    """The time at which it was due: in an open loop by the schedule, however late it was sent."""
    ended: float
    status: int
    body: int = 0
    """The index of its body."""

    @property
    def latency(self) -> float:
        return self.ended - self.started


@dataclass(slots=True)
class Record:
    """A load that was sent, and its answers."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    """From the start of the first request to the last answer."""
    late: float = 0.0
    """Seconds by which the generator was late at worst.

    If this is large, the generator was the bottleneck.
    """
    begun: float = 0.0
    """The start, on the clock of the samples."""
    pauses: int = 0
    """How often a client of a closed loop waited because an answer's Retry-After told it to."""
    paused: float = 0.0
    """The seconds of these waits, of all clients together."""
    batches: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(node, size of the batch) -> number of requests, for answers that have their timing."""


async def closed_loop(
    send: Send,
    bodies: Sequence[bytes],
    clients: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    ramp: float = 0.0,
    record: Record | None = None,
) -> Record:
    """Run `clients` that each send the next of `bodies` as soon as their last answer has come.

    They send `requests` in all, or for `seconds`; they begin one by one, within `ramp` seconds.
    A client whose answer has a Retry-After waits for as long first. `record`: an empty one to fill.
    Raises ValueError unless exactly one of `requests` and `seconds` is given.
    """
    if (requests is None) == (seconds is None):
        raise ValueError("expected either requests or seconds")
    record = Record() if record is None else record
    source = itertools.cycle(enumerate(bodies))
    numbers = itertools.count() if requests is None else iter(range(requests))
    begun = record.begun = time.perf_counter()
    end = float("inf") if seconds is None else begun + seconds

    async def client(number: int) -> None:
        if ramp:
            await asyncio.sleep(ramp * number / clients)
        pause = 0.0
        for _ in numbers:
            if pause:
                pause = max(0.0, min(pause, end - time.perf_counter()))
                record.pauses += 1
                record.paused += pause
                await asyncio.sleep(pause)
            started = time.perf_counter()
            if started >= end:
                return
            index, body = next(source)
            answer = await send(body)
            sample = Sample(started, time.perf_counter(), answer.status, index)
            _note(record, sample, answer)
            pause = answer.retry_after

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))
    finally:
        record.seconds = time.perf_counter() - begun
    return record


async def open_loop(
    send: Send,
    bodies: Sequence[bytes],
    rate: float,
    *,
    seconds: float,
    seed: int = 0,
    record: Record | None = None,
) -> Record:
    """Send `rate` requests per second (Poisson arrivals) for `seconds`.

    Does not wait for answers in between; returns when all have come. `record`: an empty one to
    fill.
    """
    record = Record() if record is None else record
    draw = random.Random(seed).expovariate
    source = itertools.cycle(enumerate(bodies))
    begun = due = record.begun = time.perf_counter()
    end = begun + seconds

    async def one(index: int, body: bytes, due: float) -> None:
        answer = await send(body)
        _note(record, Sample(due, time.perf_counter(), answer.status, index), answer)

    try:
        async with asyncio.TaskGroup() as group:
            while (due := due + draw(rate)) < end:
                wait = due - time.perf_counter()
                if wait > 0.001:  # shorter sleeps overshoot
                    await asyncio.sleep(wait)
                record.late = max(record.late, -wait)
                group.create_task(one(*next(source), due))
    finally:
        record.seconds = time.perf_counter() - begun
    return record


def _note(record: Record, sample: Sample, answer: Answer) -> None:
    record.samples.append(sample)
    if answer.timing:
        record.batches.update(batches_of(answer.timing))


def batches_of(timing: str) -> list[tuple[str, int]]:
    """Return each node and the size of its batch, from a Server-Timing header."""
    return [(node, int(size)) for node, size in _BATCH_TIMING.findall(timing)]
