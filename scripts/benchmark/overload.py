"""Servers under more load than they can take, with default settings and clients without deadlines.

JPEG -> ResNet-18, the same in mosec, and a graph with a fan-out. `open_loops.py` says what counts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop
from figures import Figure, say
from open_loops import (
    CALM_SECONDS,
    PART,
    PATIENCE_SECONDS,
    Pace,
    Target,
    lateness,
    measure_pace,
    open_loops,
    outcomes,
    statuses_of,
)
from overload_graph import graph_target
from resnet import PATH, exported
from servers import MOSEC_VERSION, mosec, penstock

from penstock.app.bench.client import HttpClient
from penstock.app.bench.images import synthetic_jpegs
from penstock.app.bench.load import Answer, Record, closed_loop, open_loop
from penstock.app.bench.report import OK

MAX_BATCH = 8
"""`max` of resnet18_one.toml."""
BURST = 10 * MAX_BATCH
SMALL_ADDRESS = "127.0.0.2"
"""A second client on this machine, beside 127.0.0.1. Linux has all of 127.0.0.0/8."""
PRIORITY_HEADER = "Penstock-Priority"
MOST_TRIES = 40
MOSEC = f"mosec {MOSEC_VERSION}"


def measure(quick: bool) -> list[Figure]:
    return uvloop.run(_measure(quick))


async def _measure(quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    with exported() as folder:
        with _resnet(folder / "resnet18_one.toml") as target:
            figures += await open_loops(target, quick)
            pace = await measure_pace(target, 2.0)
            figures.append(await _burst(target))
            for connections in (64, 512) if quick else (64, 512, 1000):
                figures.append(await _connections(target, connections, pace))
            figures.append(await _two_clients(target, pace, quick))
            figures.append(await _retries(target, pace, quick))
        with _resnet(_with_levels(folder)) as target:
            pace = await measure_pace(target, 2.0)
            figures.append(await _two_priorities(target, pace, quick))
        try:
            with mosec("mosec_resnet.py", MODEL=str(folder / "resnet18.onnx")) as server:
                url = server.url("/inference")
                jpegs = synthetic_jpegs()
                target = Target(MOSEC, url, server.pid, jpegs, [1] * len(jpegs), peer=True)
                figures += await open_loops(target, quick)
        except (OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            say(f"   {MOSEC} is not measured: {reason}")
            figures.append(Figure(PART, f"{MOSEC}: answered in time", math.nan, note=reason))
    with graph_target() as target:
        figures += await open_loops(target, quick)
    return figures


@contextmanager
def _resnet(pipeline: Path) -> Iterator[Target]:
    jpegs = synthetic_jpegs()
    with penstock(pipeline) as server:
        yield Target(
            "Penstock",
            server.url(PATH),
            server.pid,
            jpegs,
            [1] * len(jpegs),
            health=server.url("/health/ready"),
        )


def _with_levels(folder: Path) -> Path:
    """Write the pipeline with two levels of priority."""
    text = (folder / "resnet18_one.toml").read_text()
    path = folder / "levels.toml"
    path.write_text(text + "priority_levels = 2\n")
    return path


async def _burst(target: Target) -> Figure:
    """Send ten full batches at once to the idle server."""
    client = HttpClient(target.url)
    await asyncio.sleep(CALM_SECONDS)
    record = await closed_loop(client.send, target.bodies, BURST, requests=BURST)
    await client.close()
    served = statuses_of(record.samples)[OK]
    note = outcomes(record.samples, math.inf)
    return Figure(PART, f"a burst of {BURST}: served", served / BURST, least=1.0, note=note)


async def _connections(target: Target, connections: int, pace: Pace) -> Figure:
    """Run a closed loop whose clients begin within a second."""
    client = HttpClient(target.url)
    await asyncio.sleep(CALM_SECONDS)
    seconds = max(5.0, 1.5 * connections / pace.capacity)
    record = await closed_loop(client.send, target.bodies, connections, seconds=seconds, ramp=1.0)
    await client.close()
    failed = len(record.samples) - statuses_of(record.samples)[OK]
    note = f"{outcomes(record.samples, math.inf)}; each client waits for its answer"
    say(f"{PART}, {connections} connections: {note}")
    return Figure(PART, f"{connections} connections: not served", failed, most=0, note=note)


async def _two_clients(target: Target, pace: Pace, quick: bool) -> Figure:
    """Send 5 times the capacity from one address, and a tenth of it from another one."""
    flood = HttpClient(target.url, patience=PATIENCE_SECONDS)
    small = HttpClient(target.url, patience=PATIENCE_SECONDS, local_address=SMALL_ADDRESS)
    return await _beside(
        "two clients, 5 × and 0.1 ×", target, pace, [(flood, 5.0), (small, 0.1)], quick
    )


async def _two_priorities(target: Target, pace: Pace, quick: bool) -> Figure:
    """Send 5 times the capacity at the lower level, and half of it at the higher one."""
    flood, high = (
        HttpClient(target.url, {PRIORITY_HEADER: level}, patience=PATIENCE_SECONDS)
        for level in ("2", "1")
    )
    return await _beside(
        "two priorities, 5 × low and 0.5 × high", target, pace, [(flood, 5.0), (high, 0.5)], quick
    )


async def _beside(
    what: str,
    target: Target,
    pace: Pace,
    loads: Sequence[tuple[HttpClient, float]],
    quick: bool,
) -> Figure:
    """Return the share of the last load that is answered in time beside the others.

    `loads`: clients, and their rates as multiples of the capacity.
    """
    await asyncio.sleep(CALM_SECONDS)
    records: list[Record] = await asyncio.gather(
        *[
            open_loop(
                client.send,
                target.bodies,
                factor * pace.capacity,
                seconds=6.0 if quick else 20.0,
                seed=seed,
            )
            for seed, (client, factor) in enumerate(loads)
        ]
    )
    for client, _ in loads:
        await client.close()
    samples = records[-1].samples
    good = sum(sample.status == OK and sample.latency <= pace.limit for sample in samples)
    all_good = sum(
        sample.status == OK and sample.latency <= pace.limit
        for record in records
        for sample in record.samples
    )
    note = (
        f"{outcomes(samples, pace.limit)}; the flood: {outcomes(records[0].samples, pace.limit)}; "
        f"{all_good} in all; {lateness(records[0])}"
    )
    say(f"{PART}, {what}: {note}")
    return Figure(
        PART, f"{what}: the small one's in time", good / len(samples), least=0.95, note=note
    )


async def _retries(target: Target, pace: Pace, quick: bool) -> Figure:
    """Send twice the capacity from clients that wait as Retry-After says, and try again."""
    client = HttpClient(target.url, read_headers=True)
    tries: list[int] = []

    async def send(body: bytes) -> Answer:
        answer = await client.send(body)
        count = 1
        while answer.retry_after and count < MOST_TRIES:
            await asyncio.sleep(answer.retry_after)
            answer = await client.send(body)
            count += 1
        tries.append(count)
        return answer

    await asyncio.sleep(CALM_SECONDS)
    seconds = 5.0 if quick else 10.0
    record = await open_loop(send, target.bodies, 2 * pace.capacity, seconds=seconds)
    await client.close()
    served = statuses_of(record.samples)[OK] / len(record.samples)
    slowest = max(sample.latency for sample in record.samples)
    note = (
        f"at 2 × for {seconds:.0f} s; {sum(tries) / len(tries):.1f} tries in the mean, "
        f"{max(tries)} at most; the last answer after {slowest:.1f} s"
    )
    say(f"{PART}, Retry-After: {served:.3f}: {note}")
    what = "clients that honour Retry-After: served"
    return Figure(PART, what, served, least=1.0, note=note)
