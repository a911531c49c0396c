"""The budget of bytes that all requests of this process may hold together.

Limits for one request do not bound a server's memory: a thousand requests may each be within them.
So what a client can make the process hold is counted here while it is held: bodies as they are
read, what is inflated and parsed from them, decoded pixels, items in queues, and answers that the
client has not read. What does not fit is refused before it is allocated.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import MemoryFull, TooLarge
from .lazy_numpy import np

NO_LIMIT = sys.maxsize

SHARE = 0.5
"""The part of the free memory that requests may hold by default.

The rest is for what is not counted: copies that live for an instant, fragmentation, and the work of
models.
"""

LEAST_BYTES = 32 << 20
"""The least default: a server that could not read one photograph would be useless."""

UNKNOWN_MACHINE_BYTES = 4 << 30
"""The memory of a machine that does not say how much it has."""


class MemoryBudget:
    """Counts bytes against a limit. All methods may be called from any thread.

    `limit` and `used` are bytes. `refused` counts the reservations that did not fit, by what they
    were for. `ask`, if set, is called with the bytes that are missing before one is refused; it
    raises the limit, or an error.
    """

    __slots__ = ("_freed", "_lock", "_used", "ask", "limit", "refused")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: dict[str, int] = {}
        self.ask: Callable[[int, str], None] | None = None
        self._used = 0
        self._lock = threading.Lock()
        # What was released since the last reservation. The garbage collector may call `release`
        # while this thread holds the lock, so `release` takes none: `append` is atomic.
        self._freed: deque[int] = deque()

    def __repr__(self) -> str:
        return f"<MemoryBudget {self.used} of {self.limit} bytes>"

    @property
    def refusals(self) -> int:
        """How many reservations did not fit, whatever they were for."""
        return sum(self.refused.copy().values())

    @property
    def used(self) -> int:
        with self._lock:
            self._settle()
            return self._used

    def reserve(self, size: int, what: str, spare: int = 0, held: int = 0) -> None:
        """Count `size` bytes until `release`. `what` says what they are for, in constant words:
        "a body". They fit if `spare` more bytes would fit too. `held` is what is counted for the
        same purpose already.

        Raises `MemoryFull` if they do not fit now, `TooLarge` if they never will.
        """
        freed = self._freed
        with self._lock:
            while freed:  # `_settle` without a call: this is the hot path
                self._used -= freed.popleft()
            missing = self._used + size + spare - self.limit
            if missing <= 0:
                self._used += size
                return
        if self.ask is not None:
            self.ask(missing, what)
        with self._lock:
            if self._used + size + spare <= self.limit:
                self._used += size
                return
            self.refused[what] = self.refused.get(what, 0) + 1
            used = self._used
        if size + held + spare > self.limit:
            raise TooLarge(
                f"{what} needs {size + held} bytes, and requests may hold {self.limit} bytes "
                "together (max_memory)"
            )
        raise MemoryFull(
            f"{what} needs {size} bytes, and requests hold {used} of {self.limit} bytes already "
            "(max_memory)"
        )

    def release(self, size: int) -> None:
        """Stop counting `size` bytes of an earlier reservation."""
        self._freed.append(size)

    def hold(self, owner: Any, size: int, what: str) -> None:
        """Count `size` bytes until `owner`, which holds them, is freed. It may be an array, of
        which views keep the owner alive.

        Raises what `reserve` raises.
        """
        self.reserve(size, what)
        self.release_with(owner, size)

    def release_with(self, owner: Any, size: int) -> None:
        """Stop counting `size` bytes of an earlier reservation when `owner` is freed."""
        weakref.finalize(owner, self.release, size).atexit = False

    def _settle(self) -> None:
        while self._freed:
            self._used -= self._freed.popleft()


class Reservation:
    """The bytes that one request holds, `size` now. They are released by `close`, or when nothing
    refers to it any more.

    Not for several threads at once.
    """

    __slots__ = ("_budget", "size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.size = 0

    def __repr__(self) -> str:
        return f"<Reservation of {self.size} bytes>"

    def __del__(self) -> None:
        if self.size:
            self.close()

    def resize(self, size: int, what: str, spare: int = 0) -> None:
        """Hold `size` bytes from now on. Raises what `MemoryBudget.reserve` raises; then nothing
        changes.
        """
        more = size - self.size
        if more > 0:
            self._budget.reserve(more, what, spare, self.size)
        elif more < 0:
            self._budget.release(-more)
        self.size = size

    def cover(self, size: int, what: str) -> None:
        """Hold at least `size` bytes from now on."""
        if size > self.size:
            self.resize(size, what)

    def hand_over(self, owner: Any) -> None:
        """Release the bytes when `owner`, which holds them from now on, is freed."""
        size, self.size = self.size, 0
        self._budget.release_with(owner, size)

    def close(self) -> None:
        size, self.size = self.size, 0
        self._budget._freed.append(size)  # `release` without a call: this is the hot path


def default_limit(used: int = 0) -> int:
    """Return how many bytes requests may hold by default: half of what this process could still
    take, by its cgroup, `ulimit -v` and the machine's memory. `used` is what they hold already.
    """
    free = min(_free_of_machine(), _free_of_cgroup(), _free_of_address_space()) + used
    return max(int(free * SHARE), LEAST_BYTES)


def _free_of_machine() -> float:
    if sys.platform == "win32":
        return UNKNOWN_MACHINE_BYTES
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - _resident()


def _free_of_cgroup() -> float:
    """Return the bytes left under the limit of the process's cgroup, v2 or v1; inf without one."""
    limits = [_number(path) for path in _limit_files()]
    return min((limit for limit in limits if limit is not None), default=float("inf")) - _resident()


def _limit_files() -> list[Path]:
    """List the files that may hold a limit: those of the process's cgroups and their parents."""
    root = Path("/sys/fs/cgroup")
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return files
    for line in lines:
        _, controllers, name = line.split(":", 2)
        path = Path(name.lstrip("/"))
        for group in (path, *path.parents):
            if not controllers:
                files.append(root / group / "memory.max")
            elif "memory" in controllers.split(","):
                files.append(root / "memory" / group / "memory.limit_in_bytes")
    return files


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_of_address_space() -> float:
    if sys.platform == "win32":
        return float("inf")
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit - _statm(0)


def _resident() -> int:
    return _statm(1)


def _statm(field: int) -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[field])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def check_room(size: int, what: str) -> None:
    """Raise `MemoryFull` if the operating system would not give this process `size` bytes now.

    For libraries that end the process then. `what` says what they are for, in constant words.
    """
    try:
        np.empty(size, np.uint8)  # not touched, so it costs no memory and hardly any time
    except MemoryError:
        raise MemoryFull(
            f"{what} needs room for {size} bytes, and the operating system does not give the "
            "server so much (ulimit -v)"
        ) from None


budget = MemoryBudget(NO_LIMIT)
"""The budget of this process. An app sets its limit when its pipelines are loaded; a program that
calls pipelines itself decides what it holds.
"""


def set_limit(max_memory: int | None) -> None:
    """Limit what requests of this process may hold together, to `max_memory` bytes or, if None, to
    a part of what the process could still take.
    """
    budget.limit = default_limit(budget.used) if max_memory is None else max_memory


@contextmanager
def limited(max_memory: int | None) -> Iterator[None]:
    """Limit it as `set_limit` does, and at the end as it was before."""
    before = budget.limit
    set_limit(max_memory)
    try:
        yield
    finally:
        budget.limit = before
