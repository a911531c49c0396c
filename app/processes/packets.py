"""Messages between two processes, in packets of a Unix socket.

A message is a tuple that `marshal` writes: None, numbers, text, bytes, and tuples and lists of
these. That is the fastest way there is to write small ones. It is no format between releases of
Python, but both ends are one program.

Messages that are sent in one iteration of the event loop share packets: under load, one system call
and one wake-up serve many requests.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import marshal
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

logger = logging.getLogger("penstock.processes")

MESSAGE_BYTES = 60 << 10
"""The largest message, as `marshal` writes it. Larger content goes through an `Arena`."""

INLINE_BYTES = 32 << 10
"""A body of up to so many bytes goes inside its message. Through an arena it would cost a message
more, which frees its extent.
"""

PACKET_BYTES = 64 << 10
"""The largest packet."""

SOCKET_BYTES = 1 << 20
"""The kernel may hold so much of one direction, if its own limit allows it."""

MAX_DESCRIPTORS = 64
"""The most file descriptors that go with one message."""

PACKETS_PER_TURN = 4
"""So many packets are read before other callbacks of the loop have a turn: 1000 small requests."""

MAX_WAITING = 1024
"""With more packets that the kernel has not taken, the other side hangs: 64 MiB."""

RETRY_SECONDS = 0.01
"""The pause after the kernel had no room, and tells no one when it has."""

NO_ROOM = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
"""Too many descriptors are on their way, or the kernel has no memory."""

_VERSION = 2
"""The format of `marshal` without references: such messages can be put side by side in a list."""

_LIST = struct.Struct("<cI")
"""The head of a list of `marshal`: its type and length."""

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)

OnMessage = Callable[[tuple[Any, ...], Sequence[int]], None]


class Packets:
    """One end of a SOCK_SEQPACKET socket, on the running event loop. It owns the socket.

    `on_message` is called with each message and the file descriptors that came with it, which it
    owns. `on_gone` is called once when the other side has closed or ended, not after `close`.
    """

    __slots__ = (
        "_buffer",
        "_closed",
        "_end",
        "_flushing",
        "_gone",
        "_loop",
        "_messages",
        "_number",
        "_on_gone",
        "_on_message",
        "_packets",
        "_size",
        "_view",
        "_waiting",
    )

    def __init__(
        self, end: socket.socket, on_message: OnMessage, on_gone: Callable[[], None]
    ) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._end = end
        self._number = end.fileno()
        self._on_message = on_message
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._messages: list[bytes] = []  # of this iteration of the loop
        self._size = 0  # of these
        self._packets: deque[tuple[bytes, Sequence[int]]] = deque()
        self._flushing = False  # `_flush` will be called
        self._waiting = False  # for the kernel's room
        self._closed = False
        self._gone = False
        self._buffer = bytearray(PACKET_BYTES)
        self._view = memoryview(self._buffer)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "gone" if self._gone else "open"
        return f"<Packets {state}, {self.unsent_bytes} bytes unsent>"

    @property
    def unsent_bytes(self) -> int:
        """The bytes that the kernel has not taken yet."""
        return self._size + sum(len(packet) for packet, _ in self._packets)

    @property
    def is_stuck(self) -> bool:
        """True while so much waits that no more should be sent: the other side does not read."""
        return self._waiting and len(self._packets) > MAX_WAITING

    def start(self) -> None:
        """Receive messages from now on."""
        if not self._closed:
            self._loop.add_reader(self._number, self._read)

    def send(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Send a message, without waiting. Does nothing if the other side has gone.

        The caller closes `descriptors`, which are duplicated if they have to wait. Raises OSError
        if they can't be, and ValueError for a message that `marshal` doesn't write or that is too
        large.
        """
        if self._closed or self._gone:
            return
        content = marshal.dumps(message, _VERSION)
        size = len(content)
        if size > MESSAGE_BYTES or len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(
                f"a message of {size} bytes with {len(descriptors)} descriptors, at most "
                f"{MESSAGE_BYTES} bytes and {MAX_DESCRIPTORS} descriptors can be sent"
            )
        if descriptors:
            self.flush()
            packet = _LIST.pack(b"[", 1) + content
            if self._gone or (not self._packets and self._takes(packet, descriptors)):
                return
            self._pack()
            self._packets.append((packet, _duplicates(descriptors)))
        else:
            if self._size + size > MESSAGE_BYTES:
                self._pack()
            self._messages.append(content)
            self._size += size
        if not self._flushing and not self._waiting:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close the socket. What the kernel has not taken yet is dropped: call `flush` before."""
        if self._closed:
            return
        self._closed = True
        self._drop()
        self._loop.remove_reader(self._number)
        self._end.close()

    def flush(self) -> None:
        """Give the kernel what it takes now of the messages that were sent."""
        if not (self._closed or self._gone or self._waiting):
            self._flush()

    def _takes(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """Return whether the kernel takes a packet at once."""
        try:
            self._send_with(packet, descriptors)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            return False  # `_flush` will see why
        return True

    def _pack(self) -> None:
        """Make a packet of the messages that have none yet."""
        messages = self._messages
        if messages:
            packet = _LIST.pack(b"[", len(messages)) + b"".join(messages)
            self._packets.append((packet, ()))
            messages.clear()
            self._size = 0

    def _flush(self) -> None:
        self._flushing = False
        if self._closed or self._gone:
            return
        if self._messages:
            self._pack()
        packets = self._packets
        while packets:
            packet, descriptors = packets[0]
            try:
                if descriptors:
                    self._send_with(packet, descriptors)
                else:
                    self._end.send(packet)
            except BlockingIOError:
                self._waiting = True
                self._loop.add_writer(self._number, self._writable)
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._waiting = True
                    self._loop.call_later(RETRY_SECONDS, self._writable)
                else:  # the reader says that the other side has gone, after its last messages
                    self._drop()
                    self._gone = True
                    with suppress(OSError):  # if it has not, both sides must notice
                        self._end.shutdown(socket.SHUT_RDWR)
                return
            packets.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def _send_with(self, packet: bytes, descriptors: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        self._end.sendmsg([packet], [rights])

    def _writable(self) -> None:
        if self._waiting:  # it has not been closed
            self._loop.remove_writer(self._number)
            self._waiting = False
            self._flush()

    def _drop(self) -> None:
        """Forget what is unsent."""
        self._messages.clear()
        self._size = 0
        for _, descriptors in self._packets:
            for descriptor in descriptors:
                os.close(descriptor)
        self._packets.clear()
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._number)

    def _read(self) -> None:
        for _ in range(PACKETS_PER_TURN):
            try:
                size, rights, flags, _ = self._end.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                continue  # it left unread messages; what it sent before is still here
            except OSError:
                size, rights, flags = 0, [], 0
            descriptors = _descriptors_of(rights) if rights else ()
            if not size:
                self._end_reading()
                return
            if flags & socket.MSG_CTRUNC:  # this process has no descriptor left
                logger.error("descriptors of a message were lost (ulimit -n)")
            for message in marshal.loads(self._view[:size]):
                try:
                    self._on_message(message, descriptors)
                except Exception:
                    logger.exception("a message of another process could not be handled")
                if self._closed:
                    return

    def _end_reading(self) -> None:
        self._loop.remove_reader(self._number)
        self._drop()
        self._gone = True
        self._on_gone()


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Duplicate all of them, or none. Raises OSError."""
    made: list[int] = []
    try:
        made.extend(map(os.dup, descriptors))
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise
    return made


def _descriptors_of(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return found.tolist()
