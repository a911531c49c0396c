"""An executor: one daemon thread that owns one backend instance and runs one batch at a time.

Everything that runs on that thread is here; what the loop does with the outcome is in `node.py`. The two meet in two places only: a
`SimpleQueue` in, one `call_soon_threadsafe` a batch out.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from enum import Enum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from penstock.backends import timeline
from penstock.backends.base import Backend, Context, Signature
from penstock.backends.errors import BackendError, DeviceError, InvalidInput
from penstock.backends.expressions.spec import Spec
from penstock.backends.gpu.order import keep_order
from penstock.backends.item import Item

from .placement import device_of
from .queue import Batch, Entry
from .scheduler import Group

if TYPE_CHECKING:
    from penstock.backends.process.proxy import ProcessBackend  # it imports numpy

logger = logging.getLogger("penstock.executor")

current = threading.local()
"""`current.executor`: on an executor's thread, that executor."""

NEVER_RETRIED = (MemoryError, DeviceError)
"""What fails a whole batch at once: running its items one by one would only fail again, and harder."""


class _Signal(Enum):
    REVIVE = "the child process has ended"


class Owner(Protocol):
    """What an executor reports to, always on the owner's loop (`node.py`)."""

    retry: bool
    retry_suspended: bool

    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None: ...
    def executor_finished(self, executor: Executor, batch: Batch) -> None: ...
    def executor_died(self, executor: Executor, error: BaseException) -> None: ...
    def executor_restarted(self, executor: Executor) -> None: ...
    def executor_stopped(self, executor: Executor) -> None: ...


class Executor:
    """`start` hands it a batch; the owner hears of it when the batch has run. The scheduler never starts a second one before that."""

    __slots__ = (
        "_callbacks", "_context", "_inbox", "_loop", "_owner", "_process", "_spec", "_thread", "clock", "failures", "group", "loaded",
        "max", "min", "name", "signature", "waits_for",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        spec: Spec | ProcessBackend,
        context: Context,
        group: Group,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.group = group
        self.min = self.max = 1  # set by the owner once the backend is loaded
        self.waits_for: object = (
            None  # a `pipe` that its backend has called and that has not answered (loop_thread.py)
        )
        self.loaded = False
        self.signature: Signature | None = (
            None  # what its backend takes and gives, if that knows it
        )
        self.failures = 0  # deaths at this place, one after the other, since a batch ran here
        self.clock = clock
        self._callbacks = (
            contextvars.Context()
        )  # empty: what runs on the loop for us inherits nothing
        self._spec = spec
        self._process = None if isinstance(spec, Spec) else spec
        self._context = context
        self._owner = owner
        self._loop = loop
        self._inbox: SimpleQueue[Batch | _Signal | None] = SimpleQueue()
        if self._process is not None:
            self._process.on_exit = lambda: self._inbox.put(_Signal.REVIVE)
            self._process.on_restart = lambda: self._report(self._owner.executor_restarted)
        # A daemon: native code that never returns can't be killed, and must not keep the process alive.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def __repr__(self) -> str:
        return f"<Executor {self.name}>"

    @property
    def pipeline(self) -> str:
        """The pipeline's name, for the log."""
        return self._context.pipeline

    @property
    def owner(self) -> Owner:
        return self._owner

    def launch(self) -> None:
        """Start the thread: it loads the backend, warms it up and reports."""
        self._thread.start()

    def start(self, batch: Batch) -> None:
        self._inbox.put(batch)

    def stop(self) -> None:
        """Let the thread end after the batch it runs, or give up loading, where it can. It closes its backend and reports."""
        self._inbox.put(None)
        self._context.loading.stop()

    @property
    def loading(self) -> str:
        """How far its backend is, as in "node 'net': building 42 %"; empty if that is loaded, or says nothing."""
        text = "" if self.loaded else self._context.loading.text
        return text and f"node {self._context.node!r}: {text}"

    def kill(self) -> bool:
        """End the child process, if there is one: the thread can end then. Whether there is one."""
        if self._process is not None:
            self._process.kill()
        return self._process is not None

    @property
    def ready(self) -> bool:
        """False while a child process that has died is being replaced."""
        return self._process is None or self._process.ready

    def join(self, timeout: float) -> bool:
        """Whether the thread has ended. Only after it reported its stop, so this does not block the loop for long."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stack(self) -> str:
        """Where the thread is right now, as a traceback."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = (
            "".join(traceback.format_stack(frame))
            if frame is not None
            else "(the thread has ended)"
        )
        return (
            stack
            if self._process is None
            else f"{stack}  which waits for process {self._process.pid}"
        )

    # on the thread

    def _report(self, report: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(report, self, *args, context=self._callbacks)
        except RuntimeError:  # the loop is closed, nobody is there to hear
            logger.debug("%s: the loop is closed", self.name)

    def _main(self) -> None:
        current.executor = self
        owner = self._owner
        backend: Backend | None = None
        try:
            backend = self._spec.create(self._context)
            backend.warm_up()
            device = device_of(backend)
            self.signature = backend.signature
            keep_order(backend, device)
            self._report(owner.executor_loaded, backend.min, backend.max, device)
            while True:
                batch = self._inbox.get()
                if batch is None:
                    break
                if batch is _Signal.REVIVE:
                    if self._process is not None:
                        self._process.revive()
                    continue
                batch.started = self.clock()
                device_error = run_batch(backend, batch, owner, self.clock)
                batch.ended = self.clock()
                if (recording := timeline.recording) is not None:
                    self._record(recording, batch)
                if device_error is not None:
                    raise device_error  # what the backend holds on the device may be gone: it is made anew
                self._report(owner.executor_finished, batch)
                del batch  # an idle executor keeps no items alive
        except (
            BaseException
        ) as error:  # reported, not swallowed: the owner fails the batch and restarts the executor
            self._report(owner.executor_died, error)
        finally:
            if backend is not None:
                try:
                    backend.close()
                except Exception:
                    logger.exception(
                        "%s: close failed",
                        self.name,
                        extra={"pipeline": self._context.pipeline, "node": self._context.node},
                    )
                # `keep_order` put a function there that refers to the backend. Without this cycle the
                # model leaves memory now, and not when the garbage collector runs.
                vars(backend).pop("forward", None)
            del backend
            self._report(owner.executor_stopped)

    def _record(self, recording: timeline.Recording, batch: Batch) -> None:
        recording.add(
            self.name,
            "batch",
            batch.started,
            batch.ended,
            items=len(batch.entries),
            rows=batch.size,
        )
        for entry in batch.entries:
            recording.add_wait(f"{self.pipeline}/{batch.node} queue", entry.enqueued, batch.started)


def run_batch(
    backend: Backend, batch: Batch, owner: Owner, clock: Callable[[], float]
) -> DeviceError | None:
    """Run the batch; where it fails, run its items one by one on fresh copies, so that only the guilty fail.

    Leaves each entry's outcome in `batch.outcomes`. An exception that is no `Exception` ends the thread. Returns the device's error, if
    that is what failed.
    """
    entries = batch.entries
    try:
        backend.forward(
            list(batch.outcomes)
        )  # a list of its own: a backend may do with it what it likes
    except Exception as error:
        if len(entries) == 1:
            batch.outcomes = [_outcome_of(error, entries[0], batch, backend)]
        elif (
            isinstance(error, NEVER_RETRIED)
            or not owner.retry
            or (owner.retry_suspended and not isinstance(error, InvalidInput))
        ):
            _log(batch, entries, error)
            batch.outcomes = [_wrap(error, batch, backend) for _ in entries]
        else:
            return _run_singly(backend, batch, owner, clock)
        if isinstance(error, DeviceError):
            return error
    except BaseException:
        batch.outcomes = [None] * len(
            entries
        )  # the thread ends: half-made copies are nobody's answer
        raise
    else:
        owner.retry_suspended = False
    return None


def _run_singly(
    backend: Backend, batch: Batch, owner: Owner, clock: Callable[[], float]
) -> DeviceError | None:
    entries = batch.entries
    # in place: if the thread dies on the way, what has run until then counts
    outcomes = batch.outcomes = [None] * len(entries)
    failed = 0
    for position, entry in enumerate(entries):
        if entry.future.done() or entry.deadline <= clock():
            continue  # the caller left, or is told that it is too late
        item = entry.item.copy()
        try:
            backend.forward([item])
        except Exception as error:
            outcome = outcomes[position] = _outcome_of(error, entry, batch, backend)
            failed += isinstance(outcome, BaseException)
            if isinstance(error, NEVER_RETRIED):
                outcomes[position + 1 :] = [
                    _wrap(error, batch, backend) for _ in entries[position + 1 :]
                ]
                return error if isinstance(error, DeviceError) else None
        else:
            outcomes[position] = item
            owner.retry_suspended = False
    if failed == len(entries):
        # A backend that fails whatever it is given would cost 1 + n runs a batch: not again until some run succeeds.
        owner.retry_suspended = True
    return None


def _outcome_of(
    error: Exception, entry: Entry, batch: Batch, backend: Backend
) -> Item | BackendError:
    """What becomes of an item that failed alone: a soft failure for `InvalidInput`, else a failure."""
    if isinstance(error, InvalidInput):
        item = entry.item.copy()
        item["error"] = error
        return item
    _log(batch, [entry], error)
    return _wrap(error, batch, backend)


def _wrap(error: Exception, batch: Batch, backend: Backend) -> BackendError:
    """A new exception for each caller: raising one object in many tasks would grow its traceback without end."""
    name = getattr(error, "penstock_backend", type(backend).__name__)
    kind = DeviceError if isinstance(error, DeviceError) else BackendError
    wrapped = kind(f"node {batch.node!r}: backend {name} raised {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _log(batch: Batch, failed: list[Entry], error: Exception) -> None:
    requests = ", ".join(entry.request_id for entry in failed if entry.request_id)
    what = "an item" if len(failed) == 1 else f"a batch of {len(failed)} items"
    logger.error(
        "node %s: %s failed%s", batch.node, what, f" (requests {requests})" if requests else "", exc_info=error,
        extra={"request_id": requests, "pipeline": getattr(batch.executor, "pipeline", None), "node": batch.node},
    )  # fmt: skip
