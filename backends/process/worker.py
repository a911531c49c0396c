"""The process executor's child: `python -m penstock.backends.process.worker`. One backend instance, one batch at a time, until the parent is gone.

`process.py` is the other side, `wire.py` what they say. Neither asyncio nor HTTP is imported here: a child costs NumPy, pydantic and what
its backends need.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from ..base import Backend
from ..item import Item
from .allocator import keep_memory
from .channel import Channel, PeerGoneError
from .failure import Failure
from .wire import Change, Loaded, Order

_PR_SET_PDEATHSIG = 1

_NICE = 10
"""Added to the server's nice value: where all processors are taken, the event loop should not wait for a child's time slice. Beside
2 busy children on 2 processors a no-op pipeline's p99 was 4.0 ms (median of 9) before and 0.9 ms with it, at 1.81 and 1.82 times one
thread's rate (`scripts/bench process`). Tried, too: the nice value of a session of the child's own (/proc/self/autogroup), which cost
half the rate as soon as another session computed; SCHED_IDLE and shorter slices, which gave nothing more."""


def main(arguments: list[str]) -> None:
    """`arguments`: the parent's process id, then the descriptors of socket, outbox and inbox."""
    parent, *descriptors = map(int, arguments)
    die_with(parent)
    keep_memory()
    os.nice(_NICE)
    signal.signal(
        signal.SIGTTOU, signal.SIG_IGN
    )  # a group in the background of a terminal that is set `tostop` may write, too
    for number in (signal.SIGINT, signal.SIGTERM):
        # Sent to a terminal's or a service's whole group: the parent drains first, then closes us.
        # A handler that does nothing, since SIG_IGN would be inherited by whatever the backend
        # starts.
        signal.signal(number, lambda *_: None)
    faulthandler.enable()  # a crash in native code says where
    for descriptor in descriptors:
        os.set_inheritable(
            descriptor, False
        )  # what the backend starts must not keep the socket open
    bell, outbox, inbox = descriptors
    with socket.socket(fileno=bell) as connection:
        serve(Channel(connection, outbox, inbox))


def serve(channel: Channel) -> None:
    """Load what the first message says, then run batches until the parent hangs up."""
    backend: Backend | None = None
    try:
        try:
            order: Order = channel.receive()
            _prepare(order)
            backend = order.spec.bind(order.context).create(order.context)
            backend.warm_up()
            _tune()
        except Exception as error:
            channel.send(Failure.of(error))
            return
        channel.send(Loaded(backend.min, backend.max))
        while True:
            answer(channel, backend)
    except PeerGoneError:
        pass
    finally:
        if backend is not None:
            backend.close()


def answer(channel: Channel, backend: Backend) -> None:
    """One batch. An exception that is no `Exception` ends the process, as it would end an executor's thread."""
    try:
        items: list[Item] = channel.receive()
        before = [item.copy() for item in items]
        backend.forward(list(items))
        found: list[Change] | Failure = [
            Change.between(*pair) for pair in zip(before, items, strict=True)
        ]
    except PeerGoneError:
        raise
    except Exception as error:
        found = Failure.of(error, type(backend).__name__)
    try:
        channel.send(found)
    except PeerGoneError:
        raise
    except Exception as error:  # a result that can't be pickled
        channel.send(Failure.of(error, type(backend).__name__))


def die_with(parent: int, leave: Callable[[int], object] = os._exit) -> None:
    """Be killed when the parent's executor thread ends, however it does; hanging up tells us only between two batches."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before that took effect
        leave(1)


def _tune() -> None:
    """As `penstock serve` does for itself: the children compute side by side, and OpenCV's own threads would only compete with them
    (10 children that decode on 16 processors: 2 instead of 4 ms an image).
    """
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(1)
    gc.collect()
    gc.freeze()


def _prepare(order: Order) -> None:
    for name, value in order.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    form = f"{order.log_name} (process {os.getpid()}): %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, format=form, level=logging.WARNING)
    logging.getLogger("penstock").setLevel(order.log_level)


if __name__ == "__main__":
    main(sys.argv[1:])
