"""`penstock serve`, whose event loop is sampled: sampled_server.py FILE serve PIPELINE --port PORT.

The kernel's clock of the loop's thread ticks a few hundred times for each second that the thread
runs. At each tick the stack is noted. SIGUSR2 begins a measurement; the next one ends it and writes
FILE as JSON: the stacks with their counts, and the processor seconds of the loop's thread and of
the process.
"""

from __future__ import annotations

import ctypes
import dis
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from penstock.app.cli.main import main

CLOCK_THREAD_CPUTIME_ID = 3  # time.h
TICK_NANOSECONDS = 1_000_000  # the kernel makes it its own tick, 1 to 4 ms
RESUME = dis.opmap["RESUME"]

Stack = tuple[tuple[str, str], ...]
"""Files and functions, the innermost first. Empty: no Python ran."""


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class Sampler:
    """Counts the stacks of the main thread. At most one exists."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stacks: Counter[Stack] = Counter()
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Start the timer. The kernel sends SIGALRM, which Python's main thread handles."""
        signal.signal(signal.SIGALRM, self._sample)
        signal.signal(signal.SIGUSR2, self._begin_or_end)
        libc = ctypes.CDLL(None, use_errno=True)
        timer = ctypes.c_void_p()
        tick = _Time(0, TICK_NANOSECONDS)
        if libc.timer_create(CLOCK_THREAD_CPUTIME_ID, None, ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "the system has no timer of a thread's clock")
        libc.timer_settime(timer, 0, ctypes.byref(_Timer(tick, tick)), None)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if self._since is not None:
            self._stacks[stack_of(frame)] += 1

    def _begin_or_end(self, number: int, frame: FrameType | None) -> None:
        now = time.thread_time(), time.process_time()
        if self._since is None:
            self._since = now
            return
        loop, process = (end - start for start, end in zip(self._since, now, strict=True))
        self._since = None
        stacks = [[count, stack] for stack, count in self._stacks.items()]
        self._stacks.clear()
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({"loop": loop, "process": process, "stacks": stacks}))
        part.replace(self._file)


def stack_of(frame: FrameType | None) -> Stack:
    """Return the stack whose code ran at the tick.

    Python handles a signal at the next call, return of a call or loop. So a function that has only
    been entered did not run at the tick; its caller did, or the event loop and the kernel.
    """
    if frame is not None and frame.f_code.co_code[frame.f_lasti] == RESUME:
        frame = frame.f_back
    stack = []
    while frame is not None:
        stack.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(stack)


if __name__ == "__main__":
    Sampler(Path(sys.argv.pop(1))).start()
    main()
