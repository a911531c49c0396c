"""Measures a running server or a pipeline in this process: warms up, loads it, watches its process, reports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from penstock.backends import timeline
from penstock.backends.errors import PenstockError
from penstock.pipelines.pipeline import Pipeline

from ..http.errors import STATUSES, code_of
from .client import HttpClient
from .load import NO_ANSWER, Answer, Send, closed_loop, open_loop
from .report import OK, Report
from .usage import Monitor

DEADLINE_HEADER = "Penstock-Deadline-Ms"


@dataclass(frozen=True, slots=True)
class Load:
    """What to send. Closed: `clients` that wait for their answers; open where `rate` is given: that many arrivals a second, Poisson.

    `requests` or `seconds` (an open loop takes `seconds`; of `requests` it makes requests ÷ rate). `deadline`: seconds, told to the
    server with each request. `warm_up`: requests before, not counted.
    """

    bodies: Sequence[bytes]
    clients: int = 16
    requests: int | None = None
    seconds: float | None = None
    rate: float | None = None
    deadline: float | None = None
    warm_up: int = 16
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class NotAnswering(Exception):  # noqa: N818  named as all of ours are
    """Not one request of the warm-up was answered with success."""


async def bench_url(url: str, load: Load, pid: int | None = None) -> Report:
    """Load a running server; `pid` is its process, for CPU and memory. Raises `NotAnswering`, ValueError for a bad address."""
    headers = dict(load.headers)
    if load.deadline is not None:
        headers[DEADLINE_HEADER] = f"{load.deadline * 1000:g}"
    client = HttpClient(url, headers)
    try:
        return await bench(client.send, load, pid)
    finally:
        await client.close()


async def bench_file(
    source: str | Path | Mapping[str, object],
    load: Load,
    recording: timeline.Recording | None = None,
) -> Report:
    """Load a pipeline in this process: what is left when there is no HTTP. Raises what `Pipeline.load` and `start` raise.

    `recording`: gets a timeline of it, without the warm-up.
    """
    async with Pipeline.load(source) as pipeline:
        return await bench(in_process(pipeline, load.deadline), load, os.getpid(), recording)


def in_process(pipeline: Pipeline, deadline: float | None = None) -> Send:
    """Send to a pipeline directly; its errors become the statuses that HTTP would have."""

    async def send(body: bytes) -> Answer:
        try:
            await pipeline({"data": body}, timeout=deadline)
        except PenstockError as error:
            return Answer(STATUSES[code_of(error)].http, str(error).encode())
        return Answer(OK, b"")

    return send


async def bench(
    send: Send, load: Load, pid: int | None = None, recording: timeline.Recording | None = None
) -> Report:
    """Warm up, then load. Raises `NotAnswering`."""
    if load.warm_up:
        await _warm_up(send, load)
    async with Monitor(pid) as usage:
        with nullcontext() if recording is None else timeline.record(recording):
            if load.rate is None:
                seconds = (
                    load.seconds if load.seconds is not None or load.requests is not None else 10.0
                )
                record = await closed_loop(
                    send, load.bodies, load.clients, requests=load.requests, seconds=seconds
                )
            else:
                seconds = (
                    load.requests / load.rate if load.requests is not None else load.seconds or 10.0
                )
                record = await open_loop(
                    send, load.bodies, load.rate, seconds=seconds, seed=load.seed
                )
    if load.rate is None:
        return Report.of(record, deadline=load.deadline, usage=usage)
    return Report.of(record, seconds=seconds, open_loop=True, deadline=load.deadline, usage=usage)


async def _warm_up(send: Send, load: Load) -> None:
    last = Answer(NO_ANSWER, b"")

    async def noting(body: bytes) -> Answer:
        nonlocal last
        answer = await send(body)
        if last.status != OK:
            last = answer
        return answer

    await closed_loop(noting, load.bodies, load.clients, requests=load.warm_up)
    if last.status == NO_ANSWER:
        raise NotAnswering("there is no answer: is the server running, and is this its address?")
    if last.status != OK:
        text = last.body[:500].decode("utf-8", "replace")
        raise NotAnswering(
            f"not one request of the warm-up succeeded; the last answer has status {last.status}: {text}"
        )
