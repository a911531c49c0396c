"""Open loops beyond a server's capacity: what is answered in time, and what happens meanwhile.

Arrivals are Poisson and name no deadline. A client leaves after 5 s. An answer is in time within
20 times what one item takes alone, or within a second if that is more. Latency counts from when a
request was due, however late the generator sent it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import NamedTuple

from figures import Figure, say

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import NO_ANSWER, Record, Sample, closed_loop, open_loop
from penstock.app.bench.report import OK, percentile
from penstock.app.bench.usage import Monitor, rss

PART = "overload"
PATIENCE_SECONDS = 5.0
CLIENTS = 64
"""Connections of the closed loop that measures a capacity."""
HEALTH_RATE = 20.0
"""Requests for /health per second, on a connection of their own."""
CALM_SECONDS = 2.0
"""Time for the last requests of a load to be gone before the next begins, beside the patience."""
REFUSED = (429, 503)
MOST_GROWTH_MB = 200.0
"""1024 requests in flight (max_requests) of 100 kB each, twice: as received, and as a body."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to load. `work`: what each of `bodies` is worth, in `unit`."""

    name: str
    url: str
    pid: int
    bodies: Sequence[bytes]
    work: Sequence[int]
    unit: str = "images"
    health: str | None = None
    peer: bool = False
    """It is not ours: its figures have no targets."""

    @property
    def middle(self) -> bytes:
        """A body whose work is the median."""
        order = sorted(range(len(self.bodies)), key=self.work.__getitem__)
        return self.bodies[order[len(order) // 2]]

    def worth(self, samples: Sequence[Sample]) -> int:
        """Return the work of the requests that were answered."""
        return sum(self.work[sample.body] for sample in samples if sample.status == OK)


class Pace(NamedTuple):
    """What a target does without overload."""

    capacity: float
    """Work per second, with 64 clients that wait for their answers."""
    alone: float
    """Seconds that a request of the one client takes (p50)."""

    @property
    def limit(self) -> float:
        """Seconds within which an answer is in time."""
        return max(1.0, 20 * self.alone)


class Overload(NamedTuple):
    """What was measured during an open loop, and after."""

    record: Record
    health: Sequence[Sample]
    after: Sequence[Sample]
    """Of one client that began a second after the last arrival."""


async def measure_pace(target: Target, seconds: float) -> Pace:
    """Measure a target without overload.

    Raises RuntimeError unless all its answers are 200; a peer's may fail.
    """
    client = HttpClient(target.url)
    try:
        alone = await closed_loop(client.send, [target.middle], 1, seconds=seconds / 2)
        await closed_loop(client.send, target.bodies, CLIENTS, seconds=min(seconds, 1.0))
        many = await closed_loop(client.send, target.bodies, CLIENTS, seconds=seconds)
    finally:
        await client.close()
    statuses = statuses_of([*alone.samples, *many.samples])
    if set(statuses) != {OK} and not target.peer:
        raise RuntimeError(f"{target.name}: not all requests were answered: {dict(statuses)}")
    latency = median(sample.latency for sample in alone.samples if sample.status == OK)
    return Pace(target.worth(many.samples) / many.seconds, latency)


async def overload(target: Target, rate: float, seconds: float) -> Overload:
    """Send `rate` requests per second for `seconds`, and then, from one client, one by one."""
    client = HttpClient(target.url, patience=PATIENCE_SECONDS)
    single = HttpClient(target.url)
    prober = None if target.health is None else HttpClient(target.health, method="GET")

    async def probe() -> Sequence[Sample]:
        if prober is None:
            return ()
        return (await open_loop(prober.send, [b""], HEALTH_RATE, seconds=seconds)).samples

    async def come_after() -> Sequence[Sample]:
        await asyncio.sleep(seconds + 1.0)
        return (await closed_loop(single.send, [target.middle], 1, seconds=2.0)).samples

    try:
        record, health, after = await asyncio.gather(
            open_loop(client.send, target.bodies, rate, seconds=seconds), probe(), come_after()
        )
        await asyncio.sleep(CALM_SECONDS)
    finally:
        for opened in (client, single, prober):
            if opened is not None:
                await opened.close()
    return Overload(record, health, after)


async def open_loops(target: Target, quick: bool) -> list[Figure]:
    """Load a target with 2 and 5 times its capacity, for 10 and 30 s, a peer only for 10.

    The capacity is measured before and after each load, and their mean counts: machines get slower
    and faster.
    """
    figures: list[Figure] = []
    pace = await measure_pace(target, 2.0 if quick else 5.0)
    say(f"{PART}, {target.name}: {pace.capacity:.1f} {target.unit}/s, {pace.alone * 1000:.1f} ms")
    durations = (10.0,) if target.peer else (10.0, 30.0)
    for seconds in (6.0,) if quick else durations:
        for factor in (2, 5):
            rate = factor * pace.capacity / mean(target.work)
            start = rss(target.pid) or 0.0
            async with Monitor(target.pid, 0.1) as usage:
                load = await overload(target, rate, seconds)
            before, pace = pace, await measure_pace(target, 2.0 if quick else 5.0)
            capacity = mean((before.capacity, pace.capacity))
            what = f"{target.name}, {factor} × for {seconds:.0f} s"
            figures += _figures(what, target, load, Pace(capacity, before.alone), seconds)
            if not target.peer:
                most = usage.rss_max_mb or start
                what = f"{what}: RSS growth at most"
                note = f"{most:.0f} MB at most"
                figures.append(
                    Figure(PART, what, most - start, "MB", most=MOST_GROWTH_MB, note=note)
                )
    return figures


def _figures(what: str, target: Target, load: Overload, pace: Pace, seconds: float) -> list[Figure]:
    samples = load.record.samples
    in_time = [sample for sample in samples if sample.latency <= pace.limit]
    goodput = target.worth(in_time) / seconds
    note = (
        f"{goodput:.1f} of {pace.capacity:.1f} {target.unit}/s within {pace.limit:.2g} s; "
        f"{outcomes(samples, pace.limit)}; {lateness(load.record)}"
    )
    say(f"{PART}, {what}: {goodput / pace.capacity:.3f}: {note}")
    share = Figure(
        PART,
        f"{what}: answered in time ÷ capacity",
        goodput / pace.capacity,
        least=None if target.peer else 0.9,
        note=note,
    )
    figures = [share, _after(what, target, load, pace)]
    if target.peer:
        return figures
    refusals = [sample.latency for sample in samples if sample.status in REFUSED]
    if refusals:
        figures.append(milliseconds(f"{what}: refusals, p99", refusals, 10))
    if load.health:
        healths = [sample.latency for sample in load.health]
        figures.append(milliseconds(f"{what}: /health, p99", healths, 50))
    return figures


def _after(what: str, target: Target, load: Overload, pace: Pace) -> Figure:
    good = [sample.latency for sample in load.after if sample.status == OK]
    refused = len(load.after) - len(good)
    after = median(good) if good else PATIENCE_SECONDS
    return Figure(
        PART,
        f"{what}: one client's p50 a second after ÷ before",
        after / pace.alone,
        most=None if target.peer else 1.25,
        note=f"{after * 1000:.1f} to {pace.alone * 1000:.1f} ms; {refused} not answered",
    )


def milliseconds(what: str, latencies: Sequence[float], most: float) -> Figure:
    """Return the figure of a p99 in ms."""
    ordered = sorted(latency * 1000 for latency in latencies)
    note = f"{len(ordered)} answers, p50 {percentile(ordered, 50):.1f} ms, most {ordered[-1]:.1f}"
    return Figure(PART, what, percentile(ordered, 99), "ms", most=most, note=note)


def statuses_of(samples: Sequence[Sample]) -> Counter[int]:
    return Counter(sample.status for sample in samples)


def outcomes(samples: Sequence[Sample], limit: float) -> str:
    """Say how many requests were answered in time, answered late, refused, and given up."""
    statuses = statuses_of(samples)
    late = sum(sample.status == OK and sample.latency > limit for sample in samples)
    parts = [f"{statuses.pop(OK, 0) - late} in time", f"{late} late"]
    parts.append(f"{sum(statuses.pop(status, 0) for status in REFUSED)} refused")
    parts.append(f"{statuses.pop(NO_ANSWER, 0)} given up")
    parts += [f"{count} of status {status}" for status, count in statuses.items()]
    return ", ".join(parts)


def lateness(record: Record) -> str:
    return f"generator at most {record.late * 1000:.0f} ms late"
