"""A timeline of batches, for `penstock bench --profile`: when items queued, were put together, copied and run.

Off, unless a `record` is entered. Until then all it costs is to ask whether `recording` is None, once a batch and once for each piece
of one, nothing for a request. Executors add batches and what queued for them, engines the pieces (`span`), device.py those of a GPU
(stream_spans.py). Times are seconds of `time.monotonic()`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from heapq import heappop, heappush
from threading import Lock, current_thread
from typing import Any, NamedTuple

LIMIT = 100_000
"""Spans of a recording: up to 27 MB of JSON, which viewers still open."""


class Span(NamedTuple):
    track: str
    name: str
    start: float
    end: float
    arguments: dict[str, int]


class Recording:
    """What happened: at most `limit` spans, the first. Any thread may add.

    Spans of one track lie beside or inside one another: it is what one thread, or one stream of a device, did. The items of a queue
    wait side by side, so `waits` are apart.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.spans: list[Span] = []
        self.waits: list[Span] = []
        self.missing = 0  # spans that came when it was full
        self._lock = Lock()

    def add(self, track: str, name: str, start: float, end: float, **arguments: int) -> None:
        self._add(self.spans, Span(track, name, start, end, arguments))

    def add_wait(self, track: str, start: float, end: float) -> None:
        self._add(self.waits, Span(track, track, start, end, {}))

    def _add(self, spans: list[Span], span: Span) -> None:
        with self._lock:
            if len(self.spans) + len(self.waits) < self.limit:
                spans.append(span)
            else:
                self.missing += 1

    def trace(self) -> dict[str, Any]:
        """The recording in Chrome's trace event format, which Perfetto and chrome://tracing read: ready for JSON.

        The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMh4h6I0nSsKchNAySU. Times are whole microseconds from
        the first span on, all rounded down, which keeps what is inside another span inside. Each track is a thread ("X", "M"); each
        queue a track of asynchronous events ("b", "e"), of which viewers show those of one name together.
        """
        everything = [*self.spans, *self.waits]
        first = min((span.start for span in everything), default=0.0)
        process = os.getpid()
        tracks = {
            name: process + 1 + index
            for index, name in enumerate(sorted({span.track for span in everything}))
        }
        events = [_name(process, process, "process_name", "penstock")]
        events += [_name(process, thread, "thread_name", track) for track, thread in tracks.items()]

        def event(phase: str, span: Span, at: float, **more: Any) -> dict[str, Any]:
            place = {
                "ph": phase,
                "cat": "penstock",
                "name": span.name,
                "pid": process,
                "tid": tracks[span.track],
            }
            return {**place, "ts": int((at - first) * 1e6), **more}

        for span in sorted(
            self.spans, key=lambda span: (span.start, -span.end)
        ):  # parents first: viewers rely on it
            found = event("X", span, span.start, args=span.arguments)
            events.append({**found, "dur": int((span.end - first) * 1e6) - found["ts"]})
        for wait, lane in _lanes(self.waits):
            events.append(event("b", wait, wait.start, id2={"local": lane}))
            events.append(event("e", wait, wait.end, id2={"local": lane}))
        about = {"spans": len(everything), "spans that it had no room for": self.missing}
        return {"traceEvents": events, "otherData": about}


def _name(process: int, thread: int, kind: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _lanes(waits: Iterable[Span]) -> Iterator[tuple[Span, str]]:
    """Each with the first lane of its track that is free: viewers draw a row for each, and waits without end would be rows without end."""
    free: dict[str, list[int]] = {}
    taken: dict[str, list[tuple[float, int]]] = {}
    for wait in sorted(waits, key=lambda wait: wait.start):
        lanes, busy = free.setdefault(wait.track, []), taken.setdefault(wait.track, [])
        while busy and busy[0][0] <= wait.start:
            heappush(lanes, heappop(busy)[1])
        lane = heappop(lanes) if lanes else len(busy)
        heappush(busy, (wait.end, lane))
        yield wait, f"{wait.track} {lane}"


recording: Recording | None = None
"""What is being recorded into, in this process; None: nothing is."""


@contextmanager
def record(into: Recording) -> Iterator[None]:
    """Record all batches of this process meanwhile. RuntimeError if another recording is under way."""
    global recording
    if recording is not None:
        raise RuntimeError("a timeline is being recorded already")
    recording = into
    try:
        yield
    finally:
        recording = None


NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str, **arguments: int) -> AbstractContextManager[None]:
    """Record what this thread does meanwhile, on the thread's track."""
    return NOTHING if (now := recording) is None else _running(now, name, arguments)


@contextmanager
def _running(into: Recording, name: str, arguments: dict[str, int]) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        into.add(current_thread().name, name, start, time.monotonic(), **arguments)
