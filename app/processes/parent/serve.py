"""`penstock serve --processes N`: the parent process.

It holds the listening sockets for as long as the server lives, and starts the other processes. The
first SIGTERM or SIGINT drains: the server is not ready from then on, but goes on listening until
the requests in flight have ended or `drain_timeout` has passed, and exits with 0. A second one ends
all processes at once. SIGHUP and `penstock reload` replace all other processes by new ones, which
import the code and read the files anew. SIGUSR1 has every process write a report.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from ...grpc.errors import GrpcError
from ...grpc.listener import listen_for_grpc
from ...grpc.listener import place as grpc_place
from ...http.tls import TlsError, tls_context
from ...server.listeners import ListenError, listen, listen_often
from ...server.logs import configure_logging
from ...server.place import places, warn_if_open
from ...server.secrets import hide_secrets, warn_of_loose_files
from ...server.standard_streams import open_standard_streams
from ...settings import Settings, unknown_variables
from ..control import Control
from ..count import front_count
from .children import Children
from .control_socket import ControlServer, Progress, listen_for_control
from .generation import Generation
from .handover import Handover

logger = logging.getLogger("penstock.serve")

NAME = "parent"


def serve_processes(settings: Settings) -> int:
    """Serve with several processes until a signal comes. Returns the exit code."""
    open_standard_streams()
    environment = dict(os.environ)  # with the secrets: the others need them
    log = configure_logging(
        settings.log_level, settings.log_format, max_bytes=settings.max_log_buffer, process=NAME
    )
    log.take_standard_error()
    hide_secrets()
    warn_of_loose_files(settings)
    for warning in unknown_variables(os.environ):
        logger.warning("%s", warning)
    opened: list[socket.socket] = []
    try:
        tls_context(settings, "http/1.1")  # fronts make their own
        sockets = Sockets(settings, opened)
    except (ListenError, GrpcError, TlsError) as error:
        logger.error("%s", error)
        return 1
    try:
        return asyncio.run(_run(settings, sockets, environment))
    finally:
        for each in opened:
            each.close()
        for path in (settings.uds, settings.control_socket):
            if path is not None:
                path.unlink(missing_ok=True)
        log.limit.tell()


class Sockets:
    """The listening sockets of a server. They stay open over all reloads."""

    def __init__(self, settings: Settings, opened: list[socket.socket]) -> None:
        """`opened` gets each of them. Raises `ListenError` and `GrpcError`."""
        self.shared: list[socket.socket] = []
        self.own: list[list[socket.socket]] = []  # of front 1, of front 2, …
        self.grpc: socket.socket | None = None
        self.control: socket.socket | None = None
        if settings.balance == "kernel":
            self.own = listen_often(settings, front_count(settings))
        else:
            self.shared = listen(settings)
        opened += [*self.shared, *(each for listeners in self.own for each in listeners)]
        self.address = opened[0].getsockname()
        if settings.grpc_port is not None:
            self.grpc = listen_for_grpc(settings)
            opened.append(self.grpc)
        port = 0 if settings.uds is not None else self.address[1]
        try:
            self.control = listen_for_control(settings, port)
        except ListenError as error:
            if settings.control_socket is not None:
                raise
            logger.warning("%s, or penstock reload won't find this server", error)
        else:
            opened.append(self.control)


async def _run(settings: Settings, sockets: Sockets, environment: dict[str, str]) -> int:
    parent = Parent(settings, sockets, Children(front_count(settings), environment))
    return await parent.run()


class Parent:
    """Owns the generations of processes: the one that serves, and at a reload a second one."""

    def __init__(self, settings: Settings, sockets: Sockets, children: Children) -> None:
        self._settings = settings
        self._sockets = sockets
        self._children = children
        self._count = front_count(settings)
        self._handover = Handover(sockets.shared, sockets.own)
        self._loop = asyncio.get_running_loop()
        self._generation = self._new_generation()
        self._starting: Generation | None = None  # of a reload
        self._retiring: Generation | None = None  # by a reload
        self._told = False  # where the server listens
        self._stopping = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._waiting: list[Progress] = []  # for the next reload
        self._wanted = False  # the next reload
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Parent of {self._count} fronts>"

    async def run(self) -> int:
        """Serve until a signal comes, or until the first processes can't start."""
        self._handle_signals()
        control = None
        if self._sockets.control is not None:
            control = ControlServer(self._sockets.control, self._reload_for)
            await control.start()
        first = self._generation
        first.start()
        self._handover.fronts = first.fronts
        stopping = asyncio.ensure_future(self._stopping.wait())
        either: list[asyncio.Future[Any]] = [first.started, stopping]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        code = 0
        if first.started.done() and (reason := first.started.result()):
            for problem in first.problems:
                sys.stderr.write(f"{problem}\n")
            if not first.problems:
                logger.error("the server can't start: %s", reason)
            code = 1
            stopping.cancel()
            if self._reloading is not None:
                self._reloading.cancel()
            await first.abandon()
        else:
            if first.started.done():
                seconds = time.monotonic() - self._began
                logger.info("all %d processes are ready after %.1f s", self._count + 2, seconds)
            await stopping
            await self._drain()
        if control is not None:
            control.close()
        return code

    def _tell_where(self) -> None:
        logger.info("listening on %s", places(self._sockets.address, self._settings))
        if self._sockets.grpc is not None:
            port = self._sockets.grpc.getsockname()[1]
            logger.info("listening for gRPC on %s", grpc_place(self._settings, port))
        warn_if_open(self._sockets.address, self._settings)

    # signals

    def _handle_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._stop, number)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload_for, None)
        self._loop.add_signal_handler(signal.SIGUSR1, self._report)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGUSR1})

    def _stop(self, number: int) -> None:
        if self._stopping.is_set():
            self._children.kill()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._stopping.set()

    def _report(self) -> None:
        lines = [f"report: {self._count} front processes and one of the models"]
        for generation in self._generations():
            for child in generation.all:
                state = "ready" if child.ready else "starts" if child.alive else "has ended"
                lines.append(
                    f"  {child.role}: process {child.pid}, {state}, "
                    f"{generation.restarts[child.role]} restarts"
                )
                if child.role.number and not self._sockets.own:
                    lines[-1] += f", {child.open} connections, {len(child.pending)} not taken yet"
                child.send(Control.REPORT)
        logger.info("%s", "\n".join(lines))

    def _generations(self) -> list[Generation]:
        return [
            each for each in (self._retiring, self._generation, self._starting) if each is not None
        ]

    # processes

    def _new_generation(self) -> Generation:
        return Generation(self._children, self._count, self._changed, self._models_started)

    def _models_started(self, generation: Generation) -> None:
        generation.models.send(Control.ADDRESS, self._sockets.address)
        if generation is self._generation:
            self._serve_grpc()

    def _serve_grpc(self) -> None:
        """Have the model process that serves take the calls of gRPC."""
        if self._sockets.grpc is not None:
            self._generation.models.send(Control.GRPC, descriptors=[self._sockets.grpc.fileno()])

    def _changed(self, generation: Generation) -> None:
        for front in generation.fronts:
            if not front.alive:
                self._handover.front_ended(front)
        self._handover.update()  # connections of any front that has died need another one
        if generation is not self._generation:
            return
        if generation.models.read and not self._told:
            self._told = True
            self._tell_where()
        processes = [(NAME, os.getpid(), 0)] + [
            (str(child.role), child.pid, generation.restarts[child.role])
            for child in generation.all
            if child.alive
        ]
        generation.models.send(Control.PROCESSES, processes)

    async def _drain(self) -> None:
        began = time.monotonic()
        timeout = self._settings.drain_timeout
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])
        others = []
        if self._starting is not None:
            others.append(self._starting.abandon())
        if self._retiring is not None:
            others.append(self._retiring.end(timeout))
        for progress in self._waiting:
            progress.end(False)
        await asyncio.gather(self._generation.drain(timeout), *others)
        self._handover.close()
        left = max(1.0, timeout - (time.monotonic() - began))
        await self._generation.end_fronts(left)
        await self._generation.end_models(1)

    # reloads

    def _reload_for(self, progress: Progress | None) -> None:
        """Replace all processes. A reload that still waits for its new processes begins anew."""
        if self._stopping.is_set():
            if progress is not None:
                progress.tell("the server is shutting down")
                progress.end(False)
            return
        self._wanted = True
        if progress is not None:
            self._waiting.append(progress)
        if self._starting is not None:
            self._starting.fail("a newer reload began")
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_all())

    async def _reload_all(self) -> None:
        await asyncio.wait([self._generation.started])
        while self._wanted:
            self._wanted = False
            clients, self._waiting = self._waiting, []
            succeeded = False
            try:
                succeeded = await self._reload(clients)
            finally:
                for progress in clients:
                    progress.end(succeeded)

    async def _reload(self, clients: Sequence[Progress]) -> bool:
        def tell(text: str, level: int = logging.INFO) -> None:
            logger.log(level, "reload: %s", text)
            for progress in clients:
                progress.tell(text)

        began = time.monotonic()
        tell(f"starting {self._count} new front processes and a new one of the models")
        new = self._starting = self._new_generation()
        new.may_lack = set(self._generation.models.left_out)
        new.start()
        reason = await new.started
        self._starting = None
        if reason:
            tell(f"the old processes go on: the new ones can't start: {reason}", logging.ERROR)
            await new.abandon()
            return False
        old, self._generation = self._generation, new
        self._retiring = old
        self._handover.fronts = new.fronts
        self._changed(new)
        self._serve_grpc()
        seconds = time.monotonic() - began
        tell(f"the new processes take all connections from now on, after {seconds:.1f} s")
        await old.retire(self._settings.drain_timeout)
        self._retiring = None
        tell(f"the old processes have ended; all were replaced in {time.monotonic() - began:.1f} s")
        return True
