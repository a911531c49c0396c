"""What infer asks of the protocol's other modules: shared memory regions."""

from __future__ import annotations

from typing import Protocol


class Lease(Protocol):
    """A part of a region, which stays mapped until `release`."""

    view: memoryview
    """Its bytes, as unsigned bytes; writable."""

    def release(self) -> None: ...


class Regions(Protocol):
    """Shared memory by the names that clients registered (shared_memory.py)."""

    def borrow(self, name: str, offset: int, byte_size: int) -> Lease:
        """Raises `InvalidRequest` or `ProtocolError` where there is no such part of a region."""
        ...
