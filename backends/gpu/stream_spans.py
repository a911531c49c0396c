"""The work of a GPU's stream on the timeline.

The host only asks for that work; events in the stream tell when it was done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import current_thread
from typing import Any

import torch

from .. import timeline


class StreamSpans:
    """The spans of one stream, used by one thread.

    The thread waits for the stream after each batch and then calls `place`.
    """

    def __init__(self, device: torch.device, stream: Any) -> None:
        self._device = device
        self._stream = stream
        # name, arguments, and the events before and after
        self._pieces: list[tuple[str, dict[str, int], Any, Any]] = []

    def span(self, name: str, **arguments: int) -> AbstractContextManager[None]:
        """Record how long the stream takes for the work that the block gives it.

        Without a recording no event is added to the stream.
        """
        return (
            timeline.NOTHING
            if timeline.recording is None
            else self._between_events(name, arguments)
        )

    @contextmanager
    def _between_events(self, name: str, arguments: dict[str, int]) -> Iterator[None]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record(self._stream)
        yield
        after.record(self._stream)
        self._pieces.append((name, arguments, before, after))

    def place(self) -> None:
        """Put the recorded work on the host's clock, once the stream has finished.

        The last piece ends now. That is late by the time that the thread took to wake up, some tens
        of microseconds. Distances between pieces are the device's own.
        """
        if not self._pieces:
            return
        now = time.monotonic()
        pieces, self._pieces = self._pieces, []
        if (recording := timeline.recording) is None:
            return
        track, last = f"{current_thread().name} on {self._device}", pieces[-1][3]
        for name, arguments, before, after in pieces:
            start, end = (now - event.elapsed_time(last) / 1000 for event in (before, after))
            recording.add(track, name, start, end, **arguments)
