"""The tables that `penstock check` and `penstock backends` print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.registry import BackendDescription, extra_installed
from penstock.backends.expressions.spec import Spec
from penstock.backends.expressions.type_names import value_name
from penstock.backends.params import EngineParams
from penstock.pipelines.config.load import NodeConfig, PipelineConfig


def print_pipelines(configs: Iterable[PipelineConfig]) -> None:
    """Print a table for each pipeline: its nodes in the order in which items pass them."""
    console = Console()
    for config in configs:
        table = Table(
            "node",
            Column("backend", overflow="fold"),
            "instances",
            "max",
            "batching_timeout",
            "executor",
            "next",
            box=box.SIMPLE,
        )
        for node in config.nodes.values():
            table.add_row(*map(Text, _row(node)))
        number = f"{len(config.nodes)} node{'s' * (len(config.nodes) != 1)}"
        console.print(Text(f"{config.name}: fine, {number} ({config.source or 'not from a file'})"))
        console.print(table)
        if config.exposed:
            console.print(Text(f"also at /v2: {', '.join(config.names[1:])}\n"), soft_wrap=True)
        for node in config.nodes.values():
            for obstacle in dict.fromkeys(
                obstacle
                for group in node.instance_groups
                for obstacle in _missing_extras(group.spec)
            ):
                console.print(Text(f"{node.name} can't run here: {obstacle}\n"), soft_wrap=True)
        probed = [node.name for node in config.nodes.values() if _is_probed(node)]
        if probed:
            console.print(
                Text(
                    f"{', '.join(probed)}: items share a run if the model is found to keep their "
                    "rows apart, and run alone otherwise (--load shows it)\n"
                ),
                soft_wrap=True,
            )


def print_loaded(notes: Iterable[str]) -> None:
    """Print what loading has shown of the nodes. The log has the reasons."""
    console = Console()
    console.print(Text("loaded"))
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _missing_extras(spec: Spec) -> Iterator[str]:
    """Yield a text for each backend of an expression whose extra is not installed here."""
    if spec.cls.extra and not extra_installed(spec.cls.extra):
        yield f"{spec.name} needs penstock-serve[{spec.cls.extra}]"
    for child in spec.children:
        yield from _missing_extras(child)


def _is_probed(node: NodeConfig) -> bool:
    """Return whether a model of the node shows only when it is loaded whether items share runs."""
    return any(
        group.bound(group.spec.declared_range.max) != 1 and _has_probe(group.spec)
        for group in node.instance_groups
    )


def _is_composite(node: NodeConfig) -> bool:
    """Return whether a node calls other nodes, and has no executor."""
    return any(issubclass(group.spec.cls, CompositeBackend) for group in node.instance_groups)


def _has_probe(spec: Spec) -> bool:
    if isinstance(spec.params, EngineParams):
        return spec.params.batched is None
    return any(map(_has_probe, spec.children))


def _row(node: NodeConfig) -> tuple[str, ...]:
    groups = node.instance_groups
    return (
        node.name,
        " & ".join(dict.fromkeys(expression(group.spec) for group in groups))
        or f"shares {node.shares}",
        " & ".join(str(group.instances) for group in groups),
        " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups),
        f"{node.batching_timeout:g} ms",
        "" if node.shares or _is_composite(node) else node.executor,
        ", ".join(node.next),
    )


def expression(spec: Spec) -> str:
    """Write a backend expression as a file would."""
    children = ",".join(expression(child) for child in spec.children)
    prefix = f"({spec.filter})" if spec.filter else ""
    return f"{prefix}{spec.name}{f'[{children}]' if children else ''}"


def print_backends(descriptions: Iterable[BackendDescription]) -> None:
    """Print a line for each backend."""
    table = Table(
        Column("backend", no_wrap=True),
        Column("here", no_wrap=True),
        "what it does",
        box=box.SIMPLE,
    )
    for backend in descriptions:
        available = "no" if _obstacle(backend) else "yes"
        table.add_row(Text(backend.name), Text(available), Text(_summary(backend)))
    console = Console()
    console.print(table)
    console.print(Text("penstock backends NAME describes a backend and lists its parameters."))


def print_backend(backend: BackendDescription) -> None:
    """Print a backend's description, and a table of its parameters."""
    console = Console()
    obstacle = _obstacle(backend)
    here = f"not here: {obstacle}" if obstacle else "available here"
    console.print(Text(f"{backend.name} ({here})\n\n{_paragraphs(backend.doc)}\n"))
    if backend.parameters is None:
        console.print(Text("It takes any parameters."))
    elif not backend.parameters:
        console.print(Text("It has no parameters."))
    else:
        table = Table(
            Column("parameter", no_wrap=True), "type", "default", "meaning", box=box.SIMPLE
        )
        for parameter in backend.parameters:
            default = "required" if parameter.required else value_name(parameter.default)
            table.add_row(
                *map(Text, (parameter.name, parameter.type, default, parameter.description))
            )
        console.print(table)


def _obstacle(backend: BackendDescription) -> str:
    """Return why a backend can't be used here; "" if it can."""
    if backend.problem:
        return backend.problem
    return "" if backend.extra_installed else f"needs penstock-serve[{backend.extra}]"


def _summary(backend: BackendDescription) -> str:
    """Return the first sentence of a backend's description, or why it can't be used."""
    if backend.alias_of:
        return f"another name for {backend.alias_of}"
    first = _paragraphs(backend.doc).partition("\n")[0]
    return _obstacle(backend) or re.split(r"(?<=\.) (?=[A-Z`])", first, maxsplit=1)[0]


def _paragraphs(doc: str) -> str:
    """Join the lines of each paragraph of a docstring: their width is the source's."""
    return "\n\n".join(" ".join(text.split()) for text in cleandoc(doc).split("\n\n"))
