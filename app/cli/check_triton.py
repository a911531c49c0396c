"""Prints the fields of Triton's configurations for `penstock check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from penstock.pipelines.triton.fields.classify import Classified
from penstock.pipelines.triton.fields.report import Report
from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.fields.treatments import Treatment

from .output import printable


def print_reports(reports: Iterable[Report]) -> None:
    """Print a line for each field in the order of the table, those that need a look first."""
    console = Console()
    positions = {field: position for position, field in enumerate(FIELDS)}
    for report in reports:
        counts = Counter(field.treatment for field in report.fields)
        numbers = ", ".join(
            f"{counts[treatment]} {treatment}" for treatment in Treatment if counts[treatment]
        )
        lines = [f"{report.file} ({report.backend or 'no backend'}): {numbers or 'no fields'}"]
        for treatment in reversed(Treatment):
            fields = [field for field in report.fields if field.treatment is treatment]
            fields.sort(key=lambda field: positions.get(field.field, len(positions)))
            lines += [f"  {treatment:<13} {line}" for line in dict.fromkeys(map(_line, fields))]
        console.print(Text("\n".join(lines) + "\n"), soft_wrap=True)


def _line(field: Classified) -> str:
    """Write a field and what is done with it. Those of several tensors are one line, if equal."""
    name = field.path if field.field.startswith("parameters.") else field.field.replace(".*", "")
    depends = any(line.values for line in FIELDS.get(field.field, ()))
    value = f" ({printable(field.value[:100])})" if depends and field.value else ""
    return f"{printable(name)}{value}: {field.words}"
