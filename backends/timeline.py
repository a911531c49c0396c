"""A timeline of batches for `penstock bench --profile`: queueing, assembly, copies and runs.

Without a recording, a thread may note the pieces of its batches alone (`keep_pieces`).

It is off unless a `record` is entered. Until then it costs one test of `recording` per batch and
per piece of a batch, and nothing per request. Executors add batches and their queued items, engines
add the pieces (`span`), gpu/device.py adds those of a GPU (gpu/stream_spans.py). Times are seconds
of `time.monotonic()`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from heapq import heappop, heappush
from threading import Lock, current_thread
from typing import Any, NamedTuple, TypeAlias

MAX_SPANS = 100_000
"""The most spans in a recording. They are up to 27 MB of JSON, which viewers still open."""


class Span(NamedTuple):
    """A named stretch of time on a track, in seconds."""

    track: str
    name: str
    start: float
    end: float
    arguments: dict[str, int]


class Recording:
    """Recorded spans: the first `limit` of them. Any thread may add.

    Spans of one track lie next to or inside one another: they are what one thread, or one stream of
    a device, did. The items of a queue wait side by side, so `waits` are kept apart.
    """

    def __init__(self, limit: int = MAX_SPANS) -> None:
        self.limit = limit
        self.spans: list[Span] = []
        self.waits: list[Span] = []
        self.missing = 0  # spans that came after the recording was full
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
        """Return the recording in Chrome's trace event format, ready for JSON.

        Perfetto and chrome://tracing read it.

        The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMh4h6I0nSsKchNAySU.
        Times are whole microseconds since the first span. All are rounded down, so that a span
        inside another stays inside. Each track is a thread ("X", "M"). Each queue is a track of
        asynchronous events ("b", "e"), which viewers show together if they share a name.
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
            fields = {
                "ph": phase,
                "cat": "penstock",
                "name": span.name,
                "pid": process,
                "tid": tracks[span.track],
            }
            return {**fields, "ts": int((at - first) * 1e6), **more}

        # Parents first: viewers rely on it.
        for span in sorted(self.spans, key=lambda span: (span.start, -span.end)):
            complete = event("X", span, span.start, args=span.arguments)
            duration = int((span.end - first) * 1e6) - complete["ts"]
            events.append({**complete, "dur": duration})
        for wait, lane in _lanes(self.waits):
            events.append(event("b", wait, wait.start, id2={"local": lane}))
            events.append(event("e", wait, wait.end, id2={"local": lane}))
        about = {"spans": len(everything), "spans that did not fit": self.missing}
        return {"traceEvents": events, "otherData": about}


def _name(process: int, thread: int, kind: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _lanes(waits: Iterable[Span]) -> Iterator[tuple[Span, str]]:
    """Assign each wait to the first free lane of its track.

    Viewers draw one row per name: without lanes they would draw a row for every wait.
    """
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
"""The recording of this process, or None while nothing is recorded."""


@contextmanager
def record(into: Recording) -> Iterator[None]:
    """Record all batches of this process until the block ends.

    Raises RuntimeError if another recording is running.
    """
    global recording
    if recording is not None:
        raise RuntimeError("a timeline is already being recorded")
    recording = into
    try:
        yield
    finally:
        recording = None


NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str, **arguments: int) -> AbstractContextManager[None]:
    """Record what this thread does until the block ends, on the thread's track."""
    if (now := recording) is not None:
        return _running(now, name, arguments)
    pieces: Pieces | None = getattr(_kept, "pieces", None)
    return NOTHING if pieces is None else _Piece(pieces, name)


Pieces: TypeAlias = list[tuple[str, float]]
"""What a thread did in its present batch: names and seconds."""

_kept = threading.local()


def keep_pieces() -> Pieces:
    """Let `span` note from now on what this thread does, and return where.

    The caller clears the list after each batch. Nothing is noted while a recording is on.
    """
    if getattr(_kept, "pieces", None) is None:
        _kept.pieces = []
    pieces: Pieces = _kept.pieces
    return pieces


class _Piece:
    """A block whose seconds are noted. Slots and no generator: it costs a third of `_running`."""

    __slots__ = ("_name", "_pieces", "_start")

    def __init__(self, pieces: Pieces, name: str) -> None:
        self._pieces = pieces
        self._name = name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *raised: object) -> None:
        self._pieces.append((self._name, time.monotonic() - self._start))


@contextmanager
def _running(into: Recording, name: str, arguments: dict[str, int]) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        into.add(current_thread().name, name, start, time.monotonic(), **arguments)
