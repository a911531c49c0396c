"""System shared memory: regions that clients register by the name of a POSIX object, whose tensors are read and written in place.

Nobody counts references: a region is an `mmap`, and every view of it keeps it mapped. Unregistering drops ours, so memory is unmapped
when the last view goes: with the answer of the last request in flight, or, where that was told that it is too late, with the executor's
last array.

Whoever registers a region has the server map any object that its user may open, so it takes the admin token, and the setting
`allow_shared_memory`. Errors name the region, never the key. A client that truncates an object under the server would kill it (SIGBUS):
each use asks for the object's size, which catches all but a truncation in the midst of a run.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from penstock.backends.errors import InvalidRequest, NotFound

from ..auth import check_admin_token
from ..settings import Settings
from .call import Call, ProtocolError, Route

RESERVED = ("triton_python_backend_shm_region_", "sem.")
"""Beginnings of names that are others' business: Triton's Python backend, and the C library's semaphores."""

LARGEST = 2**64 - 1
"""Of offsets and sizes: what a uint64 holds."""


class Region(NamedTuple):
    """A registered part of an object. `start`: where it begins in `mapping`, whose own beginning is that of a page."""

    key: str
    offset: int
    byte_size: int
    mapping: mmap.mmap
    start: int


class Part:
    """A `Lease` of infer's: it keeps its region mapped while it, or an array made of it, lives."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def release(self) -> None:
        """Whoever borrowed it is done with it; an executor may still have an array of it."""
        del self.view


class SharedMemory:
    """The registered regions, by name."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def __repr__(self) -> str:
        return f"<SharedMemory {', '.join(self._regions) or 'empty'}>"

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map `byte_size` bytes from `offset` of the object `key`. Raises `InvalidRequest`; nothing stays open then."""
        if name in self._regions:
            raise InvalidRequest(f"shared memory region '{name}' already in manager")
        descriptor = _open(name, key)
        try:
            if not 0 < byte_size <= os.fstat(descriptor).st_size - offset:  # what is no memory (a pipe) has no size
                raise InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
            start = offset % mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(descriptor, start + byte_size, offset=offset - start)
        except (OSError, ValueError) as error:
            if isinstance(error, InvalidRequest):
                raise
            raise InvalidRequest(f"failed to register shared memory region '{name}': it can't be mapped") from error
        finally:
            os.close(descriptor)
        self._regions[name] = Region(key, offset, byte_size, mapping, start)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; it is unmapped once no view of it is left. An unknown one is nothing to complain about."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """The regions, or one, as the protocol lists them. Raises `NotFound`."""
        if name and name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        found = [(name, self._regions[name])] if name else self._regions.items()
        return [{"name": each, "key": region.key, "offset": region.offset, "byte_size": region.byte_size} for each, region in found]

    def borrow(self, name: str, offset: int, byte_size: int) -> Part:
        """Writable memory of a region, from `offset` of the region on.

        Raises `NotFound` for an unknown region, `InvalidRequest` for what is outside of it.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        if not 0 <= offset < region.byte_size:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{name}'")
        if offset + byte_size > LARGEST:
            raise InvalidRequest(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value ({LARGEST}) "
                f"for region '{name}'"
            )
        if not 0 <= byte_size <= region.byte_size - offset:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{name}'")
        if region.mapping.size() < region.offset + offset + byte_size:
            raise InvalidRequest(f"shared memory region '{name}' is no longer as large as it was registered")
        start = region.start + offset
        return Part(memoryview(region.mapping)[start : start + byte_size])


def _open(name: str, key: str) -> int:
    """The descriptor of a POSIX object. Raises `InvalidRequest` for what is no key, is reserved, or can't be opened."""
    plain = key.lstrip("/")
    if not plain or "/" in plain or "\0" in plain or plain in {".", ".."}:
        raise InvalidRequest(f"failed to register shared memory region '{name}': its key is not the name of a shared memory object")
    if plain.startswith(RESERVED):
        raise InvalidRequest(f"failed to register shared memory region '{name}': the beginning of its key is reserved")
    try:
        # The standard library's own way to the C function; its class SharedMemory would unlink the client's object at exit.
        shm_open: Callable[[str, int, int], int] = import_module("_posixshmem").shm_open
        return shm_open(f"/{plain}", os.O_RDWR, 0)
    except ImportError:
        raise ProtocolError(501, "system shared memory is not supported on this platform") from None
    except (OSError, ValueError):  # ValueError: lone surrogates
        # `from None`: the cause says the key
        raise InvalidRequest(f"Unable to open shared memory region '{name}'") from None


def shared_memory_routes(memory: SharedMemory, settings: Settings) -> tuple[Route, ...]:
    """Status, for every client; register and unregister, for the administrator's."""

    def check(call: Call) -> None:
        if not settings.allow_shared_memory or settings.admin_token is None:
            raise ProtocolError(
                501,
                "Client shared memory is disabled. Start the server with '--allow-shared-memory' and an admin token "
                "(PENSTOCK_ADMIN_TOKEN) to enable.",
            )
        check_admin_token(call.scope, settings)

    async def status(call: Call) -> Any:
        return memory.status(call.names.get("region", ""))

    async def register(call: Call) -> None:
        check(call)
        wanted = await call.json()
        name = call.names["region"]
        key = wanted.get("key")
        if not isinstance(key, str):
            raise InvalidRequest(f"failed to register shared memory region '{name}': 'key' should be a string, the object's name")
        offset = _unsigned(wanted.get("offset", 0), "offset", name)
        memory.register(name, key, offset, _unsigned(wanted.get("byte_size"), "byte_size", name))

    async def unregister(call: Call) -> None:
        check(call)
        memory.unregister(call.names.get("region", ""))

    where = "/v2/systemsharedmemory[/region/{region}]"
    group = "shared-memory"
    return (
        Route("GET", f"{where}/status", group, status),
        Route("POST", "/v2/systemsharedmemory/region/{region}/register", group, register),
        Route("POST", f"{where}/unregister", group, unregister),
    )


def _unsigned(value: Any, what: str, name: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise InvalidRequest(f"failed to register shared memory region '{name}': '{what}' should be an unsigned integer of 64 bits")
    return value
