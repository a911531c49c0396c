"""Work on asyncio's helper threads for a request that may be cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def on_helper_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function on a helper thread and return its result.

    A caller that is cancelled waits for the end of the call before it goes on. So the memory of its
    request stays reserved for as long as the thread uses it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # so that asyncio does not log that no one has looked at it
        raise
