"""Measure a running server, or a pipeline in this process: warm up, load, and report."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.backends import timeline
from penstock.backends.errors import PenstockError
from penstock.backends.text import message_of
from penstock.pipelines.pipeline import Pipeline

from ..http.errors import status_of
from ..http.predict_call import server_timing
from ..http.render import fields_of, to_json
from .client import HttpClient
from .load import NO_ANSWER, Answer, Record, Send, closed_loop, no_answer_from, open_loop
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


class Watch:
    """A load as it goes on, for those who show its progress or end it early."""

    def __init__(self) -> None:
        self.record = Record()
        self.interrupted = False
        self._task: asyncio.Task[Record] | None = None

    @property
    def begun(self) -> bool:
        """True once the load, and no more the warm-up, is sent."""
        return self._task is not None

    def interrupt(self) -> None:
        """End the load now. Its report is of the answers that have come."""
        if self._task is not None:
            self.interrupted = True
            self._task.cancel()

    async def run(self, load: Coroutine[Any, Any, Record]) -> None:
        """Wait for a load, which fills `record`, or for `interrupt`."""
        task = self._task = asyncio.create_task(load)
        try:
            await task
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
        finally:
            task.cancel()


async def bench_url(
    url: str, load: Load, pid: int | None = None, watch: Watch | None = None
) -> Report:
    """Load a running server; `pid` is its process, for CPU and memory.

    Raises `NotAnswering`, and ValueError if `url` is not the URL of a pipeline.
    """
    headers = dict(load.headers)
    if load.deadline is not None:
        headers[DEADLINE_HEADER] = f"{load.deadline * 1000:g}"
    client = HttpClient(url, headers, read_headers=True)
    try:
        return await bench(client.send, load, pid, url=url, watch=watch)
    finally:
        await client.close()


async def bench_file(
    source: str | Path | Mapping[str, object],
    load: Load,
    recording: timeline.Recording | None = None,
    watch: Watch | None = None,
) -> Report:
    """Load a pipeline in this process, without HTTP.

    `recording` receives a timeline of the load, without the warm-up. Raises `NotAnswering` and what
    `Pipeline.load` and `Pipeline.start` raise.
    """
    async with Pipeline.load(source) as pipeline:
        send = in_process(pipeline, load.deadline)
        return await bench(send, load, os.getpid(), recording, watch=watch)


def in_process(
    pipeline: Pipeline, deadline: float | None = None, *, rendered: bool = False
) -> Send:
    """Send to a pipeline without HTTP; its errors become the statuses that HTTP has for them.

    `rendered`: answers have the body that a server sends. Otherwise it is empty, so that a
    measurement is of the pipeline alone.
    """

    async def send(body: bytes) -> Answer:
        try:
            run = pipeline.submit_nowait({"data": body}, timeout=deadline, use_cache=False)
            try:
                item = await run.future
            finally:
                run.leave()
            if "error" in item:
                raise item["error"]
            answer = to_json(fields_of(item, pipeline.answer_keys)) if rendered else b""
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
    watch: Watch | None = None,
) -> Report:
    """Warm up, then load, and report. `url`: where `send` sends. Raises `NotAnswering`."""
    watch = Watch() if watch is None else watch
    record = watch.record
    if load.warm_up:
        await _warm_up(send, load, url)
    async with Monitor(pid) as usage:
        with nullcontext() if recording is None else timeline.record(recording):
            if load.rate is None:
                seconds = load.seconds
                if seconds is None and load.requests is None:
                    seconds = DEFAULT_SECONDS
                sending = closed_loop(
                    send,
                    load.bodies,
                    load.clients,
                    requests=load.requests,
                    seconds=seconds,
                    record=record,
                )
            else:
                seconds = load.seconds or DEFAULT_SECONDS
                if load.requests is not None:
                    seconds = load.requests / load.rate
                sending = open_loop(
                    send, load.bodies, load.rate, seconds=seconds, seed=load.seed, record=record
                )
            await watch.run(sending)
    return Report.of(
        record,
        seconds=None if load.rate is None or watch.interrupted else seconds,
        open_loop=load.rate is not None,
        deadline=load.deadline,
        usage=usage,
        interrupted=watch.interrupted,
    )


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
