"""What infer asks of the protocol's other modules: shared memory regions, and somebody who counts."""

from __future__ import annotations

from typing import Protocol

from penstock.pipelines.run import Work


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


class Observer(Protocol):
    """Told of every infer request that reached a model (statistics.py). All times are `time.monotonic_ns()`."""

    def succeeded(self, model: str, work: Work, rows: int, *, began: int, read: int, answered: int, written: int) -> None:
        """`began`: the request came; `read`: its inputs were read; `answered`: the result was there; `written`: its outputs were."""

    def failed(self, model: str, error: BaseException, *, began: int, ended: int) -> None: ...
