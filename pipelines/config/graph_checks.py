"""What a pipeline's graph as a whole must be: circles, joins, roots, jumps, the entry; and what `check` warns of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import JumpParams
from penstock.backends.suggestions import did_you_mean

from .definition import NodeConfig
from .graph import Graph, find_cycles


def check_graph(
    graph: Graph, nodes: Mapping[str, Mapping[str, Any]], doubtful: Collection[str]
) -> Iterator[Problem]:
    """What is wrong with the graph and the keys `map` and `filter` in it.

    `doubtful` are nodes that a misspelt `next` leads to, and all behind them: what roots reach them is not known.
    """
    for cycle in graph.cycles:
        yield Problem(f"the nodes run in a circle: {' -> '.join(cycle)}", node=cycle[0], key="next")
    in_cycles = {name for cycle in graph.cycles for name in cycle}
    for name, before in graph.before.items():
        if not before and name not in doubtful:
            for key in ("map", "filter"):
                if key in nodes[name]:
                    yield Problem(
                        f"nothing comes before this node, so it can't have a {key}",
                        node=name,
                        key=key,
                    )
        elif len(before) > 1 and name not in in_cycles and "map" not in nodes[name]:
            example = ",".join(
                f"{each}[result:{'data' if each == before[0] else each}]" for each in before[:3]
            )
            message = f"several nodes lead here ({', '.join(before)}): expected a map that says what to take of each, as in {example}"
            yield Problem(message, node=name, key="map")
    for name, second in graph.second_roots.items():
        if name not in doubtful:
            roots = f"{graph.root_of[name]!r} and {second!r}"
            yield Problem(
                f"two roots lead here ({roots}): a request enters at one, and this node would wait for ever",
                node=name,
            )


def check_jumps(graph: Graph, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
    """What is wrong with where composite backends jump to: another root, and never back."""
    jumps: dict[str, dict[str, str]] = {
        root: {} for root in graph.roots
    }  # the roots that a root's graph jumps to, and the node that does
    for name, node in nodes.items():
        target = _target(nodes[node.shares] if node.shares else node)
        if target is None or name not in graph.root_of:
            continue
        if target in jumps:
            jumps[graph.root_of[name]].setdefault(target, name)
        elif node.shares:  # what is wrong is said of the node that has the backend
            continue
        elif target not in graph.following:
            yield Problem(
                f"there is no node {target!r}{did_you_mean(target, graph.roots)}",
                node=name,
                key="jump",
            )
        else:
            before = ", ".join(map(repr, graph.before[target]))
            yield Problem(
                f"expected a root, found {target!r}, which comes after {before}",
                node=name,
                key="jump",
            )
    for ring in find_cycles(jumps):
        jumper = jumps[ring[0]][ring[1]]
        if len(ring) == 2:
            yield Problem(
                f"it enters the graph of {ring[0]!r}, which it is in, again and again: expected another root",
                node=jumper,
                key="jump",
            )
        else:
            yield Problem(
                f"the graphs of these roots jump in a ring: {' -> '.join(ring)}",
                node=jumper,
                key="jump",
            )


def _target(node: NodeConfig) -> str | None:
    """Where a node's composite backend jumps to; None: it has no backend that does."""
    params = node.groups[0].spec.params if node.groups else None
    return (
        getattr(params, "jump", None) if isinstance(params, JumpParams) else None
    )  # one that is wrong may have none


def check_entry(graph: Graph, entry: str, maps: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Why requests can't come in at `entry`: something it leads to would wait for ever. `maps` has the sources that nodes name."""
    if entry not in graph.following:
        yield Problem(
            f"there is no node {entry!r}{did_you_mean(entry, graph.following)}",
            node="pipeline",
            key="entry",
        )
        return
    inside = graph.reached([entry])
    for name in graph.order:
        if name in inside and name != entry:
            for needed in dict.fromkeys((*graph.before[name], *maps.get(name, ()))):
                if needed not in inside:
                    message = f"{entry!r} can't be the entry: it leads to {name!r}, which needs {needed!r} too, and does not lead there"
                    yield Problem(message, node="pipeline", key="entry")


def leaf_warnings(graph: Graph) -> Iterator[Problem]:
    """The roots whose graph ends in several nodes."""
    leaves: dict[str, list[str]] = {}
    for name in graph.order:
        if not graph.following[name]:
            leaves.setdefault(graph.root_of[name], []).append(name)
    for root, names in leaves.items():
        if len(names) > 1:
            yield Problem(
                f"it leads to several last nodes ({', '.join(names)}): all run, and a request has no result",
                node=root,
            )
