"""A second channel between a process executor and its child: either side sends at any time.

The first one (`channel.py`) strictly alternates, which batches need. On this one, calls of models,
their answers and the responses of decoupled models cross one another. A message is pickled; its
arrays follow in the stream and take no further copy. Any thread may send. One thread receives, and
must not wait for anything but the next message: then a sender never waits for long.

Each message names its kind and a number (of a call, of a request), so that one that can't be read,
such as one that doesn't fit into the memory of all requests, still says whose it was.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..allocation import UNCOUNTED_BYTES
from ..memory import Reservation, budget
from .channel import Parcel, Pickler, Unpickler

logger = logging.getLogger("penstock.process")

_HEAD = struct.Struct("<BxxxxxxxQQQQ")
"""Kind, number, and the sizes of the list of arrays, of the pickle and of all arrays."""

_SOCKET_BYTES = 1 << 20
"""The bytes of a message that the kernel may hold, so that a sender goes on before the receiver has
woken.
"""

_PART_BYTES = 1 << 20

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]
OnMessage = Callable[[int, int, Any], None]
OnUnreadable = Callable[[int, int, BaseException], None]


class Messages:
    """One end of the channel, on a connected stream socket. It owns the socket.

    `allocate` makes the arrays that messages bring, from a shape and a dtype.
    """

    def __init__(self, connection: socket.socket, allocate: Allocate = np.empty) -> None:
        self._socket = connection
        self._allocate = allocate
        self._sending = threading.Lock()
        self._gone = False
        self._pid = os.getpid()
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)

    def send(self, kind: int, number: int, message: Any) -> None:
        """Send a message. Does nothing if the other side has gone.

        Waits while the other side reads what was sent before. Raises whatever pickling raises, and
        RuntimeError in a process that was forked from this one, which no answer would reach; then
        nothing was sent.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "a process that a model has forked can't call the server: call it from the model's "
                "own process, or from threads"
            )
        parcel = Parcel()
        Pickler(parcel, protocol=5).dump(message)
        heads = pickle.dumps([(array.dtype, array.shape) for array in parcel.arrays], protocol=5)
        # Empty arrays have nothing to copy, and dtypes of size 0 can't be viewed as bytes.
        content = [array.reshape(-1).view(np.uint8).data for array in parcel.arrays if array.nbytes]
        head = _HEAD.pack(
            kind, number, len(heads), sum(map(len, parcel.chunks)), sum(map(len, content))
        )
        with self._sending:
            if self._gone:
                return
            try:
                small = b"".join([head, heads, *parcel.chunks])
                self._socket.sendall(small, socket.MSG_NOSIGNAL)
                for part in content:
                    self._socket.sendall(part, socket.MSG_NOSIGNAL)
            except OSError:  # the receiver learns that too, and says so
                self._gone = True

    def receive_all(self, on_message: OnMessage, on_unreadable: OnUnreadable) -> None:
        """Receive messages, on this thread, until the other side has gone or `close` is called."""
        while (head := self._read(_HEAD.size)) is not None:
            kind, number, heads_size, size, content_size = _HEAD.unpack(head)
            memory = Reservation(budget)
            message: Any = None
            try:
                if size > UNCOUNTED_BYTES:
                    memory.resize(size, "a call of a model")
                message = self._message(heads_size, size, content_size)
            except EOFError:
                return
            except _UnreadableError as unreadable:
                self._call(on_unreadable, kind, number, unreadable.reason)
            except BaseException as error:
                if not self._skip(heads_size + size + content_size):
                    return
                self._call(on_unreadable, kind, number, error)
            else:
                self._call(on_message, kind, number, message)
            finally:
                memory.close()
                message = None  # while it waits for the next one, it holds nothing

    def close(self) -> None:
        """End both directions. `receive_all` returns, and what is sent from now on is dropped."""
        self._gone = True
        if os.getpid() != self._pid:
            return  # the socket is that of the process that forked this one
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the socket. Nothing may use it any more."""
        self.close()
        self._socket.close()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:  # one message's fault must not cost the others theirs
            logger.exception("a message of a process could not be handled")

    def _message(self, heads_size: int, size: int, content_size: int) -> Any:
        """Read the rest of a message.

        Raises EOFError at the end of the stream, `_UnreadableError` for a message that has been
        read from the stream but can't be understood, and what else `allocate` raises before the
        arrays have been read.
        """
        # At once: if there is no memory for it, nothing has been read yet.
        body = self._read(heads_size + size)
        if body is None:
            raise EOFError
        left = content_size
        try:
            arrays = []
            for dtype, shape in pickle.loads(body[:heads_size]):
                array = self._allocate(shape, dtype)
                if array.nbytes:
                    self._fill(array.reshape(-1).view(np.uint8).data)
                    left -= array.nbytes
                arrays.append(array)
            return Unpickler(io.BytesIO(body[heads_size:]), arrays).load()
        except EOFError:
            raise
        except BaseException as error:
            if not self._skip(left):
                raise EOFError from error
            raise _UnreadableError(error) from error

    def _read(self, size: int) -> memoryview | None:
        """Read so many bytes; None at the end of the stream."""
        buffer = memoryview(bytearray(size))
        try:
            self._fill(buffer)
        except EOFError:
            return None
        return buffer

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                count = self._socket.recv_into(view)
            except OSError:
                count = 0
            if not count:
                raise EOFError
            view = view[count:]

    def _skip(self, size: int) -> bool:
        """Read and drop so many bytes. Return False at the end of the stream."""
        buffer = memoryview(bytearray(min(size, _PART_BYTES)))
        try:
            while size:
                part = buffer[: min(size, len(buffer))]
                self._fill(part)
                size -= len(part)
        except EOFError:
            return False
        return True


class _UnreadableError(Exception):
    """Raised for a message that has been read from the stream, and means nothing here."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Sender:
    """A thread that sends messages, for callers that must not wait, such as the event loop."""

    def __init__(self, messages: Messages, name: str) -> None:
        self._messages = messages
        self._queue: SimpleQueue[tuple[int, int, Any, Callable[[BaseException], None]] | None] = (
            SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def send(
        self, kind: int, number: int, message: Any, on_error: Callable[[BaseException], None]
    ) -> None:
        """Send a message soon, after those before it. `on_error` is called if it can't be sent."""
        self._queue.put((kind, number, message, on_error))

    def stop(self) -> None:
        """End the thread after the messages that it has."""
        self._queue.put(None)

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            kind, number, message, on_error = entry
            try:
                self._messages.send(kind, number, message)
            except BaseException as error:  # it can't be pickled
                on_error(error)
            entry = message = on_error = None  # type: ignore[assignment]  # `get` waits: hold nothing
