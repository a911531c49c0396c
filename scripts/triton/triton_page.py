"""The tables of docs/reference/triton-config.md, made from the table of fields and the corpus."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from triton_corpus import classes_of, files_of_corpus

from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.fields.treatments import Line, Treatment

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/triton-config.md"

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "model": (
        "name",
        "platform",
        "backend",
        "runtime",
        "version_policy",
        "max_batch_size",
        "default_model_filename",
        "cc_model_filenames",
    ),
    "tensors": ("input", "output", "batch_input", "batch_output"),
    "batches": ("dynamic_batching",),
    "sequences": ("sequence_batching",),
    "ensembles": ("ensemble_scheduling",),
    "instances": ("instance_group",),
    "optimization": ("optimization",),
    "parameters": ("parameters",),
    "rest": (
        "model_warmup",
        "model_operations",
        "model_transaction_policy",
        "model_repository_agents",
        "response_cache",
        "model_metrics",
        "metric_tags",
    ),
}
"""The tables of the page, and the fields of each by their first names."""

EMPTY = "it sets nothing"
"""The words of messages that mean nothing by themselves. The page leaves these out."""


def page_of(text: str) -> str:
    """Return the page with its tables made again, between `<!-- table NAME -->` and
    `<!-- end -->`.
    """

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        table = _corpus() if name == "corpus" else _fields(SECTIONS[name])
        return f"<!-- table {name} -->\n" + "\n".join(table) + "\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def _fields(first_names: tuple[str, ...]) -> Iterator[str]:
    """Yield the rows of a table: those of a field's lines, once for fields that have the same."""
    yield "| field | for | | what it does, or why it has no effect |"
    yield "|---|---|---|---|"
    same: dict[tuple[Line, ...], list[str]] = {}
    for path, lines in FIELDS.items():
        if path.split(".")[0] in first_names and lines[-1].words != EMPTY:
            same.setdefault(lines, []).append(path)
    for lines, paths in same.items():
        names = ", ".join(f"`{path}`" for path in paths)
        for line in lines:
            yield f"| {names} | {_condition(line)} | {line.treatment} | {line.words} |"
            names = ""


def _condition(line: Line) -> str:
    """Write the backends and values that a line is for."""
    values = ", ".join(f"`{value}`" if value else "empty" for value in line.values)
    return ": ".join(filter(None, (", ".join(line.backends), values)))


def _corpus() -> Iterator[str]:
    """Yield the rows of a table of the public files."""
    repositories: dict[str, list[dict[str, Any]]] = {}
    for file, facts in files_of_corpus().items():
        repositories.setdefault(file.partition(":")[0], []).append(facts)
    yield (
        "| repository | files | templates | without a refused field | fields | "
        + " | ".join(Treatment)
        + " |"
    )
    yield "|---|" + "--:|" * (4 + len(Treatment))
    sums = [0] * (4 + len(Treatment))
    for repository, files in repositories.items():
        counts = [0] * len(sums)
        for facts in files:
            found = [one.treatment for one in classes_of(facts).values()]
            numbers = [
                1,
                facts["template"],
                Treatment.REFUSED not in found,
                len(found),
                *map(found.count, Treatment),
            ]
            counts = [count + number for count, number in zip(counts, numbers, strict=True)]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        yield f"| {repository} | " + " | ".join(map(str, counts)) + " |"
    yield "| all | " + " | ".join(map(str, sums)) + " |"
