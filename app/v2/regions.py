"""Regions of shared memory as infer sees them, whatever keeps them."""

from __future__ import annotations

from typing import Protocol


class Lease(Protocol):
    """Some bytes of a region, which stays open until `release`."""

    size: int

    def read(self) -> memoryview:
        """They, or a copy of them, aligned for every datatype. Raises `InvalidRequest` where they are not there any more."""
        ...

    def write(self, content: memoryview) -> None:
        """Put at most `size` bytes there. Raises `InvalidRequest` where they can't be had any more."""
        ...

    def release(self) -> None: ...


class Regions(Protocol):
    """Shared memory by the names that clients registered (shared_memory.py)."""

    largest: int
    """Bytes of the largest region: no tensor in shared memory has more."""

    def borrow(self, name: str, offset: int, byte_size: int) -> Lease:
        """Raises `InvalidRequest` or `ProtocolError` where there is no such part of a region."""
        ...
