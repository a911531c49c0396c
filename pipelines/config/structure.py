"""References between the nodes of a file, read and checked.

They are `next`, `map`, `filter`, logical nodes and `borrow_from`.
"""

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
    """The graph of a file, with the `filters`, `maps` and `owners` of its nodes.

    `owners` has the nodes that share the instances of another one, and that one. `sources` has the
    nodes that each map names. `filters` is filled by `read_filters`; a `filter` among the defaults
    of the file holds for all nodes except the roots.
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
        self.problems += [problem for read in following.values() for problem in read.problems]
        self.graph = Graph({node: read.names for node, read in following.items()})
        self._doubtful = self.graph.reached(
            name for read in following.values() for name in read.meant
        )
        self._read_maps()
        self.sources = {node: [source for source, _ in taken] for node, taken in self.maps.items()}
        self.warnings += leaf_warnings(self.graph)

    def check(self, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
        """Yield what is wrong with the graph as a whole.

        `nodes` are those whose expressions are understood.
        """
        yield from check_graph(self.graph, self.tables.nodes, self._doubtful)
        yield from check_jumps(self.graph, nodes)

    def read_filters(self) -> None:
        """Read the filters.

        Call it once the nodes are bound: the Python modules that they name may register filters.
        """
        default = self._filter(self.tables.defaults.get("filter"), "")
        for node, keys in self.tables.nodes.items():
            name = self._filter(keys["filter"], node) if "filter" in keys else default
            if name is not None and self.graph.before[node]:
                self.filters[node] = name

    def _filter(self, value: Any, node: str) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            message = f"expected the name of a filter, found {value!r}"
            self.problems.append(Problem(message, node=node, key="filter"))
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
                message = "this is a key of one node: it can't be a default for all nodes"
                self.problems.append(Problem(message, key=key))
        for node, keys in self.tables.nodes.items():
            if "map" not in keys or not self.graph.before[node]:
                continue  # the map of a root is refused whatever it says
            text = keys.get("map")
            if not isinstance(text, str):
                message = f'expected text, as in map = "A[result:data]", found {text!r}'
                self.problems.append(Problem(message, node=node, key="map"))
                continue
            try:
                taken = parse(text)
            except ConfigError as error:
                self.problems += [replace(problem, node=node) for problem in error.problems]
                continue
            resolved, problems, warnings = resolve(
                node, taken, self.graph, doubtful=node in self._doubtful
            )
            self.problems += problems
            self.warnings += warnings
            if not problems:
                self.maps[node] = resolved
