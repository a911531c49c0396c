"""Work on asyncio's helper threads for a request that may be cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PARSE_OFF_LOOP_BYTES = 1 << 20
"""Bodies of this size or more are parsed on a helper thread. On the loop they would delay other
requests.
"""


async def on_helper_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function on a helper thread and return its result.

    A caller that is cancelled waits for the end of the call before it goes on. So the memory of its
    request stays reserved for as long as the thread uses it.

    Raises:
        MemoryError: The operating system starts no thread: no addresses are left for its stack, or
            the process may have no more threads. The function is not called.
    """
    refused = False

    def call() -> T:
        # The executor keeps what it could start no thread for, and gives it to the next free one.
        if refused:
            raise MemoryError
        return function(*arguments)

    try:
        work = asyncio.get_running_loop().run_in_executor(None, call)
    except RuntimeError as error:
        refused = True
        if "start new thread" not in str(error):  # Python has no class for it
            raise
        raise MemoryError from error
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # so that asyncio does not log that no one has looked at it
        raise
