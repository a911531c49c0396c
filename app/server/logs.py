"""The log of a server: one line an event, as text or JSON, which a client's text can't break.

Only `penstock serve` calls `configure_logging`; in a host's process, logging is the host's. Modules
log to children of the logger `penstock`, and name the request, pipeline and node by `extra`. These
become fields here. No caller waits for a line to be written (backends/log_writer.py).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.backends.log_writer import MAX_QUEUED_BYTES, QueuedHandler, QueuedStream
from penstock.backends.text import encodable, escape, marked

from ..log_settings import log_settings

RECORD_FIELDS = ("request_id", "pipeline", "node")
"""The fields of a record besides its message, in the order in which they are written."""

ACCESS_NUMBERS = ("bytes", "ms", "queue_ms", "run_ms")
"""The fields of a line of the access log that follow its text."""

LINES_A_SECOND = 10
"""The most lines of one kind that are logged in a second, where clients cause the lines."""

FAILURES_A_SECOND = 1000
"""The most lines of one kind in a second if each is an error of a request, so that the request of
an answer of 500 is found by its id. Beyond `LINES_A_SECOND` they have no traceback.
"""

TELL_SECONDS = 1.0
"""So soon the log says how many lines of a kind were left out, if no other line says it before."""

MOST_KINDS = 1024
"""The most kinds of lines that a `RateLimit` remembers. When there are more, all are forgotten."""

CLIENT_CAUSED = (
    "penstock.http",
    "penstock.fetch",
    "penstock.connection",
    "penstock.node",
    "penstock.processes",
    "penstock.executor",
    "penstock.sequences",
    "uvicorn.error",
    "asyncio",
    "grpc",
)
"""The loggers whose lines clients can cause. In `penstock serve`, each has a `RateLimit`."""


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


_Kind = tuple[str, int, str, Any, Any]
"""Logger, level, message before its arguments, pipeline and node of a record."""


def _fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in RECORD_FIELDS if (value := getattr(record, name, None))}


class TextFormatter(logging.Formatter):
    """`2026-11-20T12:00:00.000Z INFO penstock.http message pipeline=digits request_id=…`

    `process`: which of several processes writes; `[front 1]` stands before the message then.
    A traceback follows on lines of its own, each marked by `|`.
    """

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = (f"[{process}]",) if process else ()

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, record.name, *self._process]
        parts.append(escape(record.getMessage()))
        parts += [f"{name}={escape(value)}" for name, value in _fields(record).items()]
        access: dict[str, Any] = getattr(record, "access", {})
        parts += [f"{name}={access[name]}" for name in ACCESS_NUMBERS if name in access]
        line = " ".join(parts)
        if record.exc_info:
            line += marked(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Its keys: time, level, logger, process, message, request_id, pipeline, node, exception. Lines of
    the access log have more: client, method, path, status, bytes, ms, queue_ms, run_ms. `process`
    is there if there are several.
    """

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
        }
        line |= {"message": record.getMessage(), **_fields(record), **getattr(record, "access", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(
            {
                key: encodable(value) if isinstance(value, str) else value
                for key, value in line.items()
            }
        ).decode()


def _tell_later(tell: Callable[[], None]) -> None:
    timer = threading.Timer(TELL_SECONDS, tell)
    timer.daemon = True
    timer.start()


class RateLimit(logging.Filter):
    """A filter for loggers: at most `per_second` lines of one kind in a second.

    Lines of one logger, level, message before its arguments, pipeline and node are of one kind. Of
    errors that name their request, `failures_per_second` lines are logged, those beyond
    `per_second` without their traceback. The first line that is logged after others were left out
    says how many; if there is none for `TELL_SECONDS`, a line of its own does.

    ```python
    logging.getLogger("penstock.connection").addFilter(RateLimit())
    ```
    """

    def __init__(
        self,
        per_second: int = LINES_A_SECOND,
        failures_per_second: int = FAILURES_A_SECOND,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[Callable[[], None]], None] = _tell_later,
    ) -> None:
        """`later` calls a function on another thread, after `TELL_SECONDS`."""
        super().__init__()
        self.dropped = 0
        """The lines that were left out, of all kinds together."""
        self._per_second = per_second
        self._failures_per_second = failures_per_second
        self._clock = clock
        self._later = later
        self._will_tell = False
        self._lock = threading.Lock()
        self._seconds: dict[_Kind, _Second] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        kind = (
            record.name,
            record.levelno,
            record.msg if isinstance(record.msg, str) else type(record.msg).__name__,
            getattr(record, "pipeline", None),
            getattr(record, "node", None),
        )
        failure = record.levelno >= logging.ERROR and bool(getattr(record, "request_id", None))
        most = self._failures_per_second if failure else self._per_second
        with self._lock:
            second, forgotten = self._second(kind)
            second.lines += 1
            left_out = 0
            if logged := second.lines <= most:
                left_out, second.left_out = second.left_out, 0
                if second.lines > self._per_second:
                    record.exc_info = record.exc_text = None
            else:
                second.left_out += 1
                self.dropped += 1
            must_tell = not logged and not self._will_tell
            self._will_tell |= must_tell
        if must_tell:
            with contextlib.suppress(RuntimeError):  # no thread can be started: the next line tells
                self._later(self.tell)
        for each in forgotten:
            _tell(*each)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more lines of this kind were left out)"
            record.args = None
        return logged

    def tell(self) -> None:
        """Log how many lines of each kind were left out, as far as no line has said it."""
        with self._lock:
            self._will_tell = False
            told = self._take_left_out()
        for each in told:
            _tell(*each)

    def _take_left_out(self) -> list[tuple[_Kind, int]]:
        taken = []
        for kind, second in self._seconds.items():
            if second.left_out:
                taken.append((kind, second.left_out))
                second.left_out = 0
        return taken

    def _second(self, kind: _Kind) -> tuple[_Second, list[tuple[_Kind, int]]]:
        """Return what is counted of a kind, and what has to be told of kinds forgotten for it."""
        now = self._clock()
        forgotten: list[tuple[_Kind, int]] = []
        second = self._seconds.get(kind)
        if second is None:
            if len(self._seconds) >= MOST_KINDS:
                forgotten = self._take_left_out()
                self._seconds.clear()
            second = self._seconds[kind] = _Second(now)
        elif now >= second.began + 1:
            second.began = now
            second.lines = 0
        return second, forgotten


def _tell(kind: _Kind, left_out: int) -> None:
    name, level, message, pipeline, node = kind
    record = logging.LogRecord(
        name, level, __file__, 0, "%d lines were left out: %s", (left_out, message), None
    )
    record.pipeline, record.node = pipeline, node
    # Not `handle`: that would ask the filter again.
    logging.getLogger(name).callHandlers(record)


class _Second:
    """What a `RateLimit` counts of one kind: lines in this second, and lines left out untold."""

    __slots__ = ("began", "left_out", "lines")

    def __init__(self, began: float) -> None:
        self.began = began
        self.lines = 0
        self.left_out = 0


class _LastResort(logging.Handler):
    """Writes, as our own lines, the warnings of loggers that have no handler."""

    def __init__(self, handler: QueuedHandler) -> None:
        super().__init__(logging.WARNING)
        self._handler = handler

    def emit(self, record: logging.LogRecord) -> None:
        self._handler.emit(record)


class Log(Collector):
    """The log of this process, and the metric of the lines that it dropped."""

    def __init__(self, handler: QueuedHandler, limit: RateLimit) -> None:
        self.handler = handler
        self.limit = limit

    def take_standard_error(self) -> None:
        """Send what else this process writes to `sys.stderr` the same way.

        Warnings, tracebacks and loggers of other libraries must not wait for a reader either.
        """
        sys.stderr = QueuedStream(sys.stderr, self.handler.writer)
        logging.lastResort = _LastResort(self.handler)  # it would write a client's text as it is

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily(
            "penstock_log_dropped",
            "Lines that were not logged: not read in time (full), or too many of a kind (rate).",
            labels=["reason"],
        )
        dropped.add_metric(["full"], self.handler.writer.dropped)
        dropped.add_metric(["rate"], self.limit.dropped)
        yield dropped


def configure_logging(
    level: str = "info",
    style: Literal["text", "json"] = "text",
    stream: TextIO | None = None,
    max_bytes: int = MAX_QUEUED_BYTES,
    process: str = "",
) -> Log:
    """Send the log of this process, uvicorn's included, to `stream` (default: standard error).

    At most `max_bytes` of it wait to be written. `process`: its name, if a server has several. A
    second call replaces what the first one set.
    """
    handler = QueuedHandler(sys.stderr if stream is None else stream, max_bytes)
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    levels = {
        "penstock": level.upper(),
        "uvicorn.error": "WARNING",  # at INFO it says what we say ourselves
        "penstock.access": "INFO",  # it logs only if the access log is on
        "asyncio": "WARNING",
        "grpc": "WARNING",
    }
    for name, lowest in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(lowest)
    log_settings.reset(set(levels) - {"penstock.access"})
    limit = RateLimit()
    for name in CLIENT_CAUSED:
        logger = logging.getLogger(name)
        for old in [each for each in logger.filters if isinstance(each, RateLimit)]:
            logger.removeFilter(old)
        logger.addFilter(limit)
    return Log(handler, limit)
