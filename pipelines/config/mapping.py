"""`map = "A[src:dst,...],B[...]"`: the keys that a node takes from earlier nodes.

    map   = taken { "," taken }
    taken = [ node ] "[" key ":" key { "," key ":" key } "]"

Whitespace means nothing. Without the name of a node the only predecessor is meant; at a join, the
first in alphabetical order.
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
"""Control keys that act at the entry only. A node may need the other control keys, and a map passes
on nothing that it does not name."""


def parse(text: str) -> Map:
    """Parse a map, in the order of the text. A name that is left out is "".

    Raises `ConfigError` with the position.
    """
    return _MappingParser(text).whole()


def resolve(
    node: str, taken: Map, graph: Graph, *, doubtful: bool = False
) -> tuple[Map, list[Problem], list[Problem]]:
    """Check a map against the graph.

    Returns the map, in which every source has its name and comes once; the problems; and the
    warnings. It does not check whether a source leads to the node if another problem hides that:
    for nodes in or after a cycle, and if the node is `doubtful` (a misspelt `next` may lead to it).
    """
    before = sorted(graph.before[node])
    merged: dict[str, dict[tuple[str, str], None]] = {}
    targets: dict[str, str] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []

    def report(message: str) -> None:
        problems.append(Problem(message, node=node, key="map"))

    for name, pairs in taken:
        source = name or before[0]
        if not name and len(before) > 1:
            message = (
                f"{_written(pairs)} names none of its predecessors ({', '.join(before)}): "
                f"{source!r}, the first by name, is taken"
            )
            warnings.append(Problem(message, node=node, key="map"))
        if source not in graph.following:
            report(f"there is no node {source!r}{did_you_mean(source, graph.following)}")
        elif (
            not doubtful
            and source in graph.root_of
            and node in graph.root_of
            and not graph.is_ancestor(source, node)
        ):
            reason = "is this node itself" if source == node else "does not lead here"
            report(f"{source!r} {reason}: expected a node that comes before this one")
        for _, target in pairs:
            if target in _NO_TARGETS:
                report(
                    f"nothing can be mapped to {target!r}: Penstock reads this key where a request "
                    "comes in, and it means nothing inside the graph"
                )
            if target in targets:
                sources = dict.fromkeys((targets[target], source))
                names = " and ".join(map(repr, sources))
                report(f"the key {target!r} is mapped twice, from {names}")
            targets[target] = source
        merged.setdefault(source, {}).update(dict.fromkeys(pairs))
    if "data" not in targets:
        report(f"nothing is mapped to 'data', which every node needs; found {', '.join(targets)}")
    return tuple((source, tuple(pairs)) for source, pairs in merged.items()), problems, warnings


def _written(pairs: Pairs) -> str:
    return f"[{','.join(f'{source}:{target}' for source, target in pairs)}]"


class _MappingParser:
    """Reads `text` from left to right. `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Map:
        taken: list[tuple[str, Pairs]] = []
        while True:
            name = self.word()
            self.take("[", "'[', as in A[result:data]" if name else "a node's name or '['")
            taken.append((name, self.pairs()))
            if not self.peek():
                return tuple(taken)
            self.take(",", "',' or the end")

    def pairs(self) -> Pairs:
        pairs: list[tuple[str, str]] = []
        while True:
            source = self.word() or self.expected("the key to take")
            self.take(":", "':', as in result:data")
            target = self.word() or self.expected(f"what {source!r} is called here")
            pairs.append((source, target))
            if self.peek() == "]":
                self.at += 1
                return tuple(pairs)
            self.take(",", "',' or ']'")

    def word(self) -> str:
        """Read up to the next character of the grammar; "" if that comes at once."""
        match = _WORD.match(self.text, self.at)
        written = match[0] if match else ""
        word = "".join(written.split())
        self.at += len(written) if word else 0
        return word

    def peek(self) -> str:
        """Return the next character that is not whitespace; "" at the end."""
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.text[self.at : self.at + 1]

    def take(self, character: str, wanted: str) -> None:
        """Read `character`. `wanted` describes it for the error."""
        if self.peek() != character:
            self.expected(wanted)
        self.at += 1

    def expected(self, wanted: str) -> NoReturn:
        character = self.peek()
        left = max(0, self.at - 60)
        excerpt = re.sub(r"\s", " ", self.text[left : self.at + 40])
        message = (
            f"at character {self.at + 1} of the map: expected {wanted}, "
            f"found {repr(character) if character else 'the end'}\n"
            f"    {excerpt}\n"
            f"    {' ' * (self.at - left)}^"
        )
        raise ConfigError([Problem(message, key="map")])
