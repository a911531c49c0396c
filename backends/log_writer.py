"""Write a log without ever making the caller wait, even if no one reads what is written.

A pipe that no one reads is full after 64 KiB, and the next write to it never returns. On the thread
of the event loop that would stop the whole server. So lines go to a queue, which is bounded, and a
thread writes them. What does not fit is dropped and counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_QUEUED_BYTES = 1 << 20
"""The most bytes that wait to be written, by default."""

FLUSH_SECONDS = 2.0
"""The seconds that the end of a process waits for its last lines to be written."""

PIPE_BUF = getattr(select, "PIPE_BUF", 4096)
"""The most bytes of one write: the kernel does not mix these with what other processes write."""


class LogWriter:
    """Writes text to a stream on a thread of its own. All methods may be called from any thread.

    `stream`: its descriptor is written to, if it has one. `max_bytes` may wait to be written.
    `notice` returns the text that tells the reader how many lines were dropped. `dropped` counts
    them.
    """

    def __init__(
        self, stream: TextIO, max_bytes: int, notice: Callable[[int], str] = lambda dropped: ""
    ) -> None:
        self.dropped = 0
        self._stream = stream
        self._descriptor = _descriptor_of(stream)
        self._max_bytes = max_bytes
        self._notice = notice
        self._queue: deque[bytes] = deque()
        self._waiting = 0  # bytes in the queue, and those that are being written
        self._untold = 0  # lines that were dropped, and that no notice has counted yet
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forked = False
        # Reentrant: a finalizer may log while its thread is in `write`.
        self._changed = threading.Condition(threading.RLock())
        os.register_at_fork(after_in_child=self._after_fork)

    def write(self, text: str) -> None:
        """Queue a text, or drop it if it does not fit."""
        data = text.encode("utf-8", "backslashreplace")
        if self._forked:  # its child has no thread of ours, and no event loop
            self._put(data)
            return
        with self._changed:
            if self._closed or self._waiting + len(data) > self._max_bytes:
                self._drop(data)
                return
            self._queue.append(data)
            self._waiting += len(data)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="log", daemon=True)
                # The operating system may start no more threads. Then the next line tries again.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_SECONDS) -> None:
        """Wait until everything is written, for `timeout` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._untold, timeout)

    def close(self) -> None:
        """Drop what is written from now on, and end the thread once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drop(self, data: bytes) -> None:
        lines = max(1, data.count(b"\n"))
        self.dropped += lines
        if self._thread is not None:
            self._untold += lines

    def _run(self) -> None:
        while data := self._take():
            self._put(data)
            with self._changed:
                self._waiting -= len(data)
                self._changed.notify_all()

    def _take(self) -> bytes:
        """Wait for the next bytes to write. Return none if the writer is closed."""
        with self._changed:
            while not self._queue and not self._untold:
                if self._closed:
                    return b""
                self._changed.wait()
            # With half of the queue free, the notice is not the next thing to be dropped.
            if self._untold and self._waiting <= self._max_bytes // 2:
                untold, self._untold = self._untold, 0
                self._queue.appendleft(notice := self._notice(untold).encode())
                self._waiting += len(notice)
            pieces = [self._queue.popleft()]
            size = len(pieces[0])
            while self._queue and size + len(self._queue[0]) <= PIPE_BUF:
                pieces.append(self._queue.popleft())
                size += len(pieces[-1])
        return b"".join(pieces)

    def _put(self, data: bytes) -> None:
        """Write, however long that takes."""
        try:
            if self._descriptor is None:
                self._stream.write(data.decode())
            while data and self._descriptor is not None:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self._descriptor, data) :]
                    continue
                # Another process made the pipe or terminal that we share non-blocking.
                select.select([], [self._descriptor], [])
        except (OSError, ValueError):  # the reader has gone, or the stream is closed
            with self._changed:
                self.dropped += max(1, data.count(b"\n"))

    def _after_fork(self) -> None:
        self._forked = True
        self._changed = threading.Condition(threading.RLock())  # a thread may have held the old one
        self._queue.clear()
        self._waiting = self._untold = 0


class QueuedHandler(logging.Handler):
    """A handler whose lines a `LogWriter` writes. Records are formatted where they are logged."""

    def __init__(self, stream: TextIO, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        super().__init__()
        self.writer = LogWriter(stream, max_bytes, self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self.writer.write(f"{line}\n")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        super().close()

    def _notice(self, dropped: int) -> str:
        record = logging.LogRecord(
            "penstock.log",
            logging.WARNING,
            __file__,
            0,
            "%d lines of the log were dropped: they were not read in time",
            (dropped,),
            None,
        )
        return f"{self.format(record)}\n"


class QueuedStream(io.TextIOBase):
    """A text stream, in place of `sys.stderr`, whose text a `LogWriter` writes."""

    def __init__(self, stream: TextIO, writer: LogWriter) -> None:
        super().__init__()
        self._stream = stream
        self._writer = writer

    def write(self, text: str) -> int:
        self._writer.write(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError, ValueError):  # in memory
        return None
