"""Files in memory that the child processes of a node share, by key. They have no name.

The first process that asks for a key makes its files, and the others wait and then open the same. A
list in another such file says which process has which: the server makes it, and each child opens it
by its path below /proc. A lock of that file is freed with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Holder(NamedTuple):
    """A process that has the files of a key open."""

    process: int
    descriptors: tuple[int, ...]


class Files:
    """Open files, which are closed when this object goes."""

    __slots__ = ("__weakref__", "descriptors")

    def __init__(self) -> None:
        self.descriptors: tuple[int, ...] = ()

    def __del__(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def add(self, descriptor: int) -> int:
        """Take over an open file, and return it."""
        self.descriptors += (descriptor,)
        return descriptor


class SharedFiles:
    """The files of one node. It can be sent to child processes."""

    __slots__ = ("_kept", "_list", "_lock", "_path")

    def __init__(self, path: str = "") -> None:
        """`path`: that of the list, if another process has made it."""
        self._path = path
        self._list = Files()
        self._kept: dict[Hashable, Files] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        if self._path:
            return SharedFiles, (self._path,)
        with self._lock:
            return SharedFiles, (f"/proc/{os.getpid()}/fd/{self._opened_list()}",)

    def close(self) -> None:
        """Close all files. Those who have mapped them keep them."""
        with self._lock:
            self._kept.clear()
            self._list = Files()

    def files(self, key: Hashable, make: Callable[[], Files]) -> Files:
        """Return the files of a key, which stay open as long as this object lives.

        They are those of another process, or new ones. Raises what `make` raises.
        """
        with self._holders() as holders:
            if key not in self._kept:
                holder = holders.get(key)
                files = None if holder is None else _opened(holder)
                if files is None:
                    files = make()
                    holders[key] = Holder(os.getpid(), files.descriptors)
                self._kept[key] = files
            return self._kept[key]

    def keep(self) -> None:
        """Open what child processes have made, so that it is there when they have ended."""
        if not self._list.descriptors:
            return
        with self._holders() as holders:
            for key, holder in holders.items():
                if key not in self._kept and (files := _opened(holder)) is not None:
                    self._kept[key] = files
                    holders[key] = Holder(os.getpid(), files.descriptors)

    @contextmanager
    def _holders(self) -> Iterator[dict[Hashable, Holder]]:
        """Give the list to change it. No other process has it meanwhile."""
        with self._lock:
            descriptor = self._opened_list()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                holders = pickle.loads(content) if content else {}
                before = dict(holders)
                yield holders
                if holders != before:
                    os.pwrite(descriptor, pickle.dumps(holders), 0)  # unpickling ends at its end
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _opened_list(self) -> int:
        if not self._list.descriptors:
            self._list.add(
                os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                if self._path
                else os.memfd_create("penstock shared files")
            )
        return self._list.descriptors[0]


def _opened(holder: Holder) -> Files | None:
    """Open the files of another process. None if it has ended."""
    files = Files()
    try:
        for number in holder.descriptors:
            files.add(os.open(f"/proc/{holder.process}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return None
    return files
