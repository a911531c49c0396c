"""The messages of calls that have one: wait for it, but not for ever, and decompress it.

gRPC could wait itself (`unary_unary`). It would do so before the API key is known, for any time,
and it would decompress without a bound (`grpc.per_message_decompression` turns that off).
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from penstock.backends.errors import InvalidRequest, TooLarge
from penstock.backends.memory import Reservation

from ..http.compression import WINDOW_BITS, inflate
from ..http.exchange import READ_SECONDS
from ..settings import Settings

LEAVE_SECONDS = 0.1
"""How long after the end of a call without a message its cancellation may come. gRPC tells both at
once.
"""

END: Any = getattr(aio, "EOF")  # noqa: B009  its stub does not name it

_WINDOWS = {
    b"\x1f\x8b": WINDOW_BITS[b"gzip"],
    b"\x78\x01": WINDOW_BITS[b"deflate"],
    b"\x78\x5e": WINDOW_BITS[b"deflate"],
    b"\x78\x9c": WINDOW_BITS[b"deflate"],
    b"\x78\xda": WINDOW_BITS[b"deflate"],
}
"""zlib's `wbits` by how a compressed message begins.

gRPC tells no handler that a message is compressed. No message of ours begins so: 0x1f is no tag of
protobuf, and 0x78 is that of a field 15, an integer.
"""


class Uploads:
    """Receives messages, with one timer for all that are on their way."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.body_timeout
        self._max_body = settings.max_body
        self._max_inflated = settings.max_inflated
        # In the order of their deadlines, on the loop's clock.
        self._waiting: dict[asyncio.Task[Any], float] = {}
        self._ticking = False

    async def receive(self, context: Any, memory: Reservation) -> bytes:
        """Return the message of a call. `memory` then has it.

        Raises `InvalidRequest` for a call without a message and for one whose message is late, and
        what `plain` raises.
        """
        loop = asyncio.get_running_loop()
        task: Any = asyncio.current_task(loop)
        self._waiting[task] = loop.time() + self._seconds
        if not self._ticking:
            self._ticking = True
            loop.call_later(self._seconds, self._look, loop)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task not in self._waiting and not task.uncancel():
                raise InvalidRequest(
                    f"the message did not arrive within {self._seconds:g} s (body_timeout)"
                ) from None
            raise
        finally:
            self._waiting.pop(task, None)
        if message is END:
            await asyncio.sleep(LEAVE_SECONDS)  # a call that its client cancels ends here
            raise InvalidRequest("the call has no message")
        return await self.plain(message, memory)

    async def plain(self, message: bytes, memory: Reservation) -> bytes:
        """Return a message as it was before it was compressed, if it was. `memory` then has it.

        Raises `TooLarge`, `MemoryFull`, and `InvalidRequest` for one that can't be decompressed.
        """
        size = len(message)
        if size > self._max_body:
            raise TooLarge(
                f"the message has {size} bytes, at most {self._max_body} are accepted (max_body)"
            )
        memory.resize(size, "a message")
        window = _WINDOWS.get(message[:2])
        if window is None:
            return message
        return await inflate(message, window, self._max_inflated, memory)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # What has arrived by now is read first: see `UploadTimer`.
        loop.call_later(READ_SECONDS, self._end_late, loop, loop.time())

    def _end_late(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        while self._waiting:
            task, deadline = next(iter(self._waiting.items()))
            if deadline > now:
                loop.call_at(deadline, self._look, loop)
                return
            del self._waiting[task]
            task.cancel()
        self._ticking = False
