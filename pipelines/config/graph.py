"""The graph of a pipeline: which node follows which, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import JumpParams
from penstock.backends.suggestions import did_you_mean, nearest

from .definition import NodeConfig


class Successors(NamedTuple):
    """The nodes that a `next` names."""

    names: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()
    """The nodes that misspelt names were probably meant to be."""
    problems: tuple[Problem, ...] = ()


def successors(node: str, value: Any, nodes: Mapping[str, Any]) -> Successors:
    """Read `next`: a list of names, or text such as `"a,b"`."""
    if value is None:
        return Successors()
    pieces = (
        value if isinstance(value, list) else value.split(",") if isinstance(value, str) else None
    )
    if pieces is None or not all(isinstance(piece, str) for piece in pieces):
        message = f"expected the name of a node, found {value!r}"
        return Successors(problems=(Problem(message, node=node, key="next"),))
    names: dict[str, None] = {}
    meant: list[str] = []
    messages: list[str] = []
    for piece in (piece.strip() for piece in pieces):
        if not piece:
            messages.append(f"an empty piece in {value!r}: expected the name of a node")
        elif piece not in nodes:
            near = nearest(piece, (name for name in nodes if name != node))
            hint = f", did you mean {near!r}?" if near else ""
            meant += [near] if near else []
            messages.append(f"there is no node {piece!r}{hint}")
        elif piece in names:
            messages.append(f"{piece!r} is named twice")
        else:
            names[piece] = None
    problems = tuple(Problem(message, node=node, key="next") for message in messages)
    return Successors(tuple(names), tuple(meant), problems)


class Graph:
    """The nodes of a pipeline in the order of the file, with what follows and what precedes each.

    `order` is topological; if that leaves a choice, it keeps the order of the file. Nodes in a
    cycle and nodes after one are not in it. `root_of` has the root from which a node is reached.
    `second_roots` has the nodes at which the graph of another root joins in, and that root.
    """

    def __init__(self, following: Mapping[str, tuple[str, ...]]) -> None:
        self.following = following
        before: dict[str, list[str]] = {name: [] for name in following}
        for name, successors in following.items():
            for successor in successors:
                before[successor].append(name)
        self.before = before
        self.roots = [name for name in following if not before[name]]
        self.order = self._order()
        self.cycles = find_cycles(following) if len(self.order) < len(following) else []
        self.root_of: dict[str, str] = {}
        self.second_roots: dict[str, str] = {}
        for name in self.order:
            roots = dict.fromkeys(self.root_of[predecessor] for predecessor in before[name])
            first, *others = roots or [name]
            self.root_of[name] = first
            if others:
                self.second_roots[name] = others[0]

    def _order(self) -> tuple[str, ...]:
        names = list(self.following)
        position = {name: index for index, name in enumerate(names)}
        waiting = {name: len(before) for name, before in self.before.items()}
        free = [position[name] for name in self.roots]
        heapify(free)
        order: list[str] = []
        while free:
            name = names[heappop(free)]
            order.append(name)
            for successor in self.following[name]:
                waiting[successor] -= 1
                if not waiting[successor]:
                    heappush(free, position[successor])
        return tuple(order)

    def reached(self, starts: Iterable[str]) -> set[str]:
        """Return `starts` and everything they lead to."""
        reached = set(starts)
        stack = list(reached)
        while stack:
            new = [name for name in self.following[stack.pop()] if name not in reached]
            reached.update(new)
            stack += new
        return reached

    def is_ancestor(self, name: str, node: str) -> bool:
        """Return whether `name` leads to `node`. Both must be in `order`."""
        bits, ancestors = self._ancestors
        return bool(ancestors[node] & bits[name])

    @cached_property
    def _ancestors(self) -> tuple[dict[str, int], dict[str, int]]:
        """One bit for each node, and the ancestors of each node as the sum of their bits.

        Sets of names would take too much memory for a long file.
        """
        bits = {name: 1 << index for index, name in enumerate(self.order)}
        ancestors: dict[str, int] = {}
        for name in self.order:
            ancestors[name] = 0
            for predecessor in self.before[name]:
                ancestors[name] |= ancestors[predecessor] | bits[predecessor]
        return bits, ancestors


def find_cycles(following: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Find cycles that have no node in common, at least one of each tangle.

    Each cycle ends with its first node again. Iterative, since a file may have a long chain.
    """
    done: set[str] = set()
    cycles: list[list[str]] = []
    reported: set[str] = set()
    for start in following:
        if start in done:
            continue
        path = {start: 0}  # the nodes in order, with the position of each
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
                    cycles.append([*cycle, other])
            elif other not in done:
                path[other] = len(path)
                stack.append((other, iter(following[other])))
    return cycles


def check_graph(
    graph: Graph, nodes: Mapping[str, Mapping[str, Any]], doubtful: Collection[str]
) -> Iterator[Problem]:
    """Yield what is wrong with the graph as a whole and with `map` and `filter` in it.

    `doubtful` are the nodes that a misspelt `next` may lead to, and everything after them. Their
    predecessors and roots are not known, so nothing is said about these.
    """
    for cycle in graph.cycles:
        yield Problem(f"the nodes run in a circle: {' -> '.join(cycle)}", node=cycle[0], key="next")
    in_cycles = {name for cycle in graph.cycles for name in cycle}
    for name, before in graph.before.items():
        if not before and name not in doubtful:
            for key in ("map", "filter"):
                if key in nodes[name]:
                    message = f"nothing comes before this node, so it can't have a {key}"
                    yield Problem(message, node=name, key=key)
        elif len(before) > 1 and name not in in_cycles and "map" not in nodes[name]:
            example = ",".join(
                f"{source}[result:{'data' if source == before[0] else source}]"
                for source in before[:3]
            )
            message = (
                f"several nodes lead here ({', '.join(before)}): expected a map that says what to "
                f"take from each, as in {example}"
            )
            yield Problem(message, node=name, key="map")
    for name, second in graph.second_roots.items():
        if name not in doubtful:
            message = (
                f"two roots lead here ({graph.root_of[name]!r} and {second!r}): a request enters "
                "at one of them, so this node would wait for the other for ever"
            )
            yield Problem(message, node=name)


def check_jumps(graph: Graph, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
    """Yield what is wrong with the targets of composites.

    Each must be another root, and the jumps must not come back to the root they started from.
    """
    # For each root: the roots that its graph jumps to, and for each of these the node that jumps.
    jumps: dict[str, dict[str, str]] = {root: {} for root in graph.roots}
    for name, node in nodes.items():
        target = _target(nodes[node.shares] if node.shares else node)
        if target is None or name not in graph.root_of:
            continue
        if target in jumps:
            jumps[graph.root_of[name]].setdefault(target, name)
        elif node.shares:  # the problem is reported at the node that has the backend
            continue
        elif target not in graph.following:
            message = f"there is no node {target!r}{did_you_mean(target, graph.roots)}"
            yield Problem(message, node=name, key="jump")
        else:
            before = ", ".join(map(repr, graph.before[target]))
            message = f"expected a root, found {target!r}, which comes after {before}"
            yield Problem(message, node=name, key="jump")
    for ring in find_cycles(jumps):
        jumper = jumps[ring[0]][ring[1]]
        message = f"the graphs of these roots jump in a ring: {' -> '.join(ring)}"
        if len(ring) == 2:
            message = (
                f"it jumps to {ring[0]!r}, the root of its own graph, and would never end: "
                "expected another root"
            )
        yield Problem(message, node=jumper, key="jump")


def _target(node: NodeConfig) -> str | None:
    """Return the node that a composite backend jumps to; None for any other backend."""
    params = node.instance_groups[0].spec.params if node.instance_groups else None
    if not isinstance(params, JumpParams):
        return None
    return getattr(params, "jump", None)  # parameters that did not validate may lack it


def check_streams(graph: Graph, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
    """Yield what stands in the way of a node that yields several results.

    For each result that the node yields, everything after it runs again. So a request may pass one
    such node only, and no branch may run beside it. The graph must be right in everything else.
    """
    streams: dict[str, list[str]] = {}
    for name in graph.order:
        if nodes[nodes[name].shares or name].streams:
            streams.setdefault(graph.root_of[name], []).append(name)
    for root, (stream, *others) in streams.items():
        if others:
            message = f"node {stream!r} yields several results too: only one node of a graph may"
            yield Problem(message, node=others[0])
            continue
        after = graph.reached([stream])
        beside = [
            name
            for name in graph.order
            if graph.root_of[name] == root
            and name not in after
            and not graph.is_ancestor(name, stream)
        ]
        if beside:
            message = (
                "it yields several results, so no other branch may run beside it; "
                f"{beside[0]!r} does"
            )
            yield Problem(message, node=stream)


def check_entry(graph: Graph, entry: str, maps: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Yield the reasons why requests can't enter at `entry`: a node after it would wait for ever.

    `maps` has, for each node with a `map`, the nodes that the map names.
    """
    if entry not in graph.following:
        message = f"there is no node {entry!r}{did_you_mean(entry, graph.following)}"
        yield Problem(message, node="pipeline", key="entry")
        return
    inside = graph.reached([entry])
    for name in graph.order:
        if name in inside and name != entry:
            for needed in dict.fromkeys((*graph.before[name], *maps.get(name, ()))):
                if needed not in inside:
                    message = (
                        f"{entry!r} can't be the entry: it leads to {name!r}, which also needs "
                        f"{needed!r}, and {entry!r} does not lead there"
                    )
                    yield Problem(message, node="pipeline", key="entry")


def leaf_warnings(graph: Graph) -> Iterator[Problem]:
    """Yield a warning for each root whose graph ends in several nodes."""
    leaves: dict[str, list[str]] = {}
    for name in graph.order:
        if not graph.following[name]:
            leaves.setdefault(graph.root_of[name], []).append(name)
    for root, names in leaves.items():
        if len(names) > 1:
            message = (
                f"it leads to several last nodes ({', '.join(names)}): all of them run, and a "
                "request gets no result"
            )
            yield Problem(message, node=root)
