"""A pipeline's configuration: read, merged, checked; every problem reported at once. Knows TOML and nothing of running.

`source.py` reads, `node_table.py` and `binding.py` understand nodes, `structure.py` what they say of one another, `definition.py` has
what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.item import may_come_from_network
from penstock.backends.suggestions import did_you_mean

from .definition import (
    DEFAULT_INPUTS,
    DEFAULT_MAX,
    NODE_INPUTS,
    Exposed,
    GroupConfig,
    NodeConfig,
    PipelineConfig,
    Port,
)
from .graph import check_entry, check_streams
from .node_table import build_node, check_name
from .sharing import check_shared, share
from .source import Tables, read
from .structure import Structure
from .tables import NODE_KEYS, STRUCTURE_KEYS, ExposedTable, PipelineTable, PortTable, validated

__all__ = [
    "DEFAULT_MAX",
    "GroupConfig",
    "NodeConfig",
    "PipelineConfig",
    "Port",
    "build",
    "from_model",
    "load",
    "load_directory",
]


def load(
    source: str | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None
) -> PipelineConfig:
    """A pipeline from a path to TOML, a dict of dicts, a flat dict (one nameless node) or an expression.

    A string is a path if it ends in `.toml`. The pipeline's name is `name`, else what `[pipeline]` says, else the file's.
    Raises ConfigError with all problems, TypeError for another type of source.
    """
    return build(read(source), name)


def load_directory(path: str | os.PathLike[str]) -> dict[str, PipelineConfig]:
    """Every `*.toml` of a directory, by the pipelines' names. Raises one ConfigError with the problems of all files."""
    directory = Path(path)
    if not directory.is_dir():
        raise ConfigError([Problem("there is no such directory", str(directory))])
    found: dict[str, PipelineConfig] = {}
    problems: list[Problem] = []
    for file in sorted(directory.glob("*.toml")):
        try:
            config = load(file)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        if config.name in found:
            problems.append(
                Problem(
                    f"the name {config.name!r} is that of {found[config.name].source} too",
                    str(file),
                    "pipeline",
                    "name",
                )
            )
        found[config.name] = config
    if problems:
        raise ConfigError(problems)
    return found


def build(tables: Tables, name: str | None = None) -> PipelineConfig:
    """The configuration that tables make. Raises ConfigError with every problem they have."""
    problems = list(tables.problems)
    settings = _read_settings(tables.pipeline, problems)
    structure = Structure(tables)
    wrong_nodes: list[Problem] = []
    nodes = _build_nodes(tables, structure, wrong_nodes)
    structure.read_filters()
    problems += [*structure.problems, *wrong_nodes]
    wrong = list(structure.check(nodes))
    problems += wrong
    if settings.entry is not None:
        problems += check_entry(structure.graph, settings.entry, structure.sources)
    for node in settings.expose:
        if node not in tables.nodes:
            hint = did_you_mean(node, tables.nodes)
            problems.append(
                Problem(f"there is no node {node!r}{hint}", node="pipeline", key=f"expose.{node}")
            )
    nodes = {
        node: replace(
            nodes[node], filter=structure.filters.get(node), map=structure.maps.get(node, ())
        )
        for node in structure.graph.order
        if node in nodes
    }
    if not wrong and not structure.problems and len(nodes) == len(tables.nodes):
        problems += check_streams(structure.graph, nodes)
    if problems:
        places = {node: place for place, node in enumerate(("pipeline", "global", *tables.nodes))}
        problems.sort(key=lambda problem: places.get(problem.node, len(places)))
        raise ConfigError(
            list(
                dict.fromkeys(
                    replace(problem, file=problem.file or tables.file) for problem in problems
                )
            )
        )
    return PipelineConfig(
        name=name or settings.name or tables.name,
        nodes=nodes,
        directory=tables.directory,
        source=tables.file,
        version=settings.version,
        description=settings.description,
        inputs=DEFAULT_INPUTS if settings.inputs is None else _ports(settings.inputs),
        outputs=_ports(settings.outputs),
        max_requests=settings.max_requests,
        timeout=settings.timeout,
        entry=settings.entry,
        loop=settings.loop or tables.loop,
        max_rounds=settings.max_rounds,
        exposed=tuple(_exposed(node, table) for node, table in settings.expose.items()),
        warnings=tuple(str(replace(warning, file=tables.file)) for warning in structure.warnings),
    )


def _exposed(node: str, table: ExposedTable) -> Exposed:
    return Exposed(
        node,
        NODE_INPUTS if table.inputs is None else _ports(table.inputs),
        _ports(table.outputs),
        table.description,
    )


def _build_nodes(
    tables: Tables, structure: Structure, problems: list[Problem]
) -> dict[str, NodeConfig]:
    """Every node whose expression is understood, whatever else is wrong with it, in the order of the file."""
    nodes: dict[str, NodeConfig] = {}
    used: set[str] = set()
    known: set[str] = set(NODE_KEYS)
    for node, keys in tables.nodes.items():
        found = check_name(node, tables.nodes)
        if node in structure.owners:
            found += check_shared(node, structure.owners[node], keys, tables.file)
        else:
            config, binding, wrong = build_node(
                node, keys, tables.defaults, structure.graph.following[node], tables.directory
            )
            found += wrong
            used |= binding.used_defaults
            known |= binding.known_keys
            if config is not None:
                nodes[node] = config
        problems += [replace(problem, node=problem.node or node) for problem in found]
    for key in sorted(set(tables.defaults) - used - STRUCTURE_KEYS):
        problems.append(Problem(f"no node knows this key{did_you_mean(key, known)}", key=key))
    for node, owner in structure.owners.items():
        if owner in nodes:
            nodes[node] = share(node, nodes[owner], structure.graph.following[node])
    return nodes


def _ports(tables: Mapping[str, PortTable]) -> tuple[Port, ...]:
    return tuple(
        Port(key, table.kind, table.dtype, table.shape, table.labels, table.description)
        for key, table in tables.items()
    )


def _read_settings(table: Any, problems: list[Problem]) -> PipelineTable:
    """`[pipeline]`; without what is wrong in it."""
    if not isinstance(table, dict):
        problems.append(Problem(f"expected a table, found {table!r}", node="pipeline"))
        return PipelineTable.model_validate({})
    settings, wrong = validated(PipelineTable, table)
    exposed = table.get("expose")
    nodes = exposed.items() if isinstance(exposed, dict) else ()
    places = {"inputs": table} | {f"expose.{node}.inputs": each for node, each in nodes}
    for place, each in places.items():
        inputs = each.get("inputs") if isinstance(each, dict) else None
        for key in inputs if isinstance(inputs, dict) else ():
            if isinstance(key, str) and (
                not may_come_from_network(key) or key in {"result", "error", "context"}
            ):
                wrong.append(
                    Problem(
                        f"{key!r} can't be an input: it is Penstock's own, or starts with _",
                        key=f"{place}.{key}",
                    )
                )
    problems += [replace(problem, node="pipeline") for problem in wrong]
    return settings


def from_model(
    path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None
) -> PipelineConfig:
    """The pipeline of a bare image classifier: `penstock serve model.onnx --labels labels.txt`.

    Images are decoded and resized to the model's input, which must be N×C×H×W floats with fixed C, H and W. Raises ConfigError.
    """
    from .classifier import classifier

    return build(classifier(Path(path), Path(labels) if labels is not None else None))
