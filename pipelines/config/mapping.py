"""`map = "A[src:dst,...],B[...]"`: which keys a node takes of earlier ones, as text, and checked against the graph.

    map   = taken { "," taken }
    taken = [ node ] "[" key ":" key { "," key ":" key } "]"

Whitespace means nothing. Without a node's name the only predecessor is meant; at a join, the first in alphabetical order.
"""

from __future__ import annotations

import re
from typing import NoReturn, TypeAlias

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.suggestions import did_you_mean

from .graph import Graph

Pairs: TypeAlias = tuple[tuple[str, str], ...]
Map: TypeAlias = tuple[tuple[str, Pairs], ...]

_WORD = re.compile(r"[^\[\],:()='\"]*")
_SPACE = re.compile(r"\s*")
_NO_TARGETS = frozenset({"event", "node_name"})
"""Of the keys that steer Penstock, those that do so at the entry only. The others a node may need: a map takes what it names alone."""


def parse(text: str) -> Map:
    """What `text` says, in its order; "" where a name is left out. Raises `ConfigError` with the position."""
    return _Parser(text).whole()


def resolve(
    node: str, taken: Map, graph: Graph, *, doubtful: bool = False
) -> tuple[Map, list[Problem], list[Problem]]:
    """The map with every source named, and named once; what is wrong with it; and what may not be what was meant.

    Whether a source leads to the node is not asked where something else is wrong: of nodes in a circle or behind one, and where
    the node is `doubtful` (a misspelt `next` may lead to it).
    """
    before = sorted(graph.before[node])
    merged: dict[str, dict[tuple[str, str], None]] = {}
    targets: dict[str, str] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for name, pairs in taken:
        source = name or before[0]
        if not name and len(before) > 1:
            message = f"{_written(pairs)} names none of its predecessors ({', '.join(before)}): {source!r}, the first by name, is taken"
            warnings.append(Problem(message, node=node, key="map"))
        if source not in graph.following:
            problems.append(
                Problem(
                    f"there is no node {source!r}{did_you_mean(source, graph.following)}",
                    node=node,
                    key="map",
                )
            )
        elif (
            not doubtful
            and source in graph.root_of
            and node in graph.root_of
            and not graph.is_ancestor(source, node)
        ):
            reason = "is this node itself" if source == node else "does not lead here"
            problems.append(
                Problem(
                    f"{source!r} {reason}: expected a node that comes before this one",
                    node=node,
                    key="map",
                )
            )
        for _, target in pairs:
            if target in _NO_TARGETS:
                message = f"nothing can be mapped to {target!r}, which is Penstock's own and means nothing inside the graph"
                problems.append(Problem(message, node=node, key="map"))
            if target in targets:
                whence = (
                    f"{targets[target]!r} and {source!r}"
                    if targets[target] != source
                    else f"{source!r}"
                )
                problems.append(
                    Problem(
                        f"the key {target!r} is mapped twice, from {whence}", node=node, key="map"
                    )
                )
            targets[target] = source
        merged.setdefault(source, {}).update(dict.fromkeys(pairs))
    if "data" not in targets:
        found = ", ".join(targets)
        problems.append(
            Problem(
                f"nothing is mapped to 'data', which every node needs; found {found}",
                node=node,
                key="map",
            )
        )
    return tuple((source, tuple(pairs)) for source, pairs in merged.items()), problems, warnings


def _written(pairs: Pairs) -> str:
    return f"[{','.join(f'{source}:{target}' for source, target in pairs)}]"


class _Parser:
    """Reads `text` from left to right; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Map:
        found: list[tuple[str, Pairs]] = []
        while True:
            name = self.word()
            self.take("[", "'[', as in A[result:data]" if name else "a node's name or '['")
            found.append((name, self.pairs()))
            if not self.peek():
                return tuple(found)
            self.take(",", "',' or the end")

    def pairs(self) -> Pairs:
        found: list[tuple[str, str]] = []
        while True:
            source = self.word() or self.expected("the key to take")
            self.take(":", "':', as in result:data")
            target = self.word() or self.expected(f"what {source!r} is called here")
            found.append((source, target))
            if self.peek() == "]":
                self.at += 1
                return tuple(found)
            self.take(",", "',' or ']'")

    def word(self) -> str:
        """Up to the next sign of the grammar; "" where there is one."""
        found = _WORD.match(self.text, self.at)
        written = found[0] if found else ""
        word = "".join(written.split())
        self.at += len(written) if word else 0
        return word

    def peek(self) -> str:
        """The next character that is no whitespace; "" at the end."""
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.text[self.at : self.at + 1]

    def take(self, character: str, what: str) -> None:
        if self.peek() != character:
            self.expected(what)
        self.at += 1

    def expected(self, what: str) -> NoReturn:
        found = self.peek()
        left = max(0, self.at - 60)
        excerpt = "".join(
            " " if each.isspace() else each for each in self.text[left : self.at + 40]
        )
        message = f"at character {self.at + 1} of the map: expected {what}, found {repr(found) if found else 'the end'}"
        raise ConfigError(
            [Problem(f"{message}\n    {excerpt}\n    {' ' * (self.at - left)}^", key="map")]
        )
