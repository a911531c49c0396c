"""Sends traced requests to a child process, which makes spans of them and exports them.

A span costs 50 to 100 µs, and an exporter that serialises and sends them contends with the event
loop for the GIL. The child (exporter_process.py) has its own. What goes to it is one small message
for each request.

If the child takes nothing, because its collector is slow or dead, the thread waits here, the queue
of the handover fills, and what exceeds it is dropped. Requests never wait.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from penstock.backends.process.environment import child_environment
from penstock.backends.text import encodable
from penstock.pipelines.node.queue import Batch, Visit

from .trace_settings import Sampler
from .tracing import Ended

logger = logging.getLogger("penstock.trace")

CHILD_MODULE = "penstock.app.trace.exporter_process"

FIRST_RESTART_SECONDS = 1.0
LAST_RESTART_SECONDS = 60.0
"""A child that has died is started again after so long, at first and at most."""

MAX_MESSAGE_BYTES = 1 << 16
"""The largest message that is sent. It has at most 64 visits of nodes, and 64 of parts."""

MAX_ERROR_BYTES = 1 << 16
"""So much is read of what a child wrote to its standard error."""

LOG_SECONDS = 60.0
"""Failures of the export are logged so often."""

WAIT_SECONDS = 0.5
"""How often a thread that waits for the child looks whether the server ends."""


class Exporter:
    """The sink of a handover. `start` is the first message of each child: what it needs to know.

    `written` and `dropped` count traced requests. The first use starts the child.
    """

    def __init__(self, start: dict[str, Any]) -> None:
        self._start = orjson.dumps(start)
        self._url = start["url"]
        self._child: _Child | None = None
        self._unsent = 0
        self._counts = _Counts()
        self._ending = threading.Event()
        self._restart_at = 0.0
        self._restart_seconds = FIRST_RESTART_SECONDS

    @property
    def written(self) -> int:
        return self._counts.exported

    @property
    def dropped(self) -> int:
        return self._unsent + self._counts.failed

    @property
    def pid(self) -> int | None:
        """The process id of the child, None if there is none."""
        return None if self._child is None else self._child.process.pid

    def take(self, ended: Sequence[Ended | Sampler]) -> None:
        """Send traced requests to the child. Waits while it takes nothing."""
        shift = time.time() - time.monotonic()  # from the clock of records to that of spans
        requests = [one for one in ended if not isinstance(one, Sampler)]
        for number, one in enumerate(requests):
            if not self._send(message_of(one, shift)):
                self._unsent += len(requests) - number
                return

    def lose(self, count: int) -> None:
        self._unsent += count

    def hurry(self) -> None:
        """Let `take` wait no more: the server ends."""
        self._ending.set()

    def close(self, timeout: float) -> None:
        """Let the child export what it has, for `timeout` seconds, and end it."""
        self._end_child(timeout)
        self._ending.clear()

    def _send(self, message: bytes) -> bool:
        """Send a message. Return False if it can't be."""
        if len(message) > MAX_MESSAGE_BYTES:
            self._unsent += 1
            return True
        child = self._living_child()
        while child is not None:
            try:
                child.socket.send(message)
            except TimeoutError:
                if self._ending.is_set():
                    return False
            except OSError:
                self._end_child(0.0)
                logger.warning(
                    "the exporter of traces (process %d) has ended: %s",
                    child.process.pid,
                    child.last_words or f"exit code {child.process.returncode}",
                )
                self._restart_at = time.monotonic() + self._restart_seconds
                self._restart_seconds = min(2 * self._restart_seconds, LAST_RESTART_SECONDS)
                child = self._living_child()
            else:
                self._counts.sent += 1
                if child.has_exported:
                    self._restart_seconds = FIRST_RESTART_SECONDS
                return True
        return False

    def _living_child(self) -> _Child | None:
        if self._child is None and time.monotonic() >= self._restart_at:
            try:
                self._child = _Child(self._url, self._counts)
                self._child.socket.send(self._start)
            except OSError as error:  # the machine has no room for one more process
                logger.warning("the exporter of traces can't be started: %s", error)
                self._end_child(0.0)
                self._restart_at = time.monotonic() + LAST_RESTART_SECONDS
        return self._child

    def _end_child(self, timeout: float) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(timeout)
            counts = self._counts
            counts.failed = counts.sent - counts.exported  # also what it has not told of


class _Counts:
    """Traced requests: those that were sent to children, and those that these have told of.

    The thread of the handover counts what is sent, the one of the present child the rest.
    """

    __slots__ = ("exported", "failed", "sent")

    def __init__(self) -> None:
        self.sent = self.exported = self.failed = 0


class _Child:
    """A child process, and the thread that reads what it tells."""

    def __init__(self, url: str, counts: _Counts) -> None:
        """Raises OSError if the machine has no room for a process. `counts` gets what it tells."""
        self.has_exported = False
        self.last_words = ""
        """The last line that it wrote to its standard error, once it is closed."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        self._counts = counts
        self._url = url
        # Each message stays whole: one that does not fit now is not sent in part.
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_SECONDS)
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", CHILD_MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=child_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    # A signal from the terminal is for the server, which ends the child.
                    start_new_session=True,
                )
            except OSError:
                self.socket.close()
                self._errors.close()
                raise
        self._reader = threading.Thread(target=self._read, name="trace-exporter", daemon=True)
        self._reader.start()

    def close(self, timeout: float) -> None:
        """Let it export what it has, and wait for its end for `timeout` seconds, then kill it."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
            self.process.wait(timeout)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.socket.close()
        with self._errors:
            self._errors.seek(0)
            lines = self._errors.read(MAX_ERROR_BYTES).decode(errors="replace").split("\n")
        self.last_words = next((line for line in reversed(lines) if line.strip()), "")

    def _read(self) -> None:
        """Count what the child tells, until it ends."""
        logged = -LOG_SECONDS
        while True:
            try:
                told = self.socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            if not told:
                return
            exported, failed, error = orjson.loads(told)
            self._counts.exported += exported
            self._counts.failed += failed
            self.has_exported = self.has_exported or exported > 0
            if error and time.monotonic() >= logged + LOG_SECONDS:
                logged = time.monotonic()
                logger.warning("traces can't be exported to %s: %s", self._url, error)


def message_of(ended: Ended, shift: float) -> bytes:
    """Write a traced request as the child reads it. `shift`: seconds to add to its times."""
    traced, record = ended.traced, ended.record

    def nanoseconds(seconds: float) -> int:
        return round((seconds + shift) * 1e9)

    def visits_of(visits: Iterable[tuple[int, Visit]]) -> list[Any]:
        return [
            [item, encodable(node), nanoseconds(enqueued), *batch_of(batch)]
            for item, (node, enqueued, batch) in visits
        ]

    def batch_of(batch: Batch | None) -> list[Any]:
        if batch is None:
            return []
        parts = [(part, visit) for part, passed in batch.parts or () for visit in passed]
        start = batch.start
        why: list[Any] | None = None
        if start is not None:  # the time by the clock of records tells a batch from others
            why = [start.executor, start.device, start.rule, start.max, batch.started]
        runs_on = batch.executor is not None
        ends = record.ended if runs_on else min(batch.ended, record.ended)
        return [nanoseconds(batch.started), nanoseconds(ends), batch.size, why, visits_of(parts)]

    failure = record.failure
    return orjson.dumps(
        [
            traced.trace_id,
            traced.span_id,
            traced.parent_id,
            traced.tracestate,
            ended.route,
            encodable(record.id),
            encodable(record.pipeline or ""),
            encodable(record.version or ""),
            record.status,
            record.outcome,
            None if failure is None else [encodable(failure.code), encodable(failure.detail)],
            nanoseconds(record.started),
            nanoseconds(record.ended),
            record.rows,
            visits_of((visit.item, Visit(*visit[2:])) for visit in record.visits),
            record.more_visits + record.more_parts,
            record.answered_from,
            None if record.turn is None else 1000 * (record.turn[1] - record.turn[0]),
        ]
    )
