"""`penstock serve --reload`: a server that is started again when its files change.

This process holds the listening sockets and watches the files. The server is a child process with
the same arguments, so it imports the code of users anew. While it restarts, new connections wait in
the sockets. watchfiles, which watches, is in the extra `reload`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from ..settings import Settings
from .listeners import ListenError, listen
from .logs import configure_logging

logger = logging.getLogger("penstock.serve")

WATCHED_SUFFIXES = (
    ".py",
    ".toml",
    ".onnx",
    ".pt",
    ".pt2",
    ".npz",
    ".txt",
    ".pbtxt",
    ".plan",
    ".xml",
)
"""The files whose changes count: code, pipelines, models and labels. Pipelines may write others."""

END_SECONDS = 20.0
"""So much longer than `drain_timeout` a server may take to end before it is killed."""

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)

Target = Callable[[Sequence[str], Sequence[socket.socket]], None]
"""Serves with arguments of the command line, on sockets that listen."""


def serve_and_reload(
    target: Target, path: Path, folders: Iterable[Path], settings: Settings
) -> int:
    """Run `target` with the arguments of this process but `--reload`, anew after each change.

    `folders` are watched besides that of `path` and the working directory. Returns the exit code of
    the last server.
    """
    log = configure_logging(settings.log_level, settings.log_format)
    if find_spec("watchfiles") is None:
        logger.error("--reload needs watchfiles: pip install 'penstock-serve[reload]'")
        return 1
    watched = watched_folders(path, folders)
    if missing := [folder for folder in watched if not folder.is_dir()]:
        logger.error("--reload-dir: %s is not a folder", missing[0])
        return 1
    try:
        listeners = listen(settings)
    except ListenError as error:
        logger.error("%s", error)
        return 1
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    server = ReloadingServer(target, arguments, listeners, settings.drain_timeout + END_SECONDS)
    logger.info("restarts when files change in %s", ", ".join(map(str, watched)))
    try:
        return server.run(changes(watched, server.stopping))
    finally:
        for listener in listeners:
            listener.close()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)
        log.limit.tell()


def watched_folders(path: Path, folders: Iterable[Path]) -> list[Path]:
    """Return the folders to watch, none of them inside another one.

    The working directory is one of them, unless it is the root or the home of the user.
    """
    path = path.absolute()
    wanted = [path if path.is_dir() else path.parent, *(folder.absolute() for folder in folders)]
    working = Path.cwd()
    if working not in (Path(working.anchor), Path.home()):
        wanted.append(working)
    kept: list[Path] = []
    for folder in sorted(set(wanted)):
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return kept


def changes(folders: Sequence[Path], stopping: threading.Event) -> Iterator[set[str]]:
    """Yield the files that have changed, until `stopping` is set."""
    from watchfiles import PythonFilter, watch

    for changed in watch(
        *folders,
        watch_filter=PythonFilter(extra_extensions=WATCHED_SUFFIXES),
        stop_event=stopping,
    ):
        yield {file for _, file in changed}


class ReloadingServer:
    """The server's process, and what restarts it."""

    def __init__(
        self,
        target: Target,
        arguments: Sequence[str],
        listeners: Sequence[socket.socket],
        end_seconds: float,
    ) -> None:
        self._target = target
        self.stopping = threading.Event()
        self._arguments = arguments
        self._listeners = listeners
        self._end_seconds = end_seconds
        self._process: SpawnProcess
        self._ended: SpawnProcess | None = None  # the last one that was ended for a change

    def run(self, changes: Iterable[set[str]]) -> int:
        """Serve until a signal ends this process. Returns the exit code of the server."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        if hasattr(signal, "pthread_sigmask"):  # the command line has held some back
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        self._start()
        for changed in changes:
            if self.stopping.is_set():
                break
            logger.info("%s changed: the server restarts", ", ".join(sorted(changed)))
            self._end()
            self._start()
        self._process.join(self._end_seconds)
        self._kill()
        return self._process.exitcode or 0

    def _start(self) -> None:
        process = self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(self._target, self._arguments, list(self._listeners))
        )
        process.start()
        _when_ended(process.sentinel, lambda: self._tell_end(process))

    def _tell_end(self, process: SpawnProcess) -> None:
        if process is not self._ended and not self.stopping.is_set():
            logger.warning("the server has ended: it starts again when a file changes")

    def _end(self) -> None:
        """End the server after its requests in flight."""
        self._ended = self._process
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(self._end_seconds)
        self._kill()

    def _kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            self.stopping.set()
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _run(target: Target, arguments: Sequence[str], listeners: Sequence[socket.socket]) -> None:
    """Run the server in the process that `ReloadingServer` has started."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C of the terminal goes to the parent, which forwards it, alone
    parent = multiprocessing.parent_process()
    assert parent is not None
    _when_ended(parent.sentinel, lambda: os.kill(os.getpid(), signal.SIGTERM))
    target(arguments, listeners)


def _when_ended(sentinel: int, act: Callable[[], None]) -> None:
    def look() -> None:
        wait([sentinel])
        act()

    threading.Thread(target=look, daemon=True).start()
