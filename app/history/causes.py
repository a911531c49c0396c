"""What took the time of a request, collected while its record is read, and told in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from penstock.pipelines.node.statistics import covered

from . import words

MAX_SENTENCES = 8
"""The most sentences about what took time."""

TOLD_PART = 0.05
TOLD_MS = 0.5
"""A cause is told if it took this part of the request's time, and as long as this."""

Say: TypeAlias = Callable[[str], str]
"""Makes the sentence about a cause from its time, in words."""

SAME_RUN = ("long", "again", "end")
"""Kinds of causes that tell how long a node ran."""


class Cause(NamedTuple):
    """Something that took time, from `start` to `end`: microseconds from the first byte."""

    start: int
    end: int
    say: Say

    @property
    def ms(self) -> float:
        return (self.end - self.start) / 1000


class Kind:
    """All causes of one kind at one node: each wait for an instance there, for example."""

    def __init__(self, name: str, node: str) -> None:
        self.name = name
        self.node = node
        self.causes: list[Cause] = []

    @property
    def ms(self) -> float:
        """The time in which at least one of them lasted. Items and parts wait at the same time."""
        return covered((cause.start, cause.end) for cause in self.causes) / 1000

    def sentence(self) -> str:
        """Say it in the words of the longest one, with the time of all together."""
        longest = max(self.causes, key=lambda cause: cause.ms)
        text = longest.say(words.time_text(self.ms))
        if len(self.causes) == 1 or self.name in ("again", "parts"):
            return text
        return words.of_several(text, len(self.causes), longest.ms)


class Causes:
    """What took the time of a request."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._runs: dict[str, Kind] = {}

    def add(self, kind: str, node: str, start: int, end: int, say: Say) -> None:
        """Note a cause. `node`: where it was, "" if outside of nodes."""
        if end > start:
            key = kind, node
            self._kinds.setdefault(key, Kind(*key)).causes.append(Cause(start, end, say))

    def add_run(self, node: str, start: int, end: int, say: Say) -> None:
        """Note a run. Only the node that ran longest is told: a run is no reason to be slow."""
        self._runs.setdefault(node, Kind("run", node)).causes.append(Cause(start, end, say))

    def told(self, whole: float, slow: bool) -> Iterator[str]:
        """Yield a sentence for each kind of cause that took its part of `whole` ms, the longest
        first. Of a slow request, a run comes last.
        """
        kinds = [
            (ms, kind)
            for kind in self._kinds.values()
            if (ms := kind.ms) >= TOLD_MS and ms >= TOLD_PART * whole
        ]
        kinds.sort(key=_length, reverse=True)
        del kinds[MAX_SENTENCES:]
        run = self.longest_run
        if kinds and run is not None and not self._tells(kinds, run.node):
            kinds.append((run.ms, run))
            if not slow:
                kinds.sort(key=_length, reverse=True)
        for _, kind in kinds:
            yield kind.sentence()

    @property
    def longest_run(self) -> Kind | None:
        """The runs at the node that ran longest."""
        return max(self._runs.values(), key=lambda kind: kind.ms, default=None)

    @staticmethod
    def _tells(kinds: list[tuple[float, Kind]], node: str) -> bool:
        """Return whether one of these tells how long a node ran."""
        return any(kind.node == node and kind.name in SAME_RUN for _, kind in kinds)


def _length(told: tuple[float, Kind]) -> float:
    return told[0]
