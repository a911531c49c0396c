"""Shared memory for one direction of a link: one process writes, the other one reads.

The writer puts a request's body, or an answer, into an extent, tells the reader where it is, and
has the extent back when the reader frees it. Extents are let go in any order, since requests end in
any order. What is in an arena counts in the writer's budget of memory (`backends.memory.budget`).

The memory is a sparse file without a name (memfd): only pages that were written exist. Its size
can't change (it is sealed), so no access by the other process can fail.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress

from penstock.backends.errors import MemoryFull, TooLarge
from penstock.backends.memory import budget

ALIGNMENT = 64
"""Extents begin at multiples of so many bytes: a line of the processor's cache."""

MOST_BYTES = 1 << 30
"""The size of an arena, unless the process may hold less. Only pages in use take memory."""

KEPT_BYTES = 32 << 20
"""Pages up to so far above the last extent in use stay: to fault new ones in takes longer than to
copy into them.
"""

WRITTEN_BYTES = 1 << 20
"""Larger content is written by a system call, which lets other threads run meanwhile."""


class Arena:
    """The writer's side. Not for several threads.

    `descriptor` is the file, for the other process's `Mapping`. `in_use` is the bytes of all
    extents.
    """

    __slots__ = ("_ends", "_extents", "_map", "_starts", "_touched", "descriptor", "in_use", "size")

    def __init__(self, size: int) -> None:
        self.size = max(_aligned(size), ALIGNMENT)
        self.descriptor = os.memfd_create("penstock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.in_use = 0
        self._extents: dict[int, tuple[int, int]] = {}  # by their offset: where they start and end
        # The holes, by address. Neighbours are joined, so a hole starts where an extent ends.
        self._starts = [0]
        self._ends = [self.size]
        self._touched = 0  # no page above exists

    def __repr__(self) -> str:
        return f"<Arena {self.in_use} of {self.size} bytes in {len(self._extents)} extents>"

    def put(self, *pieces: bytes | memoryview, align: int = 0) -> tuple[int, int] | None:
        """Copy `pieces`, joined, into a new extent. Return its offset and size, or None if the
        arena or the memory budget has no room.

        The byte at `align` in the content gets an address that is aligned for every datatype.
        """
        size = sum(map(len, pieces))
        pad = -align % ALIGNMENT
        wanted = max(_aligned(pad + size), ALIGNMENT)
        # The first hole that is large enough: extents stay at low addresses, in warm pages.
        starts, ends = self._starts, self._ends
        for number, start in enumerate(starts):
            end = start + wanted
            if end <= ends[number]:
                break
        else:
            return None
        try:
            budget.reserve(wanted, "what crosses between processes")
        except (MemoryFull, TooLarge):
            return None
        if end == ends[number]:
            del starts[number], ends[number]
        else:
            starts[number] = end
        self._touched = max(self._touched, end)
        offset = start + pad
        self._extents[offset] = start, end
        self.in_use += wanted
        self._write(offset, size, pieces)
        return offset, size

    def free(self, offset: int) -> None:
        """Take an extent back. Raises KeyError if there is none."""
        start, end = self._extents.pop(offset)
        size = end - start
        self.in_use -= size
        budget.release(size)
        starts, ends = self._starts, self._ends
        number = bisect_left(starts, start)  # that of the hole behind it
        before = number and ends[number - 1] == start
        behind = number < len(starts) and starts[number] == end
        if before and behind:
            ends[number - 1] = ends[number]
            del starts[number], ends[number]
        elif before:
            ends[number - 1] = end
        elif behind:
            starts[number] = start
        else:
            starts.insert(number, start)
            ends.insert(number, end)
        if self._touched > KEPT_BYTES and ends[-1] == self.size:
            self._give_back(starts[-1])

    def close(self) -> None:
        """Let go of the memory. The other process keeps what it has mapped."""
        if self.descriptor >= 0:
            budget.release(self.in_use)
            self._extents.clear()
            self.in_use = 0
            self._map.close()
            os.close(self.descriptor)
            self.descriptor = -1

    def _write(self, offset: int, size: int, pieces: Sequence[bytes | memoryview]) -> None:
        if size <= WRITTEN_BYTES:
            for piece in pieces:
                end = offset + len(piece)
                self._map[offset:end] = piece
                offset = end
            return
        for piece in pieces:
            view = memoryview(piece)
            while view:
                count = os.pwrite(self.descriptor, view, offset)  # at most 2 GiB per call
                offset += count
                view = view[count:]

    def _give_back(self, top: int) -> None:
        """Give the pages back that are far above `top`, where the last extent ends."""
        kept = (top + KEPT_BYTES) & -mmap.PAGESIZE
        if kept < self._touched:
            self._map.madvise(mmap.MADV_REMOVE, kept, self._touched - kept)
            self._touched = kept


class Mapping:
    """The reader's side, from the descriptor of the other process's arena. It owns the descriptor
    no longer: the file is closed when it is mapped.

    Views may be written to: an extent belongs to the reader until it is freed.
    """

    __slots__ = ("_map", "_view")

    def __init__(self, descriptor: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)

    def view(self, offset: int, size: int) -> memoryview:
        """Return the content of an extent. Keep it no longer than until the extent is freed."""
        return self._view[offset : offset + size]

    def close(self) -> None:
        """Let go of the memory, once the last view has gone."""
        self._view.release()
        with suppress(BufferError):  # a view is in use: it unmaps the memory when it goes
            self._map.close()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
