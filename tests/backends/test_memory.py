"""The budget of bytes that requests hold together."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from penstock.backends.errors import MemoryFull, TooLarge
from penstock.backends.memory import LEAST_BYTES, MemoryBudget


def test_what_does_not_fit_is_refused_until_something_is_released() -> None:
    budget = MemoryBudget(100)
    budget.reserve(60, "a body")
    with pytest.raises(MemoryFull, match=r"an image needs 50 bytes.*hold 60 of 100 bytes already"):
        budget.reserve(50, "an image")
    budget.release(60)
    budget.reserve(100, "an image")
    assert (budget.used, budget.refused) == (100, {"an image": 1})
    assert budget.refusals == 1


def test_what_never_fits_is_too_large() -> None:
    with pytest.raises(TooLarge, match=r"may hold 100 bytes together \(max_memory\)"):
        MemoryBudget(100).reserve(101, "a body")


def test_bytes_are_held_as_long_as_a_view_of_their_owner_lives() -> None:
    budget = MemoryBudget(1000)
    owner = np.zeros(500, np.uint8)
    budget.hold(owner, owner.nbytes, "pixels")
    view = owner[:10].reshape(2, 5)
    del owner
    assert budget.used == 500
    del view
    assert budget.used == 0


def test_nothing_is_held_for_what_was_refused() -> None:
    budget = MemoryBudget(100)
    owner = np.zeros(99, np.uint8)
    budget.reserve(50, "a body")
    with pytest.raises(MemoryFull):
        budget.hold(owner, owner.nbytes, "pixels")
    del owner
    assert budget.used == 50


def test_threads_lose_no_bytes() -> None:
    budget = MemoryBudget(1 << 40)

    def work() -> None:
        for size in range(1, 2000):
            budget.reserve(size, "a body")
            budget.release(size)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0


def default_limit_with(free: int) -> int:
    """Return the default of a process that could take `free` more bytes of addresses."""
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from penstock.backends.memory import default_limit\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        f"limit = pages * resource.getpagesize() + {free}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "print(default_limit())\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return int(process.stdout)


def test_the_default_follows_the_limit_of_the_operating_system() -> None:
    assert 200 << 20 < default_limit_with(512 << 20) <= 256 << 20
    assert default_limit_with(32 << 20) == LEAST_BYTES
