"""Spans of time within a request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""Begin and end, microseconds from the request's first byte."""


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the same time in spans that are in order and don't overlap."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif end > start:
            joined.append((start, end))
    return joined


def without(start: int, end: int, held: Iterable[Span]) -> list[Span]:
    """Return what is left of a span without those of `held`, as `joined` returns them."""
    left: list[Span] = []
    for begin, until in held:
        if begin > start:
            left.append((start, min(begin, end)))
        start = max(start, until)
        if start >= end:
            return left
    return [*left, (start, end)]
