"""The tables that `penstock backends` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from inspect import cleandoc

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.backends.expressions.registry import BUILTINS, BackendDescription
from penstock.backends.expressions.type_names import value_name

GROUPS = {
    "Images (NumPy)": ("image.",),
    "Images and tensors (torch)": ("image.tensor.",),
    "Models": ("engines.", "torchserve.", "triton_python."),
    "Results": ("operators.classify", "operators.ctc", "operators.top_scores", "operators.yolo"),
    "Control flow": ("operators.compose", "operators.control", "expressions.composite"),
    "Keys": ("operators.keys",),
    "torchpipe's names": ("operators.compat",),
}
"""Heading -> where its backends are, within penstock.backends. The longest place counts."""

OWN_GROUP = "Registered and installed"
"""The heading of backends that are not Penstock's."""


def print_backends(descriptions: Iterable[BackendDescription]) -> None:
    """Print a line for each backend, in groups."""
    groups: dict[str, list[BackendDescription]] = {name: [] for name in (*GROUPS, OWN_GROUP)}
    for backend in descriptions:
        groups[group_of(backend.name)].append(backend)
    longest = max(len(backend.name) for group in groups.values() for backend in group)
    console = Console()
    for name, group in groups.items():
        if not group:
            continue
        table = Table(
            Column("backend", no_wrap=True, min_width=longest),
            Column("here", no_wrap=True),
            "what it does",
            box=box.SIMPLE,
        )
        for backend in group:
            available = "no" if _obstacle(backend) else "yes"
            table.add_row(Text(backend.name), Text(available), Text(_summary(backend)))
        console.print(Text(name))
        console.print(table)
    console.print(Text("penstock backends NAME describes a backend and lists its parameters."))


def group_of(name: str) -> str:
    """Return the heading of a backend."""
    place = BUILTINS.get(name, "").removeprefix("penstock.backends.")
    matches = [
        (len(start), heading)
        for heading, starts in GROUPS.items()
        for start in starts
        if place.startswith(start)
    ]
    return max(matches)[1] if matches else OWN_GROUP


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
