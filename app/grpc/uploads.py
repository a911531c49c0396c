"""The messages of calls that have one: wait for it, but not for ever, and decompress it."""

from __future__ import annotations

import asyncio
from typing import Any

from penstock.backends.errors import InvalidRequest, TooLarge
from penstock.backends.memory import Reservation

from ..http.compression import WINDOW_BITS, inflate
from ..http.exchange import READ_SECONDS
from ..settings import Settings
from .http2.call import EOF, Compressed


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
        if message is EOF:
            raise InvalidRequest("the call has no message")
        return await self.plain(message, memory)

    async def plain(self, message: Any, memory: Reservation) -> bytes:
        """Return a message as it was before it was compressed, if it was. `memory` then has it.

        Raises `TooLarge`, `MemoryFull`, and `InvalidRequest` for one that can't be decompressed.
        """
        window = None
        content: Any = message
        if isinstance(message, Compressed):
            window, content = WINDOW_BITS[message.encoding], message.content
        size = len(content)
        if size > self._max_body:
            raise TooLarge(
                f"the message has {size} bytes, at most {self._max_body} are accepted (max_body)"
            )
        memory.resize(size, "a message")
        if window is not None:
            return await inflate(content, window, self._max_inflated, memory)
        plain: bytes = content
        return plain

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
