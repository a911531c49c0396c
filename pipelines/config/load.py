"""A pipeline's configuration: read, merged and checked, with every problem reported at once.

`source.py` reads the file, `node_table.py` and `binding.py` understand its nodes, `structure.py`
their references to one another. `definition.py` has the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.item import may_come_from_network
from penstock.backends.operators.labels import read_labels
from penstock.backends.suggestions import did_you_mean

from .answers import outputs_of_node, undeclared_outputs
from .decoding import decoding_of
from .definition import (
    DEFAULT_INPUTS,
    DEFAULT_MAX,
    NODE_INPUTS,
    Exposed,
    InstanceGroupConfig,
    NodeConfig,
    PipelineConfig,
    Port,
)
from .ensembles import check_ensembles
from .graph import check_entry, check_streams
from .json_schema import JsonSchema, Mode, read_schema
from .node_table import build_node, check_name
from .preceding_models import with_preceding_models
from .presets import ImageOptions
from .resizing import with_resizing
from .sequences import check_sequences
from .sharing import check_shared, share
from .source import Tables, read
from .streamed import check_stream_input
from .structure import Structure
from .tables import (
    NODE_KEYS,
    STRUCTURE_KEYS,
    ExposedTable,
    InputTable,
    PipelineTable,
    PortTable,
    numpy_type,
    validated,
)

__all__ = [
    "DEFAULT_MAX",
    "InstanceGroupConfig",
    "NodeConfig",
    "PipelineConfig",
    "Port",
    "build",
    "from_model",
    "load",
]


def load(
    source: str | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None
) -> PipelineConfig:
    """Load a pipeline from a TOML file, a dict or an expression.

    A dict holds a dict for each node, or the keys of one nameless node. A string that ends in
    `.toml` is a path. The pipeline's name is `name`, otherwise that in `[pipeline]`, otherwise that
    of the file. Raises `ConfigError` with all problems, TypeError for another type of source.
    """
    return build(read(source), name)


def build(tables: Tables, name: str | None = None) -> PipelineConfig:
    """Make the configuration that `tables` describe.

    Raises `ConfigError` with every problem that they have.
    """
    problems = list(tables.problems)
    settings = _read_settings(tables.pipeline, problems)
    structure = Structure(tables)
    node_problems: list[Problem] = []
    nodes = _build_nodes(tables, structure, node_problems)
    structure.read_filters()
    problems += [*structure.problems, *node_problems]
    graph_problems = list(structure.check(nodes))
    problems += graph_problems
    if settings.entry is not None:
        problems += check_entry(structure.graph, settings.entry, structure.sources)
    ports = _Ports(tables.directory, problems)
    inputs = ports.read(settings.inputs, "inputs")
    outputs = ports.read(settings.outputs, "outputs")
    exposed_ports = {
        node: (
            ports.read(table.inputs, f"expose.{node}.inputs"),
            ports.read(table.outputs, f"expose.{node}.outputs"),
        )
        for node, table in settings.expose.items()
    }
    for node in settings.expose:
        if node not in tables.nodes:
            message = f"there is no node {node!r}{did_you_mean(node, tables.nodes)}"
            problems.append(Problem(message, node="pipeline", key=f"expose.{node}"))
    nodes = {
        node: replace(
            nodes[node], filter=structure.filters.get(node), map=structure.maps.get(node, ())
        )
        for node in structure.graph.order
        if node in nodes
    }
    if not graph_problems and not structure.problems and len(nodes) == len(tables.nodes):
        problems += check_streams(structure.graph, nodes)
        problems += check_stream_input(
            settings, structure.graph, nodes, settings.loop or tables.loop
        )
        problems += _check_cache(settings, nodes)
        problems += check_ensembles(nodes, inputs, outputs)
    nodes, unresized = with_resizing(nodes, settings.expose)
    problems += unresized
    problems += check_sequences(
        nodes, tables.defaults, settings.expose, settings.loop or tables.loop
    )
    if problems:
        raise _all_in_order(problems, tables)
    nodes = with_preceding_models(nodes)
    return PipelineConfig(
        name=name or settings.name or tables.name,
        nodes=nodes,
        directory=tables.directory,
        source=tables.file,
        version=settings.version,
        version_policy=settings.version_policy,
        description=settings.description,
        inputs=DEFAULT_INPUTS if inputs is None else inputs,
        outputs=undeclared_outputs(nodes, settings.entry, tables.directory)
        if outputs is None
        else outputs,
        batched=settings.batched,
        positional=settings.positional,
        max_requests=settings.max_requests,
        timeout=settings.timeout,
        max_wait=settings.max_wait,
        queue_size=settings.queue_size,
        queue_timeout=settings.queue_timeout,
        entry=settings.entry,
        loop=settings.loop or tables.loop,
        max_rounds=settings.max_rounds,
        cache=settings.cache is not None,
        cache_ttl=None if settings.cache is None else settings.cache.ttl,
        exposed=tuple(
            _exposed(
                nodes[nodes[node].shares or node],
                node,
                table,
                exposed_ports[node],
                tables.directory,
            )
            for node, table in settings.expose.items()
        ),
        warnings=tuple(
            str(replace(warning, file=tables.file))
            for warning in (*tables.warnings, *structure.warnings)
        ),
        model_config=tables.model_config,
    )


def _check_cache(settings: PipelineTable, nodes: Mapping[str, NodeConfig]) -> Iterator[Problem]:
    """Yield why the answers of a pipeline can't be kept."""
    if settings.cache is None:
        return
    why = [f"node {name!r} yields them in parts" for name, node in nodes.items() if node.streams]
    why += [
        f"node {name!r} keeps a state for each sequence"
        for name, node in nodes.items()
        if node.sequence is not None
    ]
    why += [
        f"its input {name!r} is a stream"
        for name, port in (settings.inputs or {}).items()
        if port.stream
    ]
    if why:
        message = f"the answers can't be kept: {why[0]}; expected cache = false"
        yield Problem(message, node="pipeline", key="cache")


def _all_in_order(problems: list[Problem], tables: Tables) -> ConfigError:
    """Make one error of the problems: each once, in the order of the file."""
    position = {node: index for index, node in enumerate(("pipeline", "global", *tables.nodes))}
    ordered = sorted(problems, key=lambda problem: position.get(problem.node, len(position)))
    in_file = [replace(problem, file=problem.file or tables.file) for problem in ordered]
    return ConfigError(list(dict.fromkeys(in_file)))


def _exposed(
    config: NodeConfig,
    node: str,
    table: ExposedTable,
    ports: tuple[tuple[Port, ...] | None, tuple[Port, ...] | None],
    directory: Path,
) -> Exposed:
    inputs, outputs = ports
    return Exposed(
        node,
        NODE_INPUTS if inputs is None else inputs,
        outputs_of_node(config, directory) if outputs is None else outputs,
        batched=table.batched,
        description=table.description,
    )


def _build_nodes(
    tables: Tables, structure: Structure, problems: list[Problem]
) -> dict[str, NodeConfig]:
    """Build every node whose expression is understood, whatever else is wrong with it.

    The nodes are in the order of the file.
    """
    nodes: dict[str, NodeConfig] = {}
    used: set[str] = set()
    known: set[str] = set(NODE_KEYS)
    for node, keys in tables.nodes.items():
        own_problems = check_name(node, tables.nodes)
        if node in structure.owners:
            owner = structure.owners[node]
            own_problems += check_shared(
                node, owner if owner in tables.nodes else "", keys, tables.file
            )
        else:
            config, binding, wrong = build_node(
                node, keys, tables.defaults, structure.graph.following[node], tables.directory
            )
            own_problems += wrong
            structure.warnings += [replace(warning, node=node) for warning in binding.warnings]
            used |= binding.used_defaults
            known |= binding.known_keys
            if config is not None:
                nodes[node] = config
        problems += [replace(problem, node=problem.node or node) for problem in own_problems]
    for key in sorted(set(tables.defaults) - used - STRUCTURE_KEYS):
        problems.append(Problem(f"no node knows this key{did_you_mean(key, known)}", key=key))
    for node, owner in structure.owners.items():
        if owner in nodes:
            nodes[node] = share(node, nodes[owner], structure.graph.following[node])
    return nodes


class _Ports:
    """Makes ports of their tables. Adds schemas and labels that can't be read to the problems."""

    def __init__(self, directory: Path, problems: list[Problem]) -> None:
        self._directory = directory
        self._problems = problems

    def read(self, tables: Mapping[str, PortTable] | None, path: str) -> tuple[Port, ...] | None:
        """Make the ports of a table of the file. `path`: its keys below `pipeline`."""
        if tables is None:
            return None
        return tuple(self._port(key, table, f"{path}.{key}") for key, table in tables.items())

    def _port(self, name: str, table: PortTable, path: str) -> Port:
        is_input = "inputs." in path
        return Port(
            name,
            table.kind,
            table.dtype,
            table.shape,
            table.labels,
            table.description,
            isinstance(table, InputTable) and table.optional,
            None if table.items is None else self._port("", table.items, f"{path}.items"),
            None if table.json_schema is None else self._schema(table.json_schema, path, is_input),
            table.media_types if isinstance(table, InputTable) else (),
            None
            if not isinstance(table, InputTable) or table.decode is None
            else decoding_of(table.decode, numpy_type(table.dtype), table.shape),
            isinstance(table, InputTable) and table.stream,
            () if table.labels is None else self._labels(table.labels, path),
        )

    def _labels(self, name: str, path: str) -> tuple[str, ...]:
        beside = self._directory / name
        file = beside if beside.exists() else Path(name)
        try:
            return read_labels(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"the labels {file} can't be read: {reason}: expected one label per line"
            self._problems.append(Problem(message, node="pipeline", key=f"{path}.labels"))
            return ()

    def _schema(self, source: object, path: str, is_input: bool) -> JsonSchema | None:
        mode: Mode = "validation" if is_input else "serialization"
        try:
            return read_schema(source, self._directory, mode)
        except ConfigError as error:
            key = f"{path}.schema"
            self._problems += [
                replace(problem, node="pipeline", key=key) for problem in error.problems
            ]
            return None


def _read_settings(table: Any, problems: list[Problem]) -> PipelineTable:
    """Read `[pipeline]`. A wrong key takes its default, so that it hides no other problem."""
    if not isinstance(table, dict):
        problems.append(Problem(f"expected a table, found {table!r}", node="pipeline"))
        return PipelineTable.model_validate({})
    settings, wrong = validated(PipelineTable, table)
    exposed = table.get("expose")
    nodes = exposed.items() if isinstance(exposed, dict) else ()
    positional = settings.positional  # inputs are no keys of the item then
    tables = ({} if positional else {"inputs": table}) | {
        f"expose.{node}.inputs": keys for node, keys in nodes
    }
    for path, keys in tables.items():
        inputs = keys.get("inputs") if isinstance(keys, dict) else None
        for key in inputs if isinstance(inputs, dict) else ():
            if isinstance(key, str) and (
                not may_come_from_network(key) or key in {"result", "error", "context"}
            ):
                reason = (
                    "names that start with _ never come from a client"
                    if key.startswith("_")
                    else "Penstock uses this name itself"
                )
                message = f"{key!r} can't be an input: {reason}; expected another name"
                wrong.append(Problem(message, key=f"{path}.{key}"))
    problems += [replace(problem, node="pipeline") for problem in wrong]
    return settings


def from_model(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    image: ImageOptions | None = None,
) -> PipelineConfig:
    """Make the pipeline of a bare image model, as `penstock serve model.onnx` serves it.

    Images are decoded, resized to the model's input, which must be N×C×H×W floats, and normalised
    as `image` says. Raises `ConfigError`.
    """
    from .classifier import classifier

    return build(classifier(Path(path), Path(labels) if labels is not None else None, image))
