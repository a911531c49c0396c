"""The order of a pipeline's nodes, from what each names as `next`. So far: one root, and one way from it to one leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.suggestions import did_you_mean

LATER = "not supported by this version yet"


def successors(node: str, value: Any, nodes: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Problem]]:
    """The names in `next = "a,b"` that are nodes, and what is wrong with the others."""
    if value is None:
        return (), []
    pieces = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else None
    if pieces is None or not all(isinstance(piece, str) for piece in pieces):
        return (), [Problem(f"expected the name of a node, found {value!r}", node=node, key="next")]
    found: list[str] = []
    problems: list[Problem] = []
    for piece in (piece.strip() for piece in pieces):
        if not piece:
            problems.append(Problem(f"an empty piece in {value!r}: expected the name of a node", node=node, key="next"))
        elif piece not in nodes:
            others = [name for name in nodes if name != node]
            problems.append(Problem(f"there is no node {piece!r}{did_you_mean(piece, others)}", node=node, key="next"))
        elif piece in found:
            problems.append(Problem(f"{piece!r} is named twice", node=node, key="next"))
        else:
            found.append(piece)
    return tuple(found), problems


def order(graph: Mapping[str, tuple[str, ...]], *, broken: bool = False) -> tuple[list[str], list[Problem]]:
    """The nodes from root to leaf, and what is wrong (or not there yet) with the graph as a whole.

    `broken`: some `next` names no node. That makes a second root, which is then no problem of its own.
    """
    problems = []
    cycle = find_cycle(graph)
    if cycle:
        problems.append(Problem(f"the nodes run in a circle: {' -> '.join(cycle)}", node=cycle[0], key="next"))
    predecessors: dict[str, list[str]] = {name: [] for name in graph}
    for name, following in graph.items():
        if len(following) > 1:
            problems.append(Problem(f"several successors ({', '.join(following)}) are {LATER}", node=name, key="next"))
        for each in following:
            predecessors[each].append(name)
    for name, before in predecessors.items():
        if len(before) > 1 and name not in cycle:
            problems.append(Problem(f"several predecessors ({', '.join(before)}) are {LATER}", node=name))
    roots = [name for name, before in predecessors.items() if not before]
    if len(roots) > 1 and not broken and not cycle:
        problems.append(Problem(f"several roots ({', '.join(roots)}) are {LATER}: is a next missing that leads to one of them?"))
    if problems or not roots:
        return list(graph), problems
    ordered = list(roots[:1])
    while graph[ordered[-1]]:
        ordered.append(graph[ordered[-1]][0])
    return ordered, []


def find_cycle(graph: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The nodes of one circle, the first again at the end; empty where there is none. Iterative: files may be long."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(graph[start]))] if start not in done else []
        if stack:
            path.append(start)
        while stack:
            following = next(stack[-1][1], None)
            if following is None:
                stack.pop()
                done.add(path.pop())
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                stack.append((following, iter(graph[following])))
    return []
