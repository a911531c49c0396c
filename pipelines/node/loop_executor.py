"""An executor without a thread: it loads its backend and runs its batches on the event loop.

`loop_node.py` says when.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from typing import Any

from penstock.backends import timeline
from penstock.backends.base import Backend
from penstock.backends.process.failure import readable
from penstock.backends.sequences.sequence import EndedSequences

from .executor import Executor, run_batch
from .queue import Batch


class LoopExecutor(Executor):
    """One backend instance on the event loop. `init`, `forward` and `close` run there.

    `start` keeps a batch, and `run` runs it.
    """

    __slots__ = ("_backend", "_batch", "_ended", "_load", "_loop_thread", "load_seconds")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._backend: Backend | None = None
        self._batch: Batch | None = None
        self._load: asyncio.Handle | None = None
        self._ended: list[EndedSequences] = []
        self._loop_thread = threading.get_ident()
        self.load_seconds = 0.0

    def launch(self) -> None:
        """Load the backend in the next iteration of the loop."""
        self._load = self._loop.call_soon(self._load_now, context=self._callbacks)

    def start(self, batch: Batch) -> None:
        self._batch = batch

    def run(self) -> Batch | None:
        """Run the batch that it was given, and return it; None if there is none.

        A failure of the device ends the executor, as it ends a thread: the owner starts another.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return None
        assert self._backend is not None
        if self._ended:
            self._tell_ended()
        batch.begun = True
        try:
            # `batch.started` is the time of the decision, a moment ago.
            error: BaseException | None = run_batch(self._backend, batch, self._owner, self.clock)
        except BaseException as raised:
            error = readable(raised)
        batch.ended = self.clock()
        if timeline.recording is not None:
            self._record(timeline.recording, batch)
        if error is None:
            return batch
        self._owner.executor_died(self, error)
        del error  # its traceback holds this frame: a cycle
        self._end()
        return None

    def end_sequences(self, ended: EndedSequences) -> None:
        """Tell the backend before its next batch, and in the next iteration of the loop at the
        latest.
        """
        self._ended.append(ended)
        self._loop.call_soon(self._tell_ended, context=self._callbacks)

    def _tell_ended(self) -> None:
        while self._ended and self._backend is not None:
            self._ended.pop(0).tell(self._backend)

    def stop(self) -> None:
        """Close the backend in the next iteration of the loop, and report."""
        if self._load is not None:
            self._load.cancel()
        self._loop.call_soon(self._end, context=self._callbacks)

    def join(self, timeout: float) -> bool:
        return True

    def stack(self) -> str:
        """Return the present stack of the loop's thread, as a traceback."""
        frame = sys._current_frames().get(self._loop_thread)
        return "(the loop has ended)\n" if frame is None else "".join(traceback.format_stack(frame))

    def _load_now(self) -> None:
        owner = self._owner
        self._load = None
        began = self.clock()
        try:
            backend = self._backend = self._create()
            device = self._warm_up(backend)
        except BaseException as error:
            # SystemExit too, as on a thread: it is the backend's, and the loop goes on.
            owner.executor_died(self, readable(error))
            self._end()
            return
        self.load_seconds = self.clock() - began
        owner.executor_loaded(self, backend.min, backend.max, device)

    def _end(self) -> None:
        self._tell_ended()
        backend, self._backend = self._backend, None
        if backend is not None:
            self._close(backend)
        self._owner.executor_stopped(self)
