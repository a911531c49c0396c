"""The answers themselves, in the order of their last use."""

from __future__ import annotations

from typing import TypeAlias

from cachetools import LRUCache

from .answer import Answer

Key: TypeAlias = tuple[int, bytes]
"""The number of a load, and the digest of an item."""


class KeptAnswers(LRUCache[Key, Answer]):
    """Answers by key, within a number of bytes. Counts those of each load, and what was evicted."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda answer: answer.size)
        self.evicted = 0
        self._counts: dict[int, list[int]] = {}

    def __setitem__(self, key: Key, answer: Answer) -> None:
        self.pop(key, None)
        super().__setitem__(key, answer)
        counts = self._counts.setdefault(key[0], [0, 0])
        counts[0] += 1
        counts[1] += answer.size

    def __delitem__(self, key: Key) -> None:
        counts = self._counts[key[0]]
        counts[0] -= 1
        counts[1] -= super().__getitem__(key).size
        if not counts[0]:
            del self._counts[key[0]]
        super().__delitem__(key)

    def popitem(self) -> tuple[Key, Answer]:
        self.evicted += 1
        return super().popitem()

    def of(self, load: int) -> tuple[int, int]:
        """Return how many answers of a load are kept, and their bytes."""
        count, size = self._counts.get(load, (0, 0))
        return count, size

    def forget(self, load: int) -> None:
        """Let go of all answers of a load."""
        for key in [key for key in self if key[0] == load]:
            del self[key]
