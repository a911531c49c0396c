"""Collect what took the time of a request while its record is read, and tell it in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from penstock.pipelines.node.statistics import covered

from . import words

MAX_SENTENCES = 8
"""The most sentences about what took time."""

MAX_RUNS = 3
"""The most sentences about runs."""

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
        times = len(self.causes)
        if self.name == "run" or self.name in SAME_RUN:  # its items in one batch ran once
            times = len({(cause.start, cause.end) for cause in self.causes})
        if times == 1 or self.name in ("again", "parts"):
            return text
        return words.of_several(text, times, longest.ms)


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
        """Note a run. Few are told, because one that took its usual time slowed nothing down."""
        self._runs.setdefault(node, Kind("run", node)).causes.append(Cause(start, end, say))

    def told(self, whole: float, *, slow: bool, ended: bool) -> Iterator[str]:
        """Yield a sentence for each kind of cause that took its part of `whole` ms, the longest
        first. Of a slow request, runs come last; alone they are told of one that ended badly.
        """
        least = max(TOLD_MS, TOLD_PART * whole)
        kinds = _longest(self._kinds.values(), least)[:MAX_SENTENCES]
        if kinds or ended:
            runs = self._told_runs(least)
            kinds += [run for run in runs if not self._tells(kinds, run[1].node)]
            if not slow:
                kinds.sort(key=_length, reverse=True)
        for _, kind in kinds:
            yield kind.sentence()

    def _told_runs(self, least: float) -> list[tuple[float, Kind]]:
        """Return the longest run, however short, and the next ones of `least` ms."""
        runs = _longest(self._runs.values(), 0.0)[:MAX_RUNS]
        return [run for run in runs if run is runs[0] or run[0] >= least]

    @property
    def longest_run(self) -> Kind | None:
        """The runs at the node that ran longest."""
        return max(self._runs.values(), key=lambda kind: kind.ms, default=None)

    @staticmethod
    def _tells(kinds: list[tuple[float, Kind]], node: str) -> bool:
        """Return whether one of these tells how long a node ran."""
        return any(kind.node == node and kind.name in SAME_RUN for _, kind in kinds)


def _longest(kinds: Iterable[Kind], least: float) -> list[tuple[float, Kind]]:
    """Return those of `least` ms and more, with their times, the longest first."""
    return sorted(
        ((ms, kind) for kind in kinds if (ms := kind.ms) >= least), key=_length, reverse=True
    )


def _length(told: tuple[float, Kind]) -> float:
    return told[0]
