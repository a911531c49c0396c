"""What was sent, what came back, and what was wrong with it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

MOST_WRONG = 20
"""The most descriptions of what was wrong that are kept."""


@dataclass(slots=True)
class Tally:
    """Counts of one soak. A *tagged* item is one whose answer must hold its own tag."""

    ends: float
    """When to stop sending, by `time.monotonic()`."""
    most: int | None
    """The number of tagged items after which to stop. None: there is none."""
    tags: count[int] = field(default_factory=count)
    right: Counter[str] = field(default_factory=Counter)
    """Door -> tagged items that were answered with their own tag."""
    refused: Counter[str] = field(default_factory=Counter)
    """Door and status -> tagged items that were refused, or that failed."""
    faults: Counter[str] = field(default_factory=Counter)
    """Fault and what came of it -> number."""
    crossed: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def items(self) -> int:
        """The tagged items that were answered."""
        return self.right.total() + self.refused.total()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.ends or (self.most is not None and self.items >= self.most)

    def tag(self) -> str:
        """Return a text that no other item has."""
        return f"tag-{next(self.tags)}-"

    def check(self, door: str, wanted: str, got: object) -> None:
        """Compare an answer with the tag of its request."""
        if got == wanted:
            self.right[door] += 1
        else:
            self.crossed += 1
            self.complain(f"{door}: sent {wanted[:80]!r}, and got {str(got)[:80]!r}")

    def complain(self, text: str) -> None:
        if len(self.wrong) < MOST_WRONG:
            self.wrong.append(text)
