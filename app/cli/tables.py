"""What `penstock check` and `penstock backends` print, as tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.backends.engines.absent import Absent
from penstock.backends.expressions.registry import BackendDescription, extra_installed
from penstock.backends.expressions.spec import Spec
from penstock.backends.expressions.type_names import value_name
from penstock.pipelines.config.load import NodeConfig, PipelineConfig


def print_pipelines(configs: Iterable[PipelineConfig]) -> None:
    """A table for each pipeline: its nodes in the order in which items pass them."""
    console = Console()
    for config in configs:
        table = Table(
            "node",
            Column("backend", overflow="fold"),
            "instances",
            "max",
            "batching_timeout",
            "next",
            box=box.SIMPLE,
        )
        for node in config.nodes.values():
            table.add_row(*map(Text, _row(node)))
        console.print(
            Text(
                f"{config.name}: fine, {len(config.nodes)} node{'s' * (len(config.nodes) != 1)} ({config.source or 'no file'})"
            )
        )
        console.print(table)
        if config.exposed:
            console.print(Text(f"at /v2 also: {', '.join(config.names[1:])}\n"), soft_wrap=True)
        for node in config.nodes.values():
            for reason in dict.fromkeys(
                reason for group in node.groups for reason in _absent(group.spec)
            ):
                console.print(Text(f"{node.name} can't run here: {reason}\n"), soft_wrap=True)


def _absent(spec: Spec) -> Iterator[str]:
    """Why members of an expression can be checked and not run."""
    if issubclass(spec.cls, Absent):
        yield spec.cls.reason
    elif spec.cls.extra and not extra_installed(spec.cls.extra):
        yield f"{spec.name} needs penstock-serve[{spec.cls.extra}]"
    for child in spec.children:
        yield from _absent(child)


def _row(node: NodeConfig) -> tuple[str, ...]:
    groups = node.groups
    return (
        node.name,
        " & ".join(dict.fromkeys(expression(group.spec) for group in groups))
        or f"shares {node.shares}",
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
    """A line for each backend."""
    table = Table(
        Column("backend", no_wrap=True),
        Column("here", no_wrap=True),
        "what it does",
        box=box.SIMPLE,
    )
    for each in found:
        table.add_row(
            Text(each.name), Text("no" if _why_not(each) else "yes"), Text(_summary(each))
        )
    console = Console()
    console.print(table)
    console.print(Text("penstock backends NAME lists a backend's parameters."))


def print_backend(found: BackendDescription) -> None:
    console = Console()
    why_not = _why_not(found)
    console.print(
        Text(
            f"{found.name} ({f'not here: {why_not}' if why_not else 'available here'})\n\n{_paragraphs(found.doc)}\n"
        )
    )
    if found.parameters is None:
        console.print(Text("It takes any parameters."))
    elif not found.parameters:
        console.print(Text("It has no parameters."))
    else:
        table = Table(
            Column("parameter", no_wrap=True), "type", "default", "meaning", box=box.SIMPLE
        )
        for each in found.parameters:
            default = "required" if each.required else value_name(each.default)
            table.add_row(*map(Text, (each.name, each.type, default, each.description)))
        console.print(table)


def _why_not(found: BackendDescription) -> str:
    """Why it can't be used here; "" where it can."""
    if found.problem:
        return found.problem
    missing = "" if found.extra_installed else f"needs penstock-serve[{found.extra}]"
    return ", ".join(filter(None, ("" if found.available else "not in this version", missing)))


def _summary(found: BackendDescription) -> str:
    """The first sentence of what it does, or why it doesn't."""
    if found.alias_of:
        return f"another name of {found.alias_of}"
    first = _paragraphs(found.doc).partition("\n")[0]
    return _why_not(found) or re.split(r"(?<=\.) (?=[A-Z`])", first, maxsplit=1)[0]


def _paragraphs(doc: str) -> str:
    """A docstring without the line breaks of its source, which fit no terminal."""
    return "\n\n".join(" ".join(each.split()) for each in cleandoc(doc).split("\n\n"))
