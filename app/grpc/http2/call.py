"""One call: the messages that came, and the context that handlers get."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc
from grpc import aio

from penstock.backends.errors import PenstockError
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation, budget

from ...http.compression import WINDOW_BITS
from ..calls import status_code_of
from .headers import Head

EOF: Any = getattr(aio, "EOF")  # noqa: B009  its stub does not name it

PREFIX_BYTES = 5
SMALL_BYTES = 1 << 14
"""Messages of up to so many bytes become `bytes`; larger ones, memory that may be written to."""

MESSAGE_BYTES = 64
"""A waiting message takes about so many bytes more than its own, of which it may have 0."""

COUNTED_BYTES = 1 << 16
"""A call that holds so many bytes of messages counts them in `max_memory`."""

MOST_UNSENT_BYTES = 1 << 16
"""A stream of answers goes on when no more than so many bytes of it wait for the client."""

ALIGNMENT = 64


class Compressed(NamedTuple):
    """A message as it came, and the name of its compression."""

    content: bytes | memoryview
    encoding: bytes


class Owner(Protocol):
    """The connection of a call, as the call needs it."""

    peer: str

    def acknowledge(self, call: Call) -> None: ...
    def refuse(self, call: Call, code: Any, detail: str) -> None: ...


class Call:
    """A call, as its connection and its handler see it. To the handler it is the context.

    `window`: the bytes that the client takes now. `ended`: it sends no more messages.
    """

    __slots__ = (
        "_body",
        "_deadline",
        "_encoding",
        "_filled",
        "_is_compressed",
        "_memory",
        "_metadata",
        "_most",
        "_owner",
        "_prefix",
        "_reader",
        "_whole",
        "_writer",
        "code",
        "detail",
        "ended",
        "ends",
        "has_headers",
        "identity",
        "out",
        "queued",
        "stalled",
        "task",
        "timer",
        "trailing",
        "unacknowledged",
        "unsent",
        "window",
    )

    def __init__(
        self,
        owner: Owner,
        identity: int,
        head: Head,
        *,
        window: int,
        most: int,
    ) -> None:
        """`most`: the most bytes of a message."""
        self.identity = identity
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._owner = owner
        self._metadata = head.metadata
        self._encoding = head.encoding
        self._deadline = None if head.timeout is None else time.monotonic() + head.timeout
        # from the client
        self.ended = False
        self.queued = self.unacknowledged = 0
        self._most = most
        self._prefix = b""
        self._is_compressed = False
        self._body: memoryview | None = None
        self._filled = 0
        self._memory: Reservation | None = None
        self._whole: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        # to the client
        self.window = window
        self.has_headers = self.ends = False
        self.out: deque[memoryview] = deque()
        self.unsent = 0
        self.stalled = 0.0  # when a part of the answer left, or the answer began to wait
        self._writer: asyncio.Future[None] | None = None
        self.code, self.detail = 0, ""
        self.trailing: Iterable[tuple[str, str]] = ()

    # from the connection

    def feed(self, view: memoryview) -> None:
        """Take bytes of the client's messages. `view` may not be kept."""
        position, size = 0, len(view)
        while position < size:
            body = self._body
            if body is None:
                missing = PREFIX_BYTES - len(self._prefix)
                self._prefix += bytes(view[position : position + missing])
                position += missing
                if len(self._prefix) < PREFIX_BYTES:
                    return
                need = int.from_bytes(self._prefix[1:], "big")
                if not self._may_begin(self._prefix[0], need):
                    return
                self._prefix = b""
                if need <= SMALL_BYTES and need <= size - position:
                    self._complete(bytes(view[position : position + need]))
                    position += need
                    continue
                try:
                    self._body, self._filled = _memory(need), 0
                except MemoryError:
                    code = grpc.StatusCode.RESOURCE_EXHAUSTED
                    self._owner.refuse(self, code, f"no memory for a message of {need} bytes")
                    return
                continue
            step = min(len(body) - self._filled, size - position)
            body[self._filled : self._filled + step] = view[position : position + step]
            self._filled += step
            position += step
            if self._filled == len(body):
                self._body, self._filled = None, 0
                self._complete(bytes(body) if len(body) <= SMALL_BYTES else body)
        self.count()

    def _may_begin(self, flag: int, size: int) -> bool:
        """Return whether a message may have this flag and size. If not, the call has ended."""
        self._is_compressed = flag == 1
        if flag > 1 or (flag == 1 and self._encoding == b"identity"):
            code = grpc.StatusCode.INTERNAL
            text = "a message says that it is compressed, and grpc-encoding does not say how"
        elif flag == 1 and self._encoding not in WINDOW_BITS:
            code = grpc.StatusCode.UNIMPLEMENTED
            text = "grpc-encoding: expected identity, gzip or deflate"
        elif size > self._most:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            text = f"the message has {size} bytes, which is more than max_body"
        else:
            return True
        self._owner.refuse(self, code, text)
        return False

    def _complete(self, message: Any) -> None:
        self.queued += len(message) + MESSAGE_BYTES
        self._whole.append(Compressed(message, self._encoding) if self._is_compressed else message)
        self.wake_reader()

    def count(self) -> None:
        """Count in `max_memory` the messages that wait, either way, and the part of one that came.

        End the call if there is no memory for it. Less than `COUNTED_BYTES` is not counted.
        """
        held = self.queued + self._filled + self.unsent
        if held < COUNTED_BYTES:
            if self._memory is not None:
                self._memory.resize(0, "messages")
            return
        if self._memory is None:
            self._memory = Reservation(budget)
        try:
            self._memory.resize(held, "messages")
        except PenstockError as error:
            self._owner.refuse(self, status_code_of(error), str(error))

    def end_of_messages(self) -> None:
        self.ended = True
        self.wake_reader()

    def wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def wake_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def close(self) -> None:
        """Let go of all, and end the handler. The call sends nothing more."""
        if self.timer is not None:
            self.timer.cancel()
        if self._memory is not None:
            self._memory.close()
        self._whole.clear()
        self._body = None

    # from the handler

    async def read(self) -> Any:
        """Return the next message, or `EOF`."""
        while not self._whole:
            if self.ended:
                return EOF
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._whole.popleft()
        self.queued -= len(_content(message)) + MESSAGE_BYTES
        self.count()  # from here on the handler counts it
        self._owner.acknowledge(self)
        return message

    async def messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return self._owner.peer

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        self.trailing = metadata

    async def abort(
        self, code: Any, detail: str = "", trailing: Iterable[tuple[str, str]] = ()
    ) -> NoReturn:
        self.code, self.detail, self.trailing = code.value[0], detail, trailing
        raise aio.AbortError

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        while self.unsent > MOST_UNSENT_BYTES:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer


def _content(message: Any) -> Any:
    return message.content if isinstance(message, Compressed) else message


def _memory(size: int) -> memoryview:
    """Return memory for a message.

    The end of a large one is aligned. So a tensor at the end of a message mostly begins aligned
    too, because its size is a multiple of its items'.
    """
    if size <= SMALL_BYTES:
        return memoryview(bytearray(size))
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + size) % ALIGNMENT
    return memory[start : start + size].data
