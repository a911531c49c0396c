"""Which node follows which, from what each names as `next`. What a graph must be besides is in `graph_checks.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from penstock.backends.errors import Problem
from penstock.backends.suggestions import nearest


class Successors(NamedTuple):
    """What a node's `next` says."""

    names: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()
    """The nodes that misspelt names were probably meant to be."""
    problems: tuple[Problem, ...] = ()


def successors(node: str, value: Any, nodes: Mapping[str, Any]) -> Successors:
    """The nodes that `next = "a,b"`, or a list, names, and what is wrong with the rest of it."""
    if value is None:
        return Successors()
    pieces = (
        value if isinstance(value, list) else value.split(",") if isinstance(value, str) else None
    )
    if pieces is None or not all(isinstance(piece, str) for piece in pieces):
        return Successors(
            problems=(
                Problem(f"expected the name of a node, found {value!r}", node=node, key="next"),
            )
        )
    names: dict[str, None] = {}
    meant: list[str] = []
    problems: list[Problem] = []
    for piece in (piece.strip() for piece in pieces):
        if not piece:
            problems.append(
                Problem(
                    f"an empty piece in {value!r}: expected the name of a node",
                    node=node,
                    key="next",
                )
            )
        elif piece not in nodes:
            near = nearest(piece, (name for name in nodes if name != node))
            hint = f", did you mean {near!r}?" if near else ""
            meant += [near] if near else []
            problems.append(Problem(f"there is no node {piece!r}{hint}", node=node, key="next"))
        elif piece in names:
            problems.append(Problem(f"{piece!r} is named twice", node=node, key="next"))
        else:
            names[piece] = None
    return Successors(tuple(names), tuple(meant), tuple(problems))


class Graph:
    """The nodes of a pipeline in the order of the file, what comes after and what comes before each.

    `order` is topological, and the file's where that is free; nodes in a circle, or behind one, are not in it. `root_of` has the root
    from which a node is reached, `second_roots` the nodes at which another one's graph joins in.
    """

    def __init__(self, following: Mapping[str, tuple[str, ...]]) -> None:
        self.following = following
        before: dict[str, list[str]] = {name: [] for name in following}
        for name, names in following.items():
            for each in names:
                before[each].append(name)
        self.before = before
        self.roots = [name for name in following if not before[name]]
        self.order = self._order()
        self.cycles = find_cycles(following) if len(self.order) < len(following) else []
        self.root_of: dict[str, str] = {}
        self.second_roots: dict[str, str] = {}
        for name in self.order:
            first, *others = (
                dict.fromkeys(self.root_of[each] for each in before[name])
                if before[name]
                else [name]
            )
            self.root_of[name] = first
            if others:
                self.second_roots[name] = others[0]

    def _order(self) -> tuple[str, ...]:
        names = list(self.following)
        place = {name: index for index, name in enumerate(names)}
        waiting = {name: len(before) for name, before in self.before.items()}
        free = [place[name] for name in self.roots]
        heapify(free)
        found: list[str] = []
        while free:
            name = names[heappop(free)]
            found.append(name)
            for each in self.following[name]:
                waiting[each] -= 1
                if not waiting[each]:
                    heappush(free, place[each])
        return tuple(found)

    def reached(self, starts: Iterable[str]) -> set[str]:
        """`starts`, and everything they lead to."""
        found = set(starts)
        stack = list(found)
        while stack:
            new = [each for each in self.following[stack.pop()] if each not in found]
            found.update(new)
            stack += new
        return found

    def is_ancestor(self, name: str, node: str) -> bool:
        """Whether `name` leads to `node`; both are in `order`."""
        bits, ancestors = self._ancestors
        return bool(ancestors[node] & bits[name])

    @cached_property
    def _ancestors(self) -> tuple[dict[str, int], dict[str, int]]:
        """A bit for each node, and each node's ancestors as such bits: a set for each would be large in a long file."""
        bits = {name: 1 << index for index, name in enumerate(self.order)}
        ancestors: dict[str, int] = {}
        for name in self.order:
            ancestors[name] = 0
            for each in self.before[name]:
                ancestors[name] |= ancestors[each] | bits[each]
        return bits, ancestors


def find_cycles(following: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Circles that have no node in common, at least one of each tangle; the first node again at the end. Iterative: files may be long."""
    done: set[str] = set()
    found: list[list[str]] = []
    reported: set[str] = set()
    for start in following:
        if start in done:
            continue
        path = {start: 0}  # in order, with the place of each
        stack = [(start, iter(following[start]))]
        while stack:
            name, others = stack[-1]
            other = next(others, None)
            if other is None:
                stack.pop()
                del path[name]
                done.add(name)
            elif other in path:
                cycle = list(path)[path[other] :]
                if reported.isdisjoint(cycle):
                    reported.update(cycle)
                    found.append([*cycle, other])
            elif other not in done:
                path[other] = len(path)
                stack.append((other, iter(following[other])))
    return found
