"""The tables that `penstock check` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.backends.errors import ConfigError
from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.kinds import chain_of
from penstock.backends.expressions.registry import extra_installed
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.pipelines.checking.opened import Opened
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig, Port

from ..graph import expressions_of
from ..v2.models.description import metadata_of
from ..v2.models.model import Model

NODE_COLUMNS = ("node", "backend", "instances", "max", "batching_timeout", "executor", "next")


def print_pipelines(checked: Iterable[Opened]) -> None:
    """Print a table for each pipeline: its nodes in the order in which items pass them, then what
    it takes and answers.
    """
    console = Console()
    for opened in checked:
        config = opened.pipeline.config
        source = config.source or "not from a file"
        console.print(
            Text(f"{config.name}: {_state_of(opened)}, {_number_of_nodes(config)} ({source})"),
            soft_wrap=True,
        )
        _print_nodes(console, [_row(node) for node in config.nodes.values()])
        console.print(_doors(opened))
        for note in _unanswered(config):
            console.print(Text(f"{note}\n"), soft_wrap=True)
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


def print_summary(checked: Iterable[Opened], unread: Mapping[tuple[str, str], ConfigError]) -> None:
    """Print a line for each pipeline of a directory, those that can't be read too."""
    table = Table(
        Column("pipeline", no_wrap=True), "version", "state", Column("file", overflow="fold"),
        "takes", "answers",
        box=box.SIMPLE,
    )  # fmt: skip
    for opened in checked:
        config = opened.pipeline.config
        table.add_row(
            *map(
                Text,
                (
                    config.name,
                    config.version,
                    _state_of(opened),
                    config.source,
                    ", ".join(port.kind for port in config.inputs),
                    _answers(config),
                ),
            )
        )
    for (name, version), error in unread.items():
        file = error.problems[0].file
        table.add_row(*map(Text, (name, version, "can't be read", file, "", "")))
    console = Console()
    console.print(table)


def _state_of(opened: Opened) -> str:
    problems = sum(not finding.warning for finding in opened.findings)
    return f"{problems} problem{'s' * (problems != 1)}" if problems else "fine"


def _number_of_nodes(config: PipelineConfig) -> str:
    return f"{len(config.nodes)} node{'s' * (len(config.nodes) != 1)}"


def _doors(opened: Opened) -> Table:
    """Return a table of what comes in and goes out, as clients see it."""
    table = Table(Column("request to", no_wrap=True), "takes", "answers", box=box.SIMPLE)
    config = opened.pipeline.config
    takes = ", ".join(map(_port, config.inputs))
    table.add_row(*map(Text, (f"/predict/{config.name}", takes, _answers(config))))
    for pipeline in (opened.pipeline, *opened.pipeline.exposed):
        metadata = metadata_of(Model(pipeline), [config.version])
        tensors = (", ".join(map(_tensor, metadata[key])) for key in ("inputs", "outputs"))
        table.add_row(*map(Text, (f"/v2/models/{pipeline.name}", *tensors)))
    return table


def _unanswered(config: PipelineConfig) -> Iterator[str]:
    """Yield a text for each last node that classifies, unless all that it sets is answered."""
    answered = {port.name for port in config.outputs}
    for node in config.nodes.values():
        groups = config.nodes[node.shares or node.name].instance_groups
        if node.next or not groups:
            continue
        last = [*chain_of(groups[0].spec)][-1]
        keys = last.cls.keys_set(last.params) or ()
        missing = [key for key in keys if key not in answered]
        if "class" in keys and missing:
            yield (
                f"{node.name} also sets {', '.join(missing)}: declare what clients shall get in "
                "[pipeline.outputs]"
            )


def _answers(config: PipelineConfig) -> str:
    result = config.result_port
    first = "result" if result is None else _port(result)
    return ", ".join([first, *map(_port, config.key_ports)])


def _port(port: Port) -> str:
    return f"{port.name}: {port.kind}{' (optional)' if port.optional else ''}"


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = ",".join(map(str, tensor["shape"]))
    optional = " (optional)" if tensor.get("optional") else ""
    return f"{tensor['name']}: {tensor['datatype']}[{shape}]{optional}"


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


def _print_nodes(console: Console, rows: list[tuple[str, ...]]) -> None:
    """Print the nodes of a pipeline. Only expressions take several lines, and no name is broken.

    Where the terminal is too narrow for that, the lines are longer than it.
    """
    widths = [max(map(len, column)) for column in zip(NODE_COLUMNS, *rows, strict=True)]
    longest = max(len(piece) for row in rows for piece in _pieces(row[1]))
    others = sum(widths) - widths[1] + 2 * len(widths) - 1  # the spaces between columns
    width = max(console.width - others, longest, len(NODE_COLUMNS[1]))
    columns = [Column(name, no_wrap=True) for name in NODE_COLUMNS]
    table = Table(*columns, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for row in rows:
        table.add_row(*map(Text, (row[0], _folded(row[1], width), *row[2:])))
    Console(width=max(console.width, others + width)).print(table)


def _folded(text: str, width: int) -> str:
    """Break an expression into lines of at most `width` characters, between its names."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(map(str.rstrip, lines))


def _pieces(text: str) -> list[str]:
    """Return the pieces of an expression that stay on one line, with what separates them."""
    return re.findall(r"[^,& ]+[,& ]*", text)


def _row(node: NodeConfig) -> tuple[str, ...]:
    groups = node.instance_groups
    return (
        node.name,
        " & ".join(expressions_of(node)) or f"shares {node.shares}",
        " & ".join(str(group.instances) for group in groups),
        " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups),
        f"{node.batching_timeout:g} ms",
        "" if node.shares or _is_composite(node) else node.executor,
        ", ".join(node.next),
    )
