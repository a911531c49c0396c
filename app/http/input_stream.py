"""`InputStream`: the chunks of a streamed input, on their way from a client to Python logic.

It holds one chunk. Whoever feeds it waits until the logic has taken that, so a client is read no
further ahead than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from penstock.backends.memory import Reservation, budget


class InputStream(AsyncIterator[bytes | str]):
    """The async iterator that the logic gets as its `data`. Its other methods are the feeder's.

    The chunk that it holds, or that the logic took last, is counted in the memory of all requests.
    """

    __slots__ = ("_chunk", "_ended", "_feeder", "_loop", "_memory", "_reader", "_stopped")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._memory = Reservation(budget)
        self._chunk: bytes | str | None = None
        self._ended = False
        self._stopped = False
        self._reader: asyncio.Future[None] | None = None
        self._feeder: asyncio.Future[None] | None = None

    async def __anext__(self) -> bytes | str:
        if self._chunk is None and not (self._ended or self._stopped):
            if self._reader is not None:
                raise RuntimeError("another task waits for the next chunk of this stream already")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._stopped:
            raise RuntimeError("the request has ended: its stream can't be read any more")
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            raise StopAsyncIteration
        _wake(self._feeder)
        return chunk

    async def put(self, chunk: bytes | str, size: int) -> None:
        """Hold a chunk, of `size` bytes, and return when the logic has taken it.

        Raises what `Reservation.resize` raises.
        """
        self._memory.resize(size, "a chunk of a stream")
        self._chunk = chunk
        _wake(self._reader)
        self._feeder = self._loop.create_future()
        await self._feeder

    def end(self) -> None:
        """Note that no chunk will come any more."""
        self._ended = True
        _wake(self._reader)

    def stop(self) -> None:
        """Let go of everything: the request has ended."""
        self._stopped = True
        self._chunk = None
        self._memory.close()
        _wake(self._reader)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
