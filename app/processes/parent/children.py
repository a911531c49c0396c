"""Start child processes, and notice their ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping

from ..control import CONTROL_DESCRIPTOR, Role
from .child import Child

BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""The signals that a child holds back until it handles them."""


class Children:
    """All child processes of this one.

    Each runs the command line of this process again, so that it imports the code and reads the
    files that are there when it starts. posix_spawn does it: `multiprocessing` would start one more
    process, and hide the command line. As process 1 of a container this process also reaps
    the orphans of others.
    """

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self._count = count
        self._environment = environment
        self._running: dict[int, Child] = {}
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, role: Role) -> Child:
        """Start a process. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = self._spawn(command(role, self._count), theirs)
            except OSError:
                ours.close()
                raise
        child = self._running[pid] = Child(role, pid, ours)
        return child

    def _spawn(self, arguments: list[str], control: socket.socket) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, control.fileno(), CONTROL_DESCRIPTOR)]
        return os.posix_spawn(
            arguments[0],
            arguments,
            self._environment,
            file_actions=actions,
            setsigmask=BLOCKED,
            setsigdef=[signal.SIGPIPE],
        )

    def kill(self) -> None:
        """End all of them at once."""
        for child in self._running.values():
            child.kill()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._running.pop(pid, None)
            if child is not None:
                child.exited(os.waitstatus_to_exitcode(status))


def command(role: Role, count: int) -> list[str]:
    """Return the command line of a child: that of this process, with its role and `count` fronts.

    The role comes early, so that `ps` shows it, and the count last, so that it wins.
    """
    given = sys.argv[1:]
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(given)]
    place = given.index("--") if "--" in given else len(given)
    return [
        sys.executable,
        *before,
        *given[:1],
        "--process",
        role.option,
        *given[1:place],
        "--processes",
        str(count),
        *given[place:],
    ]
