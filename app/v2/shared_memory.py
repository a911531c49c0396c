"""System shared memory: regions that clients register by the name of a POSIX object, whose tensors are read from there and written there.

A region is an open file. Read and written as one, by `preadv` and `pwrite`, an object that has become too small is an ordinary error, and
what a request takes is what it was when it was read, whatever the client does to its memory meanwhile. That costs a copy of each tensor.

An operator who trusts the clients that register can have regions mapped (`map_shared_memory`): inputs are used where they lie, and outputs
are copied there at the speed of memory. A client that truncates its object under a mapping has whoever touches it killed (SIGBUS), all of
the server; each use asks for the object's size, which catches all but a truncation in the midst of a run. Objects of `shm_open` can't be
sealed against that.

Nobody counts references: a file is closed, and unmapped, when the last who has it lets go, and every view of a mapping has it.
Unregistering drops ours; requests in flight have theirs until they are answered.

Whoever registers a region has the server open any object that its user may open, so it takes the admin token, and the setting
`allow_shared_memory`. Errors name the region, never the key.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from penstock.backends.errors import InvalidRequest, NotFound

from ..http.auth import check_admin_token
from ..settings import Settings
from .call import Call, ProtocolError, Route
from .models.model import QUOTED
from .tensors import LARGEST

RESERVED = ("triton_python_backend_shm_region_", "sem.")
"""Beginnings of names that are others' business: Triton's Python backend, and the C library's semaphores."""

ALIGNED = 16
"""Bytes: where every datatype may begin."""


class Object:
    """An open POSIX object, closed when nobody has it any more. Not before: its number may then be another file's.

    `mapping`: all of it to the end of a region; None where it is not mapped.
    """

    __slots__ = ("descriptor", "mapping")

    def __init__(self, descriptor: int, mapping: mmap.mmap | None = None) -> None:
        self.descriptor = descriptor
        self.mapping = mapping

    def __del__(self) -> None:
        os.close(self.descriptor)


class Region(NamedTuple):
    """A registered part of an object."""

    key: str
    offset: int
    byte_size: int
    object: Object


class Part:
    """Some bytes of a region, which stays open until `release`."""

    __slots__ = ("_name", "_object", "_start", "size")

    def __init__(self, name: str, region: Region, offset: int, size: int) -> None:
        self.size = size
        self._name = name
        self._object = region.object
        self._start = region.offset + offset

    def read(self) -> memoryview:
        """Its bytes, aligned for every datatype: where they are mapped those themselves, else a copy. Raises `InvalidRequest` where the
        object has become smaller.
        """
        opened = self._object
        if opened.mapping is not None and not self._start % ALIGNED:
            self._check_size(opened, self.size)
            return memoryview(opened.mapping)[self._start : self._start + self.size]
        try:
            view = memoryview(np.empty(self.size, np.uint8))  # type: ignore[arg-type]
        except MemoryError:  # an object may be sparse, and larger than all memory
            raise InvalidRequest(
                f"shared memory region '{self._name}': there is no memory for {self.size} bytes of it"
            ) from None
        done = 0
        while done < self.size:  # once, but for what is larger than a call may be
            count = os.preadv(opened.descriptor, [view[done:]], self._start + done)
            if not count:
                raise self._truncated()
            done += count
        return view

    def write(self, content: memoryview) -> None:
        """Put no more than `size` unsigned bytes at its beginning. Raises `InvalidRequest` where the object can't hold them any more."""
        opened = (
            self._object
        )  # ours to the end: a client that leaves has it released while a helper thread writes
        # What is written beyond its end would make it grow. A client that truncates it right now has it grow; it is the client's.
        self._check_size(opened, len(content))
        if opened.mapping is not None:
            target = np.frombuffer(opened.mapping, np.uint8, len(content), self._start)
            target[:] = np.frombuffer(content, np.uint8)  # the two may overlap
            return
        done = 0
        try:
            while done < len(content):
                done += os.pwrite(opened.descriptor, content[done:], self._start + done)
        except OSError as error:  # a sparse object, and no memory left for its pages
            raise InvalidRequest(
                f"shared memory region '{self._name}' can't be written: {error.strerror}"
            ) from error

    def release(self) -> None:
        """Whoever borrowed it is done with it."""
        del self._object

    def _check_size(self, opened: Object, size: int) -> None:
        if os.fstat(opened.descriptor).st_size < self._start + size:
            raise self._truncated()

    def _truncated(self) -> InvalidRequest:
        return InvalidRequest(
            f"shared memory region '{self._name}' is no longer as large as it was registered"
        )


class SharedMemory:
    """The registered regions, by name. `mapped`: their tensors are used in place."""

    def __init__(self, mapped: bool = False) -> None:
        self._mapped = mapped
        self._regions: dict[str, Region] = {}
        self.largest = 0
        """Bytes of the largest."""

    def __repr__(self) -> str:
        return f"<SharedMemory {', '.join(self._regions) or 'empty'}>"

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open the object `key`, for `byte_size` of its bytes from `offset` on. Raises `InvalidRequest`; nothing stays open then."""
        if name in self._regions:
            raise InvalidRequest(f"shared memory region '{name}' already in manager")
        opened = Object(_open(name, key))
        if (
            not 0 < byte_size <= os.fstat(opened.descriptor).st_size - offset
        ):  # what is no memory (a pipe) has no size
            raise InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
        if self._mapped:
            try:
                if hasattr(
                    os, "posix_fallocate"
                ):  # where a sparse object's page can't be had when it is touched, that is a SIGBUS too
                    os.posix_fallocate(opened.descriptor, offset, byte_size)
                opened.mapping = mmap.mmap(opened.descriptor, offset + byte_size)
            except (OSError, ValueError) as error:
                raise InvalidRequest(
                    f"failed to register shared memory region '{name}': it can't be mapped"
                ) from error
        self._regions[name] = Region(key, offset, byte_size, opened)
        self.largest = max(self.largest, byte_size)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; it is closed once no request has a part of it. An unknown one is nothing to complain about."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()
        self.largest = max((region.byte_size for region in self._regions.values()), default=0)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """The regions, or one, as the protocol lists them. Raises `NotFound`."""
        if name and name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        found = [(name, self._regions[name])] if name else self._regions.items()
        return [
            {
                "name": each,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.byte_size,
            }
            for each, region in found
        ]

    def borrow(self, name: str, offset: int, byte_size: int) -> Part:
        """Some bytes of a region, from `offset` of the region on.

        Raises `NotFound` for an unknown region, `InvalidRequest` for what is outside of it.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name[:QUOTED]}'")
        if not 0 <= offset < region.byte_size:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{name}'")
        if offset + byte_size > LARGEST:
            raise InvalidRequest(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value ({LARGEST}) "
                f"for region '{name}'"
            )
        if not 0 <= byte_size <= region.byte_size - offset:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{name}'")
        return Part(name, region, offset, byte_size)


def _open(name: str, key: str) -> int:
    """The descriptor of a POSIX object. Raises `InvalidRequest` for what is no key, is reserved, or can't be opened."""
    plain = key.lstrip("/")
    if not plain or "/" in plain or "\0" in plain or plain in {".", ".."}:
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': its key is not the name of a shared memory object"
        )
    if plain.startswith(RESERVED):
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': the beginning of its key is reserved"
        )
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
            raise InvalidRequest(
                f"failed to register shared memory region '{name}': 'key' should be a string, the object's name"
            )
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
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': '{what}' should be an unsigned integer of 64 bits"
        )
    return value
