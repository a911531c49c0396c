"""An executor: one daemon thread that owns one backend instance and runs one batch at a time.

Everything that runs on that thread is here; what the loop does with the outcome is in `node.py`.
Batches come in by a `SimpleQueue`, and one `call_soon_threadsafe` per batch goes out. Nothing else
is shared. `loop_executor.py` has the executor without a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from enum import Enum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from penstock.backends import timeline
from penstock.backends.base import Backend, Context, Signature
from penstock.backends.errors import BackendError, DeviceError, InvalidInput
from penstock.backends.expressions.spec import Spec
from penstock.backends.gpu.order import keep_order
from penstock.backends.item import Item
from penstock.backends.process.failure import ProcessDiedError, RestartError, readable
from penstock.backends.sequences.sequence import EndedSequences
from penstock.backends.server import Connection, Listener
from penstock.backends.text import message_of

from .placement import device_of
from .queue import Batch, Entry, Outcome, log_failure
from .scheduler import DeviceGroup

if TYPE_CHECKING:
    from penstock.backends.process.proxy import ProcessBackend  # it imports numpy

logger = logging.getLogger("penstock.executor")

current = threading.local()
"""On an executor's thread, `current.executor` is that executor."""

NEVER_RETRIED = (MemoryError, DeviceError)
"""Errors that fail a whole batch at once. Running its items one by one would make matters worse."""


class _Signal(Enum):
    REVIVE = "the child process has ended"


class Link(Protocol):
    """Connects one instance of a backend with the server (composites/model_calls.py)."""

    def connect(self, listener: Listener, /) -> Connection: ...
    def begin(self, items: Sequence[Item], entries: Sequence[Entry]) -> None:
        """Give the items of entries that run now their handles."""

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """Forget what runs, and take the handles from the items."""


class Owner(Protocol):
    """The node that an executor reports to. Reports are called on the owner's loop."""

    retry: bool
    retry_suspended: bool

    def prepared(self, backend: Backend, context: Context) -> Backend: ...
    def executor_loaded(self, executor: Executor, low: int, high: int, device: str) -> None: ...
    def executor_finished(self, executor: Executor, batch: Batch) -> None: ...
    def executor_died(self, executor: Executor, error: BaseException) -> None: ...
    def executor_restarted(self, executor: Executor) -> None: ...
    def executor_revived(self, executor: Executor) -> None: ...
    def executor_stopped(self, executor: Executor) -> None: ...


class Executor:
    """One thread with one backend instance.

    `start` gives it a batch, and it reports to its owner when the batch has run. The scheduler does
    not start another batch on it before that.
    """

    __slots__ = (
        "_callbacks",
        "_context",
        "_inbox",
        "_loop",
        "_owner",
        "_pieces",
        "_process",
        "_spec",
        "_thread",
        "clock",
        "device",
        "device_group",
        "failures",
        "freed",
        "last",
        "link",
        "loaded",
        "max",
        "min",
        "name",
        "out",
        "placed",
        "signature",
        "undecided",
        "waits_for",
    )

    def __init__(
        self,
        name: str,
        spec: Spec | ProcessBackend,
        context: Context,
        *,
        device_group: DeviceGroup,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
        link: Link | None = None,
    ) -> None:
        """`link`: for a backend that `takes_server`."""
        self.name = name
        self.link = link
        self.device_group = device_group
        self.placed = context.device  # the device that the node gave it; "": its engine chooses
        # Its device failed in another instance: it gets no batch until one works there again.
        self.out = False
        self.device = ""  # the accelerator that its backend took; set by the owner, as are the next
        self.freed = 0.0  # when it was loaded
        self.last: Batch | None = None  # the batch that it ran last, if the node notes batches
        self.min = self.max = 1
        # A `pipe` that its backend has called and that has not answered (loop_thread.py).
        self.waits_for: object = None
        self.loaded = False
        self.signature: Signature | None = None  # of its backend, if that knows it
        self.undecided = False  # True: the first items decide whether items share runs
        self.failures = 0  # deaths of this instance in a row, since it last ran a batch
        self.clock = clock
        self._callbacks = contextvars.Context()  # empty: reports inherit no request's variables
        self._spec = spec
        self._process = None if isinstance(spec, Spec) else spec
        self._context = context
        self._owner = owner
        self._loop = loop
        self._inbox: SimpleQueue[Batch | EndedSequences | _Signal | None] = SimpleQueue()
        if self._process is not None:
            self._process.on_exit = lambda: self._inbox.put(_Signal.REVIVE)
            self._process.on_restart = lambda: self._report(self._owner.executor_restarted)
        self._thread: threading.Thread  # made by `launch`
        self._pieces: timeline.Pieces | None = None  # those of its thread, if batches are noted

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
        """Start the thread, which loads the backend, warms it up and reports."""
        # A daemon, because native code that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        self._thread.start()

    def start(self, batch: Batch) -> None:
        """Give the thread a batch to run."""
        self._inbox.put(batch)

    def end_sequences(self, ended: EndedSequences) -> None:
        """Tell the backend of sequences that have ended, after the batches that it was given."""
        self._inbox.put(ended)

    def stop(self) -> None:
        """Ask the thread to end after its present batch. It closes its backend and reports.

        A thread that is loading gives up, if its backend supports that.
        """
        self._inbox.put(None)
        self._context.loading.stop()

    @property
    def progress(self) -> str:
        """The progress of its backend's load, as in "building 42 %".

        Empty if the backend is loaded, or reports no progress.
        """
        return "" if self.loaded else self._context.loading.text

    @property
    def loading(self) -> str:
        """The same with its node: "node 'net': building 42 %"."""
        text = self.progress
        return text and f"node {self._context.node!r}: {text}"

    def kill(self) -> bool:
        """Kill the child process, so that the thread can end. Return whether there is one."""
        if self._process is not None:
            self._process.kill()
        return self._process is not None

    @property
    def killable(self) -> bool:
        """True if a child process runs its batches. A thread can't be killed."""
        return self._process is not None

    def end_child(self) -> None:
        """Kill the child process, which hangs. The thread fails what it ran and starts another."""
        if self._process is not None:
            self._process.end_child()

    @property
    def ready(self) -> bool:
        """False while a child process that has died is being replaced, or its device has failed."""
        return not self.out and (self._process is None or self._process.ready)

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end, and return whether it has.

        Call it after the thread has reported its stop: then this does not block the loop for long.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stack(self) -> str:
        """Return the present stack of the thread, as a traceback."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            stack = "(the thread has ended)"
        else:
            stack = "".join(traceback.format_stack(frame))
        if self._process is not None:
            stack += f"  which waits for process {self._process.pid}"
        return stack

    # on the thread

    def _report(self, report: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(report, self, *args, context=self._callbacks)
        except RuntimeError:
            logger.debug("%s: the loop is closed", self.name)

    def _main(self) -> None:
        current.executor = self
        owner = self._owner
        backend: Backend | None = None
        try:
            backend = self._create()
            device = self._warm_up(backend)
            self._report(owner.executor_loaded, backend.min, backend.max, device)
            while True:
                batch = self._inbox.get()
                if type(batch) is not Batch:
                    if batch is None:
                        break
                    if isinstance(batch, EndedSequences):
                        batch.tell(backend)
                    elif self._process is not None:
                        self._process.revive()
                        self._report(owner.executor_revived)
                    continue
                batch.begun = True
                batch.started = batch.watched = self.clock()
                device_error = run_batch(backend, batch, owner, self.clock, self.link)
                batch.ended = self.clock()
                if self.link is not None:
                    self.link.end(batch.outcomes)
                if batch.start is not None:
                    self._take_pieces(batch)
                if timeline.recording is not None:
                    self._record(timeline.recording, batch)
                if device_error is not None:
                    # The memory that the backend has on the device may be lost: end this thread, so
                    # that another one with a new backend is started.
                    raise device_error
                self._report(owner.executor_finished, batch)
                del batch  # an idle executor keeps no items alive
        except BaseException as error:
            # Not swallowed: the owner fails the batch and restarts the executor.
            self._report(owner.executor_died, readable(error))
        finally:
            if backend is not None:
                self._close(backend)
            del backend
            self._report(owner.executor_stopped)

    def _create(self) -> Backend:
        """Load a backend. If it can't be wrapped as its node needs, it is closed."""
        backend = self._spec.create(self._context)
        try:
            return self._owner.prepared(backend, self._context)
        except BaseException:
            self._close(backend)
            raise

    def _warm_up(self, backend: Backend) -> str:
        """Make a new backend ready to run batches. Return the accelerator that it took, or ""."""
        backend.warm_up()
        self._context.files.verify()
        device = device_of(backend)
        self.signature = backend.signature
        self.undecided = backend.undecided
        keep_order(backend, device)
        return device

    def _close(self, backend: Backend) -> None:
        """Close a backend. Never raises."""
        try:
            backend.close()
        except BaseException:  # SystemExit too: the owner waits for the report that follows
            logger.exception(
                "%s: close failed",
                self.name,
                extra={"pipeline": self._context.pipeline, "node": self._context.node},
            )
        if self._context.server is not None:
            self._context.server.close()
        # `keep_order` put a function there that refers to the backend: a cycle. Without it the
        # model's memory is free now, and not when the garbage collector runs.
        vars(backend).pop("forward", None)

    def _take_pieces(self, batch: Batch) -> None:
        """Note what an engine did in a batch that has run. From the second batch on."""
        if self._pieces is None:
            self._pieces = timeline.keep_pieces()
        elif self._pieces:
            seconds: dict[str, float] = {}
            for name, piece in self._pieces:
                seconds[name] = seconds.get(name, 0.0) + piece
            batch.pieces = tuple(seconds.items())
            self._pieces.clear()

    def _record(self, recording: timeline.Recording, batch: Batch) -> None:
        """Record a batch that has run, for `penstock bench --profile`."""
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
    backend: Backend,
    batch: Batch,
    owner: Owner,
    clock: Callable[[], float],
    link: Link | None = None,
) -> DeviceError | None:
    """Run the batch, and leave each entry's outcome in `batch.outcomes`.

    If the batch fails, its items run one by one on new copies, so that only those fail that can't
    be run. An item whose child process died runs once more, in a new child: someone else may have
    killed it. Returns the device's error, if the device failed.

    What the backend raises is the failure of an item, `SystemExit`, `GeneratorExit` and
    `CancelledError` too: it ends no thread. Raises only `RestartError`, which ends the thread.
    """
    entries = batch.entries
    if link is not None:
        link.begin(batch.outcomes, entries)
    try:
        backend.forward(list(batch.outcomes))  # a new list, because a backend may change it
    except RestartError:
        # The thread ends, and half-made copies must not become answers.
        batch.outcomes = [None] * len(entries)
        raise
    except BaseException as error:
        # Half-made copies must not become answers, whatever the lines below raise.
        batch.outcomes = [None] * len(entries)
        error = readable(error)  # Python drops this name at the end: no cycle
        alone = len(entries) == 1
        if alone:
            runs_again = isinstance(error, ProcessDiedError)
        else:
            runs_again = not isinstance(error, NEVER_RETRIED) and (
                isinstance(error, InvalidInput) or not owner.retry_suspended
            )
        if not (runs_again and owner.retry):
            if alone:
                batch.outcomes = [_outcome_of(error, entries[0], batch, backend)]
            else:
                if not isinstance(error, DeviceError):  # the owner logs it: the executor dies of it
                    _log(batch, entries, error)
                batch.outcomes = [_wrap(error, batch, backend) for _ in entries]
            return error if isinstance(error, DeviceError) else None
    else:
        owner.retry_suspended = False
        return None
    # Outside of `except`, or this error would be the context of every error of an item alone.
    return _run_singly(backend, batch, owner, clock, link)


def _run_singly(
    backend: Backend,
    batch: Batch,
    owner: Owner,
    clock: Callable[[], float],
    link: Link | None,
) -> DeviceError | None:
    entries = batch.entries
    # Filled in place: if the thread dies on the way, what has run until then counts.
    outcomes = batch.outcomes = [None] * len(entries)
    failed = 0
    for position, entry in enumerate(entries):
        if entry.future.done() or entry.deadline <= clock():
            continue  # the caller left, or the answer would be late
        item = entry.item.copy()
        if link is not None:
            link.begin([item], [entry])
        batch.alone, batch.watched = position, clock()
        try:
            backend.forward([item])
        except RestartError:
            raise
        except BaseException as error:
            error = readable(error)
            # Without a name: the traceback of the outcome's cause holds this frame.
            outcomes[position] = _outcome_of(error, entry, batch, backend)
            failed += isinstance(outcomes[position], BaseException)
            if isinstance(error, NEVER_RETRIED):
                outcomes[position + 1 :] = [
                    _wrap(error, batch, backend) for _ in entries[position + 1 :]
                ]
                return error if isinstance(error, DeviceError) else None
        else:
            outcomes[position] = item
            owner.retry_suspended = False
    if failed == len(entries) > 1:
        # A backend that fails for every item would cost 1 + n runs per batch. Items run one by one
        # again when some run has succeeded.
        owner.retry_suspended = True
    return None


def _outcome_of(
    error: BaseException, entry: Entry, batch: Batch, backend: Backend
) -> Item | BackendError:
    """Return the outcome of an item that failed alone.

    A soft failure for `InvalidInput`, else a `BackendError`.
    """
    if isinstance(error, InvalidInput):
        item = entry.item.copy()
        item["error"] = error
        return item
    if not isinstance(error, DeviceError):  # the owner logs it: the executor dies of it
        _log(batch, [entry], error)
    return _wrap(error, batch, backend)


def _wrap(error: BaseException, batch: Batch, backend: Backend) -> BackendError:
    """Make the exception for one caller.

    Each caller gets its own: an exception that many tasks raise collects all of their tracebacks.
    """
    name = getattr(error, "penstock_backend", type(backend).__name__)
    kind = DeviceError if isinstance(error, DeviceError) else BackendError
    wrapped = kind(
        f"node {batch.node!r}: backend {name} raised {type(error).__name__}: {message_of(error)}"
    )
    wrapped.__cause__ = error
    wrapped.logged = True  # by `_log`
    return wrapped


def _log(batch: Batch, failed: list[Entry], error: BaseException) -> None:
    log_failure(
        logger,
        failed,
        "node %s: %s failed",
        batch.node,
        "an item" if len(failed) == 1 else f"a batch of {len(failed)} items",
        fields={"pipeline": getattr(batch.executor, "pipeline", None), "node": batch.node},
        error=error,
    )
