"""The shares of a server's limits: its processes together hold as much as one would."""

from __future__ import annotations

from penstock.backends.memory import LEAST_BYTES, default_limit

from ..settings import Settings


def front_connections(settings: Settings, fronts: int) -> int | None:
    """Return `max_connections` of one of so many fronts; None: what its descriptors allow."""
    return None if settings.max_connections is None else -(-settings.max_connections // fronts)


def front_memory(settings: Settings, fronts: int) -> int:
    """Return the bytes that the requests in one of so many fronts may hold: a part of one half."""
    if settings.max_memory is None:
        return max(default_limit() // 2 // fronts, LEAST_BYTES)
    return max(settings.max_memory // 2 // fronts, 1)


def models_memory(settings: Settings, used: int = 0) -> int:
    """Return the bytes that requests may hold in the model process: the other half.

    `used`: what they hold already.
    """
    if settings.max_memory is None:
        return max(default_limit(used) // 2, LEAST_BYTES)
    return max(settings.max_memory // 2, 1)
