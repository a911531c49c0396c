"""A backend in a process of its own (`executor = "process"`), for Python that holds the GIL.

An executor's thread runs this proxy like any backend. It waits in `recv`, without the GIL, while
the child works (worker.py).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ..allocation import empty_array
from ..base import Backend, Context
from ..errors import InvalidInput
from ..expressions.filters import filter_registered_here
from ..expressions.registry import backend_registered_here
from ..expressions.spec import Spec
from ..item import Item
from ..memory import Reservation, budget
from ..model_metrics import model_metrics, owner_of_process
from ..sequences.definition import SequenceConfig
from ..sequences.sequence import EndedSequences
from ..server import Connect
from ..text import message_of
from .channel import Channel, PeerGoneError
from .connection import RemoteListener
from .environment import child_environment
from .failure import Failure, ProcessDiedError, RestartError
from .messages import Messages
from .wire import Change, LoadedMessage, Order, SpecMessage, Wanted

logger = logging.getLogger("penstock.process")

CLOSE_TIMEOUT_SECONDS = 5.0
"""The time that a child has to close its backend before it is killed."""


def obstacles(spec: Spec) -> Iterator[str]:
    """Yield the reasons why the backends of an expression can't run in a process."""
    if not hasattr(os, "memfd_create"):
        yield 'executor = "process" needs Linux'
    for name in _filters(spec):
        if filter_registered_here(name):
            yield (
                f"the filter {name} was registered in this process, so a child process can't find "
                "it: make it the filter of a node instead"
            )
    for name in _names(spec):
        if backend_registered_here(name):
            yield (
                f"{name} was registered in this process, so a child process can't find it: "
                "give its place, as in Python[module:Class] or Python[file.py:Class]"
            )
        elif name.startswith("__main__:"):
            yield (
                f"{name}: a child process can't import the __main__ of this one: move the class to "
                "a module or a file of its own"
            )


def _names(spec: Spec) -> Iterator[str]:
    yield spec.name
    for child in spec.children:
        yield from _names(child)


def _filters(spec: Spec) -> Iterator[str]:
    if spec.filter is not None:
        yield spec.filter
    for child in spec.children:
        yield from _filters(child)


class ProcessBackend(Backend):
    """The stand-in for the backend of `spec`, which lives in a child.

    `create` replaces that of the spec.

    `on_exit` is called on a thread of its own when a child has ended, `on_restart` on the
    executor's thread when one is replaced.
    """

    def __init__(
        self,
        spec: Spec,
        sequence: SequenceConfig | None = None,
        connect: Connect | None = None,
    ) -> None:
        """`sequence`: how the node keeps states of sequences, which live in the child. `connect`:
        makes the connection to the server for each child, if the backend `takes_server`.
        """
        self.spec = spec
        self._connect = connect
        self._sequence = sequence
        self._undecided = False
        self.ready = True  # False while a child that has died is being replaced
        self.on_exit: Callable[[], None] = lambda: None
        self.on_restart: Callable[[], None] = lambda: None
        self._context = Context()
        self._child: Child | None = None
        self._killed = False

    @property
    def pid(self) -> int | None:
        """The process id of the child, or None."""
        return self._child.pid if self._child is not None else None

    def create(self, context: Context) -> Backend:
        """Start the child and wait until its backend is loaded and warm.

        Raises what its `init` raised.
        """
        self._context = context
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def undecided(self) -> bool:
        return self._undecided

    def forward(self, batch: list[Item]) -> None:
        """Run a batch in the child.

        Raises what the backend raised. Raises `ProcessDiedError` if the child died; a new child is
        then ready for the next batch.
        """
        self.revive()
        child = self._child
        assert child is not None
        memory = Reservation(budget)
        try:
            # A copy in the file, and one of the child's own.
            memory.resize(2 * _size_of(batch), "a batch in a process")
            child.channel.send(batch)
            answer: list[Change] | Failure | Wanted = child.channel.receive()
            while isinstance(answer, Wanted):
                child.channel.send(_reserved(memory, answer))
                answer = child.channel.receive()
        except PeerGoneError:
            raise self._died(self._replace(child)) from None
        except BaseException as error:
            # Something that can't be pickled, there or back. It is the backend's, not the proxy's.
            self._name(error)
            raise
        finally:
            memory.close()
        if isinstance(answer, Failure):
            raise answer.rebuild(child.name)
        for item, change in zip(batch, answer, strict=True):
            change.apply(item, child.name)

    def end_sequences(self, ends: tuple[tuple[int, str], ...]) -> None:
        """Tell the child of sequences that have ended. A child that has died can end none."""
        child = self._child
        if child is None:
            return
        try:
            child.channel.send(EndedSequences(ends))
            child.channel.receive()
        except PeerGoneError:
            self._replace(child)

    def revive(self) -> None:
        """Replace a child that died between two batches."""
        if self._child is not None and self._child.exited:
            self._replace(self._child)
        if self._child is None:
            raise self._died("its process was ended")

    def end_child(self) -> None:
        """Kill the child, which hangs; another one is started. Safe from any thread.

        A thread that waits for the child continues with `ProcessDiedError`.
        """
        if (child := self._child) is not None:
            child.kill()

    def kill(self) -> None:
        """End the child now and start no other. Safe from any thread.

        A thread that waits for the child continues with `ProcessDiedError`.
        """
        self._killed = True
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(0.0 if self._killed else CLOSE_TIMEOUT_SECONDS)

    def _start(self) -> None:
        context = self._context
        name = f"{context.pipeline}/{context.node}#{context.instance}"
        child = self._child = Child(name, self.on_exit, self._connect)
        if self._killed:  # while the child was being created
            child.kill()
        level = logging.getLogger("penstock").getEffectiveLevel()
        order = Order(
            SpecMessage.of(self.spec),
            replace(context, server=None),  # it has its own
            name,
            level,
            {"PYTHONPATH": os.environ.get("PYTHONPATH")},
            self._sequence,
        )
        try:
            child.channel.send(order)
            answer: LoadedMessage | Failure = child.channel.receive()
        except PeerGoneError:
            raise ProcessDiedError(f"{child.name} {child.end()} while it loaded") from None
        if isinstance(answer, Failure):
            raise answer.rebuild(child.name)
        self.min, self.max, self.signature, self._undecided, files = answer
        context.files.adopt(files)
        if context.shared_files is not None:
            context.shared_files.keep()

    def _replace(self, child: Child) -> str:
        """Start a new child in place of one that died. Return how that one ended."""
        self.ready = False
        why = child.end()
        self._child = None
        if not self._killed:
            place = {"pipeline": self._context.pipeline, "node": self._context.node}
            logger.error(
                "node %s: %s %s; starting it again",
                self._context.node,
                child.name,
                why,
                extra=place,
            )
            self.on_restart()
            try:
                self._start()
            except BaseException as error:
                raise RestartError(
                    f"{child.name} {why}, and can't be started again: {type(error).__name__}: "
                    f"{message_of(error)}"
                ) from error
            self.ready = True
        return f"{child.name} {why}"

    def _died(self, why: str) -> ProcessDiedError:
        error = ProcessDiedError(why)
        self._name(error)
        return error

    def _name(self, error: BaseException) -> None:
        error.penstock_backend = self.spec.cls.__name__  # type: ignore[attr-defined]


def _counted_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    return empty_array(shape, dtype, "an answer of a process")


def _size_of(batch: list[Item]) -> int:
    """Count the bytes of the arrays and files in a batch."""
    return sum(
        len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)
        for item in batch
        for value in item.values()
        if isinstance(value, (bytes, np.ndarray))
    )


def _reserved(memory: Reservation, wanted: Wanted) -> Failure | None:
    """Reserve what a child wants. Return None, or why it can't have it."""
    try:
        memory.resize(max(memory.size + wanted.size, 0), wanted.what)
    except InvalidInput as error:
        return Failure.of(error)
    return None


class Child:
    """A child process, the channels to it, and a thread that waits for its end.

    `remote` is its second channel, if it is made with `connect`.
    """

    def __init__(
        self, name: str, on_exit: Callable[[], None], connect: Connect | None = None
    ) -> None:
        self.exited = False
        self.remote: RemoteListener | None = None
        self._on_exit = on_exit
        ours, theirs = socket.socketpair()
        second = [] if connect is None else [*socket.socketpair()]  # ours and theirs
        passed = [each.fileno() for each in second[1:]]
        self._files: list[int] = []
        try:
            self._files += [os.memfd_create(f"penstock {name} {way}") for way in ("in", "out")]
            inbox, outbox = self._files
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    *(f"-W{option}" for option in sys.warnoptions),
                    *("-m", f"{__package__}.worker"),
                    *map(str, (os.getpid(), theirs.fileno(), outbox, inbox, *passed)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # our stdout may be a program's answer, or closed
                pass_fds=(theirs.fileno(), inbox, outbox, *passed),
                # Ctrl-C is for us: we drain first. Not a session of its own: with autogroups the
                # kernel compares nice values only within a session.
                process_group=0,
                env=child_environment(),
            )
        except BaseException:
            ours.close()
            for each in second[:1]:
                each.close()
            self._close_files()
            raise
        finally:
            theirs.close()
            for each in second[1:]:
                each.close()
        self.channel = Channel(ours, inbox, outbox, _counted_array)
        self.pid = self._process.pid
        self.name = f"process {self.pid}"
        if connect is not None:
            messages = Messages(second[0], _counted_array)
            self.remote = RemoteListener(messages, connect, f"{name} {self.name}")
        self._watch = threading.Thread(
            target=self._wait, name=f"{name} waits for {self.name}", daemon=True
        )
        self._watch.start()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Close the child, which has hung up, and return how it ended."""
        self.close(1.0)
        code = self._process.returncode
        if code is None:
            return "does not end"
        if code >= 0:
            return f"exited with code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def close(self, timeout: float) -> None:
        """Hang up: the child closes its backend and ends. After `timeout` seconds it is killed.

        May be called again.
        """
        with suppress(OSError):
            self.channel.bell.shutdown(socket.SHUT_WR)
        self._watch.join(timeout)
        if self._watch.is_alive():
            self._process.kill()
            self._watch.join(CLOSE_TIMEOUT_SECONDS)  # the kernel can take long to free the memory
        if self._watch.is_alive():
            logger.error("%s can't be killed and keeps running", self.name)
        if self.remote is not None:
            self.remote.close()
        self.channel.bell.close()
        self._close_files()

    def _wait(self) -> None:
        self._process.wait()
        self.exited = True
        with suppress(OSError):
            # A process that the backend started may hold the other end open: wake the thread that
            # waits for an answer.
            self.channel.bell.shutdown(socket.SHUT_RDWR)
        if self.remote is not None:
            self.remote.hang_up()
        self._on_exit()
        if self.remote is not None:
            # Only now: among the last messages of the child may be one that creates a metric.
            self.remote.wait_until_heard()
            model_metrics.release(owner_of_process(self.pid))

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.pop())
