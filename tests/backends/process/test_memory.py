"""A child asks the server's budget for memory, and the server counts the sum over all children."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.errors import MemoryFull, TooLarge
from penstock.backends.memory import budget, limited
from penstock.backends.process.channel import KEPT_BYTES
from penstock.backends.process.proxy import ProcessBackend

MIB = 1 << 20


@pytest.fixture
def child(bound: Any) -> Iterator[ProcessBackend]:
    backend = ProcessBackend(bound("DecodeMat"))
    backend.create(Context(pipeline="p", node="n"))
    yield backend
    backend.close()


def image(side: int) -> bytes:
    return cv2.imencode(".png", np.zeros((side, side, 3), np.uint8))[1].tobytes()


def test_a_child_asks_for_what_it_decodes(child: ProcessBackend) -> None:
    encoded = image(2000)
    item: Any = {"data": encoded}
    with limited(128 * MIB):
        child.forward([item])
        assert item["result"].shape == (2000, 2000, 3)
        assert budget.used == item["result"].nbytes  # the server's copy alone
        item.clear()
        assert budget.used == 0


def test_what_does_not_fit_into_the_budget_is_refused_in_the_child(child: ProcessBackend) -> None:
    encoded = image(2000)
    with limited(128 * MIB):
        budget.reserve(110 * MIB, "a test")
        full: Any = {"data": encoded}
        small: Any = {"data": image(300)}
        never: Any = {"data": image(6000)}
        try:
            child.forward([full])
            child.forward([small])
        finally:
            budget.release(110 * MIB)
        child.forward([never])
        assert type(full["error"]) is MemoryFull and "max_memory" in str(full["error"])
        assert small["result"].shape == (300, 300, 3)
        assert type(never["error"]) is TooLarge
        again: Any = {"data": encoded}
        child.forward([again])
        assert "error" not in again
        small.clear()
        again.clear()
        assert budget.used == 0


def test_the_answer_of_a_child_is_counted_before_it_is_copied(child: ProcessBackend) -> None:
    encoded = image(3000)
    with limited(74 * MIB):  # enough for the child, and not for its answer and the two copies
        item: Any = {"data": encoded}
        with pytest.raises(MemoryFull, match="an answer of a process needs 27000000 bytes"):
            child.forward([item])
        assert budget.used == 0


def test_the_file_of_a_large_message_gives_its_memory_back(child: ProcessBackend) -> None:
    item: Any = {"data": image(3000)}
    child.forward([item])
    assert item["result"].nbytes > KEPT_BYTES
    assert child._child is not None
    assert all(os.fstat(file).st_size <= KEPT_BYTES for file in child._child._files)
    child.forward([item])  # the files are used again
    assert item["result"].shape == (3000, 3000, 3)
