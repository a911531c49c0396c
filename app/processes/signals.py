"""The signals of a child process."""

from __future__ import annotations

import os
import signal
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that a process group or a terminal sends to all processes of a server."""


def leave_signals_to_the_parent() -> None:
    """Do nothing at signals that all processes of a server get, while the parent lives.

    They are not ignored: processes that this one starts would ignore them too.
    """
    parent = os.getppid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:  # no one else ends this process
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*HANDLED, signal.SIGUSR1})
