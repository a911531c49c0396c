"""What the nodes of a file say of one another: `next`, `map`, `filter`, logical nodes and `borrow_from`, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.expressions.filters import find_filter

from .definition import NodeConfig
from .graph import Graph, check_graph, check_jumps, leaf_warnings, successors
from .mapping import Map, parse, resolve
from .sharing import owners
from .source import Tables


class Structure:
    """The graph of a file, and for each node its `filters`, `maps` and, where it shares another one's instances, `owners`.

    `sources` are the nodes that each map names; `filters` are there after `read_filters`. A `filter` among the file's defaults is for all
    nodes but the roots.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.owners, self.problems = owners(tables.nodes)
        self.warnings: list[Problem] = []
        self.maps: dict[str, Map] = {}
        self.filters: dict[str, str] = {}
        default = tables.defaults.get("next")
        following = {
            node: successors(node, keys.get("next", default), tables.nodes)
            for node, keys in tables.nodes.items()
        }
        self.problems += [problem for found in following.values() for problem in found.problems]
        self.graph = Graph({node: found.names for node, found in following.items()})
        self._doubtful = self.graph.reached(
            each for found in following.values() for each in found.meant
        )
        self._read_maps()
        self.sources = {node: [source for source, _ in found] for node, found in self.maps.items()}
        self.warnings += leaf_warnings(self.graph)

    def check(self, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
        """What is wrong with the graph as a whole. `nodes` are those that are right in themselves."""
        yield from check_graph(self.graph, self.tables.nodes, self._doubtful)
        yield from check_jumps(self.graph, nodes)

    def read_filters(self) -> None:
        """To be called when the nodes are bound: their own Python modules may register some."""
        default = self._filter(self.tables.defaults.get("filter"), "")
        for node, keys in self.tables.nodes.items():
            found = self._filter(keys["filter"], node) if "filter" in keys else default
            if found is not None and self.graph.before[node]:
                self.filters[node] = found

    def _filter(self, value: Any, node: str) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            self.problems.append(
                Problem(f"expected the name of a filter, found {value!r}", node=node, key="filter")
            )
            return None
        try:
            find_filter(value.strip())
        except ConfigError as error:
            self.problems += [
                replace(problem, node=node, key="filter") for problem in error.problems
            ]
            return None
        return value.strip()

    def _read_maps(self) -> None:
        for key in ("map", "borrow_from"):
            if key in self.tables.defaults:
                self.problems.append(
                    Problem(
                        "this is a key of a node, it can't be a default for all of them", key=key
                    )
                )
        for node, keys in self.tables.nodes.items():
            text = keys.get("map")
            if (
                "map" not in keys or not self.graph.before[node]
            ):  # a root's is refused whatever it says
                continue
            if not isinstance(text, str):
                self.problems.append(
                    Problem(
                        f'expected text, as in map = "A[result:data]", found {text!r}',
                        node=node,
                        key="map",
                    )
                )
                continue
            try:
                taken = parse(text)
            except ConfigError as error:
                self.problems += [replace(problem, node=node) for problem in error.problems]
                continue
            found, problems, warnings = resolve(
                node, taken, self.graph, doubtful=node in self._doubtful
            )
            self.problems += problems
            self.warnings += warnings
            if not problems:
                self.maps[node] = found
