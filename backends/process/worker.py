"""The child of a process executor: `python -m penstock.backends.process.worker`.

It runs one backend instance, one batch at a time, until the parent hangs up. `proxy.py` is the
other side, `wire.py` has their messages. Neither asyncio nor HTTP is imported here: a child costs
NumPy, pydantic and what its backends need.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..base import Backend
from ..item import Item
from ..log_writer import QueuedHandler
from ..malloc import give_back_memory, keep_memory
from ..memory import NO_LIMIT, budget
from ..sequences.sequence import EndedSequences
from ..sequences.stateful import with_sequences
from ..server import Server
from ..text import escape, marked
from .channel import Channel, PeerGoneError
from .connection import connector
from .failure import Failure
from .messages import Messages
from .wire import Change, LoadedMessage, Order, Wanted

_PR_SET_PDEATHSIG = 1

_NICE_INCREMENT = 10
"""Added to the server's nice value.

If all processors are busy, the event loop should not wait for a child's time slice.

Next to 2 busy children on 2 processors, the p99 of a no-op pipeline was 4.0 ms without it (median
of 9) and 0.9 ms with it, at 1.81 and 1.82 times the rate of one thread (`scripts/bench process`).
Also tried: the nice value of a session of the child's own (/proc/self/autogroup), which cost half
the rate as soon as another session computed; SCHED_IDLE and shorter slices, which gained nothing
more.
"""


UNASKED_BYTES = 4 << 20
"""So much memory a batch may take without asking: a question takes as long as a small image."""


def main(arguments: list[str]) -> None:
    """Run the child.

    `arguments`: the parent's process id, then the descriptors of socket, outbox and inbox; and of
    the socket of the second channel, if there is one.
    """
    parent, *descriptors = map(int, arguments)
    die_with(parent)
    keep_memory()
    os.nice(_NICE_INCREMENT)
    # The child is in the background of the terminal: with `tostop` set, a write would stop it.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Sent to the whole group of a terminal or a service: the parent drains first, then closes
        # us. A handler that does nothing, because processes that the backend starts would inherit
        # SIG_IGN.
        signal.signal(number, lambda *_: None)
    faulthandler.enable()  # a crash in native code prints the stack
    for descriptor in descriptors:
        # Processes that the backend starts must not keep the socket open.
        os.set_inheritable(descriptor, False)
    bell, outbox, inbox, *second = descriptors
    with socket.socket(fileno=bell) as connection:
        messages = Messages(socket.socket(fileno=second[0])) if second else None
        serve(Channel(connection, outbox, inbox), messages)


def serve(channel: Channel, messages: Messages | None = None) -> None:
    """Load what the first message names, then run batches until the parent hangs up.

    `messages`: the second channel, for a backend that `takes_server`.
    """
    backend: Backend | None = None
    server = None if messages is None else Server(connector(messages))
    try:
        try:
            order: Order = channel.receive()
            _prepare(order)
            context = replace(order.context, alone=True, server=server)
            backend = order.spec.bind(context).create(context)
            if order.sequence is not None:
                backend = with_sequences(backend, order.sequence, context)
            backend.warm_up()
            files = context.files
            files.verify()
            _tune()
        except PeerGoneError:
            raise
        except BaseException as error:
            channel.send(Failure.of(error))
            return
        channel.send(
            LoadedMessage(
                backend.min, backend.max, backend.signature, backend.undecided, files.records
            )
        )
        while True:
            answer(channel, backend)
    except PeerGoneError:
        pass
    finally:
        if backend is not None:
            backend.close()
        if server is not None:
            server.close()


def answer(channel: Channel, backend: Backend) -> None:
    """Run one batch and send its answer.

    Whatever the backend raises is an answer: `SystemExit` ends neither this process nor, without
    one, the executor's thread.
    """
    try:
        items: list[Item] | EndedSequences = channel.receive()
        if isinstance(items, EndedSequences):
            items.tell(backend)
            channel.send(None)
            return
        before = [item.copy() for item in items]
        with _leased(channel):
            backend.forward(list(items))
        outcome: list[Change] | Failure = [
            Change.between(*pair) for pair in zip(before, items, strict=True)
        ]
    except PeerGoneError:
        raise
    except BaseException as error:
        outcome = Failure.of(error, type(backend).__name__)
    try:
        channel.send(outcome)
    except PeerGoneError:
        raise
    except BaseException as error:  # a result that can't be pickled
        channel.send(Failure.of(error, type(backend).__name__))


@contextmanager
def _leased(channel: Channel) -> Iterator[None]:
    """Have the budget of this process ask that of the server for more than `UNASKED_BYTES`.

    The server's stops counting them when the batch has been answered.
    """
    lock = threading.Lock()

    def ask(missing: int, what: str) -> None:
        with lock:
            channel.send(Wanted(missing, what))
            answer: Failure | None = channel.receive()
            if answer is not None:
                raise answer.rebuild("the server")
            budget.limit += missing

    budget.limit = budget.used + UNASKED_BYTES
    budget.ask = ask
    try:
        yield
        # The result, and its copy in the file, need less than it took to make it.
        unused = budget.limit - 2 * budget.used - UNASKED_BYTES
        if unused > UNASKED_BYTES:
            ask(-unused, "")
    finally:
        budget.ask = None
        budget.limit = NO_LIMIT


def die_with(parent: int, leave: Callable[[int], object] = os._exit) -> None:
    """Have the kernel kill this process when the parent's executor thread ends, however it ends.

    The socket alone would tell us only between two batches.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that took effect
        leave(1)


def _tune() -> None:
    """Tune the process as `penstock serve` tunes itself.

    The children compute side by side, so OpenCV's own threads would only compete with them (10
    children that decode on 16 processors: 2 ms instead of 4 per image).
    """
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(1)
    gc.collect()
    give_back_memory()
    gc.freeze()


class _Formatter(logging.Formatter):
    """`digits/net#0 (process 4711): WARNING penstock.onnx: message`, which no text can break."""

    def __init__(self, log_name: str) -> None:
        super().__init__()
        self._log_name = log_name

    def format(self, record: logging.LogRecord) -> str:
        message = escape(record.getMessage())
        line = f"{self._log_name}: {record.levelname} {record.name}: {message}"
        if record.exc_info:
            line += marked(self.formatException(record.exc_info))
        return line


def _prepare(order: Order) -> None:
    for name, value in order.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line in one write, at once. Unbuffered, a line of the log comes between it and its end.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    # Queued: a batch must not wait for someone to read the log.
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"{order.log_name} (process {os.getpid()})"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("penstock").setLevel(order.log_level)


if __name__ == "__main__":
    main(sys.argv[1:])
