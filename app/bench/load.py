"""Load for a server or a pipeline: a closed loop of clients that wait, or an open loop of arrivals.

Both send through any `Send` (`client.py` has the one for HTTP) and return a `Record`, from which
`report.py` computes rates and latencies.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


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


@dataclass(frozen=True, slots=True)
class Record:
    """A load that was sent, and its answers."""

    samples: Sequence[Sample]
    seconds: float
    """From the start of the first request to the last answer."""
    late: float = 0.0
    """Seconds by which the generator was late at worst.

    If this is large, the generator was the bottleneck.
    """


async def closed_loop(
    send: Send,
    bodies: Sequence[bytes],
    clients: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    ramp: float = 0.0,
) -> Record:
    """Run `clients` that each send the next of `bodies` as soon as their last answer has come.

    They send `requests` in all, or for `seconds`; they begin one by one, within `ramp` seconds.
    Raises ValueError unless exactly one of `requests` and `seconds` is given.
    """
    if (requests is None) == (seconds is None):
        raise ValueError("expected either requests or seconds")
    samples: list[Sample] = []
    source = itertools.cycle(enumerate(bodies))
    numbers = itertools.count() if requests is None else iter(range(requests))
    begun = time.perf_counter()
    end = float("inf") if seconds is None else begun + seconds

    async def client(number: int) -> None:
        if ramp:
            await asyncio.sleep(ramp * number / clients)
        for _ in numbers:
            started = time.perf_counter()
            if started >= end:
                return
            index, body = next(source)
            answer = await send(body)
            samples.append(Sample(started, time.perf_counter(), answer.status, index))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return Record(samples, time.perf_counter() - begun)


async def open_loop(
    send: Send, bodies: Sequence[bytes], rate: float, *, seconds: float, seed: int = 0
) -> Record:
    """Send `rate` requests per second (Poisson arrivals) for `seconds`.

    Does not wait for answers in between; returns when all have come.
    """
    draw = random.Random(seed).expovariate
    samples: list[Sample] = []
    source = itertools.cycle(enumerate(bodies))
    begun = due = time.perf_counter()
    end = begun + seconds
    late = 0.0

    async def one(index: int, body: bytes, due: float) -> None:
        answer = await send(body)
        samples.append(Sample(due, time.perf_counter(), answer.status, index))

    async with asyncio.TaskGroup() as group:
        while (due := due + draw(rate)) < end:
            wait = due - time.perf_counter()
            if wait > 0.001:  # shorter sleeps overshoot
                await asyncio.sleep(wait)
            late = max(late, -wait)
            group.create_task(one(*next(source), due))
    return Record(samples, time.perf_counter() - begun, late)
