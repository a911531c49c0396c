"""Measure a running server, or a pipeline in this process: warm up, load, and report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from penstock.backends import timeline
from penstock.backends.errors import PenstockError
from penstock.backends.text import message_of
from penstock.pipelines.pipeline import Pipeline

from ..http.errors import status_of
from ..http.predict_call import server_timing
from ..http.render import fields_of, to_json
from .client import HttpClient
from .load import NO_ANSWER, Answer, Send, closed_loop, no_answer_from, open_loop
from .report import OK, Report
from .usage import Monitor

DEADLINE_HEADER = "Penstock-Deadline-Ms"
DEFAULT_SECONDS = 10.0
"""Duration of a load that gives neither `requests` nor `seconds`."""
LONGEST_QUOTE_BYTES = 500
"""Bytes of an answer that an error quotes."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load to send: a closed loop of `clients`, or an open loop if `rate` is given."""

    bodies: Sequence[bytes]
    clients: int = 16
    """Clients of the closed loop, each waiting for its answer. They also send the warm-up."""
    requests: int | None = None
    """Requests in all. An open loop sends for `requests` ÷ `rate` seconds instead."""
    seconds: float | None = None
    rate: float | None = None
    """Arrivals per second (Poisson)."""
    deadline: float | None = None
    """Seconds; each request carries it."""
    warm_up: int = 16
    """Requests that are sent first and not counted."""
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class NotAnswering(Exception):  # noqa: N818  named for what happened, as in backends/errors.py
    """Raised when no request of the warm-up was answered with 200."""


async def bench_url(url: str, load: Load, pid: int | None = None) -> Report:
    """Load a running server; `pid` is its process, for CPU and memory.

    Raises `NotAnswering`, and ValueError if `url` is not the URL of a pipeline.
    """
    headers = dict(load.headers)
    if load.deadline is not None:
        headers[DEADLINE_HEADER] = f"{load.deadline * 1000:g}"
    client = HttpClient(url, headers)
    try:
        return await bench(client.send, load, pid, url=url)
    finally:
        await client.close()


async def bench_file(
    source: str | Path | Mapping[str, object],
    load: Load,
    recording: timeline.Recording | None = None,
) -> Report:
    """Load a pipeline in this process, without HTTP.

    `recording` receives a timeline of the load, without the warm-up. Raises `NotAnswering` and what
    `Pipeline.load` and `Pipeline.start` raise.
    """
    async with Pipeline.load(source) as pipeline:
        return await bench(in_process(pipeline, load.deadline), load, os.getpid(), recording)


def in_process(
    pipeline: Pipeline, deadline: float | None = None, *, rendered: bool = False
) -> Send:
    """Send to a pipeline without HTTP; its errors become the statuses that HTTP has for them.

    `rendered`: answers have the body and the timing that a server sends. Otherwise both are empty,
    so that a measurement is of the pipeline alone.
    """

    async def send(body: bytes) -> Answer:
        try:
            if not rendered:
                await pipeline({"data": body}, timeout=deadline)
                return Answer(OK, b"")
            run = pipeline.submit_nowait({"data": body}, timeout=deadline)
            item = await run.future
            if "error" in item:
                raise item["error"]
            answer = to_json(fields_of(item, pipeline.answer_keys))
            return Answer(OK, answer, server_timing(run).decode("latin-1"))
        except PenstockError as error:
            return Answer(status_of(error).http, message_of(error).encode())

    return send


async def bench(
    send: Send,
    load: Load,
    pid: int | None = None,
    recording: timeline.Recording | None = None,
    *,
    url: str = "",
) -> Report:
    """Warm up, then load, and report. `url`: where `send` sends. Raises `NotAnswering`."""
    if load.warm_up:
        await _warm_up(send, load, url)
    async with Monitor(pid) as usage:
        with nullcontext() if recording is None else timeline.record(recording):
            if load.rate is None:
                seconds = load.seconds
                if seconds is None and load.requests is None:
                    seconds = DEFAULT_SECONDS
                record = await closed_loop(
                    send, load.bodies, load.clients, requests=load.requests, seconds=seconds
                )
            else:
                seconds = load.seconds or DEFAULT_SECONDS
                if load.requests is not None:
                    seconds = load.requests / load.rate
                record = await open_loop(
                    send, load.bodies, load.rate, seconds=seconds, seed=load.seed
                )
    if load.rate is None:
        return Report.of(record, deadline=load.deadline, usage=usage)
    return Report.of(record, seconds=seconds, open_loop=True, deadline=load.deadline, usage=usage)


async def _warm_up(send: Send, load: Load, url: str) -> None:
    best = Answer(NO_ANSWER, b"")  # a success if there was one, else the last answer

    async def noting(body: bytes) -> Answer:
        nonlocal best
        answer = await send(body)
        if best.status != OK:
            best = answer
        return answer

    await closed_loop(noting, load.bodies, load.clients, requests=load.warm_up)
    if best.status == NO_ANSWER:
        raise NotAnswering(no_answer_from(url))
    if best.status != OK:
        text = best.body[:LONGEST_QUOTE_BYTES].decode("utf-8", "replace")
        raise NotAnswering(
            f"no request of the warm-up succeeded; the last answer has status {best.status}: {text}"
        )
