"""Load for a server or a pipeline, and the record of it: a closed loop (clients that wait) or an open one (arrivals that do not).

What sends is any `Send`; `http_client.py` has the one for HTTP. What the record means is for `report.py` to say.
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
    status: int
    """As HTTP has it; `NO_ANSWER` where none came."""
    body: bytes
    timing: str = ""
    """The header Server-Timing, where the sender was asked to read it."""


NO_ANSWER = 0

Send = Callable[[bytes], Awaitable[Answer]]
"""Sends one body and waits for its answer; never raises for what the other side does."""


class Sample(NamedTuple):
    """One request. `started` is when it was due: in an open loop the schedule's time, however late the generator was. Seconds."""

    started: float
    ended: float
    status: int

    @property
    def latency(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True, slots=True)
class Record:
    samples: Sequence[Sample]
    seconds: float
    """From the first request's start to the last answer."""
    late: float = 0.0
    """The most that the generator was behind its schedule, seconds. Where it is large, the generator was the bottleneck."""


async def closed_loop(
    send: Send,
    bodies: Sequence[bytes],
    clients: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
) -> Record:
    """`clients` that each send the next of `bodies` as soon as their last answer is there: `requests` in all, or for `seconds`."""
    if (requests is None) == (seconds is None):
        raise ValueError("expected either requests or seconds")
    samples: list[Sample] = []
    source = itertools.cycle(bodies)
    numbers = itertools.count() if requests is None else range(requests).__iter__()
    begun = time.perf_counter()
    end = float("inf") if seconds is None else begun + seconds

    async def client() -> None:
        for _ in numbers:
            started = time.perf_counter()
            if started >= end:
                return
            answer = await send(next(source))
            samples.append(Sample(started, time.perf_counter(), answer.status))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Record(samples, time.perf_counter() - begun)


async def open_loop(
    send: Send, bodies: Sequence[bytes], rate: float, *, seconds: float, seed: int = 0
) -> Record:
    """Poisson arrivals, `rate` a second for `seconds`, whether or not earlier ones were answered. Waits for all answers."""
    draw = random.Random(seed).expovariate
    samples: list[Sample] = []
    source = itertools.cycle(bodies)
    begun = due = time.perf_counter()
    end = begun + seconds
    late = 0.0

    async def one(body: bytes, due: float) -> None:
        answer = await send(body)
        samples.append(Sample(due, time.perf_counter(), answer.status))

    async with asyncio.TaskGroup() as group:
        while (due := due + draw(rate)) < end:
            wait = due - time.perf_counter()
            if wait > 0.001:  # a shorter sleep is longer than it says
                await asyncio.sleep(wait)
            late = max(late, -wait)
            group.create_task(one(next(source), due))
    return Record(samples, time.perf_counter() - begun, late)
