"""Shared memory: regions that clients register, for tensors that do not travel in the body.

This module has the regions of all kinds, and those in system memory; `cuda_memory.py` has those on
GPUs. A client registers a region by the name of a POSIX shared memory object. The server then reads
tensors from the region and writes tensors to it.

By default a region is an open file, read by `preadv` and written by `pwrite`. If the client has
truncated the object, that is an ordinary error, and a request's tensors are what they were when
they were read, whatever the client writes to its memory meanwhile. The cost is a copy of each
tensor.

An operator who trusts the clients that register can have regions mapped (`map_shared_memory`):
inputs are used where they lie, and outputs are copied there at the speed of memory. But if a client
truncates a mapped object, a process that touches it is killed (SIGBUS): the whole server. Each use
checks the object's size first, which catches every truncation except one in the middle of a run.
Objects of `shm_open` can't be sealed against that.

Python's own reference counts close a file, and unmap it: the region has it, each slice that a
request borrowed has it, and so does every view of a mapping. Unregistering drops the region;
requests in flight keep their slices until they are answered.

Registering a region has the server open any object that the server's user may open. So registering
requires the admin token and the setting `allow_shared_memory`. Errors name the region, never the
key.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

from penstock.backends.errors import InvalidRequest, NotFound
from penstock.backends.lazy_numpy import np

from ..http.json_text import UINT64_MAX, check_unsigned
from .call import NAME_CHARACTERS_IN_ERRORS, ProtocolCall, ProtocolError, Route
from .permission import check_allowed

RESERVED_KEY_PREFIXES = ("triton_python_backend_shm_region_", "sem.")
"""Beginnings of keys that belong to others: Triton's Python backend, the C library's semaphores."""

GROUP = "shared-memory"

Kind = Literal["system", "cuda"]

ALIGNMENT_BYTES = 16
"""A tensor of any datatype may begin at a multiple of this."""


class SharedObject:
    """An open POSIX shared memory object, closed when nothing refers to it any more.

    It can't be closed earlier: its descriptor's number may then stand for another file. `mapping`
    maps the object from its beginning to the end of a region; None if the region is not mapped.
    """

    __slots__ = ("descriptor", "mapping")

    def __init__(self, descriptor: int, mapping: mmap.mmap | None = None) -> None:
        self.descriptor = descriptor
        self.mapping = mapping

    def __del__(self) -> None:
        os.close(self.descriptor)


class Region(NamedTuple):
    """A registered region: `byte_size` bytes of an object, from `offset` on."""

    key: str
    offset: int
    byte_size: int
    object: SharedObject

    @property
    def kind(self) -> Kind:
        return "system"

    def describe(self, name: str) -> dict[str, Any]:
        """Return the region's status in the protocol's form."""
        return {"name": name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}

    def slice(self, name: str, offset: int, size: int) -> RegionSlice:
        return RegionSlice(name, self, offset, size)


class AnyRegion(Protocol):
    """A region of whatever kind."""

    @property
    def kind(self) -> Kind: ...
    @property
    def byte_size(self) -> int: ...
    def describe(self, name: str) -> dict[str, Any]: ...
    def slice(self, name: str, offset: int, size: int) -> Slice: ...


class Slice(Protocol):
    """Some bytes of a region for one request: what `RegionSlice` is for each kind."""

    @property
    def size(self) -> int: ...
    @property
    def copied(self) -> int: ...
    def read(self) -> memoryview: ...
    def write(self, content: memoryview) -> None: ...
    def release(self) -> None: ...


class RegionSlice:
    """Some bytes of a region for one request. Its object stays open until `release`."""

    __slots__ = ("_name", "_object", "_start", "size")

    def __init__(self, name: str, region: Region, offset: int, size: int) -> None:
        self.size = size
        self._name = name
        self._object = region.object
        self._start = region.offset + offset

    @property
    def copied(self) -> int:
        """The bytes that `read` copies: all, or none if the slice is used in place."""
        in_place = self._object.mapping is not None and not self._start % ALIGNMENT_BYTES
        return 0 if in_place else self.size

    def read(self) -> memoryview:
        """Return the bytes, aligned for every datatype.

        They are the memory itself if the region is mapped and the slice is aligned, else a copy.
        Raises `InvalidRequest` if the object has become smaller.
        """
        opened = self._object
        if not self.copied and opened.mapping is not None:
            self._check_size(opened, self.size)
            return memoryview(opened.mapping)[self._start : self._start + self.size]
        try:
            view = np.empty(self.size, np.uint8).data
        except MemoryError:  # an object may be sparse, and larger than all memory
            raise InvalidRequest(
                f"shared memory region '{self._name}': there is no memory for {self.size} bytes "
                "of it"
            ) from None
        done = 0
        while done < self.size:  # one call, except for sizes that exceed the kernel's limit
            count = os.preadv(opened.descriptor, [view[done:]], self._start + done)
            if not count:
                raise self._truncated()
            done += count
        return view

    def write(self, content: memoryview) -> None:
        """Write unsigned bytes, no more than `size`, to the beginning of the slice.

        Raises `InvalidRequest` if the object has become too small for them.
        """
        # The local name keeps the object open until the end: if the client leaves while a helper
        # thread writes, the slice is released meanwhile.
        opened = self._object
        # A write beyond the end would make the object grow. A client that truncates the object
        # after this check makes it grow again: that harms only the client.
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
        """Let go of the object. The slice can't be read or written any more."""
        del self._object

    def _check_size(self, opened: SharedObject, size: int) -> None:
        if os.fstat(opened.descriptor).st_size < self._start + size:
            raise self._truncated()

    def _truncated(self) -> InvalidRequest:
        return InvalidRequest(
            f"shared memory region '{self._name}' is no longer as large as it was registered"
        )


class SharedMemory:
    """The registered regions, by name.

    With `mapped`, tensors in system memory are used in place. `largest` is the bytes of the largest
    region. There are at most `most`: each has an open file, or memory on a GPU that is mapped.
    """

    def __init__(self, mapped: bool = False, most: int = 256) -> None:
        self._mapped = mapped
        self._most = most
        self._regions: dict[str, AnyRegion] = {}
        self.largest = 0

    def __repr__(self) -> str:
        return f"<SharedMemory {', '.join(self._regions) or 'empty'}>"

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register `byte_size` bytes of the POSIX object `key`, from `offset` on.

        Raises `InvalidRequest` if that is not possible; then nothing stays open.
        """
        self.check_new(name)
        opened = SharedObject(_open(name, key))
        # A file that is not memory, such as a pipe, has size 0.
        if not 0 < byte_size <= os.fstat(opened.descriptor).st_size - offset:
            raise InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
        if self._mapped:
            try:
                # Allocate the pages of a sparse object now: if there is no memory for a page when
                # it is touched, that is a SIGBUS as well.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(opened.descriptor, offset, byte_size)
                opened.mapping = mmap.mmap(opened.descriptor, offset + byte_size)
            except (OSError, ValueError) as error:
                raise InvalidRequest(
                    f"failed to register shared memory region '{name}': it can't be mapped"
                ) from error
        self.add(name, Region(key, offset, byte_size, opened))

    def check_new(self, name: str) -> None:
        """Raise `InvalidRequest` if no region of this name can be registered now."""
        if name in self._regions:
            raise InvalidRequest(f"shared memory region '{name}' already in manager")
        if len(self._regions) >= self._most:
            raise InvalidRequest(
                f"failed to register shared memory region '{name}': {self._most} regions are "
                f"registered already (max_shared_memory_regions = {self._most}), unregister some"
            )

    def add(self, name: str, region: AnyRegion) -> None:
        """Register a region that is open. Raises what `check_new` raises."""
        self.check_new(name)
        self._regions[name] = region
        self.largest = max(self.largest, region.byte_size)

    def unregister(self, name: str = "", kind: Kind = "system") -> None:
        """Forget a region of a kind, or all of it. An unknown name is not an error.

        A region is closed once no request has a slice of it.
        """
        self._regions = {
            other: region
            for other, region in self._regions.items()
            if region.kind != kind or name not in ("", other)
        }
        self.largest = max((region.byte_size for region in self._regions.values()), default=0)

    def status(self, name: str = "", kind: Kind = "system") -> list[dict[str, Any]]:
        """Describe a region of a kind, or all, in the protocol's form. Raises `NotFound`."""
        known = {other: region for other, region in self._regions.items() if region.kind == kind}
        if name and name not in known:
            raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")
        names = [name] if name else list(known)
        return [known[name].describe(name) for name in names]

    def borrow(self, name: str, offset: int, byte_size: int) -> Slice:
        """Return `byte_size` bytes of a region, from its byte `offset` on.

        Raises `NotFound` for an unknown region, and `InvalidRequest` for bytes outside of it.
        """
        region = self._regions.get(name)
        if region is None:
            shown = name[:NAME_CHARACTERS_IN_ERRORS]
            raise NotFound(f"Unable to find shared memory region: '{shown}'")
        if not 0 <= offset < region.byte_size:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{name}'")
        if offset + byte_size > UINT64_MAX:
            raise InvalidRequest(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds "
                f"maximum value ({UINT64_MAX}) for region '{name}'"
            )
        if not 0 <= byte_size <= region.byte_size - offset:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{name}'")
        return region.slice(name, offset, byte_size)


def _open(name: str, key: str) -> int:
    """Open a POSIX shared memory object and return its descriptor.

    Raises `InvalidRequest` for a key that is not valid, is reserved, or can't be opened.
    """
    plain = key.lstrip("/")
    if not plain or "/" in plain or "\0" in plain or plain in {".", ".."}:
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': its key is not the name of a "
            "shared memory object"
        )
    if plain.startswith(RESERVED_KEY_PREFIXES):
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': the beginning of its key is "
            "reserved"
        )
    try:
        # The standard library's own way to the C function. Its class SharedMemory would unlink the
        # client's object at exit.
        shm_open: Callable[[str, int, int], int] = import_module("_posixshmem").shm_open
        return shm_open(f"/{plain}", os.O_RDWR, 0)
    except ImportError:
        raise ProtocolError(501, "system shared memory is not supported on this platform") from None
    except (OSError, ValueError):  # ValueError: lone surrogates
        # `from None`, because the cause contains the key.
        raise InvalidRequest(f"Unable to open shared memory region '{name}'") from None


def region_of(parameters: Mapping[str, Any]) -> tuple[str, int, int]:
    """Read the parameters of a tensor in shared memory: the region's name, the offset, the bytes.

    Raises `InvalidRequest`.
    """
    name = parameters["shared_memory_region"]
    if type(name) is not str or not name:
        raise InvalidRequest("'shared_memory_region' must be a string, the name of a region")
    offset = check_unsigned(parameters.get("shared_memory_offset", 0), "'shared_memory_offset'")
    size = check_unsigned(parameters.get("shared_memory_byte_size"), "'shared_memory_byte_size'")
    return name, offset, size


def check_registering(call: ProtocolCall) -> None:
    """Raise the error of a call that may not register and unregister regions."""
    check_allowed(call, "allow_shared_memory", "Client shared memory")


def shared_memory_routes(memory: SharedMemory) -> tuple[Route, ...]:
    """Return the routes of system shared memory.

    Every client may ask for the status; registering and unregistering require the admin token.
    """

    async def status(call: ProtocolCall) -> list[dict[str, Any]]:
        return memory.status(call.names.get("region", ""))

    async def register(call: ProtocolCall) -> None:
        check_registering(call)
        arguments = await call.json()
        name = call.names["region"]
        failed = f"failed to register shared memory region '{name}'"
        key = arguments.get("key")
        if not isinstance(key, str):
            raise InvalidRequest(f"{failed}: 'key' should be a string, the object's name")
        offset = check_unsigned(arguments.get("offset", 0), f"{failed}: 'offset'")
        size = check_unsigned(arguments.get("byte_size"), f"{failed}: 'byte_size'")
        memory.register(name, key, offset, size)

    async def unregister(call: ProtocolCall) -> None:
        check_registering(call)
        memory.unregister(call.names.get("region", ""))

    where = "/v2/systemsharedmemory[/region/{region}]"
    return (
        Route("GET", f"{where}/status", GROUP, status),
        Route("POST", "/v2/systemsharedmemory/region/{region}/register", GROUP, register),
        Route("POST", f"{where}/unregister", GROUP, unregister),
    )
