from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from penstock.app.processes import arena as module
from penstock.app.processes.arena import ALIGNMENT, Arena, Mapping
from penstock.backends.memory import budget, limited


@pytest.fixture
def arena() -> Iterator[Arena]:
    before = budget.used
    arena = Arena(1 << 20)
    yield arena
    arena.close()
    assert budget.used == before


def mapping_of(arena: Arena) -> Mapping:
    return Mapping(os.dup(arena.descriptor))


def pages_of(arena: Arena) -> int:
    """Return the bytes of the pages that exist."""
    return os.fstat(arena.descriptor).st_blocks * 512


def test_the_other_process_reads_what_was_put(arena: Arena) -> None:
    mapping = mapping_of(arena)
    first = arena.put(b"one", memoryview(b" two"))
    second = arena.put(b"x" * 100_000)
    assert first is not None and second is not None
    assert bytes(mapping.view(*first)) == b"one two"
    view = mapping.view(*second)
    view[0] = ord("y")  # the extent belongs to its reader
    assert bytes(mapping.view(*second)) == b"y" + b"x" * 99_999
    view.release()
    mapping.close()


def test_large_content_is_written_as_well() -> None:
    arena = Arena(8 << 20)
    content = os.urandom(module.WRITTEN_BYTES)
    extent = arena.put(b"head", content, b"tail")
    assert extent is not None
    mapping = mapping_of(arena)
    assert bytes(mapping.view(*extent)) == b"head" + content + b"tail"
    mapping.close()
    arena.close()


def test_a_byte_is_aligned_on_demand(arena: Arena) -> None:
    for align in (0, 1, 63, 64, 100):
        extent = arena.put(b"{" * align, b"12345678", align=align)
        assert extent is not None
        assert (extent[0] + align) % ALIGNMENT == 0
    assert arena.put(b"x" * ((1 << 20) - 63), align=1) is None


def test_no_room_in_the_arena_or_in_the_budget(arena: Arena) -> None:
    with limited(budget.used + (1 << 19)):
        assert arena.put(b"x" * ((1 << 19) + 1)) is None
        extent = arena.put(b"x" * (1 << 19))
        assert extent is not None
        assert arena.put(b"x") is None
    assert arena.put(b"x" * ((1 << 19) + 1)) is None
    assert arena.put(b"x" * (1 << 19)) is not None
    assert arena.put(b"") is None
    arena.free(extent[0])
    assert arena.put(b"x" * (1 << 19)) is not None
    assert repr(arena) == "<Arena 1048576 of 1048576 bytes in 2 extents>"


def test_an_extent_is_freed_once(arena: Arena) -> None:
    extent = arena.put(b"x")
    assert extent is not None
    arena.free(extent[0])
    with pytest.raises(KeyError):
        arena.free(extent[0])


def test_pages_far_above_the_last_extent_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1 << 20)
    arena = Arena(16 << 20)
    low = arena.put(b"x" * 100_000)
    high = arena.put(b"x" * (8 << 20))
    assert low is not None and high is not None
    assert pages_of(arena) > 8 << 20
    arena.free(high[0])
    assert pages_of(arena) <= (1 << 20) + 200_000
    mapping = mapping_of(arena)
    assert bytes(mapping.view(*low)) == b"x" * 100_000
    mapping.close()
    arena.close()


def test_a_mapping_outlives_its_arena_and_a_view_its_mapping() -> None:
    arena = Arena(1 << 16)
    extent = arena.put(b"content")
    assert extent is not None
    mapping = mapping_of(arena)
    arena.close()
    arena.close()
    view = mapping.view(*extent)
    mapping.close()
    assert bytes(view) == b"content"


def test_the_size_of_an_arena_is_sealed(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.descriptor, 0)


class Extents(RuleBasedStateMachine):
    """Extents that come and go in any order never touch each other, and no room gets lost."""

    held: Bundle[tuple[int, int] | None] = Bundle("held")

    @initialize(units=st.integers(1, 64))
    def open(self, units: int) -> None:
        self.arena = Arena(units * ALIGNMENT)
        self.mapping = mapping_of(self.arena)
        self.expected: dict[int, bytes] = {}
        self.used: dict[int, int] = {}
        self.before = budget.used

    @rule(
        target=held,
        size=st.integers(0, 600),
        fill=st.binary(min_size=1, max_size=1),
        pad=st.integers(0, 70),
    )
    def put(self, size: int, fill: bytes, pad: int) -> Any:
        content = fill * size
        before = self.arena.in_use
        extent = self.arena.put(content, align=pad)
        if extent is None:
            return None
        assert extent[1] == size
        self.expected[extent[0]] = content
        self.used[extent[0]] = self.arena.in_use - before
        return extent

    @rule(extent=consumes(held))
    def free(self, extent: tuple[int, int] | None) -> None:
        if extent is not None:
            offset = extent[0]
            self.arena.free(offset)
            del self.expected[offset], self.used[offset]

    @invariant()
    def contents_are_untouched(self) -> None:
        if hasattr(self, "arena"):
            for offset, content in self.expected.items():
                assert bytes(self.mapping.view(offset, len(content))) == content
            assert self.arena.in_use == sum(self.used.values())
            assert budget.used - self.before == self.arena.in_use

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            for offset in self.expected:
                self.arena.free(offset)
            whole = self.arena.put(b"x" * self.arena.size)  # all holes have joined
            assert whole == (0, self.arena.size)
            self.mapping.close()
            self.arena.close()
            assert budget.used == self.before


TestExtents = Extents.TestCase
TestExtents.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
