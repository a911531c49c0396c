"""The composites around a run, and their depth."""

from __future__ import annotations

from ..node.queue import Entry
from .plan import RunningNode


class Inside:
    """The composites that wait for a run. They limit how far graphs enter one another.

    `depth` is the number of composites on the way; one that is entered twice counts twice.
    `returns` counts, for all runs of a request together, how often they entered a composite that
    they were inside already; a list of one number, because the runs share it. `noted` counts in the
    same way the visits of their parts that were noted.
    """

    __slots__ = ("composites", "depth", "noted", "returns")

    def __init__(
        self,
        composites: frozenset[RunningNode],
        depth: int,
        returns: list[int],
        noted: list[int],
    ) -> None:
        self.composites = composites
        self.depth = depth
        self.returns = returns
        self.noted = noted

    @classmethod
    def of(cls, entry: Entry) -> Inside:
        """Return the composites that wait for the entry's run; a part's future holds them."""
        inside: Inside | None = getattr(entry.future, "inside", None)
        return cls(frozenset(), 0, [0], [0]) if inside is None else inside

    def deeper(self, composite: RunningNode) -> Inside:
        """Return the `Inside` of the runs that `composite` starts."""
        return Inside(self.composites | {composite}, self.depth + 1, self.returns, self.noted)
