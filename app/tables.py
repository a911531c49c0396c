"""What `penstock check` and `penstock backends` print, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import cleandoc

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.backends.registry import BackendDescription
from penstock.backends.spec import Spec
from penstock.pipelines.config import NodeConfig, PipelineConfig


def print_pipelines(configs: Iterable[PipelineConfig]) -> None:
    """A table for each pipeline: its nodes in the order in which items pass them."""
    console = Console()
    for config in configs:
        table = Table("node", Column("backend", overflow="fold"), "instances", "max", "batching_timeout", "next", box=box.SIMPLE)
        for node in config.nodes.values():
            table.add_row(*map(Text, _row(node)))
        console.print(Text(f"{config.name}: fine, {len(config.nodes)} node{'s' * (len(config.nodes) != 1)} ({config.source or 'no file'})"))
        console.print(table)


def _row(node: NodeConfig) -> tuple[str, ...]:
    groups = node.groups
    return (
        node.name,
        " & ".join(dict.fromkeys(expression(group.spec) for group in groups)),
        " & ".join(str(group.instances) for group in groups),
        " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups),
        f"{node.batching_timeout:g} ms",
        ", ".join(node.next),
    )


def expression(spec: Spec) -> str:
    """A backend as it would be written."""
    children = ",".join(expression(child) for child in spec.children)
    return f"{f'({spec.filter})' if spec.filter else ''}{spec.name}{f'[{children}]' if children else ''}"


def print_backends(found: Iterable[BackendDescription]) -> None:
    table = Table("backend", "here", "what it does", box=box.SIMPLE)
    for each in found:
        table.add_row(Text(each.name), Text(_availability(each)), Text(each.doc.partition("\n")[0]))
    Console().print(table)


def print_backend(found: BackendDescription) -> None:
    console = Console()
    console.print(Text(f"{found.name} ({_availability(found)})\n\n{cleandoc(found.doc)}\n"))
    if found.parameters is None:
        console.print(Text("It takes any parameters."))
    elif not found.parameters:
        console.print(Text("It has no parameters."))
    else:
        table = Table("parameter", "type", "default", "meaning", box=box.SIMPLE)
        for each in found.parameters:
            default = "required" if each.required else "" if each.default is None else str(each.default)
            table.add_row(*map(Text, (each.name, each.type, default, each.description)))
        console.print(table)


def _availability(found: BackendDescription) -> str:
    if not found.extra_installed:
        return f"needs extra {found.extra}"
    return "yes" if found.available else "not in this version"
